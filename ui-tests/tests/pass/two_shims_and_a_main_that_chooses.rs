use shim_runtime::prelude::*;

#[containerd_shim(runtime = "io.containerd.hello.v1", main = false)]
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

#[containerd_shim(runtime = "io.containerd.bye.v1", main = false, raw)]
struct Bye;

impl RawShim for Bye {
    fn new(_: &Context) -> Result<Self> {
        unimplemented!()
    }
}

impl Task for Bye {}

fn main() -> std::process::ExitCode {
    match std::env::args().next() {
        Some(name) if name.ends_with("bye-v1") => shim_runtime::run::<Bye>(),
        _ => shim_runtime::run::<Hello>(),
    }
}
