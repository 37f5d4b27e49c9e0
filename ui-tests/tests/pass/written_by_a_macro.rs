use shim_runtime::prelude::*;

mod parts {
    pub use shim_runtime;
}

macro_rules! shim {
    ($(#[$attribute:meta])* $visibility:vis struct $name:ident, $runtime:literal, $own_main:literal) => {
        #[containerd_shim(runtime = $runtime, version = $runtime, main = $own_main, crate = $crate::parts::shim_runtime)]
        $(#[$attribute])*
        $visibility struct $name;
    };
}

shim!(#[derive(Debug)] struct Hello, "io.containerd.hello.v1", true);

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
