//! Everything a client can do to the streams of a process (contract 5), with readers that are slow, late or
//! gone. Neither root nor containerd is needed, but for the terminals that a real `runc` makes.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a step that fails is a test that fails")]

mod close_io;
mod files;
mod loggers;
mod losses;
mod readers;
mod refusals;
mod terminals;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use shim_runtime::Signal;
use shim_runtime::testing::{Bundle, Dialect, FakeContainerd, Result, Shim, Stdio, Task};

/// The shim that misbehaves on request.
const FIXTURE: &str = env!("CARGO_BIN_EXE_containerd-shim-fixture-v1");
/// How long anything is waited for that should come at once.
const LIMIT: Duration = Duration::from_mins(1);

/// A stand-in with a container that runs until [`Host::end`], for execs.
struct Host {
    ctrd: FakeContainerd,
    bundle: Bundle,
    shim: Shim,
}

impl Host {
    fn new() -> Result<Self> {
        let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
        let bundle = ctrd.bundle("host").args(["sleep", "1000"]).build()?;
        let shim = ctrd.start(FIXTURE, &bundle)?;
        shim.run()?;
        Ok(Self { ctrd, bundle, shim })
    }

    /// Adds an exec that runs a line of shell.
    fn add(&self, id: &str, script: &str, stdio: &Stdio) -> Result<Task> {
        let exec = self.shim.task().exec(id);
        exec.add(&self.bundle, &["sh", "-c", script], stdio)?;
        Ok(exec)
    }

    /// Runs an exec to its end, which is left to be deleted.
    fn run(&self, id: &str, script: &str, stdio: &Stdio) -> Result<Task> {
        let exec = self.add(id, script, stdio)?;
        exec.start()?;
        exec.wait().answer(LIMIT)?;
        Ok(exec)
    }

    /// Ends the container; nothing may be left.
    fn end(mut self) -> Result<()> {
        self.shim.task().kill(Signal::KILL)?;
        self.shim.task().wait().answer(LIMIT)?;
        self.shim.remove()?;
        self.ctrd.check()
    }
}

/// Waits until a condition holds.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < end, "waited {LIMIT:?} in vain for {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Waits until a file holds that text.
fn until_text(path: &Path, text: &str) {
    until(&format!("{text:?} in `{}`", path.display()), || {
        fs::read_to_string(path).is_ok_and(|seen| seen == text)
    });
}

/// The shell's way to wait for a file.
fn when(path: &Path) -> String {
    format!("until [ -e {} ]; do sleep 0.02; done", path.display())
}

/// What `seq` prints.
fn numbers(last: u32, end_of_line: &str) -> String {
    (1..=last).fold(String::new(), |text, number| text + &number.to_string() + end_of_line)
}
