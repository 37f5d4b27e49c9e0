//! The first layer, by hand: the runtime's parts put together without any macro. This is all there is to know
//! of the attribute.

use std::process::ExitCode;

use shim_runtime::prelude::*;
use shim_runtime::{Config, Entry, level};

/// Runs commands on the host.
struct Layers;

impl Entry for Layers {
    // Which trait the struct implements: `Shim` here, `RawShim` and `Task` for `level::Raw`.
    type Level = level::Managed<Self>;

    // Every option of the attribute is a field. Those that say what would be so anyway can be left to
    // `..Config::DEFAULT`.
    const CONFIG: Config = Config {
        runtime: "io.containerd.layers-by-hand.v1",
        version: env!("CARGO_PKG_VERSION"),
        task: &[2, 3],
        group: &["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"],
        shutdown_on: &[Signal::TERM, Signal::INT],
        reaper: true,
        subreaper: true,
        logger: true,
    };
}

impl Shim for Layers {
    type Container = HostProcess;

    fn new(_: &Context) -> Result<Self> {
        Ok(Self)
    }

    fn create(&self, req: &mut Create) -> Result<HostProcess> {
        HostProcess::create(req)
    }
}

/// One program, five lives: which one it is to lead is on its command line, and `run` reads that.
fn main() -> ExitCode {
    shim_runtime::run::<Layers>()
}
