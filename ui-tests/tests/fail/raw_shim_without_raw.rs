use shim_runtime::prelude::*;

#[containerd_shim(runtime = "io.containerd.hello.v1")]
struct Hello;

impl RawShim for Hello {
    fn new(_: &Context) -> Result<Self> {
        unimplemented!()
    }
}

impl Task for Hello {}
