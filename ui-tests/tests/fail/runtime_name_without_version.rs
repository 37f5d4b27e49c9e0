use shim_runtime::prelude::*;

#[containerd_shim(runtime = "io.containerd.hello")]
struct Hello;
