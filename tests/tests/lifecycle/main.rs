//! The lives of shims and containers, each race and fault forced (contract 4, 6 and 9), by the stand-in for
//! containerd and a shim that misbehaves on request. Neither root nor containerd is needed.

mod bad_input;
mod crashes;
mod exits;
mod runc;
mod start;
mod switched_off;
mod wire;

use std::path::Path;
use std::time::Duration;

use shim_runtime::testing::{Bundle, BundleBuilder, Dialect, FakeContainerd, Result};

/// The shim that misbehaves on request.
const FIXTURE: &str = env!("CARGO_BIN_EXE_containerd-shim-fixture-v1");
/// How long anything is waited for that should come at once.
const LIMIT: Duration = Duration::from_mins(1);

/// Every dialect whose daemons speak to a shim differently.
const BOTH: [Dialect; 2] = [Dialect::LEGACY, Dialect::PARAMS];

/// A bundle for a container of one of the fixture's kinds that runs a line of shell.
fn shell(ctrd: &FakeContainerd, id: &str, kind: &str, script: &str) -> Result<Bundle> {
    bundle(ctrd, id, kind).args(["sh", "-c", script]).build()
}

fn bundle(ctrd: &FakeContainerd, id: &str, kind: &str) -> BundleBuilder {
    let builder = ctrd.bundle(id).capture();
    if kind.is_empty() { builder } else { builder.annotation("fixture/kind", kind) }
}

/// The names in a folder, sorted.
fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
