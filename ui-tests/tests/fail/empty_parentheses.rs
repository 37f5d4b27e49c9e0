use shim_runtime::prelude::*;

#[containerd_shim()]
struct Hello;
