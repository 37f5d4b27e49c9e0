use shim_runtime::prelude::*;

#[containerd_shim(runtime = "io.containerd.hello.v1")]
struct Hello;

struct Vm(Engine);

struct Engine;

impl Container for Vm {
    fn inner(&self) -> Option<&dyn Container> {
        Some(&self.0)
    }
    fn start(&self, _: Stdio) -> Result<Started> {
        unimplemented!()
    }
}

impl Shim for Hello {
    type Container = Vm;
    fn new(_: &Context) -> Result<Self> {
        unimplemented!()
    }
    fn create(&self, _: &mut Create) -> Result<Vm> {
        unimplemented!()
    }
}
