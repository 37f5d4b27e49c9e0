//! The client's side of a process's stdio: FIFOs made and opened as containerd's clients do it (contract 5.3),
//! captured or passed through. Readers can come late, stop and vanish.

use std::fs::{self, File, OpenOptions};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::stat::Mode as Permissions;
use nix::unistd::mkfifo;

use super::failure::{Broken, Doing, Failure, Result};
use super::process::wait_readable;
use super::{lock, promise};

/// Where a process's streams go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Nowhere: all three strings are empty.
    #[default]
    Null,
    /// Output is kept; stdin is what [`Stdio::write`] says.
    Capture,
    /// As [`Mode::Capture`], but nobody opens the FIFOs before [`Stdio::attach`].
    Late,
    /// Output goes to the own stdout and stderr; stdin is what [`Stdio::feed`] reads.
    Inherit,
}

/// What a process wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Captured {
    /// All of its stdout.
    pub stdout: Vec<u8>,
    /// All of its stderr.
    pub stderr: Vec<u8>,
}

/// The client's end of the streams of one process. Dropping it hangs up.
#[derive(Debug)]
pub struct Stdio {
    mode: Mode,
    terminal: bool,
    dir: PathBuf,
    /// Where both outputs go instead of FIFOs.
    log: Option<String>,
    shared: Arc<Shared>,
    stdin: Mutex<Option<Sender<Vec<u8>>>>,
    /// Its end tells the readers to stop.
    stop: Mutex<Option<PipeWriter>>,
}

#[derive(Debug, Default)]
struct Shared {
    streams: Mutex<Streams>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Streams {
    captured: Captured,
    /// How many readers there are.
    open: usize,
    /// The readers are to keep their ends open and to read nothing.
    paused: bool,
}

impl Stdio {
    /// Makes the FIFOs in `dir` and begins to open them.
    pub(crate) fn new(dir: &Path, mode: Mode, terminal: bool) -> Result<Self> {
        let stdio = Self::bare(dir, mode, terminal, None);
        if mode == Mode::Null {
            return Ok(stdio);
        }
        fs::create_dir_all(dir).doing(|| format!("cannot make `{}`", dir.display()))?;
        for path in stdio.fifos() {
            mkfifo(path.as_str(), Permissions::S_IRWXU).doing(|| format!("cannot make the FIFO `{path}`"))?;
        }
        if mode != Mode::Late {
            stdio.attach()?;
        }
        Ok(stdio)
    }

    /// Has both outputs go where a URI says, and nothing come in, as with `ctr run --log-uri`.
    pub fn log(uri: &str, terminal: bool) -> Self {
        Self::bare(Path::new(""), Mode::Null, terminal, Some(uri.to_owned()))
    }

    fn bare(dir: &Path, mode: Mode, terminal: bool, log: Option<String>) -> Self {
        let (shared, stdin, stop) = (Arc::default(), Mutex::default(), Mutex::default());
        Self { mode, terminal, dir: dir.to_owned(), log, shared, stdin, stop }
    }

    /// The paths of its FIFOs.
    fn fifos(&self) -> impl Iterator<Item = String> {
        let all = if self.mode == Mode::Null { Vec::new() } else { vec!["stdin", "stdout", "stderr"] };
        let without = if self.terminal { "stderr" } else { "" };
        let paths: Vec<_> =
            all.into_iter().filter(|name| *name != without).map(|name| self.path(name)).collect();
        paths.into_iter()
    }

    /// Opens the FIFOs: a client that comes late, or again. The readers are there when this returns, however
    /// busy the machine is: a shim cannot wait for long for one that may never come.
    pub fn attach(&self) -> Result<()> {
        let (stopped, stop) = io::pipe()?;
        *lock(&self.stop) = Some(stop);
        for path in self.fifos().filter(|path| *path != self.stdin()) {
            let fifo = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(&path)?;
            lock(&self.shared.streams).open += 1;
            let (shared, stopped) = (Arc::clone(&self.shared), stopped.try_clone()?);
            let (mode, is_stderr) = (self.mode, path == self.stderr());
            thread::spawn(move || {
                let _ = shared.read(fifo, is_stderr, mode, &stopped);
                lock(&shared.streams).open -= 1;
                shared.changed.notify_all();
            });
        }
        self.open_stdin();
        Ok(())
    }

