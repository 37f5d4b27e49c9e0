use shim_runtime::prelude::*;

#[containerd_shim(runtime = "containerd-shim-hello-v1")]
struct Hello;
