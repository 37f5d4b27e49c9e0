use shim_runtime::prelude::*;

#[containerd_shim = "io.containerd.hello.v1"]
struct Hello;
