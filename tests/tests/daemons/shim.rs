//! The shim under test.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

use crate::daemon::Release;

const NAME: &str = "containerd-shim-host-v1";

/// The binary to run under `release`.
pub(crate) fn binary(release: Release) -> PathBuf {
    match env::var("SHIM_BINARY") {
        Ok(path) if path.contains('/') => PathBuf::from(path),
        Ok(name) => release.binary(&name),
        Err(_) => built().to_owned(),
    }
}

/// Builds the example, once per test process. Release, because that is the file that users copy to
/// their nodes; cargo itself knows whether it is stale.
fn built() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let output = Command::new(env!("CARGO"))
            .args(["build", "--release", "--package=host", "--message-format=json-render-diagnostics"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .expect("run cargo");
        assert!(output.status.success(), "cargo cannot build {NAME}");
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|message| message["reason"] == "compiler-artifact" && message["target"]["name"] == NAME)
            .find_map(|message| message["executable"].as_str().map(PathBuf::from))
            .expect("cargo names the binary that it built")
    })
}
