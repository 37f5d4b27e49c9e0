use shim_runtime::prelude::*;

#[containerd_shim(runtime = "io.containerd.hello.v1")]
#[derive(Debug, Clone)]
enum Hello {
    World,
}
