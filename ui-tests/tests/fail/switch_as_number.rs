use shim_runtime::prelude::*;

#[containerd_shim(runtime = "io.containerd.hello.v1", raw, logger = 0)]
struct Hello;
