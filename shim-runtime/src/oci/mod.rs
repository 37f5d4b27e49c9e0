//! Containers of an OCI runtime such as `runc` or `crun`: what containerd's own shim for them does (contract
//! 11), as a ready-made [`Container`] like [`HostProcess`](crate::HostProcess).

mod checkpoint;
mod engine;
mod info;
mod options;

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::{Map, Value};

use self::checkpoint::Image;
pub use self::engine::Engine;
use self::engine::{Cli, read_pid};
use self::options::{Options, write_private};
use crate::api::{
    Any, CheckpointTaskRequest, Container, Context, Create, Exec, Started, Target, UpdateTaskRequest,
};
use crate::bundle::Bundle;
use crate::caller::while_undoing;
use crate::cgroup::Group;
use crate::entry::Info;
use crate::error::{Code, Error, Result, WithContext};
use crate::files;
use crate::spawn::Command;
use crate::stdio::{Stdio, Withheld};
use crate::sys;
use crate::types::{Exit, Pid, Signal};

/// Where the engine writes the pid of the init, in the bundle.
const PID_FILE: &str = "init.pid";
/// How long an engine may take to give up what a failed command of its has left.
const UNDO: Duration = Duration::from_secs(10);

/// A container that an OCI runtime runs.
///
/// ```
/// use std::path::Path;
/// use shim_runtime::prelude::*;
/// use shim_runtime::api::Any;
/// use shim_runtime::{Engine, Info, Oci};
///
/// const RUNC: Engine = Engine::new("runc");
/// # struct Runc;
/// impl Shim for Runc {
///     type Container = Oci;
///     fn new(_: &Context) -> Result<Self> { Ok(Runc) }
///     fn create(&self, req: &mut Create) -> Result<Oci> { Oci::create(req, RUNC) }
///     fn restore(&self, req: &mut Create, image: &Path) -> Result<Oci> { Oci::restore(req, image, RUNC) }
///     fn cleanup(cx: &Context) -> Result<Option<Exit>> { Oci::cleanup(cx, RUNC) }
///     fn info(options: Option<&Any>) -> Result<Info> { Oci::info(options, RUNC) }
/// }
/// ```
#[derive(Debug)]
pub struct Oci {
    cli: Cli,
    bundle: Bundle,
    options: Options,
    made: Made,
}

/// How the container came to be.
#[derive(Debug)]
enum Made {
    /// By the engine: its init waits to be started.
    Created(Pid),
    /// From an image, once it is started.
    Restored {
        image: Image,
        /// The engine was asked for it: before that whatever has its id is somebody else's.
        begun: AtomicBool,
    },
}

impl Oci {
    /// Mounts the root file system and has the engine make the container.
    ///
    /// # Errors
    /// The engine's own words after `OCI runtime create failed: `; `InvalidArgument` for options of another
    /// type than `containerd.runc.v1.Options`.
    pub fn create(req: &mut Create, engine: Engine) -> Result<Self> {
        let (cli, options) = Self::prepare(req, engine)?;
        let bundle = req.bundle().clone();
        let pid_file = bundle.path().join(PID_FILE);
        let mut command = cli.command("create");
        command.arg("--bundle").arg(bundle.path());
        let withheld = connect(req.stdio()?, &options, &mut command)?;
        options.flags(&mut command);
        let pid = make(&cli, "create", command, withheld, &pid_file)?;
        Ok(Self { cli, bundle, options, made: Made::Created(pid) })
    }

