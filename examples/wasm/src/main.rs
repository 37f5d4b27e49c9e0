//! A shim that runs WebAssembly programs inside itself: `process.args[0]` names a module, as `.wasm` or as
//! text, in the container's root file system. All programs of a pod share one process.

mod program;

use shim_runtime::prelude::*;
use wasmi::Engine;

use crate::program::Program;

/// One engine for all modules of the shim.
#[containerd_shim(runtime = "io.containerd.wasm.v1")]
struct Wasm {
    engine: Engine,
}

impl Shim for Wasm {
    type Container = Program;

    fn new(_: &Context) -> Result<Self> {
        // With fuel a program is halted now and then, to see whether it is to end.
        let mut config = wasmi::Config::default();
        config.consume_fuel(true);
        Ok(Self { engine: Engine::new(&config) })
    }

    fn create(&self, req: &mut Create) -> Result<Program> {
        req.mount_rootfs()?;
        let spec = req.bundle().spec()?;
        // What is refused here is refused by Create, before a client believes in its container.
        Program::load(
            &self.engine,
            &req.bundle().path().join(spec.root.unwrap_or_default().path),
            spec.process,
        )
    }
}
