//! Each example shows one idea; here each is held to it, through the stand-in for containerd, and the console
//! blocks of their READMEs are executed. Neither root nor containerd is needed.

#![expect(clippy::expect_used, reason = "a step that fails is a test that fails")]

mod binaries;
mod layers;
mod one_change;
mod own_main;
mod raw;
mod readmes;
mod wasm;

use std::time::Duration;

/// How long anything is waited for that should come at once.
const LIMIT: Duration = Duration::from_mins(1);
