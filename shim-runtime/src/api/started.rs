//! What `start` and `exec` hand back: something that runs, can be told to stop, and will exit once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;

use super::{Child, Context};
use crate::cgroup::Group as Cgroup;
use crate::error::{Error, Result, WithContext};
use crate::reaper::{ExitSlot, Group};
use crate::spawn::{self, Command, Gate, Supervisor};
use crate::sync::caught;
use crate::sync::lock;
use crate::types::{Exit, Pid, Signal};
use crate::workers::Authored;

/// The status of a thread that panicked, as a Rust program's.
const PANICKED: u32 = 101;

type Stop = Box<dyn Fn(Signal) + Send + Sync>;

/// A process of a container that was started. One that is dropped, and not returned, is ended.
///
/// What `start` returns is the process that `create` made, if it made one: containerd was told its pid then. Any other
/// is ended, and refused with a sentence.
pub struct Started(Kind);

pub(crate) enum Kind {
    /// The process that `create` made.
    Created,
    /// A process that a runtime command left behind, still to be claimed from the exits seen meanwhile.
    Adopt(Pid),
    Running(Arc<Running>),
}

impl Started {
    /// The process that [`Create::spawn_gated`](crate::Create::spawn_gated) made, or whose pid
    /// [`Container::pid`](crate::Container::pid) tells, now runs. Its gate, if it has one, was opened.
    pub fn created() -> Self {
        Self(Kind::Created)
    }

    /// Starts a process; returns once its program runs. When it ends, its process group is killed.
    ///
    /// # Errors
    /// Names what cannot be done, a program that cannot be executed above all.
    pub fn spawn(context: &Context, mut command: Command) -> Result<Self> {
        let supervisor = context.supervisor()?;
        let child = supervisor.spawn(&mut command, Group::Kill)?;
        Ok(Self(Kind::Running(Arc::new(Running::group_leader(child, supervisor)))))
    }

    /// A process that a runtime command, run during this very call, left behind as a child of the shim. It may
    /// have ended already: exits since the call began are remembered. Not for processes that this crate has started.
    pub fn adopt(pid: Pid) -> Self {
        Self(Kind::Adopt(pid))
    }

    /// Runs a closure on a thread of its own; what it returns is the exit status, and an error or a panic is
    /// logged and becomes status 1 or 101. A thread cannot be killed, so `stop` is called with each signal; one
    /// that outlives a SIGKILL by some seconds is reported as 137 and left behind.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn thread(
        stop: impl Fn(Signal) + Send + Sync + 'static,
        run: impl FnOnce() -> Result<u32> + Send + 'static,
    ) -> Result<Self> {
        let (started, exit) = Self::external(stop);
        let body = move || exit.exit(run_caught(run));
        let spawned = thread::Builder::new().name("container".to_owned()).spawn(body);
        spawned.with_context(|| "cannot start a thread")?;
        Ok(started)
    }

    /// Something that runs elsewhere, a remote engine for example. `stop` is called with each signal; its end
    /// is told through the handle.
    pub fn external(stop: impl Fn(Signal) + Send + Sync + 'static) -> (Self, ExitHandle) {
        let exit = ExitSlot::default();
        let running = Running::new(None, Life::Stop(Authored::new(Box::new(stop))), exit.clone());
        (Self(Kind::Running(Arc::new(running))), ExitHandle(exit))
    }

    pub(crate) fn into_kind(mut self) -> Kind {
        std::mem::replace(&mut self.0, Kind::Created)
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Kind::Running(running) = &self.0 {
            running.end();
        }
    }
}

fn run_caught(run: impl FnOnce() -> Result<u32>) -> u32 {
    match caught(run) {
        Ok(Ok(status)) => status,
        Ok(Err(error)) => {
            log::error!("a container's thread failed: {error}");
            1
        }
        Err(panic) => {
            log::error!("a container's thread has ended: {panic}");
            PANICKED
        }
    }
}

/// Tells the end of what [`Started::external`] started. Dropped untold, it reports status 255.
pub struct ExitHandle(ExitSlot);

impl ExitHandle {
    /// It ended with this status.
    pub fn exit(self, status: u32) {
        self.0.set(Exit::now(status));
    }
}

impl Drop for ExitHandle {
    fn drop(&mut self) {
        self.0.set(Exit::now(255));
    }
}

