use shim_runtime::prelude::*;

#[containerd_shim(runtime = "io.containerd.hello.v1")]
struct Hello;

impl Shim for Hello {
    type Container = u32;
    fn new(_: &Context) -> Result<Self> {
        unimplemented!()
    }
    fn create(&self, _: &mut Create) -> Result<u32> {
        unimplemented!()
    }
}
