//! Where things are.

use std::path::{Path, PathBuf};

/// The folder of the workspace.
///
/// # Panics
/// Never: this crate lies two folders below it.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the workspace is two folders above")
}

/// A program of a containerd that `tests/deps` has unpacked. `line` is its line of releases, such as `1.7`.
pub fn containerd(line: &str, program: &str) -> PathBuf {
    root().join(format!(".test-deps/containerd-{line}/usr/bin/{program}"))
}
