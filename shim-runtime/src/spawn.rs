//! Starts processes: a [`Command`] is described anywhere, forked on the main thread, and seen to its exec by
//! the caller. Unlike `std`'s it can wait behind a gate, and its exit is never another reaper's.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags};
use nix::sched::CloneFlags;
use nix::unistd::pipe2;

use crate::caller::{Caller, Cancellation};
use crate::crash;
use crate::error::{Code, Error, Result, WithContext};
use crate::event_loop::Handle;
use crate::reaper::{ExitSlot, Group, Guard, Reaper};
use crate::sys::{self, Confinement, Image, RECORD, Step, Tie};
use crate::types::{Exit, Pid, Signal};
use crate::wait::wait_for_any;

/// Where programs are looked for when the command's environment has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How much of each output of a command is kept: its end.
const OUTPUT_LIMIT: usize = 1 << 20;

/// The status of a child that was killed.
const KILLED: u32 = 128 + libc::SIGKILL as u32;

/// A process to be started, shaped like `std::process::Command`.
///
/// Unlike `std`'s it starts with no descriptors but the three standard ones (`/dev/null` unless given), in a
/// session of its own, and it is reaped by the shim. Program, root and ids are applied in the order of
/// `chroot`, ids, working directory, so the program is looked for inside the new root.
///
/// ```
/// use shim_runtime::Command;
/// let mut command = Command::new("sh");
/// command.args(["-c", "echo $GREETING"]).env("GREETING", "hi").current_dir("/");
/// ```
#[derive(Debug)]
pub struct Command {
    program: OsString,
    args: Vec<OsString>,
    arg0: Option<OsString>,
    inherit_env: bool,
    env: Vec<(OsString, Option<OsString>)>,
    cwd: Option<PathBuf>,
    root: Option<PathBuf>,
    ids: Ids,
    descriptors: Vec<(OwnedFd, RawFd)>,
    terminal: Option<RawFd>,
    death_signal: bool,
    namespaces: CloneFlags,
    no_new_privileges: bool,
    confinement: Confinement,
}

#[derive(Debug, Default)]
struct Ids {
    uid: Option<u32>,
    gid: Option<u32>,
    groups: Option<Vec<u32>>,
    umask: Option<u32>,
}

