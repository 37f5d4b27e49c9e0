//! What the crate `shim-testing` needs beyond the public interface. Not for use elsewhere: it may change at any time.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::poll::PollFd;

pub use crate::crash::{
    COMMANDS_VARIABLE as STOP_COMMANDS, FAILURES as FAIL_AT, STOP_VARIABLE as STOP_AT, VARIABLE as CRASH_AT,
};
pub use crate::mutation::{Mutations, rounds};
pub use crate::run::in_process::{InProcess, Served, Told};
pub use crate::sys::KERNEL_LACKS;
use crate::types::{Pid, Signal};
use crate::{mount, sys, wait};

/// Sends a signal, any of the 64, to a process that a pidfd stands for.
pub fn signal_process(pidfd: &OwnedFd, signal: Signal) -> io::Result<()> {
    sys::signal_process(pidfd, signal)
}

/// Sends a signal to one thread of a process.
pub fn signal_thread(process: Pid, thread: Pid, signal: Signal) -> io::Result<()> {
    sys::signal_thread(process, thread, signal)
}

/// Waits until one of the descriptors is ready, at most until `deadline`; returns how many are.
pub fn wait_for_any(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<usize> {
    Ok(wait::wait_for_any(fds, deadline)?)
}

/// The mount points at or below a path, the last mounted first.
pub fn mounts_below(path: &Path) -> io::Result<Vec<PathBuf>> {
    mount::mounts_below(path)
}
