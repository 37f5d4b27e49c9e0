//! Binaries of other packages of the workspace, built by cargo once in each process of tests. Cargo itself knows what
//! is stale.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

use crate::workspace;

/// The package of each example.
pub const EXAMPLES: [&str; 8] =
    ["host", "layers", "one-change", "own-main", "raw", "runc", "runc-one-change", "wasm"];

/// Binaries by their names.
type Binaries = HashMap<String, PathBuf>;

/// The debug binary of an example, such as `containerd-shim-host-v1`.
///
/// # Panics
/// When the examples cannot be built or none has that binary.
pub fn example(binary: &str) -> &'static Path {
    static BUILT: OnceLock<Binaries> = OnceLock::new();
    find(BUILT.get_or_init(|| build(&[], &EXAMPLES)), binary)
}

/// The release binary of an example: the file that users copy to their nodes.
///
/// # Panics
/// When the examples cannot be built or none has that binary.
pub fn released(binary: &str) -> &'static Path {
    static BUILT: OnceLock<Binaries> = OnceLock::new();
    find(BUILT.get_or_init(|| build(&["--release"], &["host", "runc", "wasm"])), binary)
}

/// `shimctl`, debug.
///
/// # Panics
/// When it cannot be built.
pub fn shimctl() -> &'static Path {
    static BUILT: OnceLock<Binaries> = OnceLock::new();
    find(BUILT.get_or_init(|| build(&[], &["shimctl"])), "shimctl")
}

fn find<'a>(built: &'a Binaries, binary: &str) -> &'a Path {
    built.get(binary).unwrap_or_else(|| panic!("no `{binary}` among {built:?}"))
}

fn build(flags: &[&str], packages: &[&str]) -> Binaries {
    let output = Command::new(env!("CARGO"))
        .args(["build", "--message-format=json-render-diagnostics"])
        .args(flags)
        .args(packages.iter().map(|package| format!("--package={package}")))
        .current_dir(workspace::root())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .expect("run cargo");
    assert!(output.status.success(), "cargo cannot build {packages:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    let messages = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    messages
        .filter_map(|message| {
            let binary = message["target"]["name"].as_str()?.to_owned();
            Some((binary, PathBuf::from(message["executable"].as_str()?)))
        })
        .collect()
}
