//! Looking at processes and waiting for their end, through pidfds and `/proc`.
//! A pidfd means one process for good, where a pid can be given to another one.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use rustix::process::{PidfdFlags, pidfd_open};

use shim_runtime::testing::{signal_process, signal_thread, wait_for_any};
use shim_runtime::{Pid, Signal};

/// One process, held by a pidfd.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    fd: OwnedFd,
}

impl Process {
    /// Takes hold of a process; fails if there is none of that id.
    pub fn open(pid: Pid) -> io::Result<Self> {
        let raw =
            rustix::process::Pid::from_raw(pid.get().cast_signed()).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self { pid, fd: pidfd_open(raw, PidfdFlags::empty())? })
    }

    /// Its id.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Whether it has not ended.
    pub fn is_alive(&self) -> bool {
        !self.ended_within(Duration::ZERO)
    }

    /// Waits for its end; whether it came in time.
    pub fn ended_within(&self, limit: Duration) -> bool {
        wait_readable(&[self.fd.as_fd()], limit).is_ok_and(|ready| ready[0])
    }

    /// Sends it a signal, any of the 64; a process that has ended is no error.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        unless_ended(signal_process(&self.fd, signal))
    }

    /// Sends each of its threads a signal, so that whatever system call a thread waits in is interrupted. A signal
    /// that is sent to a process reaches its main thread alone, as long as that one has none waiting.
    pub fn signal_threads(&self, signal: Signal) -> io::Result<()> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid)).into_iter().flatten().flatten();
        let mut threads = tasks.filter_map(|task| Pid::new(task.file_name().to_str()?.parse().ok()?));
        threads.try_for_each(|thread| unless_ended(signal_thread(self.pid, thread, signal)))
    }
}

fn unless_ended(sent: io::Result<()>) -> io::Result<()> {
    match sent {
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(()),
        sent => sent,
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Waits until one of the descriptors can be read or has hung up; all false when the time is over.
pub(crate) fn wait_readable(fds: &[BorrowedFd<'_>], limit: Duration) -> io::Result<Vec<bool>> {
    let deadline = Instant::now() + limit;
    let mut polled: Vec<_> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    wait_for_any(&mut polled, Some(deadline))?;
    Ok(polled.iter().map(|fd| fd.any().unwrap_or(false)).collect())
}

/// The text of one of the kernel's files, below `/proc` above all. Names in it may hold any bytes; those that are no
/// text are replaced.
///
/// # Errors
/// When it cannot be read, because its process is gone for example.
pub fn kernel_text(path: impl AsRef<Path>) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&fs::read(path)?).into_owned())
}

/// All processes whose `/proc` entry satisfies `is_ours`, but this one.
fn scan(is_ours: impl Fn(&Path) -> bool) -> Vec<Pid> {
    let own = Pid::own();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Some((Pid::new(entry.file_name().to_str()?.parse().ok()?)?, entry.path())))
        .filter(|(pid, dir)| *pid != own && !is_zombie(dir) && is_ours(dir))
        .map(|(pid, _)| pid)
        .collect()
}

