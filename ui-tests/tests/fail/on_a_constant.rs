use shim_runtime::prelude::*;

#[containerd_shim(runtime = "io.containerd.hello.v1")]
const HELLO: u8 = 1;
