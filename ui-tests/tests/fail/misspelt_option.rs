use shim_runtime::prelude::*;

#[containerd_shim(runtme = "io.containerd.hello.v1")]
struct Hello;
