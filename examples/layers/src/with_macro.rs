//! The third layer: the attribute writes `main` too. What is left is the shim.

use shim_runtime::prelude::*;

/// Runs commands on the host.
#[containerd_shim(runtime = "io.containerd.layers.v1")]
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
