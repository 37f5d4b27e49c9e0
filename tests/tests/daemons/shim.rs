//! The shims under test.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

use crate::daemon::Release;

/// A shim that is run, of an example above all.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Example {
    Host,
    Runc,
    Wasm,
    /// The example `runc`, told by its options to use another engine.
    Crun,
    /// The shim that misbehaves on request.
    Fixture,
}

/// The package of each example, in their order.
const EXAMPLES: [&str; 3] = ["host", "runc", "wasm"];

/// The binary to run under `release`: the example's, or the one that `SHIM_BINARY` names instead of `host` or
/// `runc`.
pub(crate) fn binary(release: Release, example: Example) -> PathBuf {
    match (example, env::var("SHIM_BINARY")) {
        (Example::Host | Example::Runc, Ok(path)) if path.contains('/') => PathBuf::from(path),
        (Example::Host | Example::Runc, Ok(name)) => release.binary(&name),
        (Example::Fixture, _) => PathBuf::from(env!("CARGO_BIN_EXE_containerd-shim-fixture-v1")),
        (Example::Crun, _) => built()[Example::Runc as usize].clone(),
        _ => built()[example as usize].clone(),
    }
}

/// The flags of `ctr run` that choose it: by its path, or where there are options by its name, for which the
/// daemon finds it first.
pub(crate) fn runtime(example: Example, binary: &Path) -> Vec<String> {
    let flags = match example {
        Example::Crun => &["--runtime", "io.containerd.runc.v2", "--runc-binary", "crun"][..],
        _ => &["--runtime", &binary.to_string_lossy()],
    };
    flags.iter().map(|&flag| flag.to_owned()).collect()
}

/// Builds the examples, once per test process. Release, because that is the file that users copy to
/// their nodes; cargo itself knows whether it is stale.
fn built() -> &'static [PathBuf; EXAMPLES.len()] {
    static BUILT: OnceLock<[PathBuf; EXAMPLES.len()]> = OnceLock::new();
    BUILT.get_or_init(|| {
        let output = Command::new(env!("CARGO"))
            .args(["build", "--release", "--message-format=json-render-diagnostics"])
            .args(EXAMPLES.map(|name| format!("--package={name}")))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .expect("run cargo");
        assert!(output.status.success(), "cargo cannot build the examples");
        let text = String::from_utf8_lossy(&output.stdout);
        let messages: Vec<_> =
            text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).collect();
        EXAMPLES.map(|name| {
            let target = |message: &Value| message["target"]["name"].as_str().unwrap_or_default().to_owned();
            let is_it = |message: &&Value| target(message).starts_with(&format!("containerd-shim-{name}-v"));
            let mut found = messages.iter().filter(is_it);
            let executable = found.find_map(|message| message["executable"].as_str().map(PathBuf::from));
            executable.expect("cargo names the binaries that it built")
        })
    })
}
