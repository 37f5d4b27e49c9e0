//! Each example shows one idea; here each is held to it, through the stand-in for containerd, and the console
//! blocks of their READMEs are executed. Neither root nor containerd is needed.

#![expect(clippy::expect_used, reason = "a step that fails is a test that fails")]

mod layers;
mod one_change;
mod own_main;
mod raw;
mod readmes;
mod wasm;

use std::path::Path;
use std::time::Duration;

use integration::built;

/// How long anything is waited for that should come at once.
const LIMIT: Duration = Duration::from_mins(1);

/// The shim of an example, such as `raw` for `containerd-shim-raw-v1`.
fn shim(name: &str) -> &'static Path {
    built::example(&format!("containerd-shim-{name}-v1"))
}
