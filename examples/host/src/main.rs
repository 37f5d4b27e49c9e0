//! A shim that runs `process.args` of the bundle straight on the host, inside the bundle's root file system.

use shim_runtime::prelude::*;

/// Every container is one process of the host.
#[containerd_shim(runtime = "io.containerd.host.v1")]
struct Host;

impl Shim for Host {
    type Container = HostProcess;
    fn new(_: &Context) -> Result<Self> {
        Ok(Self)
    }
    fn create(&self, req: &mut Create) -> Result<HostProcess> {
        HostProcess::create(req)
    }
}
