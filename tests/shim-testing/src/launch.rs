//! Running the shim's binary as the daemon does: working directory, process group, flags, environment, and
//! for `start` one pipe for stdout and stderr that is read to its end (contract 2.1 to 2.3).

use std::ffi::OsString;
use std::fmt;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::failure::{Doing, Failure, Result};
use super::process::{Process, wait_readable};
use shim_runtime::{Pid, Signal};

/// How long a pipe may stay open after the process has ended; the daemon would wait for ever.
const EOF_LIMIT: Duration = Duration::from_secs(2);

/// What is run; every part of it may be changed, to see what a shim makes of it.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The binary.
    pub program: PathBuf,
    /// Its flags and the action.
    pub args: Vec<OsString>,
    /// What is added to the environment.
    pub env: Vec<(OsString, OsString)>,
    /// What is taken from it first.
    pub env_remove: Vec<OsString>,
    /// Where it runs; the bundle.
    pub cwd: PathBuf,
    /// What it is told; /dev/null when empty.
    pub stdin: Vec<u8>,
    /// Whether stdout and stderr are one pipe, as for `start`.
    pub one_pipe: bool,
    /// When it is killed.
    pub limit: Duration,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended; `None` when it was killed because its time was over.
    pub status: Option<ExitStatus>,
    /// What it wrote to stdout; for `start` also what it wrote to stderr.
    pub stdout: Vec<u8>,
    /// What it wrote to stderr, where that is a pipe of its own.
    pub stderr: Vec<u8>,
    /// From the beginning of the launch to its end, pipes included.
    pub took: Duration,
    /// Whether the pipes were still open long after the end: something that runs on holds them.
    pub kept_open: bool,
}

impl Output {
    /// Whether it ended by itself, with 0.
    pub fn success(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// The exit status; `None` when it was ended by a signal.
    pub fn code(&self) -> Option<i32> {
        self.status.and_then(|status| status.code())
    }

    /// Everything that was written, as text.
    pub fn text(&self) -> String {
        format!("{}{}", String::from_utf8_lossy(&self.stdout), String::from_utf8_lossy(&self.stderr))
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            None => f.write_str("killed after its time was over")?,
            Some(status) => match (status.code(), status.signal()) {
                (Some(code), _) => write!(f, "exit {code}")?,
                (None, signal) => write!(f, "signal {}", signal.unwrap_or_default())?,
            },
        }
        let text = self.text();
        if text.is_empty() { Ok(()) } else { write!(f, ": {}", printable(text.trim_end())) }
    }
}

/// One line without control characters, whatever a process wrote.
pub(crate) fn printable(text: &str) -> String {
    const LIMIT: usize = 300;
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LIMIT).collect();
    if text.chars().count() > LIMIT { format!("{line}...") } else { line }
}

impl Launch {
    /// Runs it to its end.
    pub fn run(&self) -> Result<Output> {
        let began = Instant::now();
        let (stdout, stdout_writer) = io::pipe()?;
        let (stderr, stderr_writer) = if self.one_pipe {
            (None, stdout_writer.try_clone()?)
        } else {
            let (reader, writer) = io::pipe()?;
            (Some(reader), writer)
        };
        let mut child = self
            .command(stdout_writer.into(), stderr_writer.into())
            .spawn()
            .doing(|| format!("cannot run `{}`", self.program.display()))?;
        self.feed(&mut child);
        let mut pipes = Pipes { open: [Some(stdout), stderr], read: [Vec::new(), Vec::new()] };
        let process =
            Process::open(Pid::new(child.id()).ok_or_else(|| Failure::setup("a child without a pid"))?)?;
        let ended = pipes.read_until_end_of(&process, self.limit)?;
        if !ended {
            // As the daemon does when its client gives up: this process alone, without a warning.
            process.signal(Signal::KILL)?;
        }
        let status = child.wait()?;
        pipes.drain(EOF_LIMIT)?;
        let kept_open = pipes.open.iter().any(Option::is_some);
        let [stdout, stderr] = pipes.read;
        Ok(Output { status: ended.then_some(status), stdout, stderr, took: began.elapsed(), kept_open })
    }