/// A process that is ready in all but its program; see [`Create::spawn_gated`](crate::Create::spawn_gated) and
/// [`Context::spawn_gated`]. Dropped unopened, the process ends.
pub struct Gated {
    child: Child,
    gate: Mutex<Option<Gate>>,
}

impl Gated {
    pub(crate) fn new(child: Child, gate: Gate) -> Self {
        child.running.waits_at_gate.store(true, Ordering::Release);
        Self { child, gate: Mutex::new(Some(gate)) }
    }

    /// The process, of which [`Child::on_exit`] tells even if the gate is never opened.
    pub fn child(&self) -> &Child {
        &self.child
    }

    /// Its process id, from its creation to its end.
    pub fn pid(&self) -> Pid {
        self.child.pid()
    }

    /// Lets it run its program; returns once it does.
    ///
    /// # Errors
    /// `FailedPrecondition` when it was opened before or died meanwhile; else names the program that cannot
    /// be executed.
    pub fn open(&self) -> Result<()> {
        let gate = lock(&self.gate).take();
        gate.ok_or_else(|| Error::failed_precondition("the process was started before"))?.open()?;
        self.child.running.waits_at_gate.store(false, Ordering::Release);
        Ok(())
    }
}

/// Something that runs and whose exit arrives once.
pub(crate) struct Running {
    /// `None` for what has no process of its own.
    pub(crate) pid: Option<Pid>,
    life: Life,
    pub(crate) exit: ExitSlot,
    cgroup: OnceLock<Box<Cgroup>>,
    /// Its program does not run yet.
    waits_at_gate: AtomicBool,
}

enum Life {
    Child { supervisor: Supervisor, leads_group: bool },
    Stop(Authored<Stop>),
}

impl Running {
    fn new(pid: Option<Pid>, life: Life, exit: ExitSlot) -> Self {
        Self { pid, life, exit, cgroup: OnceLock::new(), waits_at_gate: AtomicBool::new(false) }
    }

    /// A child that leads a process group of its own.
    pub(crate) fn group_leader(child: spawn::Child, supervisor: &Supervisor) -> Self {
        let life = Life::Child { supervisor: supervisor.clone(), leads_group: true };
        Self::new(Some(child.pid), life, child.exit)
    }

    /// A child that a runtime command left behind.
    pub(crate) fn adopted(child: spawn::Child, supervisor: &Supervisor) -> Self {
        let life = Life::Child { supervisor: supervisor.clone(), leads_group: false };
        Self::new(Some(child.pid), life, child.exit)
    }

    /// The cgroup that it was in when this was first asked, which the runtime does as soon as there is a process: a
    /// process that has ended tells no more where it was, and one that runs may go on to a cgroup below, as systemd
    /// does, which is a part of its container only.
    ///
    /// # Errors
    /// `NotFound` without a process, or without a cgroup of its own.
    pub(crate) fn cgroup(&self) -> Result<&Cgroup> {
        if let Some(cgroup) = self.cgroup.get() {
            return Ok(cgroup);
        }
        let pid = self.pid.filter(|_| self.exit.get().is_none());
        let found = Cgroup::of(pid.ok_or_else(|| Error::not_found("there is no process to find it by"))?)?;
        Ok(self.cgroup.get_or_init(|| Box::new(found)))
    }

    /// Sends a signal, with `all` to the whole process group where there is one.
    pub(crate) fn signal(&self, signal: Signal, all: bool) -> Result<()> {
        match (&self.life, self.pid) {
            (Life::Child { supervisor, leads_group }, Some(pid)) => {
                supervisor.reaper.signal(pid, signal, all && *leads_group)
            }
            (Life::Stop(stop), _) if self.exit.get().is_none() => {
                (**stop)(signal);
                Ok(())
            }
            _ => Err(Error::not_found("process already finished")),
        }
    }

    /// Whether it was made, and its program does not run yet.
    pub(crate) fn waits_at_gate(&self) -> bool {
        self.waits_at_gate.load(Ordering::Acquire)
    }

    /// Whether it cannot be killed, only asked to stop.
    pub(crate) fn only_stops(&self) -> bool {
        matches!(self.life, Life::Stop(_))
    }

    /// Kills it, for nobody wants it any more.
    pub(crate) fn end(&self) {
        if self.exit.get().is_none() {
            let _ = self.signal(Signal::KILL, true);
        }
    }
}
