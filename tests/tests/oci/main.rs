//! Containers of an OCI runtime: what the example `runc` has its engine do (contract 11), by the stand-in for
//! containerd. Where an engine's part is only noted neither root nor an engine is needed.

mod commands;
mod failures;
mod one_change;
mod recorder;
mod states;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Once;
use std::time::Duration;

/// How long anything is waited for that should come at once.
const LIMIT: Duration = Duration::from_mins(1);

/// The binary of the example `runc`.
fn shim() -> PathBuf {
    example("containerd-shim-runc-v2")
}

/// The binary of an example, built once per test process.
fn example(binary: &str) -> PathBuf {
    static BUILT: Once = Once::new();
    BUILT.call_once(|| {
        let status = Command::new(env!("CARGO"))
            .args(["build", "--package=runc", "--package=runc-one-change"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdin(Stdio::null())
            .status();
        assert!(status.is_ok_and(|status| status.success()), "cargo cannot build the examples");
    });
    // Both lie where cargo puts what it builds for tests.
    Path::new(env!("CARGO_BIN_EXE_shimctl")).with_file_name(binary)
}