    fn command(&self, stdout: Stdio, stderr: Stdio) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args).current_dir(&self.cwd).process_group(0).stdout(stdout).stderr(stderr);
        for name in &self.env_remove {
            command.env_remove(name);
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(if self.stdin.is_empty() { Stdio::null() } else { Stdio::piped() });
        command
    }

    /// Writes stdin beside the reading of the output: a shim may read it late, or not at all.
    fn feed(&self, child: &mut Child) {
        if let Some(mut pipe) = child.stdin.take() {
            let bytes = self.stdin.clone();
            thread::spawn(move || {
                let _ = pipe.write_all(&bytes);
            });
        }
    }
}

/// The reading ends, and what came through them.
struct Pipes {
    open: [Option<PipeReader>; 2],
    read: [Vec<u8>; 2],
}

impl Pipes {
    /// Reads until the process ends or the time is over; whether it ended.
    fn read_until_end_of(&mut self, process: &Process, limit: Duration) -> Result<bool> {
        let end = Instant::now() + limit;
        loop {
            let mut fds = vec![process.as_fd()];
            fds.extend(self.open.iter().flatten().map(AsFd::as_fd));
            let ready = wait_readable(&fds, end.saturating_duration_since(Instant::now()))?;
            if ready[0] {
                return Ok(true);
            }
            if !ready.contains(&true) {
                return Ok(false);
            }
            self.take(&ready[1..])?;
        }
    }

    /// Reads until all have ended or the time is over.
    fn drain(&mut self, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        while self.open.iter().any(Option::is_some) {
            let fds: Vec<_> = self.open.iter().flatten().map(AsFd::as_fd).collect();
            let ready = wait_readable(&fds, end.saturating_duration_since(Instant::now()))?;
            if !ready.contains(&true) {
                break;
            }
            self.take(&ready)?;
        }
        Ok(())
    }

    /// One read of each pipe that is ready; `ready` counts the open ones.
    fn take(&mut self, ready: &[bool]) -> Result<()> {
        let mut ready = ready.iter();
        for (open, read) in self.open.iter_mut().zip(&mut self.read) {
            let Some(pipe) = open else { continue };
            if ready.next() == Some(&true) {
                let mut buffer = [0; 4096];
                match pipe.read(&mut buffer)? {
                    0 => *open = None,
                    count => read.extend_from_slice(&buffer[..count]),
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Launch {
        Launch {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            env: Vec::new(),
            env_remove: Vec::new(),
            cwd: "/".into(),
            stdin: Vec::new(),
            one_pipe: true,
            limit: Duration::from_secs(10),
        }
    }

    #[test]
    fn output_of_both_streams_and_the_status_are_told() {
        let output = shell("echo out; echo err >&2; exit 3").run().unwrap();
        assert_eq!((output.code(), output.stdout.as_slice()), (Some(3), &b"out\nerr\n"[..]));
        let output = Launch { one_pipe: false, ..shell("echo out; echo err >&2") }.run().unwrap();
        assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
        assert!(output.success() && !output.kept_open);
    }

    #[test]
    fn stdin_arrives_and_may_be_ignored() {
        let stdin = vec![b'x'; 1 << 20];
        let output = Launch { stdin: stdin.clone(), ..shell("wc -c") }.run().unwrap();
        assert_eq!(output.text().trim(), (1 << 20).to_string());
        assert!(Launch { stdin, ..shell("exit 0") }.run().unwrap().success());
    }

    #[test]
    fn one_that_hangs_is_killed_and_one_that_leaves_its_output_open_is_noticed() {
        let output = Launch { limit: Duration::from_millis(50), ..shell("exec sleep 60") }.run().unwrap();
        assert_eq!(output.status, None);
        let output = shell("sleep 5 & echo $!").run().unwrap();
        assert!(output.kept_open);
        let sleeper = Pid::new(output.text().trim().parse().unwrap()).unwrap();
        Process::open(sleeper).unwrap().signal(Signal::KILL).unwrap();
    }
}