/// A zombie has ended; only its parent, which may be the system's init, has not looked yet.
fn is_zombie(dir: &Path) -> bool {
    let stat = kernel_text(dir.join("stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, rest)| matches!(rest.trim_start().chars().next(), Some('Z' | 'X')))
}

/// Processes that have `text` in their command line or environment, or run in a directory below it.
pub fn related_to(text: &str) -> Vec<Pid> {
    let holds = |file: PathBuf| {
        fs::read(file).is_ok_and(|bytes| bytes.windows(text.len()).any(|window| window == text.as_bytes()))
    };
    let lies_below = |link: PathBuf| {
        fs::read_link(link).is_ok_and(|to| to.as_os_str().as_bytes().starts_with(text.as_bytes()))
    };
    scan(|dir| {
        holds(dir.join("environ"))
            || lies_below(dir.join("cwd"))
            || lies_below(dir.join("root"))
            || holds(dir.join("cmdline"))
    })
}

/// Processes that hold a listening socket bound to `path`. The peer credentials of a connection would name
/// the process that called listen(2): for most shims `start`, which has ended.
pub fn listeners(path: &Path) -> Vec<Pid> {
    let table = kernel_text("/proc/net/unix").unwrap_or_default();
    let Some(path) = path.to_str() else { return Vec::new() };
    // Num RefCount Protocol Flags Type St Inode Path; flag 0x10000 is __SO_ACCEPTCON.
    let sockets: HashSet<PathBuf> = table
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let listens = fields.nth(3)? == "00010000";
            let inode = fields.nth(2)?;
            (listens && fields.next()? == path).then(|| PathBuf::from(format!("socket:[{inode}]")))
        })
        .collect();
    let holds_one = |dir: &Path| {
        let fds = fs::read_dir(dir.join("fd")).into_iter().flatten().flatten();
        fds.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|target| sockets.contains(&target))
    };
    let found = if sockets.is_empty() { Vec::new() } else { scan(holds_one) };
    // A child between fork and exec holds what its parent does, for a moment.
    let is_child = |pid: &Pid| parent(*pid).is_some_and(|parent| found.contains(&parent));
    found.iter().copied().filter(|pid| !is_child(pid)).collect()
}

/// The parent of a process, if both live.
fn parent(pid: Pid) -> Option<Pid> {
    let stat = kernel_text(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    Pid::new(rest.split_ascii_whitespace().nth(1)?.parse().ok()?)
}

/// How a person recognises a process: its command line.
pub(crate) fn describe(pid: Pid) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<_> = line.split(|byte| *byte == 0).filter(|word| !word.is_empty()).collect();
    format!("process {pid} `{}`", String::from_utf8_lossy(&words.join(&b' ')))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::process::Command;

    use super::*;

    #[test]
    fn the_end_of_a_process_is_seen_and_only_then() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::open(Pid::new(child.id()).unwrap()).unwrap();
        assert!(process.is_alive());
        assert!(!process.ended_within(Duration::from_millis(20)));
        process.signal(Signal::KILL).unwrap();
        assert!(process.ended_within(Duration::from_secs(5)));
        child.wait().unwrap();
    }

    #[test]
    fn a_process_is_found_by_its_environment_and_by_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let marker = dir.path().to_str().unwrap();
        let mut by_env = Command::new("sleep").arg("60").env("MARKER", marker).spawn().unwrap();
        let mut by_dir = Command::new("sleep").arg("60").current_dir(dir.path()).spawn().unwrap();
        let mut other = Command::new("sleep").arg("60").spawn().unwrap();
        let found: Vec<_> = related_to(marker).into_iter().map(Pid::get).collect();
        for child in [&mut by_env, &mut by_dir, &mut other] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert!(found.contains(&by_env.id()) && found.contains(&by_dir.id()), "{found:?}");
        assert!(!found.contains(&other.id()));
    }

    #[test]
    fn a_process_whose_name_is_no_text_is_found_too_and_no_zombie() {
        let name = std::ffi::CString::new(b"\xff) Z").unwrap();
        std::thread::spawn(move || {
            nix::sys::prctl::set_name(&name).unwrap();
            let thread = nix::unistd::gettid();
            assert!(!is_zombie(Path::new(&format!("/proc/self/task/{thread}"))));
            let stat = kernel_text(format!("/proc/self/task/{thread}/comm")).unwrap();
            assert_eq!(stat, "\u{fffd}) Z\n");
        })
        .join()
        .unwrap();
    }

    #[test]
    fn only_a_listening_socket_has_listeners() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _listener = UnixListener::bind(&path).unwrap();
        // The own process is left out, so nobody else listens there.
        assert_eq!(listeners(&path), []);
        assert_eq!(listeners(&dir.path().join("other")), []);
    }
}
