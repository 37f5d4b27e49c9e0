use shim_runtime::prelude::*;

#[containerd_shim(runtime = "io.containerd.hello.v1")]
#[containerd_shim(runtime = "io.containerd.hello.v1")]
struct Hello;

struct HostProcess;

impl Container for HostProcess {
    fn start(&self, _: Stdio) -> Result<Started> {
        unimplemented!()
    }
}

impl Shim for Hello {
    type Container = HostProcess;
    fn new(_: &Context) -> Result<Self> {
        unimplemented!()
    }
    fn create(&self, _: &mut Create) -> Result<HostProcess> {
        unimplemented!()
    }
}
