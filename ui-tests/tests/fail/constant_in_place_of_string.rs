use shim_runtime::prelude::*;

#[containerd_shim(runtime = NAME)]
struct Hello;

const NAME: &str = "io.containerd.hello.v1";
