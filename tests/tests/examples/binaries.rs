//! The examples' binaries.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

/// Every example's package.
pub(crate) const EXAMPLES: [&str; 8] =
    ["host", "layers", "one-change", "own-main", "raw", "runc", "runc-one-change", "wasm"];

/// The shim of that name, such as `raw` for `containerd-shim-raw-v1`.
pub(crate) fn shim(name: &str) -> PathBuf {
    dir().join(format!("containerd-shim-{name}-v1"))
}

/// The folder with all of them. They are built once per test process; cargo itself knows what is stale.
pub(crate) fn dir() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let output = Command::new(env!("CARGO"))
            .args(["build", "--message-format=json-render-diagnostics"])
            .args(EXAMPLES.map(|name| format!("--package={name}")))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .expect("run cargo");
        assert!(output.status.success(), "cargo cannot build the examples");
        let text = String::from_utf8_lossy(&output.stdout);
        let messages = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut executables =
            messages.filter_map(|message| message["executable"].as_str().map(PathBuf::from));
        let executable = executables.next().expect("cargo names what it built");
        executable.parent().expect("a file is in a folder").to_owned()
    })
}
