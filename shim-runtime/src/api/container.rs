//! One container, as an author writes it: what its processes are, not when what may be called.

use super::{Any, CheckpointTaskRequest, Exec, Running, Started, UpdateTaskRequest};
use crate::cgroup::Group;
use crate::error::{Error, Result, WithContext};
use crate::reaper::ExitSlot;
use crate::stdio::Stdio;
use crate::types::{Pid, Signal};
use std::sync::Arc;

/// A container. Only [`start`](Self::start) must be written.
///
/// The runtime keeps the calls that move one process through its life in order (start, pause, resume, update,
/// checkpoint, delete) and refuses those that its state does not allow. `kill`, `stats` and `pids` may overlap
/// a call that hangs. Every call is made on a worker thread and may block.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a shim's container",
    label = "`Container` is missing for this type",
    note = "implement `Container` for `{Self}`: only `start` is required"
)]
pub trait Container: Send + Sync + 'static {
    /// Runs the init process. `io` holds the ends of its stdio that `create` did not take.
    fn start(&self, io: Stdio) -> Result<Started>;

    /// A ready-made container that answers whatever is not written here.
    fn inner(&self) -> Option<&dyn Container> {
        None
    }

    /// The init process's id, for containers whose `create` made it by a runtime command. The runtime adopts
    /// it: its exit may have come already. Not needed with [`Create::spawn_gated`](crate::Create::spawn_gated), and
    /// not for other processes that this crate has started: Create fails if it tells another process.
    fn pid(&self) -> Option<Pid> {
        self.inner().and_then(Container::pid)
    }

    /// Runs another process in the container.
    fn exec(&self, req: &Exec, io: Stdio) -> Result<Started> {
        self.inner().map_or_else(|| Err(unwritten("exec")), |inner| inner.exec(req, io))
    }

    /// Sends a signal to a process of the container, or to all of them.
    ///
    /// When the init process has ended and others may be left, execs or whatever shares its pid namespace, the
    /// runtime itself kills all, and tells of the init's exit once this has returned. Signals to what is being
    /// started, and unknown here (`NotFound`), arrive once it runs.
    fn kill(&self, to: &Target<'_>, signal: Signal) -> Result<()> {
        self.inner().map_or_else(|| to.signal(signal), |inner| inner.kill(to, signal))
    }

    /// Freezes the container.
    fn pause(&self) -> Result<()> {
        self.inner().map_or_else(|| Err(unwritten("pause")), Container::pause)
    }

    /// Thaws the container. The runtime itself does so when the init process ends while it is paused, for
    /// nothing that is frozen can die.
    fn resume(&self) -> Result<()> {
        self.inner().map_or_else(|| Err(unwritten("resume")), Container::resume)
    }

    /// Changes the container's limits.
    fn update(&self, req: &UpdateTaskRequest) -> Result<()> {
        self.inner().map_or_else(|| Err(unwritten("update")), |inner| inner.update(req))
    }

    /// Writes an image of the running container.
    fn checkpoint(&self, req: &CheckpointTaskRequest) -> Result<()> {
        self.inner().map_or_else(|| Err(unwritten("checkpoint")), |inner| inner.checkpoint(req))
    }

    /// What the container has used: a `Metrics` message of cgroup v1 or v2. By default read from the cgroup that
    /// the init process was in when it was created, as long as there is that cgroup, so after its end too;
    /// `NotFound` where that is the shim's own. containerd asks after the end to tell whether the container has
    /// been killed for want of memory.
    fn stats(&self, init: &Target<'_>) -> Result<Any> {
        self.inner().map_or_else(|| init.stats(), |inner| inner.stats(init))
    }

    /// The processes in the container. By default its init process and running execs.
    fn pids(&self, init: &Target<'_>) -> Result<Vec<Pid>> {
        self.inner().map_or_else(|| Ok(init.known_pids()), |inner| inner.pids(init))
    }

    /// Gives up what belongs to a process that has ended, or was never started.
    fn delete(&self, of: &Target<'_>) -> Result<()> {
        self.inner().map_or(Ok(()), |inner| inner.delete(of))
    }
}

