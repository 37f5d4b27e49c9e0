use shim_runtime::prelude::*;

#[containerd_shim(runtime = "io.containerd.hello.v1")]
struct Hello;

struct Vm;

impl Container for Vm {}

impl Shim for Hello {
    type Container = Vm;
    fn new(_: &Context) -> Result<Self> {
        unimplemented!()
    }
    fn create(&self, _: &mut Create) -> Result<Vm> {
        unimplemented!()
    }
}
