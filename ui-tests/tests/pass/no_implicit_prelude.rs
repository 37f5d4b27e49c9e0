#![no_implicit_prelude]

extern crate shim_runtime as renamed;

use ::renamed::{Container, Context, Create, Result, Shim, Started, Stdio};

#[::renamed::containerd_shim(runtime = "io.containerd.hello.v1", shutdown_on = [SIGTERM], crate = ::renamed)]
struct Hello;

struct HostProcess;

impl Container for HostProcess {
    fn start(&self, _: Stdio) -> Result<Started> {
        ::std::unimplemented!()
    }
}

impl Shim for Hello {
    type Container = HostProcess;
    fn new(_: &Context) -> Result<Self> {
        ::std::unimplemented!()
    }
    fn create(&self, _: &mut Create) -> Result<HostProcess> {
        ::std::unimplemented!()
    }
}