fn unwritten(what: &str) -> Error {
    Error::unimplemented(format!("this runtime does not support {what}"))
}

/// Which process of a container is meant.
pub struct Target<'a> {
    exec: Option<&'a str>,
    all: bool,
    /// The process meant first, then the others if all are.
    processes: Vec<Arc<Running>>,
    others: Vec<Arc<Running>>,
}

impl<'a> Target<'a> {
    pub(crate) fn new(
        exec: Option<&'a str>,
        process: Option<Arc<Running>>,
        others: Vec<Arc<Running>>,
    ) -> Self {
        Self { exec, all: false, processes: process.into_iter().collect(), others }
    }

    pub(crate) fn with_all(mut self, all: bool) -> Self {
        self.all = all;
        self
    }

    /// The exec's id; `None` for the init process.
    pub fn exec(&self) -> Option<&str> {
        self.exec
    }

    /// The process's id; `None` for what has no process of its own, or none yet.
    pub fn pid(&self) -> Option<Pid> {
        self.processes.first().and_then(|process| process.pid)
    }

    /// Whether every process of the container is meant.
    pub fn all(&self) -> bool {
        self.all
    }

    /// Sends a signal to what is meant: the process, or its whole group and those of all execs.
    ///
    /// # Errors
    /// `NotFound` when it has finished.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let others = self.others.iter().filter(|_| self.all);
        let mut sent = Err(Error::not_found("process already finished"));
        for process in self.processes.iter().chain(others) {
            sent = sent.or(process.signal(signal, self.all));
        }
        sent
    }

    /// The cgroup of the process.
    pub(crate) fn cgroup(&self) -> Result<&Group> {
        let process = self.processes.first();
        process.ok_or_else(|| Error::not_found("the container has no process yet"))?.cgroup()
    }

    /// What the process's cgroup tells.
    pub(crate) fn stats(&self) -> Result<Any> {
        self.cgroup().and_then(Group::stats).with_context(|| "no metrics")
    }

    /// Where the exits arrive of those that are meant and can only be asked to stop.
    pub(crate) fn only_stopping(&self) -> Vec<ExitSlot> {
        let others = self.others.iter().filter(|_| self.all);
        let stopping = self.processes.iter().chain(others).filter(|process| process.only_stops());
        stopping.map(|process| process.exit.clone()).collect()
    }

    /// The ids of the init process and the running execs.
    pub(crate) fn known_pids(&self) -> Vec<Pid> {
        self.processes.iter().chain(&self.others).filter_map(|process| process.pid).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    struct Bare;

    impl Container for Bare {
        fn start(&self, _: Stdio) -> Result<Started> {
            Err(Error::internal("not started here"))
        }
    }

    #[test]
    fn what_is_not_written_is_unimplemented_in_a_sentence() {
        let (update, checkpoint) = (UpdateTaskRequest::default(), CheckpointTaskRequest::default());
        for (what, result) in [
            ("pause", Bare.pause()),
            ("resume", Bare.resume()),
            ("update", Bare.update(&update)),
            ("checkpoint", Bare.checkpoint(&checkpoint)),
        ] {
            let error = result.unwrap_err();
            assert_eq!(error.code(), Code::Unimplemented);
            assert_eq!(error.to_string(), format!("this runtime does not support {what}"));
        }
    }

    #[test]
    fn what_has_no_process_is_not_found_by_signals_and_stats_and_needs_no_deletion() {
        let nobody = Target::new(None, None, Vec::new());
        assert_eq!(Bare.kill(&nobody, Signal::KILL).unwrap_err().code(), Code::NotFound);
        assert_eq!(Bare.stats(&nobody).unwrap_err().code(), Code::NotFound);
        assert_eq!(Bare.pids(&nobody).unwrap(), []);
        Bare.delete(&nobody).unwrap();
    }
}