impl Command {
    /// A command that runs `program`: a path, or a name looked for in the command's own `PATH`.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            arg0: None,
            inherit_env: true,
            env: Vec::new(),
            cwd: None,
            root: None,
            ids: Ids::default(),
            descriptors: Vec::new(),
            terminal: None,
            death_signal: false,
            namespaces: CloneFlags::empty(),
            no_new_privileges: false,
            confinement: Confinement::default(),
        }
    }

    /// Adds an argument.
    pub fn arg(&mut self, arg: impl AsRef<OsStr>) -> &mut Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args(&mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> &mut Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// What the program sees as its own name, instead of the program as it was given.
    pub fn arg0(&mut self, name: impl AsRef<OsStr>) -> &mut Self {
        self.arg0 = Some(name.as_ref().to_owned());
        self
    }

    /// Sets a variable of the environment.
    pub fn env(&mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> &mut Self {
        self.env.push((key.as_ref().to_owned(), Some(value.as_ref().to_owned())));
        self
    }

    /// Takes a variable out of the environment.
    pub fn env_remove(&mut self, key: impl AsRef<OsStr>) -> &mut Self {
        self.env.push((key.as_ref().to_owned(), None));
        self
    }

    /// Starts from an empty environment instead of the shim's.
    pub fn env_clear(&mut self) -> &mut Self {
        self.inherit_env = false;
        self.env.clear();
        self
    }

    /// The working directory, inside the new root if there is one.
    pub fn current_dir(&mut self, dir: impl AsRef<Path>) -> &mut Self {
        self.cwd = Some(dir.as_ref().to_owned());
        self
    }

    /// The root directory to change into; needs `CAP_SYS_CHROOT`.
    pub fn root(&mut self, dir: impl AsRef<Path>) -> &mut Self {
        self.root = Some(dir.as_ref().to_owned());
        self
    }

    /// The user id to run under.
    pub fn uid(&mut self, uid: u32) -> &mut Self {
        self.ids.uid = Some(uid);
        self
    }

    /// The group id to run under.
    pub fn gid(&mut self, gid: u32) -> &mut Self {
        self.ids.gid = Some(gid);
        self
    }

    /// The supplementary groups, instead of the shim's.
    pub fn groups(&mut self, groups: impl IntoIterator<Item = u32>) -> &mut Self {
        self.ids.groups = Some(groups.into_iter().collect());
        self
    }

    /// The file mode creation mask.
    pub fn umask(&mut self, mask: u32) -> &mut Self {
        self.ids.umask = Some(mask);
        self
    }

    /// Whether exec can never give the program more privileges than it starts with.
    pub fn no_new_privileges(&mut self, yes: bool) -> &mut Self {
        self.no_new_privileges = yes;
        self
    }

    /// What the child may do and use.
    pub(crate) fn confine(&mut self, confinement: Confinement) -> &mut Self {
        self.confinement = confinement;
        self
    }

    /// Gives the child a descriptor under a number; 0, 1 and 2 are the standard ones.
    pub fn descriptor(&mut self, number: RawFd, fd: impl Into<OwnedFd>) -> &mut Self {
        self.descriptors.retain(|(_, taken)| *taken != number);
        self.descriptors.push((fd.into(), number));
        self
    }

    /// The child's standard input.
    pub fn stdin(&mut self, fd: impl Into<OwnedFd>) -> &mut Self {
        self.descriptor(0, fd)
    }

    /// The child's standard output.
    pub fn stdout(&mut self, fd: impl Into<OwnedFd>) -> &mut Self {
        self.descriptor(1, fd)
    }

    /// The child's standard error.
    pub fn stderr(&mut self, fd: impl Into<OwnedFd>) -> &mut Self {
        self.descriptor(2, fd)
    }

    /// The descriptor of the child that is a terminal and is to control its session.
    pub(crate) fn controlling_terminal(&mut self, number: RawFd) -> &mut Self {
        self.terminal = Some(number);
        self
    }

    /// Kills the child when the shim ends. Right for runtime commands, wrong for containers.
    pub(crate) fn dies_with_shim(&mut self) -> &mut Self {
        self.death_signal = true;
        self
    }

    /// Has the child be in a user namespace of its own, which has no ids yet.
    pub(crate) fn new_user_namespace(&mut self) -> &mut Self {
        self.namespaces |= CloneFlags::CLONE_NEWUSER;
        self
    }

    /// The user and group to run under.
    pub(crate) fn ids(&self) -> (Option<u32>, Option<u32>) {
        (self.ids.uid, self.ids.gid)
    }

    /// What messages call the command.
    fn name(&self) -> String {
        self.program.to_string_lossy().into_owned()
    }

    /// Allocates all that the child will need. Uses up the descriptors.
    fn prepare(&mut self, gated: bool) -> Result<Prepared> {
        let (status_read, status_write) = pipe()?;
        let (gate_read, gate_write) = if gated {
            let (read, write) = pipe()?;
            (Some(read), Some(write))
        } else {
            (None, None)
        };
        let environment = self.environment();
        let mut descriptors = self.take_descriptors()?;
        descriptors.sort_by_key(|(_, number)| *number);
        let floor = Image::floor(descriptors.iter().map(|(_, number)| *number));
        let lifted = descriptors.into_iter().map(|(fd, number)| Ok((lift(fd, floor)?, number)));
        let image = Image {
            candidates: self.candidates(&environment)?,
            args: self.argv()?,
            env: environment.into_iter().map(join_variable).collect::<Result<_>>()?,
            root: self.root.as_deref().map(c_path).transpose()?,
            cwd: self.cwd.as_deref().map(c_path).transpose()?,
            groups: self.ids.groups.clone(),
            gid: self.ids.gid,
            uid: self.ids.uid,
            umask: self.ids.umask,
            new_session: true,
            new_namespaces: self.namespaces.bits(),
            terminal: self.terminal,
            no_new_privileges: self.no_new_privileges,
            confinement: self.confinement.clone(),
            tie: self.death_signal.then(|| Tie { stops_first: crash::stops_commands() }),
            descriptors: lifted.collect::<Result<_>>()?,
            status: lift(status_write, floor)?,
            gate: gate_read.map(|gate| lift(gate, floor)).transpose()?,
        };
        let status = Status {
            pipe: status_read.into(),
            program: self.name(),
            root: self.root.clone(),
            cwd: self.cwd.clone(),
        };
        Ok(Prepared { image, status, gate: gate_write })
    }

    /// The given descriptors, and `/dev/null` for each standard one that was not given.
    fn take_descriptors(&mut self) -> Result<Vec<(OwnedFd, RawFd)>> {
        let mut all = std::mem::take(&mut self.descriptors);
        for number in 0..=2 {
            if !all.iter().any(|(_, taken)| *taken == number) {
                let null = File::options().read(true).write(true).open("/dev/null");
                all.push((null.with_context(|| "cannot open /dev/null")?.into(), number));
            }
        }
        Ok(all)
    }

    fn environment(&self) -> Vec<(OsString, OsString)> {
        let mut all: Vec<_> = if self.inherit_env { std::env::vars_os().collect() } else { Vec::new() };
        for (key, value) in &self.env {
            all.retain(|(known, _)| known != key);
            if let Some(value) = value {
                all.push((key.clone(), value.clone()));
            }
        }
        all
    }

    fn argv(&self) -> Result<Vec<CString>> {
        let name = self.arg0.as_ref().unwrap_or(&self.program);
        std::iter::once(name).chain(&self.args).map(|arg| c_string(arg, "an argument")).collect()
    }

    /// Where the program may be: itself if it is a path, else one file for each directory of `PATH`.
    fn candidates(&self, environment: &[(OsString, OsString)]) -> Result<Vec<CString>> {
        if self.program.is_empty() {
            return Err(Error::invalid_argument("the command to run is empty"));
        }
        if self.program.as_bytes().contains(&b'/') {
            return Ok(vec![c_string(&self.program, "the program's path")?]);
        }
        let path = environment.iter().find(|(key, _)| key == "PATH").map(|(_, value)| value.as_os_str());
        let dirs = std::env::split_paths(path.unwrap_or(OsStr::new(DEFAULT_PATH)));
        dirs.map(|dir| c_path(&dir.join(&self.program))).collect()
    }
}

fn c_string(text: &OsStr, what: &str) -> Result<CString> {
    let shown = text.to_string_lossy();
    CString::new(text.as_bytes())
        .map_err(|_| Error::invalid_argument(format!("{what} contains a NUL byte: {shown:?}")))
}

fn c_path(path: &Path) -> Result<CString> {
    c_string(path.as_os_str(), "a path")
}

fn join_variable((key, value): (OsString, OsString)) -> Result<CString> {
    let mut variable = key.into_vec();
    variable.push(b'=');
    variable.extend(value.as_bytes());
    c_string(&OsString::from_vec(variable), "an environment variable")
}

/// The two ends of a new pipe, to read from and to write to. No program that is executed gets them by accident.
pub(crate) fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    pipe2(OFlag::O_CLOEXEC).with_context(|| "cannot make a pipe")
}

