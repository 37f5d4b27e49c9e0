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
use crate::stdio::Withheld;
use crate::types::{Pid, Signal};

/// Where runc's shim has had its containers' state since ever.
const DEFAULT_ROOT: &str = "/run/containerd/runc";
/// How long a log may grow, and how much of one is searched for an error.
const LOG_LIMIT: u64 = 1 << 20;
/// How much of what an engine wrote to its standard error a client is told at most.
const WORDS_LIMIT: usize = 4 << 10;
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
    /// Where every command runs, as under containerd's own shim: programs that stand in for an engine and change
    /// the container first look for `config.json` there.
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
        // A bundle may be gone by the time its container is given up.
        command.current_dir(if self.bundle.is_dir() { &self.bundle } else { Path::new("/") });
        command
    }

    /// Runs a command on the container; a failure is told in the engine's own words. `Aborted` when it was killed.
    pub(super) fn run(&self, what: &str, command: Command) -> Result<Output> {
        self.run_with(what, command, Withheld::default())
    }

    fn run_with(&self, what: &str, mut command: Command, withheld: Withheld) -> Result<Output> {
        command.arg(&self.id);
        self.execute(&mut command, withheld).with_context(|| format!("OCI runtime {what} failed"))
    }

    /// Runs a command that leaves a process behind, and returns its pid. The command has the streams of that
    /// process, and what it writes to them if it fails is withheld from the client. What a command leaves that
    /// fails nevertheless is for the caller to undo.
    pub(super) fn run_detached(
        &self,
        what: &str,
        mut command: Command,
        withheld: Withheld,
        pid_file: &Path,
    ) -> Result<Pid> {
        command.arg("--pid-file").arg(pid_file);
        self.run_with(what, command, withheld).and_then(|_| read_pid(pid_file))
    }

    fn execute(&self, command: &mut Command, withheld: Withheld) -> Result<Output> {
        let before = length_in_bounds(&self.log);
        let output = match self.context.run(command) {
            Ok(output) if output.exit.status == 0 => return Ok(output),
            Ok(output) => output,
            Err(error) => {
                withheld.discard();
                return Err(match error.code() {
                    // In quotes, as Go has it: containerd's tests look for that where an engine is missing.
                    Code::Unknown => error.context(format!("exec: {:?}", self.program)),
                    _ => error,
                });
            }
        };
        let passed_on = withheld.discard();
        let status = output.exit.status;
        let message = last_error(&self.log, before)
            .or_else(|| last_words(&output.stderr))
            .or_else(|| last_words(&passed_on))
            .unwrap_or_else(|| format!("`{}` ended with status {status}", self.program));
        Err(Error::new(if KILLED.contains(&status) { Code::Aborted } else { Code::Unknown }, message))
    }

    /// Sends a signal to the container's init, or to all its processes. `NotFound` when they are gone.
    pub(super) fn kill(&self, signal: Signal, all: bool) -> Result<()> {
        let mut command = self.command("kill");
        if all {
            command.arg("--all");
        }
        command.arg(&self.id).arg(signal.number().to_string());
        let sent = self.execute(&mut command, Withheld::default()).map(drop);
        let sent =
            sent.map_err(|error| if is_gone(&error) { error.with_code(Code::NotFound) } else { error });
        sent.with_context(|| format!("OCI runtime {} failed", if all { "killall" } else { "kill" }))
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
    let text =
        files::read(file, files::SMALL).with_context(|| format!("cannot read `{}`", file.display()))?;
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
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(from.max(length.saturating_sub(LOG_LIMIT)))).ok()?;
    let mut text = Vec::new();
    file.take(LOG_LIMIT).read_to_end(&mut text).ok()?;
    text.rsplit(|byte| *byte == b'\n').find_map(error_in)
}

/// The message of a line, if it is one of an error. Engines spell the same fields in more than one way.
fn error_in(line: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Line {
        level: String,
        #[serde(alias = "message")]
        msg: String,
    }
    let line: Line = serde_json::from_slice(line).ok()?;
    let is_error =
        ["error", "fatal", "panic"].into_iter().any(|level| line.level.eq_ignore_ascii_case(level));
    Some(line.msg.trim().to_owned()).filter(|words| is_error && !words.is_empty())
}

/// The end of what an engine wrote to its standard error, from the beginning of a line on where one begins there.
fn last_words(stderr: &[u8]) -> Option<String> {
    let end = &stderr[stderr.len().saturating_sub(WORDS_LIMIT)..];
    let is_cut = end.len() < stderr.len();
    let whole_lines = end.iter().position(|byte| *byte == b'\n').filter(|_| is_cut).map(|at| &end[at..]);
    let words = |text: &[u8]| String::from_utf8_lossy(text).trim().to_owned();
    whole_lines.into_iter().chain([end]).map(words).find(|words| !words.is_empty())
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
    fn errors_are_told_from_other_lines_in_whatever_way_an_engine_spells_them() {
        let line = |text: &str| error_in(text.as_bytes());
        // runc and crun, a program in Go that gives up, and youki.
        assert_eq!(line(r#"{"level":"error","msg":" no\n","time":"t"}"#).as_deref(), Some("no"));
        assert_eq!(line(r#"{"msg":"no","level":"fatal"}"#).as_deref(), Some("no"));
        assert_eq!(line(r#"{"timestamp":"t","level":"ERROR","message":"no"}"#).as_deref(), Some("no"));
        for other in [r#"{"level":"warning","msg":"w"}"#, r#"{"level":"error","msg":""}"#, "text", ""] {
            assert_eq!(line(other), None, "{other}");
        }
    }

    #[test]
    fn an_error_at_the_end_of_a_log_is_found_however_much_a_command_has_logged_before() {
        let log = std::env::temp_dir().join(format!("shim-much-log-{}.json", std::process::id()));
        let mut text = "{\"level\":\"info\",\"msg\":\"i\"}\n".repeat(LOG_LIMIT as usize / 16);
        text.push_str("{\"level\":\"error\",\"msg\":\"last\"}\n");
        std::fs::write(&log, text).unwrap();
        assert_eq!(last_error(&log, 5).as_deref(), Some("last"));
        std::fs::remove_file(&log).unwrap();
    }

    #[test]
    fn the_last_words_of_an_engine_are_whole_lines() {
        assert_eq!(last_words(b"one\n two \n").as_deref(), Some("one\n two"));
        assert_eq!(last_words(b" \n"), None);
        let long = [&b"x".repeat(WORDS_LIMIT)[..], b"\nthe end\n"].concat();
        assert_eq!(last_words(&long).as_deref(), Some("the end"));
        // One line that is too long is told as far as there is room.
        let line = [&b"x".repeat(2 * WORDS_LIMIT)[..], b"\n"].concat();
        assert_eq!(last_words(&line).map(|words| words.len()), Some(WORDS_LIMIT - 1));
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
