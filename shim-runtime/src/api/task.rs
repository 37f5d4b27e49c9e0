//! The low level: one method for each RPC of containerd's task service (contract 6).

use std::ops::Deref;
use std::time::Instant;

use ttrpc::proto::KeyValue;

use super::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, Context, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest,
    PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest,
    StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse, UpdateTaskRequest, WaitRequest,
    WaitResponse,
};
use crate::caller::Cancellation;
use crate::error::{Error, Result};
use crate::peer::Reply;
use crate::types::Pid;

/// One RPC on its way: who called, how long it may take.
pub struct Call<'a> {
    pub(crate) context: &'a Context,
    pub(crate) deadline: Option<Instant>,
    pub(crate) metadata: &'a [KeyValue],
    pub(crate) cancelled: Option<&'a Cancellation>,
}

impl Call<'_> {
    /// When the caller gives up; `None` for never.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether the caller has gone away or its deadline has passed. What changes a container's state should be
    /// finished nevertheless.
    pub fn cancelled(&self) -> bool {
        self.cancelled.is_some_and(Cancellation::is_cancelled)
            || self.deadline.is_some_and(|deadline| deadline <= Instant::now())
    }

    /// What the caller attached under `key`, first value.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.iter().find(|pair| pair.key == key).map(|pair| pair.value.as_str())
    }
}

impl Deref for Call<'_> {
    type Target = Context;

    fn deref(&self) -> &Context {
        self.context
    }
}

macro_rules! forwarded {
    ($($(#[$doc:meta])* $name:ident($request:ty) -> $response:ty),+ $(,)?) => {$(
        $(#[$doc])*
        fn $name(&self, call: &Call<'_>, req: $request) -> Result<$response> {
            match self.inner() {
                Some(inner) => inner.$name(call, req),
                None => Err(unwritten(stringify!($name))),
            }
        }
    )+};
}

fn unwritten(method: &str) -> Error {
    Error::unimplemented(format!("this shim does not support {method}"))
}

/// containerd's task service. Whatever is not written goes to [`inner`](Self::inner), or is answered with
/// `Unimplemented`; `connect` and `pids` always have an answer, for containerd takes their failure for a leak.
///
/// Every method runs on a worker thread and may block.
#[diagnostic::on_unimplemented(
    message = "`{Self}` answers no task RPCs",
    label = "`Task` is missing for this type",
    note = "implement `Task` for `{Self}`: each method is one RPC, and those not written are answered for you"
)]
pub trait Task: Send + Sync + 'static {
    /// The task that answers whatever is not written here.
    fn inner(&self) -> Option<&dyn Task> {
        None
    }

    forwarded! {
        /// Prepares a task.
        create(CreateTaskRequest) -> CreateTaskResponse,
        /// Runs the init process, or an exec that was added.
        start(StartRequest) -> StartResponse,
        /// Forgets a process that has ended, and the task with its init.
        delete(DeleteRequest) -> DeleteResponse,
        /// Adds a process, to be run by `start`.
        exec(ExecProcessRequest) -> Empty,
        /// Changes the size of a process's terminal.
        resize_pty(ResizePtyRequest) -> Empty,
        /// What a process does at present. Must answer within two seconds whatever else hangs.
        state(StateRequest) -> StateResponse,
        /// Freezes the container.
        pause(PauseRequest) -> Empty,
        /// Thaws the container.
        resume(ResumeRequest) -> Empty,
        /// Sends a signal.
        kill(KillRequest) -> Empty,
        /// Tells that no more input will come.
        close_io(CloseIORequest) -> Empty,
        /// Writes an image of the container.
        checkpoint(CheckpointTaskRequest) -> Empty,
        /// Changes the container's limits.
        update(UpdateTaskRequest) -> Empty,
        /// What the container has used.
        stats(StatsRequest) -> StatsResponse,
        /// Asks the shim to end, if it holds no more tasks.
        shutdown(ShutdownRequest) -> Empty,
    }

    /// The processes in the container. By default the shim itself: an empty answer counts as a leaked shim.
    fn pids(&self, call: &Call<'_>, req: PidsRequest) -> Result<PidsResponse> {
        if let Some(inner) = self.inner() {
            return inner.pids(call, req);
        }
        let own = ProcessInfo { pid: Pid::own().get(), ..ProcessInfo::default() };
        Ok(PidsResponse { processes: vec![own], ..PidsResponse::default() })
    }

    /// Whether the shim lives. By default yes, under its own pid.
    fn connect(&self, call: &Call<'_>, req: ConnectRequest) -> Result<ConnectResponse> {
        if let Some(inner) = self.inner() {
            return inner.connect(call, req);
        }
        Ok(ConnectResponse { shim_pid: Pid::own().get(), ..ConnectResponse::default() })
    }

    /// Answers once a process has ended, at any time and from any thread: a waiting call is an answer that was
    /// put aside, not a thread.
    fn wait(&self, call: &Call<'_>, req: WaitRequest, reply: Reply<WaitResponse>) {
        match self.inner() {
            Some(inner) => inner.wait(call, req, reply),
            None => reply.send(Err(unwritten("wait"))),
        }
    }
}