/// Moves a descriptor to `floor` or above, out of the way of the numbers that a child will have.
fn lift(fd: OwnedFd, floor: RawFd) -> Result<OwnedFd> {
    if fd.as_raw_fd() >= floor {
        return Ok(fd);
    }
    sys::duplicate(&fd, floor).with_context(|| "cannot duplicate a descriptor")
}

fn cannot_start(command: &Command) -> String {
    format!("cannot start `{}`", command.name())
}

/// A command whose every allocation is made.
struct Prepared {
    image: Image,
    status: Status,
    gate: Option<OwnedFd>,
}

/// The parent's end of the status pipe, and what its messages need to name things.
#[derive(Debug)]
struct Status {
    pipe: File,
    program: String,
    root: Option<PathBuf>,
    cwd: Option<PathBuf>,
}

/// What the child said.
#[derive(PartialEq, Eq)]
enum Said {
    AtGate,
    /// The pipe was closed by exec, or by the child's death.
    Nothing,
}

impl Status {
    fn read(&mut self) -> Result<Said> {
        let mut record = [0; RECORD];
        match self.pipe.read_exact(&mut record) {
            Ok(()) => match Step::parse(record) {
                Some((Step::Ready, _)) => Ok(Said::AtGate),
                Some((step, errno)) => Err(self.explain(step, errno)),
                None => Err(Error::internal(format!("the child of `{}` sent a broken report", self.program))),
            },
            Err(_) => Ok(Said::Nothing),
        }
    }

