use shim_runtime::prelude::*;

#[containerd_shim(runtime = "io.containerd.hello.v1")]
struct Hello;

struct Logged(Managed<Hello>);

impl Shim for Hello {
    type Container = HostProcess;
    fn new(_: &Context) -> Result<Self> {
        unimplemented!()
    }
    fn create(&self, _: &mut Create) -> Result<HostProcess> {
        unimplemented!()
    }
    fn task(managed: Managed<Self>) -> impl Task {
        Logged(managed)
    }
}
