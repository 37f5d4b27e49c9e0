#![allow(unexpected_cfgs)]

use shim_runtime::prelude::*;

// The one that is left out takes its impl and its `main` with it.
#[cfg(moon)]
#[containerd_shim(runtime = "io.containerd.above.v1")]
struct Above;

#[containerd_shim(runtime = "io.containerd.below.v1")]
#[cfg(moon)]
struct Below;

#[cfg(not(moon))]
#[containerd_shim(runtime = "io.containerd.hello.v1")]
#[cfg(unix)]
#[cfg(not(sun))]
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