    /// One sentence that names what failed.
    fn explain(&self, step: Step, errno: i32) -> Error {
        let shown = |path: &Option<PathBuf>| path.as_deref().unwrap_or(Path::new("/")).display().to_string();
        let what = match step {
            Step::Descriptors => "cannot place its descriptors".to_owned(),
            Step::Session => "cannot start a session".to_owned(),
            Step::Terminal => "cannot take over its terminal".to_owned(),
            Step::Root => format!("cannot change the root to `{}`", shown(&self.root)),
            Step::Groups => "cannot set its supplementary groups".to_owned(),
            Step::Gid => "cannot set its group id".to_owned(),
            Step::Uid => "cannot set its user id".to_owned(),
            Step::Cwd => format!("cannot change into `{}`", shown(&self.cwd)),
            Step::Privileges => "cannot give up new privileges".to_owned(),
            Step::DeathSignal => "cannot be tied to the shim's life".to_owned(),
            Step::Namespaces => "cannot make its namespaces".to_owned(),
            Step::OomScore => "cannot set its `oomScoreAdj`".to_owned(),
            Step::Limits => "cannot set its `rlimits`".to_owned(),
            Step::AppArmor => "cannot apply its `apparmorProfile`".to_owned(),
            Step::Selinux => "cannot apply its `selinuxLabel`".to_owned(),
            Step::Capabilities => "cannot set its `capabilities`".to_owned(),
            Step::Program | Step::Exec | Step::Ready => {
                let error = std::io::Error::from_raw_os_error(errno);
                return Error::other(format!("cannot execute `{}`: {error}", self.program));
            }
        };
        let error = std::io::Error::from_raw_os_error(errno);
        Error::other(format!("cannot run `{}`: {what}: {error}", self.program))
    }
}

/// A child of the shim: its pid, and where its exit arrives.
#[derive(Clone)]
pub(crate) struct Child {
    pub(crate) pid: Pid,
    pub(crate) exit: ExitSlot,
}

/// What a runtime command left behind, as [`Context::run`](crate::Context::run) returns it. Of a long output it is
/// the last 1 MiB; give the command a file if you need all of one that may be longer.
#[derive(Debug)]
pub struct Output {
    /// How it ended; a signal counts as 128 plus its number.
    pub exit: Exit,
    /// What it wrote to its standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to its standard error.
    pub stderr: Vec<u8>,
}

/// Forks on the main thread on behalf of any other, and knows the reaper. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Supervisor {
    main: Handle,
    pub(crate) reaper: Reaper,
}

impl Supervisor {
    pub(crate) fn new(main: Handle, reaper: Reaper) -> Self {
        Self { main, reaper }
    }

    /// The loop of the thread that forks.
    pub(crate) fn main(&self) -> &Handle {
        &self.main
    }

    /// Starts a command and returns once it has become its program.
    pub(crate) fn spawn(&self, command: &mut Command, group: Group) -> Result<Child> {
        let mut prepared = command.prepare(false).with_context(|| cannot_start(command))?;
        let child = self.fork(prepared.image, group)?;
        prepared.status.read()?;
        Ok(child)
    }

