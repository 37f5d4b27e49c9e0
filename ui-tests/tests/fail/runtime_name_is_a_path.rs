use shim_runtime::prelude::*;

#[containerd_shim(runtime = "/usr/local/bin/hello")]
struct Hello;