    /// Closes the client's ends, as if it had died; returns once they are closed.
    pub fn detach(&self) {
        drop(lock(&self.stop).take());
        self.close_stdin();
        self.read_on();
        // A background open that nobody ever answered would wait for ever.
        // Held until all are closed: one may not have got as far as its open.
        let both =
            |path| OpenOptions::new().read(true).write(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
        let _held: Vec<_> = self.fifos().map(both).collect();
        let streams = lock(&self.shared.streams);
        let closed = self.shared.changed.wait_while(streams, |streams| streams.open > 0);
        drop(closed);
    }

    /// Reads nothing more, with the FIFOs open, until [`Stdio::read_on`].
    pub fn stop_reading(&self) {
        lock(&self.shared.streams).paused = true;
    }

    /// Reads again.
    pub fn read_on(&self) {
        lock(&self.shared.streams).paused = false;
        self.shared.changed.notify_all();
    }

    fn open_stdin(&self) {
        let (sender, receiver) = mpsc::channel::<Vec<u8>>();
        let path = self.stdin();
        thread::spawn(move || {
            let Ok(mut fifo) = OpenOptions::new().write(true).open(path) else { return };
            while let Ok(bytes) = receiver.recv() {
                if fifo.write_all(&bytes).is_err() {
                    return;
                }
            }
        });
        *lock(&self.stdin) = Some(sender);
    }

    fn path(&self, name: &str) -> String {
        if let Some(log) = self.log.as_ref().filter(|_| name != "stdin") {
            log.clone()
        } else if self.mode == Mode::Null {
            String::new()
        } else {
            self.dir.join(name).to_string_lossy().into_owned()
        }
    }

    /// The string for stdin in Create or Exec.
    pub fn stdin(&self) -> String {
        self.path("stdin")
    }

    /// The string for stdout.
    pub fn stdout(&self) -> String {
        self.path("stdout")
    }

    /// The string for stderr; empty with a terminal, which has one output.
    pub fn stderr(&self) -> String {
        if self.terminal { String::new() } else { self.path("stderr") }
    }

    /// Whether the process is to have a terminal.
    pub fn terminal(&self) -> bool {
        self.terminal
    }

    /// Writes to the process's stdin, in the background.
    pub fn write(&self, bytes: impl Into<Vec<u8>>) {
        if let Some(sender) = &*lock(&self.stdin) {
            let _ = sender.send(bytes.into());
        }
    }

    /// Closes the client's end of stdin once everything is written. The process sees the end of it only after
    /// `CloseIO` too ([contract 5.3](shim_runtime::contract#s5-3)).
    pub fn close_stdin(&self) {
        lock(&self.stdin).take();
    }

    /// Copies `from` to the process's stdin in the background, closes the client's end and calls `at_end`.
    pub fn feed(&self, mut from: impl Read + Send + 'static, at_end: impl FnOnce() + Send + 'static) {
        let Some(sender) = lock(&self.stdin).take() else { return };
        thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
            drop(sender);
            at_end();
        });
    }

    /// What was captured so far.
    pub fn captured(&self) -> Captured {
        lock(&self.shared.streams).captured.clone()
    }

    /// Waits for the end of stdout and stderr.
    pub fn finish(&self, limit: Duration) -> Result<Captured> {
        let end = Instant::now() + limit;
        let mut streams = lock(&self.shared.streams);
        while streams.open > 0 {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Failure::broken(vec![Broken {
                    promise: promise::STDIO_EOF,
                    seen: format!("{} of the outputs still open after {limit:?}", streams.open),
                    expected: "the end of stdout and stderr".to_owned(),
                }]));
            }
            streams =
                self.shared.changed.wait_timeout(streams, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(streams.captured.clone())
    }

