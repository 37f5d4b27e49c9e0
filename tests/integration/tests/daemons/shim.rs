//! The shims under test.

use std::env;
use std::path::{Path, PathBuf};

use integration::built;

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

/// The binary to run under `release`: the example's, or the one that `SHIM_BINARY` names instead of `host` or
/// `runc`.
pub(crate) fn binary(release: Release, example: Example) -> PathBuf {
    match (example, env::var("SHIM_BINARY")) {
        (Example::Host | Example::Runc, Ok(path)) if path.contains('/') => PathBuf::from(path),
        (Example::Host | Example::Runc, Ok(name)) => release.binary(&name),
        (Example::Fixture, _) => PathBuf::from(env!("CARGO_BIN_EXE_containerd-shim-fixture-v1")),
        (Example::Host, _) => built::released("containerd-shim-host-v1").to_owned(),
        (Example::Runc | Example::Crun, _) => built::released("containerd-shim-runc-v2").to_owned(),
        (Example::Wasm, _) => built::released("containerd-shim-wasm-v1").to_owned(),
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