    /// Mounts the root file system for a container whose image was written by `checkpoint`. The engine brings
    /// it back when it is started: until then its client may add to the root file system.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn restore(req: &mut Create, image: &Path, engine: Engine) -> Result<Self> {
        let (cli, options) = Self::prepare(req, engine)?;
        let bundle = req.bundle().clone();
        let image = Image::new(image, req.parent_checkpoint(), &options, &bundle);
        let made = Made::Restored { image, begun: AtomicBool::new(false) };
        Ok(Self { cli, bundle, options, made })
    }

    fn prepare(req: &mut Create, engine: Engine) -> Result<(Cli, Options)> {
        let options = Options::of(req.raw_options())?;
        options.write(req.bundle())?;
        req.mount_rootfs()?;
        Ok((Cli::new(engine, &options, req.context(), req.id(), req.bundle()), options))
    }

    /// The `delete` action: has the engine give up what is left of a container whose shim has died. A container of
    /// the same id that was made for another bundle is left alone.
    ///
    /// # Errors
    /// The engine's own words; a container that it does not know is no error.
    pub fn cleanup(cx: &Context, engine: Engine) -> Result<Option<Exit>> {
        // Without that file the engine, which may be missing, was never asked for a container here.
        if !cx.bundle().path().join(PID_FILE).exists() {
            return Ok(None);
        }
        let options = Options::read(cx.bundle());
        Cli::new(engine, &options, cx, cx.id(), cx.bundle()).give_up().map(|()| None)
    }

    /// What `-info` tells: the features that the engine says it has, or those that every engine has.
    ///
    /// # Errors
    /// Names an engine that is missing.
    pub fn info(options: Option<&Any>, engine: Engine) -> Result<Info> {
        info::info(engine, options)
    }

    /// The engine, for a command on a container that it knows.
    fn engine(&self) -> Result<&Cli> {
        match &self.made {
            Made::Restored { begun, .. } if !begun.load(Ordering::Relaxed) => {
                Err(Error::not_found("the container is not restored yet"))
            }
            _ => Ok(&self.cli),
        }
    }

    /// A file of an exec. An exec may be called as anything else in the bundle is, such as `init`, so that its files
    /// have a beginning that nothing else there has.
    fn exec_file(&self, exec: &str, kind: &str) -> PathBuf {
        self.bundle.path().join(format!("exec-{exec}.{kind}"))
    }
}

impl Container for Oci {
    fn start(&self, io: Stdio) -> Result<Started> {
        let (image, begun) = match &self.made {
            Made::Created(_) => {
                self.cli.run("start", self.cli.command("start"))?;
                return Ok(Started::created());
            }
            Made::Restored { image, begun } => (image, begun),
        };
        let pid_file = self.bundle.path().join(PID_FILE);
        let mut command = image.restore(&self.cli);
        let withheld = connect(io, &self.options, &mut command)?;
        if self.options.no_pivot_root {
            command.arg("--no-pivot");
        }
        command.args(["--no-subreaper", "--bundle"]).arg(self.bundle.path());
        begun.store(true, Ordering::Relaxed);
        let restored = make(&self.cli, "restore", command, withheld, &pid_file);
        begun.store(pid_file.exists(), Ordering::Relaxed);
        restored.map(Started::adopt)
    }

    fn pid(&self) -> Option<Pid> {
        match self.made {
            Made::Created(pid) => Some(pid),
            Made::Restored { .. } => None,
        }
    }

    fn exec(&self, req: &Exec, io: Stdio) -> Result<Started> {
        let pid_file = self.exec_file(req.id(), "pid");
        let spec = Temporary(self.exec_file(req.id(), "json"));
        let mut command = self.cli.command("exec");
        command.arg("--detach").arg("--process").arg(&spec.0);
        let withheld = connect(io, &self.options, &mut command)?;
        write_private(&spec.0, &process_of(req)?)
            .with_context(|| format!("cannot write `{}`", spec.0.display()))?;
        // Of an earlier process of the same name.
        let _ = std::fs::remove_file(&pid_file);
        let run = self.cli.run_detached("exec", command, withheld, &pid_file);
        run.inspect_err(|_| end_left_behind(&pid_file)).map(Started::adopt)
    }

    fn kill(&self, to: &Target<'_>, signal: Signal) -> Result<()> {
        if to.exec().is_some() {
            return to.signal(signal);
        }
        self.engine()?.kill(signal, to.all())
    }

    fn pause(&self) -> Result<()> {
        self.cli.run("pause", self.cli.command("pause")).map(drop)
    }

    fn resume(&self) -> Result<()> {
        self.cli.run("resume", self.cli.command("resume")).map(drop)
    }

    fn update(&self, req: &UpdateTaskRequest) -> Result<()> {
        let resources = req.resources.as_ref().map_or(&[][..], |resources| &resources.value);
        let mut command = self.cli.command("update");
        command.arg("--resources=-").stdin(readable(resources)?);
        self.engine()?.run("update", command).map(drop)
    }

    fn checkpoint(&self, req: &CheckpointTaskRequest) -> Result<()> {
        checkpoint::checkpoint(&self.cli, &self.bundle, req)
    }

