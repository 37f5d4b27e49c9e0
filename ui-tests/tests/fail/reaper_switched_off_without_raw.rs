use shim_runtime::prelude::*;

#[containerd_shim(runtime = "io.containerd.hello.v1", reaper = false)]
struct Hello;
