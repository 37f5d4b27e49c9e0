use shim_runtime::prelude::*;

#[containerd_shim(runtime = "io.containerd.hello world.v1")]
struct Hello;
