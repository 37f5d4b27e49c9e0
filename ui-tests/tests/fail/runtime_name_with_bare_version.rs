use shim_runtime::prelude::*;

#[containerd_shim(runtime = "io.containerd.hello.2")]
struct Hello;
