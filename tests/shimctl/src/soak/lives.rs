//! The lives of containers and execs: what each does, how it ends, and what has to come of it.

use shim_runtime::Signal;
use shim_testing::{Captured, Failure, FakeContainerd, Mode, Result, Shim, Stdio, Task, Waiting};

use super::{GROUP, LIMIT, Soak};

/// How much those write that write much: more than a pipe holds.
const MUCH: usize = 200_000;

/// A life; numbers give different ones.
#[derive(Default)]
struct Life {
    script: String,
    terminal: bool,
    /// What it reads from its stdin.
    input: &'static str,
    /// What ends it, once it is ready or, if it is never started, at once.
    signal: Option<Signal>,
    never_started: bool,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    status: u32,
}

impl Life {
    /// How many there are that execs have as well.
    const KINDS: u64 = 7;

    fn of_exec(n: u64) -> Self {
        let status = u32::try_from(n % 100).unwrap_or_default();
        let says = |text: &str, script: String| Self {
            script,
            stdout: text.as_bytes().to_vec(),
            status,
            ..Self::default()
        };
        match n % Self::KINDS {
            0 => says("", format!("exit {status}")),
            1 => Self {
                stderr: format!("err {n}\n").into_bytes(),
                ..says(&format!("out {n}\n"), format!("echo out {n}; echo err {n} >&2; exit {status}"))
            },
            2 => {
                Self { stdout: vec![0; MUCH], ..says("", format!("head -c {MUCH} /dev/zero; exit {status}")) }
            }
            3 => Self { input: "what was sent\n", ..says("what was sent\n", format!("cat; exit {status}")) },
            4 => Self {
                terminal: true,
                ..says(&format!("out {n}\r\n"), format!("echo out {n}; exit {status}"))
            },
            5 => Self {
                signal: Some(Signal::KILL),
                status: 137,
                ..says("ready\n", "echo ready; exec sleep 1000".to_owned())
            },
            // The child tells: by then a signal ends it, and not only what was a shell before.
            _ => Self {
                signal: Some(Signal::TERM),
                ..says(
                    "ready\n",
                    format!("trap 'kill $!; exit {status}' TERM; (echo ready; exec sleep 1000) & wait"),
                )
            },
        }
    }

    fn of_container(n: u64) -> Self {
        if n % (Self::KINDS + 1) < Self::KINDS {
            return Self::of_exec(n);
        }
        let script = "exit 1".to_owned();
        Self { script, never_started: true, signal: Some(Signal::KILL), status: 137, ..Self::default() }
    }

    fn args(&self) -> [&str; 3] {
        ["sh", "-c", &self.script]
    }

    /// All between the start and the Delete.
    fn live(&self, task: &Task, stdio: &Stdio, waiting: &Waiting) -> Result<()> {
        if !self.input.is_empty() {
            stdio.write(self.input);
            stdio.close_stdin();
            task.close_io()?;
        }
        if let Some(signal) = self.signal {
            if !stdio.wait_for(LIMIT, |captured| captured.stdout == self.stdout) {
                return Err(Failure::setup(format!("it was not ready within {LIMIT:?}")));
            }
            task.kill(signal)?;
        }
        let status = waiting.answer(LIMIT)?.exit_status;
        if status == self.status {
            return Ok(());
        }
        Err(Failure::setup(format!("`{}` ended with {status} instead of {}", self.script, self.status)))
    }

    fn compare(&self, captured: &Captured) -> Result<()> {
        let streams =
            [("stdout", &captured.stdout, &self.stdout), ("stderr", &captured.stderr, &self.stderr)];
        match streams.into_iter().find(|(_, seen, expected)| seen != expected) {
            None => Ok(()),
            Some((name, seen, expected)) => Err(Failure::setup(format!(
                "{} bytes came from the {name} of `{}`, and not the {} expected ones",
                seen.len(),
                self.script,
                expected.len()
            ))),
        }
    }
}

/// One container, from its bundle's beginning to its end.
pub(super) fn container(soak: &Soak, ctrd: &FakeContainerd, n: u64) -> Result<()> {
    let life = Life::of_container(n);
    let mut bundle = soak.play.rooted(ctrd.bundle(&format!("c{n}"))).capture().args(life.args());
    if life.terminal {
        bundle = bundle.terminal();
    }
    // No divisor in common with the number of lives, so that each comes with both kinds of shim.
    if n % 5 != 4 {
        bundle = bundle.group(GROUP);
    }
    let mut shim = ctrd.start(&soak.shim, &bundle.build()?)?;
    let lived = run(&mut shim, &life);
    if lived.is_err() {
        shim.abandon();
    }
    ctrd.forget(&shim.task());
    lived
}

fn run(shim: &mut Shim, life: &Life) -> Result<()> {
    let task = shim.task();
    let waiting = if life.never_started {
        task.create(shim.bundle())?;
        task.wait()
    } else {
        shim.run()?
    };
    life.live(&task, shim.bundle().stdio(), &waiting)?;
    shim.remove()?;
    life.compare(&shim.bundle().stdio().finish(LIMIT)?)
}

/// One exec of the container that runs all the time.
pub(super) fn exec(ctrd: &FakeContainerd, anchor: &Shim, n: u64) -> Result<()> {
    let (life, id) = (Life::of_exec(n), format!("e{n}"));
    let task = anchor.task().exec(&id);
    let stdio = ctrd.stdio(&id, Mode::Capture, life.terminal)?;
    task.add(anchor.bundle(), &life.args(), &stdio)?;
    let lived = start(&task, &stdio, &life);
    if lived.is_err() {
        // It may be gone already, or never have been there.
        let _ = task.kill(Signal::KILL);
        let _ = task.delete();
    }
    ctrd.forget(&task);
    lived
}

fn start(task: &Task, stdio: &Stdio, life: &Life) -> Result<()> {
    let waiting = task.wait();
    task.start()?;
    life.live(task, stdio, &waiting)?;
    task.delete()?;
    life.compare(&stdio.finish(LIMIT)?)
}
