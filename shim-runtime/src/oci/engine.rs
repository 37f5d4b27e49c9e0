//! The OCI runtime as a program: its command line (contract 11.2), and what it says when it fails.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::RangeInclusive;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::options::Options;
use crate::api::Context;
use crate::bundle::Bundle;
use crate::error::{Code, Error, Result, WithContext};
use crate::files;
use crate::spawn::{Command, Output};
use crate::types::{Pid, Signal};

/// Where runc's shim has had its containers' state since ever.
const DEFAULT_ROOT: &str = "/run/containerd/runc";
/// How long a log may grow, and how much of one is searched for an error.
const LOG_LIMIT: u64 = 1 << 20;
/// The statuses of a command that a signal has ended.
const KILLED: RangeInclusive<u32> = 129..=192;

/// An OCI runtime: a program with the command line of `runc`, such as `crun`.
///
/// The options of a container may name another one (`binary_name`).
#[derive(Clone, Copy, Debug)]
pub struct Engine {
    program: &'static str,
}

impl Engine {
    /// The program of this name, looked for in `PATH`, or of this path.
    pub const fn new(program: &'static str) -> Self {
        Self { program }
    }

    /// The program for a container with these options.
    pub(super) fn program(self, options: &Options) -> String {
        Some(options.binary_name.as_str()).filter(|name| !name.is_empty()).unwrap_or(self.program).to_owned()
    }
}

/// An engine and the container that it is to be told of.
#[derive(Debug)]
pub(super) struct Cli {
    context: Context,
    id: String,
    program: String,
    root: PathBuf,
    bundle: PathBuf,
    log: PathBuf,
    systemd_cgroup: bool,
}

impl Cli {
    pub(super) fn new(
        engine: Engine,
        options: &Options,
        context: &Context,
        id: &str,
        bundle: &Bundle,
    ) -> Self {
        let root = Some(options.root.as_str()).filter(|root| !root.is_empty()).unwrap_or(DEFAULT_ROOT);
        Self {
            context: context.clone(),
            id: id.to_owned(),
            program: engine.program(options),
            root: Path::new(root).join(context.namespace()),
            bundle: bundle.path().to_owned(),
            log: bundle.path().join("log.json"),
            systemd_cgroup: options.systemd_cgroup,
        }
    }

    /// A command of the engine, up to the verb.
    pub(super) fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root).arg("--log").arg(&self.log).args(["--log-format", "json"]);
        if self.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        // It is the daemon's; the engine would tell systemd of the container in its stead.
        command.arg(verb).env_remove("NOTIFY_SOCKET");
        command
    }

    /// Runs a command on the container; a failure is told in the engine's own words. `Aborted` when it was killed.
    pub(super) fn run(&self, what: &str, mut command: Command) -> Result<Output> {
        command.arg(&self.id);
        self.execute(&mut command).context(|| format!("OCI runtime {what} failed"))
    }

    /// Runs a command that leaves a process behind, and returns its pid. What a command leaves that fails
    /// nevertheless is for the caller to undo.
    pub(super) fn run_detached(&self, what: &str, mut command: Command, pid_file: &Path) -> Result<Pid> {
        command.arg("--pid-file").arg(pid_file);
        self.run(what, command).and_then(|_| read_pid(pid_file))
    }

    fn execute(&self, command: &mut Command) -> Result<Output> {
        let before = length_in_bounds(&self.log);
        let output = self.context.run(command).map_err(|error| match error.code() {
            // In quotes, as Go has it: containerd's tests look for that where an engine is missing.
            Code::Unknown => error.context(format!("exec: {:?}", self.program)),
            _ => error,
        })?;
        if output.exit.status == 0 {
            return Ok(output);
        }
        let said = last_error(&self.log, before).unwrap_or_default();
        let stderr = String::from_utf8_lossy(&output.stderr);
        let words = [said.as_str(), stderr.trim()].into_iter().find(|words| !words.is_empty());
        let status = output.exit.status;
        let message =
            words.map_or_else(|| format!("`{}` ended with status {status}", self.program), str::to_owned);
        Err(Error::new(if KILLED.contains(&status) { Code::Aborted } else { Code::Unknown }, message))
    }

    /// Sends a signal to the container's init, or to all its processes. `NotFound` when they are gone.
    pub(super) fn kill(&self, signal: Signal, all: bool) -> Result<()> {
        let mut command = self.command("kill");
        if all {
            command.arg("--all");
        }
        command.arg(&self.id).arg(signal.number().to_string());
        let sent = self.execute(&mut command).map(drop);
        let sent =
            sent.map_err(|error| if is_gone(&error) { error.with_code(Code::NotFound) } else { error });
        sent.context(|| format!("OCI runtime {} failed", if all { "killall" } else { "kill" }))
    }

    /// Gives up what the engine has of this bundle's container, in whatever state. A container of the same id may be
    /// another's: that of a second daemon which shares the engine's root.
    pub(super) fn give_up(&self) -> Result<()> {
        let state = self.run("state", self.command("state")).map(|output| output.stdout).unwrap_or_default();
        match bundle_in(&state) {
            Some(bundle) if !is_same(&bundle, &self.bundle) => {
                log::info!("left container `{}` alone: it belongs to `{}`", self.id, bundle.display());
                Ok(())
            }
            _ => self.delete(true),
        }
    }

    /// Gives up the container; one that the engine does not know is fine.
    pub(super) fn delete(&self, force: bool) -> Result<()> {
        let mut command = self.command("delete");
        if force {
            command.arg("--force");
        }
        match self.run("delete", command) {
            Err(error) if !is_gone(&error) => Err(error),
            _ => Ok(()),
        }
    }
}