    /// All processes of the container's cgroup, those that it started itself among them.
    fn pids(&self, init: &Target<'_>) -> Result<Vec<Pid>> {
        match init.cgroup().and_then(Group::pids) {
            Err(error) if error.code() == Code::NotFound => Ok(init.known_pids()),
            listed => listed,
        }
    }

    fn delete(&self, of: &Target<'_>) -> Result<()> {
        match of.exec() {
            Some(exec) => {
                let _ = std::fs::remove_file(self.exec_file(exec, "pid"));
                Ok(())
            }
            None => self.engine().map_or(Ok(()), |engine| engine.delete(false)),
        }
    }
}

impl Options {
    /// What of them is for the engine's `create`.
    fn flags(&self, command: &mut Command) {
        if self.no_pivot_root {
            command.arg("--no-pivot");
        }
        if self.no_new_keyring {
            command.arg("--no-new-keyring");
        }
    }
}

fn null() -> Result<File> {
    File::options().read(true).write(true).open("/dev/null").with_context(|| "cannot open /dev/null")
}

/// Connects the container's streams, which the engine passes on, or has it send the terminal that it makes.
fn connect(mut io: Stdio, options: &Options, command: &mut Command) -> Result<Withheld> {
    let withheld = io.withhold();
    if io.is_terminal() {
        // The container has the terminal, so that what the engine writes is its own, and collected.
        command.arg("--console-socket").arg(io.console_socket()?);
    } else {
        // Whatever is not connected must not become the pipe that collects the command's own output.
        for number in 0..=2 {
            command.descriptor(number, null()?);
        }
    }
    // 0 is who has them in any case.
    let owner = |id: u32| Some(id).filter(|id| *id != 0);
    io.set_owner(owner(options.io_uid), owner(options.io_gid))?;
    io.apply(command)?;
    Ok(withheld)
}

/// A file that is there for one command alone. It goes whatever becomes of the command, and of the file itself: one
/// that was begun on a full disk is left otherwise.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The specification of an exec as a client sent it, with the terminal that it asked for: where the two differ,
/// the request counts (contract 11.5).
fn process_of(req: &Exec) -> Result<Vec<u8>> {
    let cannot = || format!("cannot understand the process specification of `{}`", req.id());
    let mut process: Map<String, Value> = serde_json::from_slice(&req.raw_process().value)
        .map_err(Error::invalid_argument_from)
        .with_context(cannot)?;
    process.insert("terminal".to_owned(), Value::Bool(req.is_terminal()));
    serde_json::to_vec(&process).map_err(|error| Error::internal(error.to_string()))
}

/// A file without a name that holds `content`, to be read from its beginning.
fn readable(content: &[u8]) -> Result<OwnedFd> {
    use std::io::Seek;
    let mut file = File::from(memfd_create(c"input", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file.into())
}

/// Has the engine make the container; returns its init's pid. What was made before a failure is given up again.
///
/// The pid file notes whether something in the engine's hands is this bundle's. It stands, empty, before the engine is
/// asked, and goes when the engine has refused or everything was undone: so `delete` knows what to do at whatever
/// moment the shim dies.
fn make(cli: &Cli, what: &str, command: Command, withheld: Withheld, pid_file: &Path) -> Result<Pid> {
    files::create(pid_file, 0o644).with_context(|| format!("cannot write `{}`", pid_file.display()))?;
    cli.run_detached(what, command, withheld, pid_file).inspect_err(|error| {
        match undo(cli, pid_file, error) {
            Ok(()) => drop(std::fs::remove_file(pid_file)),
            Err(error) => log::warn!("cannot clean up after the failure: {error}"),
        }
    })
}

/// After a failure: has the engine give up a container that it has made all the same. One that the engine
/// refused to make is not ours: its id may be that of another.
fn undo(cli: &Cli, pid_file: &Path, error: &Error) -> Result<()> {
    let refused = error.code() == Code::Unknown && read_pid(pid_file).is_err();
    if refused { Ok(()) } else { while_undoing(UNDO, || cli.give_up()) }
}

/// After a failure: ends a process that the engine has started all the same.
fn end_left_behind(pid_file: &Path) {
    if let Ok(pid) = read_pid(pid_file)
        && sys::is_child(pid)
    {
        let _ = sys::kill(pid, Signal::KILL);
    }
}
