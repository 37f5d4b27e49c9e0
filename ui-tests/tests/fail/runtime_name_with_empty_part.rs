use shim_runtime::prelude::*;

#[containerd_shim(runtime = "io..hello.v1")]
struct Hello;
