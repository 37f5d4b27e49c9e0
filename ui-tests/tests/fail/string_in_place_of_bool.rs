use shim_runtime::prelude::*;

#[containerd_shim(runtime = "io.containerd.hello.v1", main = "false")]
struct Hello;

impl Shim for Hello {
    type Container = HostProcess;
    fn new(_: &Context) -> Result<Self> {
        unimplemented!()
    }
    fn create(&self, _: &mut Create) -> Result<HostProcess> {
        unimplemented!()
    }
}

fn main() -> std::process::ExitCode {
    shim_runtime::run::<Hello>()
}
