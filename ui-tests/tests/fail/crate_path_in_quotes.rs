use shim_runtime::prelude::*;

#[containerd_shim(runtime = "io.containerd.hello.v1", crate = "::my_reexport::shim_runtime")]
struct Hello;
