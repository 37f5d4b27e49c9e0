use shim_runtime::prelude::*;

#[containerd_shim(name = "io.containerd.hello.v1", no_sub_reaper = true)]
struct Hello;
