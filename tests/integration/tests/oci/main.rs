//! Containers of an OCI runtime: what the example `runc` has its engine do (contract 11), by the stand-in for
//! containerd. Where an engine's part is only noted neither root nor an engine is needed.

mod commands;
mod failures;
mod one_change;
mod recorder;
mod states;

use std::path::Path;
use std::time::Duration;

use integration::built;

/// How long anything is waited for that should come at once.
const LIMIT: Duration = Duration::from_mins(1);

/// The binary of the example `runc`.
fn shim() -> &'static Path {
    built::example("containerd-shim-runc-v2")
}
