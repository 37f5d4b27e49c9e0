use shim_runtime::prelude::*;

#[containerd_shim(runtime = "hello")]
struct Hello;
