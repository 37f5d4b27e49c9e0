//! A shim whose author is strict.
#![forbid(unsafe_code)]
#![deny(
    warnings,
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    unused_qualifications,
    unused,
    trivial_casts,
    single_use_lifetimes,
    elided_lifetimes_in_paths,
    rust_2018_idioms,
    future_incompatible,
    absolute_paths_not_starting_with_crate,
    clippy::pedantic
)]

use shim_runtime::prelude::*;
use shim_runtime::{Config, Entry, Signal, run};
use std::process::ExitCode;

/// Greets.
#[containerd_shim(runtime = "io.containerd.hello.v1", version = "1", task = [2, 3], group = ["a"], shutdown_on = [SIGTERM], reaper = true, subreaper = true, logger = true)]
#[derive(Debug)]
pub struct Hello;

/// One greeting.
#[derive(Debug)]
pub struct HostProcess;

impl Container for HostProcess {
    fn start(&self, _: Stdio) -> Result<Started> {
        unimplemented!()
    }
}

impl Shim for Hello {
    type Container = HostProcess;
    fn new(_: &Context) -> Result<Self> {
        unimplemented!()
    }
    fn create(&self, _: &mut Create) -> Result<HostProcess> {
        unimplemented!()
    }
}

/// Uses the names that the attribute writes in full.
#[must_use]
pub fn names() -> (Config, Signal, fn() -> ExitCode) {
    (Hello::CONFIG, Signal::TERM, run::<Hello>)
}
