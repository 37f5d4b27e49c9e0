#![allow(non_camel_case_types)]

use shim_runtime::prelude::*;

#[containerd_shim(runtime = "io.containerd.hello.v1")]
pub(crate) struct r#struct
where
    u8: Copy,
{
    r#type: u8,
}

struct HostProcess;

impl Container for HostProcess {
    fn start(&self, _: Stdio) -> Result<Started> {
        unimplemented!()
    }
}

impl Shim for r#struct {
    type Container = HostProcess;
    fn new(_: &Context) -> Result<Self> {
        unimplemented!()
    }
    fn create(&self, _: &mut Create) -> Result<HostProcess> {
        unimplemented!()
    }
}
