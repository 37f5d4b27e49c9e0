use shim_runtime::prelude::*;

#[containerd_shim(runtime = "io.containerd.hello.v1", subreaper = false)]
struct Hello;
