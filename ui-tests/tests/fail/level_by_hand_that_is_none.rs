use shim_runtime::prelude::*;

struct Hello;

impl shim_runtime::Entry for Hello {
    type Level = Hello;
    const CONFIG: shim_runtime::Config =
        shim_runtime::Config { runtime: "io.containerd.hello.v1", version: "1", ..shim_runtime::Config::DEFAULT };
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

fn main() {}
