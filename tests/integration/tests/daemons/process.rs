//! Processes held by descriptor, so that a pid that was given to somebody else is never signalled, and
//! waiting for conditions with a limit.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// How long a test waits for something that should happen at once on a machine that is not busy.
pub(crate) const LIMIT: Duration = Duration::from_mins(1);

/// Looks again and again until `look` has something; panics with `what` when the limit is over.
pub(crate) fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    within_limit(look).unwrap_or_else(|| panic!("waited {} s in vain for {what}", LIMIT.as_secs()))
}

/// Looks again and again until `look` has something or the limit is over.
pub(crate) fn within_limit<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        let found = look();
        if found.is_some() || start.elapsed() > LIMIT {
            return found;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// A running process.
pub(crate) struct Process {
    pub(crate) pid: i32,
    fd: OwnedFd,
}

impl Process {
    /// None when there is no such process (any more).
    pub(crate) fn open(pid: i32) -> Option<Self> {
        let fd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        Some(Self { pid, fd })
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // The only failure is that it has ended, which the caller waits for anyway.
        let _ = pidfd_send_signal(&self.fd, signal);
    }

    /// Waits until it has ended; panics with `what` when the limit is over.
    pub(crate) fn ended(&self, what: &str) {
        let limit = Timespec { tv_sec: LIMIT.as_secs() as i64, tv_nsec: 0 };
        let ready = poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&limit)).expect("poll a pidfd");
        assert!(ready == 1, "waited {} s in vain for the end of {what} ({})", LIMIT.as_secs(), self.pid);
    }

    pub(crate) fn has_ended(&self) -> bool {
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&at_once)).expect("poll a pidfd") == 1
    }

    pub(crate) fn command(&self) -> String {
        self.file("cmdline").replace('\0', " ").trim_end().to_owned()
    }

    pub(crate) fn executable(&self) -> PathBuf {
        fs::read_link(format!("/proc/{}/exe", self.pid)).unwrap_or_default()
    }

    fn file(&self, name: &str) -> String {
        let bytes = fs::read(format!("/proc/{}/{name}", self.pid)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn belongs_to(&self, root: &Path) -> bool {
        let root = root.to_string_lossy();
        self.file("environ").contains(&*root) || self.file("cmdline").contains(&*root)
    }
}

/// All processes that belong to the daemon in `root`: daemon and shims inherit the path in their
/// environment, containers are given it.
pub(crate) fn belonging_to(root: &Path) -> Vec<Process> {
    fs::read_dir("/proc")
        .expect("read /proc")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(Process::open)
        .filter(|process| process.belongs_to(root))
        .collect()
}
