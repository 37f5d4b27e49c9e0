use shim_runtime::prelude::*;

#[containerd_shim(runtime = "io.containerd.hello.v1", task = [v2], group = [label], shutdown_on = ["SIGTERM", SIGINT;])]
struct Hello;