/// The bundle in the state of a container, as the OCI runtime specification has it.
fn bundle_in(state: &[u8]) -> Option<PathBuf> {
    #[derive(Deserialize)]
    struct State {
        bundle: PathBuf,
    }
    serde_json::from_slice::<State>(state).ok().map(|state| state.bundle)
}

/// Whether two paths, of which one may have been resolved, lead to the same folder.
fn is_same(one: &Path, other: &Path) -> bool {
    let place = |path: &Path| std::fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    one == other || place(one).is_some_and(|found| place(other) == Some(found))
}

/// Whether the engine says that there is no such container, or no such process any more. Engines have words
/// for it, not codes (contract 6.3, Kill).
fn is_gone(error: &Error) -> bool {
    const GONE: [&str; 4] =
        ["process already finished", "container not running", "no such process", "does not exist"];
    let said = error.to_string().to_ascii_lowercase();
    GONE.iter().any(|words| said.contains(words))
}

/// The pid that an engine has written.
pub(super) fn read_pid(file: &Path) -> Result<Pid> {
    let text = files::read(file, files::SMALL).context(|| format!("cannot read `{}`", file.display()))?;
    let pid = String::from_utf8_lossy(&text).trim().parse().ok().and_then(Pid::new);
    pid.ok_or_else(|| Error::other(format!("`{}` holds no process id", file.display())))
}

/// The length of a log, to which engines only add: one that has grown too long begins anew, or the failing probes
/// of a year would fill the memory that it lies in.
fn length_in_bounds(log: &Path) -> u64 {
    let length = std::fs::metadata(log).map_or(0, |log| log.len());
    let is_emptied = length > LOG_LIMIT && File::options().write(true).truncate(true).open(log).is_ok();
    if is_emptied { 0 } else { length }
}

/// The message of the last error in a log, from an offset on.
fn last_error(log: &Path, from: u64) -> Option<String> {
    let mut file = files::open(log).ok()?;
    file.seek(SeekFrom::Start(from)).ok()?;
    let mut text = Vec::new();
    file.take(LOG_LIMIT).read_to_end(&mut text).ok()?;
    text.rsplit(|byte| *byte == b'\n').find_map(error_in)
}

/// The message of a line, if it is one of an error.
fn error_in(line: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Line {
        level: String,
        msg: String,
    }
    let line: Line = serde_json::from_slice(line).ok()?;
    (line.level == "error").then_some(line.msg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_a_command_is_found_and_none_of_an_earlier_command() {
        let log = std::env::temp_dir().join(format!("shim-log-{}.json", std::process::id()));
        let earlier = "{\"level\":\"error\",\"msg\":\"earlier\",\"time\":\"t\"}\n";
        let now = "{\"level\":\"error\",\"msg\":\"first\"}\n{\"msg\":\"last\",\"level\":\"error\"}\n\
                   {\"level\":\"warning\",\"msg\":\"w\"}\n{\"level\":\"err";
        std::fs::write(&log, format!("{earlier}{now}")).unwrap();
        assert_eq!(last_error(&log, earlier.len() as u64).as_deref(), Some("last"));
        assert_eq!(last_error(&log, (earlier.len() + now.len()) as u64), None);
        std::fs::remove_file(&log).unwrap();
        assert_eq!(last_error(&log, 0), None);
    }

    #[test]
    fn a_log_that_has_grown_too_long_begins_anew() {
        let log = std::env::temp_dir().join(format!("shim-long-log-{}.json", std::process::id()));
        assert_eq!(length_in_bounds(&log), 0);
        std::fs::write(&log, "short").unwrap();
        assert_eq!(length_in_bounds(&log), 5);
        std::fs::write(&log, vec![b'x'; LOG_LIMIT as usize + 1]).unwrap();
        assert_eq!(length_in_bounds(&log), 0);
        assert_eq!(std::fs::read(&log).unwrap(), b"");
        std::fs::remove_file(&log).unwrap();
    }

    #[test]
    fn what_engines_say_of_what_is_gone_is_understood() {
        for words in ["os: process already finished", "container not running", "kill: No such process"] {
            assert!(is_gone(&Error::other(words)), "{words}");
        }
        assert!(is_gone(&Error::other("container \"c1\" does not exist")));
        assert!(!is_gone(&Error::other("permission denied")));
    }
}
