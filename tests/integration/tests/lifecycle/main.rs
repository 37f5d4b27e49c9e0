//! The lives of shims and containers, each race and fault forced (contract 4, 6 and 9), by the stand-in for
//! containerd and a shim that misbehaves on request. Neither root nor containerd is needed.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod bad_input;
mod confinement;
mod crashes;
mod deletes;
mod execs;
mod exits;
mod given_up;
mod hangs;
mod host;
mod leaks;
mod oci;
mod pausing;
mod shared_pids;
mod start;
mod strangers;
mod switched_off;
mod threads;
mod wire;

use std::path::Path;
use std::time::{Duration, Instant};

use shim_testing::{Bundle, BundleBuilder, Dialect, FakeContainerd, Result};

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

/// Waits for a condition that nothing tells of.
fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < end, "in vain waited for: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}
