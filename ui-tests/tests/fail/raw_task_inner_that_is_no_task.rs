use shim_runtime::prelude::*;

#[containerd_shim(runtime = "io.containerd.hello.v1", raw)]
struct Hello(Inner);

struct Inner;

impl RawShim for Hello {
    fn new(_: &Context) -> Result<Self> {
        unimplemented!()
    }
}

impl Task for Hello {
    fn inner(&self) -> Option<&dyn Task> {
        Some(&self.0)
    }
}
