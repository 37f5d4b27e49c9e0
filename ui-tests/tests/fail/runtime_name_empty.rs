use shim_runtime::prelude::*;

#[containerd_shim(runtime = "")]
struct Hello;
