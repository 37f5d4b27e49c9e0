//! Everything a client can do to the streams of a process (contract 5), with readers that are slow, late or
//! gone. Neither root nor containerd is needed, but for the terminals that a real `runc` makes.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a step that fails is a test that fails")]

mod close_io;
mod ends;
mod files;
mod loggers;
mod losses;
mod names;
mod owners;
mod readers;
mod refusals;
mod terminals;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use shim_runtime::Signal;
use shim_testing::{Bundle, Dialect, FakeContainerd, Result, Shim, Stdio, Task};

/// The shim that misbehaves on request.
const FIXTURE: &str = env!("CARGO_BIN_EXE_containerd-shim-fixture-v1");
/// How long anything is waited for that should come at once.
const LIMIT: Duration = Duration::from_mins(1);

/// Whether the test can run; with `SHIM_TESTS=all` it must.
fn has_runc() -> bool {
    let runc = std::process::Command::new("runc").arg("--version").output().is_ok();
    let possible = runc && nix::unistd::geteuid().is_root() && Path::new("/bin/busybox").exists();
    let needed = std::env::var_os("SHIM_TESTS").is_some_and(|tests| tests == "all");
    assert!(possible || !needed, "root, runc and a static busybox are needed");
    if !possible {
        println!("left out: stdio::owners and stdio::terminals need root, runc and a static busybox");
    }
    possible
}

/// A stand-in with a container that runs until [`Host::end`], for execs.
struct Host {
    ctrd: FakeContainerd,
    bundle: Bundle,
    shim: Shim,
    /// How many the shim had before there were any execs.
    descriptors: usize,
}

impl Host {
    fn new() -> Result<Self> {
        let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
        let bundle = ctrd.bundle("host").args(["sleep", "1000"]).build()?;
        let shim = ctrd.start(FIXTURE, &bundle)?;
        shim.run()?;
        let descriptors = count(&shim, "fd")?;
        Ok(Self { ctrd, bundle, shim, descriptors })
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

    /// Ends the container; nothing may be left, nor of execs in the shim.
    fn end(mut self) -> Result<()> {
        until("the descriptors to be closed", || {
            count(&self.shim, "fd").is_ok_and(|count| count <= self.descriptors)
        });
        self.shim.task().kill(Signal::KILL)?;
        self.shim.task().wait().answer(LIMIT)?;
        self.shim.remove()?;
        self.ctrd.check()
    }
}

/// How much of something a shim has: `fd`, `task`.
fn count(shim: &Shim, what: &str) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{}/{what}", shim.server()?.pid()))?.count())
}

/// Waits until a condition holds.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < end, "waited {LIMIT:?} in vain for {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Waits until nothing wakes a shim any more.
fn until_asleep(shim: &Shim) -> Result<()> {
    let tasks = format!("/proc/{}/task", shim.server()?.pid());
    let wakeups = || {
        let threads = fs::read_dir(&tasks).unwrap().flatten();
        let of = |status: String| {
            let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches"))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        };
        threads.filter_map(|thread| of(fs::read_to_string(thread.path().join("status")).ok()?)).sum::<u64>()
    };
    until("the shim to sleep", || {
        let before = wakeups();
        std::thread::park_timeout(Duration::from_millis(500));
        wakeups() == before
    });
    Ok(())
}

/// Waits until a process that writes small blocks without end is held up: nothing was written for a while.
fn until_stuck(exec: &Task) -> Result<()> {
    let io = format!("/proc/{}/io", exec.state()?.pid);
    let written = || {
        let text = shim_testing::kernel_text(&io).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix("wchar: ")?.parse::<u64>().ok())
    };
    let (mut last, mut same) = (None, 0);
    until("the writer to be held up", || {
        let now = written().filter(|count| *count > 0);
        same = if now.is_some() && now == last { same + 1 } else { 0 };
        last = now;
        same >= 20
    });
    Ok(())
}

/// Waits until a file holds that text.
fn until_text(path: &Path, text: &str) {
    until(&format!("{text:?} in `{}`", path.display()), || {
        fs::read_to_string(path).is_ok_and(|seen| seen == text)
    });
}

/// Writes a program in shell.
fn write_program(path: &Path, script: &str) {
    fs::write(path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// The shell's way to wait for a file.
fn when(path: &Path) -> String {
    format!("until [ -e {} ]; do sleep 0.02; done", path.display())
}

/// What `seq` prints.
fn numbers(last: u32, end_of_line: &str) -> String {
    (1..=last).fold(String::new(), |text, number| text + &number.to_string() + end_of_line)
}