    /// Waits until something was captured that `is_enough` likes; whether it came in time.
    pub fn wait_for(&self, limit: Duration, is_enough: impl Fn(&Captured) -> bool) -> bool {
        let end = Instant::now() + limit;
        let mut streams = lock(&self.shared.streams);
        while !is_enough(&streams.captured) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || streams.open == 0 {
                return false;
            }
            streams =
                self.shared.changed.wait_timeout(streams, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl Shared {
    fn read(&self, mut fifo: File, is_stderr: bool, mode: Mode, stopped: &PipeReader) -> io::Result<()> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let ready = wait_readable(&[fifo.as_fd(), stopped.as_fd()], Duration::from_hours(1))?;
            if ready[1] {
                return Ok(());
            }
            if !ready[0] || self.waits_paused() {
                continue;
            }
            // Not before it is ready: without a writer that has come, a read would give the end.
            match fifo.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => self.take(&buffer[..count], is_stderr, mode),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits while nothing is to be read; whether it had to.
    fn waits_paused(&self) -> bool {
        let streams = lock(&self.streams);
        let paused = streams.paused;
        drop(self.changed.wait_while(streams, |streams| streams.paused));
        paused
    }

    fn take(&self, bytes: &[u8], is_stderr: bool, mode: Mode) {
        if mode == Mode::Inherit {
            // A reader of ours that has gone must not stop the container.
            let _ =
                if is_stderr { pass(io::stderr().lock(), bytes) } else { pass(io::stdout().lock(), bytes) };
            return;
        }
        let mut streams = lock(&self.streams);
        let captured = &mut streams.captured;
        let buffer = if is_stderr { &mut captured.stderr } else { &mut captured.stdout };
        buffer.extend_from_slice(bytes);
        drop(streams);
        self.changed.notify_all();
    }
}

fn pass(mut to: impl Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

impl Drop for Stdio {
    fn drop(&mut self) {
        self.detach();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    #[test]
    fn what_the_other_side_writes_is_captured_until_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let stdio = Stdio::new(&dir.path().join("c1"), Mode::Capture, false).unwrap();
        let mut stdout = OpenOptions::new().write(true).open(stdio.stdout()).unwrap();
        let mut stderr = OpenOptions::new().write(true).open(stdio.stderr()).unwrap();
        stdout.write_all(b"out").unwrap();
        stderr.write_all(b"err").unwrap();
        assert!(stdio.wait_for(LIMIT, |captured| captured.stderr == b"err"));
        drop(stderr);
        let failure = stdio.finish(Duration::from_millis(20)).unwrap_err();
        assert_eq!(failure.promises()[0].promise.name, "stdio.eof");
        drop(stdout);
        let captured = stdio.finish(LIMIT).unwrap();
        assert_eq!((captured.stdout.as_slice(), captured.stderr.as_slice()), (&b"out"[..], &b"err"[..]));
    }

    #[test]
    fn stdin_ends_when_it_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let stdio = Stdio::new(&dir.path().join("c1"), Mode::Capture, true).unwrap();
        assert_eq!(stdio.stderr(), "");
        stdio.write("line\n");
        stdio.close_stdin();
        assert_eq!(fs::read_to_string(stdio.stdin()).unwrap(), "line\n");
    }

    #[test]
    fn null_stdio_has_empty_strings_and_no_files() {
        let dir = tempfile::tempdir().unwrap();
        let stdio = Stdio::new(&dir.path().join("c1"), Mode::Null, false).unwrap();
        assert_eq!([stdio.stdin(), stdio.stdout(), stdio.stderr()], ["", "", ""]);
        assert!(!dir.path().join("c1").exists());
        assert_eq!(stdio.finish(LIMIT).unwrap(), Captured::default());
    }
}
