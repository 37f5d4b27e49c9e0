//! The small values that everything else speaks in: process ids, signals and exits.
//! They carry the kernel's meaning only; which process is whose is decided above.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use protobuf::well_known_types::timestamp::Timestamp;

use crate::error::{Error, Result};

/// The id of a live or once live process; never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pid(u32);

impl Pid {
    /// A process id as the kernel gives it; `None` for 0 and for what cannot be one.
    pub fn new(raw: u32) -> Option<Self> {
        (raw != 0 && i32::try_from(raw).is_ok()).then_some(Self(raw))
    }

    /// The id of this process.
    pub fn own() -> Self {
        Self(std::process::id())
    }

    /// The number, as the task API carries it.
    pub fn get(self) -> u32 {
        self.0
    }

    /// The number, as system calls want it.
    pub(crate) fn raw(self) -> i32 {
        self.0 as i32
    }
}

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A signal number, 0 to 64; 0 only asks whether the process is there.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signal(i32);

impl Signal {
    /// Hang-up.
    pub const HUP: Self = Self(libc::SIGHUP);
    /// Interrupt, as Ctrl-C sends it.
    pub const INT: Self = Self(libc::SIGINT);
    /// Quit.
    pub const QUIT: Self = Self(libc::SIGQUIT);
    /// Kill: cannot be caught.
    pub const KILL: Self = Self(libc::SIGKILL);
    /// First user-defined signal.
    pub const USR1: Self = Self(libc::SIGUSR1);
    /// Second user-defined signal.
    pub const USR2: Self = Self(libc::SIGUSR2);
    /// A pipe without a reader.
    pub const PIPE: Self = Self(libc::SIGPIPE);
    /// A timer went off.
    pub const ALRM: Self = Self(libc::SIGALRM);
    /// Termination, the polite request.
    pub const TERM: Self = Self(libc::SIGTERM);
    /// Stop: cannot be caught.
    pub const STOP: Self = Self(libc::SIGSTOP);
    /// Continue.
    pub const CONT: Self = Self(libc::SIGCONT);
    /// The terminal's size changed.
    pub const WINCH: Self = Self(libc::SIGWINCH);

    /// A signal by its number, as a Kill request carries it; 0 to 64.
    pub fn new(number: u32) -> Result<Self> {
        match i32::try_from(number) {
            Ok(number @ 0..=64) => Ok(Self(number)),
            _ => Err(Error::invalid_argument(format!("there is no signal {number}; the last is 64"))),
        }
    }

    /// The number.
    pub fn number(self) -> i32 {
        self.0
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match nix::sys::signal::Signal::try_from(self.0) {
            Ok(known) => f.write_str(known.as_str()),
            Err(_) => write!(f, "signal {}", self.0),
        }
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How and when a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The exit code, or 128 plus the signal's number.
    pub status: u32,
    /// When it was reaped. State, Wait, Delete and the events all carry this one value
    /// ([contract 6.4](crate::contract#s6-4)).
    pub at: SystemTime,
}

impl Exit {
    /// An exit that is noticed now.
    pub fn now(status: u32) -> Self {
        Self { status, at: SystemTime::now() }
    }

    /// When it was reaped, as answers and events carry it.
    pub fn timestamp(self) -> Timestamp {
        let since = self.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanos: since.subsec_nanos() as i32,
            ..Timestamp::default()
        }
    }

    /// The exit that a raw wait status tells of. Signals of 32 and above are as good as any.
    pub(crate) fn from_wait_status(raw: i32) -> Self {
        let status = if libc::WIFEXITED(raw) { libc::WEXITSTATUS(raw) } else { 128 + libc::WTERMSIG(raw) };
        Self::now(status as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_real_time_signal_is_an_exit_like_any_other() {
        assert_eq!(Exit::from_wait_status(34).status, 128 + 34);
        assert_eq!(Exit::from_wait_status(3 << 8).status, 3);
        assert_eq!(Exit::from_wait_status(9 | 0x80).status, 137);
    }

    #[test]
    fn a_signal_beyond_the_last_is_refused_by_number() {
        assert!(Signal::new(64).is_ok());
        let error = Signal::new(65).unwrap_err();
        assert_eq!(error.to_string(), "there is no signal 65; the last is 64");
    }

    #[test]
    fn pid_zero_and_beyond_the_kernels_range_are_no_pids() {
        assert!(Pid::new(0).is_none());
        assert!(Pid::new(u32::MAX).is_none());
        assert_eq!(Pid::new(7).map(Pid::get), Some(7));
    }
}
