//! The second layer: the attribute writes `Entry`, with a default for every constant that is not given. `main`
//! is still here, and could do something of its own first.

use std::process::ExitCode;

use shim_runtime::prelude::*;

/// Runs commands on the host.
#[containerd_shim(runtime = "io.containerd.layers-on-run.v1", main = false)]
struct Layers;

impl Shim for Layers {
    type Container = HostProcess;

    fn new(_: &Context) -> Result<Self> {
        Ok(Self)
    }

    fn create(&self, req: &mut Create) -> Result<HostProcess> {
        HostProcess::create(req)
    }
}

fn main() -> ExitCode {
    shim_runtime::run::<Layers>()
}
