//! Containers of an OCI runtime: what the example `runc` has its engine do (contract 11), by the stand-in for
//! containerd. Where an engine's part is only noted neither root nor an engine is needed.

mod commands;
mod failures;
mod recorder;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

/// How long anything is waited for that should come at once.
const LIMIT: Duration = Duration::from_mins(1);

/// The example's binary, built once per test process.
fn shim() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let status = Command::new(env!("CARGO"))
            .args(["build", "--package=runc"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdin(Stdio::null())
            .status();
        assert!(status.is_ok_and(|status| status.success()), "cargo cannot build the example");
        // Both lie where cargo puts what it builds for tests.
        Path::new(env!("CARGO_BIN_EXE_shimctl")).with_file_name("containerd-shim-runc-v2")
    })
}
