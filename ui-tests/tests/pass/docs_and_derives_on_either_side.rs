use shim_runtime::prelude::*;

/// Above.
#[derive(Debug)]
#[containerd_shim(runtime = "io.containerd.hello.v1")]
/// Below.
#[derive(Clone, PartialEq)]
#[allow(dead_code)]
struct Hello {
    /// The name to greet.
    name: String,
}

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

fn twin(hello: &Hello) -> bool {
    *hello == hello.clone() && !format!("{hello:?}").is_empty()
}
