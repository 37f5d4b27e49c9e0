use shim_runtime::prelude::*;

#[containerd_shim(runtime = "io.containerd.hello.v1", task = [2, 2], group = ["a", "a"], shutdown_on = [SIGINT, SIGINT])]
struct Hello;
