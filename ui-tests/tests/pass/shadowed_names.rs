#![allow(non_camel_case_types, unused_macros)]

mod std {}
mod core {}
mod level {}
mod shim_runtime {}
struct Ok;
struct Err;
struct Option;
struct Result;
struct Config;
struct Entry;
struct ExitCode;
struct Managed;
struct Signal;
struct str;
struct u8;
fn run() {}
macro_rules! env {
    () => {};
}

use ::shim_runtime::prelude::{Container, Context, Create, Shim, Started, Stdio};

#[::shim_runtime::containerd_shim(runtime = "io.containerd.hello.v1", task = [2], group = ["a"], shutdown_on = [SIGTERM])]
struct Hello;

struct HostProcess;

impl Container for HostProcess {
    fn start(&self, _: Stdio) -> ::shim_runtime::Result<Started> {
        ::core::unimplemented!()
    }
}

impl Shim for Hello {
    type Container = HostProcess;
    fn new(_: &Context) -> ::shim_runtime::Result<Self> {
        ::core::unimplemented!()
    }
    fn create(&self, _: &mut Create) -> ::shim_runtime::Result<HostProcess> {
        ::core::unimplemented!()
    }
}