    /// Starts a command that waits, ready in all but exec, until the returned gate is opened.
    pub(crate) fn spawn_gated(&self, command: &mut Command, group: Group) -> Result<(Child, Gate)> {
        let mut prepared = command.prepare(true).with_context(|| cannot_start(command))?;
        let child = self.fork(prepared.image, group)?;
        match (prepared.status.read()?, prepared.gate) {
            (Said::AtGate, Some(gate)) => Ok((child, Gate { gate: gate.into(), status: prepared.status })),
            _ => Err(Error::other(format!("`{}` died before it could be started", prepared.status.program))),
        }
    }

    fn fork(&self, image: Image, group: Group) -> Result<Child> {
        if self.main.is_here() {
            let message = "a process cannot be started from code that runs on the main thread, which forks it; start \
                           it on a thread of its own";
            return Err(Error::failed_precondition(message));
        }
        let (tell, told) = mpsc::sync_channel(1);
        let reaper = self.reaper.clone();
        self.main.post(move |_| {
            let forked = sys::fork_exec(&image).map(|pid| {
                let exit = ExitSlot::default();
                reaper.watch(pid, exit.clone(), group);
                Child { pid, exit }
            });
            let _ = tell.send(forked);
        });
        match told.recv() {
            Ok(forked) => forked.with_context(|| "cannot fork"),
            Err(_) => Err(Error::unavailable("the shim is ending")),
        }
    }

    /// Runs a command to its end and collects its output, as far as that was not given elsewhere. It is killed
    /// when the caller gives up, and when the shim ends.
    pub(crate) fn run(&self, command: &mut Command, caller: &Caller) -> Result<Output> {
        let stdout = capture(command, 1)?;
        let stderr = capture(command, 2)?;
        let name = command.name();
        let child = self.spawn(command.dies_with_shim(), Group::Keep)?;
        let watching = Watching::new(caller, &self.reaper, child.pid);
        let [stdout, stderr] = collect([stdout, stderr], &child.exit, caller.deadline)?;
        let exit = child.exit.wait(caller.deadline);
        // One that came to its end all the same has done what it does: its result stands.
        if watching.was_cancelled() && exit.is_none_or(|exit| exit.status == KILLED) {
            return Err(Error::new(
                Code::Cancelled,
                format!("`{name}` was killed: its caller has gone away"),
            ));
        }
        if let Some(exit) = exit {
            return Ok(Output { exit, stdout, stderr });
        }
        let _ = self.reaper.signal(child.pid, Signal::KILL, true);
        child.exit.wait_for(Duration::from_secs(5));
        Err(Error::deadline_exceeded(format!("`{name}` was killed at the call's deadline")))
    }

    /// Remembers exits of unknown children from now on, for [`adopt`](Self::adopt).
    pub(crate) fn guard(&self) -> Guard {
        self.reaper.guard()
    }

    /// Makes a process that a runtime command left behind a child like any other.
    pub(crate) fn adopt(guard: &Guard, pid: Pid) -> Result<Child> {
        let exit = ExitSlot::default();
        guard.adopt(pid, &exit)?;
        Ok(Child { pid, exit })
    }
}

/// Has a command killed as soon as its caller goes away, until it is dropped.
struct Watching<'a>(Option<&'a Cancellation>);

impl<'a> Watching<'a> {
    fn new(caller: &'a Caller, reaper: &Reaper, pid: Pid) -> Self {
        let cancellation = caller.cancellation.as_deref();
        if let Some(cancellation) = cancellation {
            let reaper = reaper.clone();
            cancellation.on_cancel(move || {
                let _ = reaper.signal(pid, Signal::KILL, true);
            });
        }
        Self(cancellation)
    }

    fn was_cancelled(&self) -> bool {
        self.0.is_some_and(Cancellation::is_cancelled)
    }
}

