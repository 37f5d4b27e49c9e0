use shim_runtime::prelude::*;

#[containerd_shim(runtime = "io.containerd.hello.v1"; version = "1.0")]
struct Hello;
