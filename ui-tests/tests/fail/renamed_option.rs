use shim_runtime::prelude::*;

#[containerd_shim(runtime = "io.containerd.hello.v1", no_main)]
struct Hello;

fn main() {}