impl Drop for Watching<'_> {
    fn drop(&mut self) {
        if let Some(cancellation) = self.0 {
            cancellation.forget();
        }
    }
}

/// One output of a command that is being collected; no file, once it is at its end.
struct Capture {
    file: Option<File>,
    bytes: Vec<u8>,
}

/// Has an output collected that the command was not told where to send.
fn capture(command: &mut Command, number: RawFd) -> Result<Capture> {
    if command.descriptors.iter().any(|(_, taken)| *taken == number) {
        return Ok(Capture { file: None, bytes: Vec::new() });
    }
    let (read, write) = pipe()?;
    fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).with_context(|| "cannot set up a pipe")?;
    command.descriptor(number, write);
    Ok(Capture { file: Some(read.into()), bytes: Vec::new() })
}

/// Reads until the command has ended and what it wrote was read: a process that it left behind may hold its
/// outputs open for good.
fn collect(mut outputs: [Capture; 2], exit: &ExitSlot, deadline: Option<Instant>) -> Result<[Vec<u8>; 2]> {
    let (ended, end) = pipe()?;
    exit.on_exit(move |_| drop(end));
    loop {
        let over = wait_readable(&outputs, &ended, deadline)?;
        for output in &mut outputs {
            output.read_available();
        }
        if over || outputs.iter().all(|output| output.file.is_none()) {
            return Ok(outputs.map(|mut output| {
                output.forget_all_but(OUTPUT_LIMIT);
                output.bytes
            }));
        }
    }
}

/// Waits until an output can be read; true when the command has ended or time is up.
fn wait_readable(outputs: &[Capture; 2], ended: &OwnedFd, deadline: Option<Instant>) -> Result<bool> {
    let open = outputs.iter().filter_map(|output| output.file.as_ref());
    let mut fds: Vec<_> = open.map(|file| PollFd::new(file.as_fd(), PollFlags::POLLIN)).collect();
    fds.push(PollFd::new(ended.as_fd(), PollFlags::POLLIN));
    let ready = wait_for_any(&mut fds, deadline).with_context(|| "cannot wait for a command's output")?;
    Ok(ready == 0 || fds.last().and_then(PollFd::any) == Some(true))
}

impl Capture {
    /// Reads what is there.
    fn read_available(&mut self) {
        let mut chunk = [0; 4096];
        while let Some(file) = &mut self.file {
            match file.read(&mut chunk) {
                Ok(count) if count > 0 => self.take(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                _ => self.file = None,
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        // Seldom, for what stays has to be moved.
        if self.bytes.len() >= 2 * OUTPUT_LIMIT {
            self.forget_all_but(OUTPUT_LIMIT);
        }
    }

    fn forget_all_but(&mut self, limit: usize) {
        self.bytes.drain(..self.bytes.len().saturating_sub(limit));
    }
}

/// Holds back a process that exists but has not run its program. Dropped unopened, the process ends.
#[derive(Debug)]
pub(crate) struct Gate {
    gate: File,
    status: Status,
}

impl Gate {
    /// Lets the process become its program; fails, naming the program, when it cannot.
    pub(crate) fn open(mut self) -> Result<()> {
        // A child that died at its gate has closed the pipe; its exit tells the rest.
        let opened = self.gate.write_all(&[1]);
        opened.map_err(|_| {
            Error::failed_precondition(format!("`{}` died before it was started", self.status.program))
        })?;
        self.status.read().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_output_the_end_is_kept_and_never_more_than_twice_as_much() {
        let mut output = Capture { file: None, bytes: Vec::new() };
        for byte in 0..5 {
            output.take(&vec![byte; OUTPUT_LIMIT - 1]);
            assert!(output.bytes.len() < 2 * OUTPUT_LIMIT);
        }
        output.take(b"the end");
        output.forget_all_but(OUTPUT_LIMIT);
        assert_eq!(output.bytes.len(), OUTPUT_LIMIT);
        assert!(output.bytes.ends_with(b"the end"));
    }
}
