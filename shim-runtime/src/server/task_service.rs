//! Which RPC of the task service runs where. Version 2 and 3 differ in the service's name alone
//! (contract 6), so both names lead here.

use std::any::TypeId;
use std::sync::Arc;

use protobuf::Message;

use super::Registry;
use super::service::{Incoming, Service};
use super::underway::Underway;
use crate::api::{
    Call, CheckpointTaskRequest, CloseIORequest, ConnectRequest, CreateTaskRequest, DeleteRequest,
    ExecProcessRequest, KillRequest, PauseRequest, PidsRequest, ResizePtyRequest, ResumeRequest,
    ShutdownRequest, StartRequest, StateRequest, StatsRequest, Task, UpdateTaskRequest, WaitRequest,
};
use crate::error::{Error, Result};
use crate::peer::{Reply, encode};
use crate::socket::GIVE_UP_KEY;
use crate::workers::process_name;
use crate::workers::{Authored, Place};

/// A task behind the wire.
pub(crate) struct TaskService<T: Task> {
    task: Arc<Authored<T>>,
    /// It is the runtime's own, whose quick methods never block.
    answers_at_once: bool,
    deletes: Underway,
}

type Method<T, Q, R> = fn(&T, &Call<'_>, Q) -> Result<R>;

impl<T: Task> TaskService<T> {
    /// Offers `task` under each of the given versions of the API. Only the runtime's own, which is of the type `Own`,
    /// is asked on the loop.
    pub(crate) fn register<Own: 'static>(task: T, versions: &[u8], registry: &mut Registry) {
        let answers_at_once = TypeId::of::<T>() == TypeId::of::<Own>();
        let task = Arc::new(Authored::new(task));
        let service = Arc::new(Self { task, answers_at_once, deletes: Underway::default() });
        for version in versions {
            registry.insert(&format!("containerd.task.v{version}.Task"), service.clone());
        }
    }

    /// Never blocks in the runtime's own code, which answers on the loop. An author's waits for none of the author's
    /// other calls.
    fn quick<Q: Message + Named, R: Message>(&self, incoming: Incoming<'_>, method: Method<T, Q, R>) {
        if self.answers_at_once {
            incoming.answer_with(|call| encode(&method(&self.task, call, decode(&incoming.payload)?)?));
        } else {
            let name = incoming.method;
            self.offload(incoming, |request: &Q| Place::Look(request.lane(name)), method);
        }
    }

    /// May overlap whatever else its process does.
    fn aside<Q: Message + Named, R: Message>(&self, incoming: Incoming<'_>, method: Method<T, Q, R>) {
        let name = incoming.method;
        self.offload(incoming, |request: &Q| Place::Aside(request.lane(name)), method);
    }

    /// Moves a process through its life, after all such calls for it that came before.
    fn ordered<Q: Message + Named, R: Message>(&self, incoming: Incoming<'_>, method: Method<T, Q, R>) {
        self.offload(incoming, Q::place, method);
    }

    fn offload<Q: Message, R: Message>(
        &self,
        incoming: Incoming<'_>,
        place: impl FnOnce(&Q) -> Place,
        method: Method<T, Q, R>,
    ) {
        match decode::<Q>(&incoming.payload) {
            Err(error) => incoming.answer(Err(error)),
            Ok(request) => {
                let task = self.task.clone();
                let work =
                    move |call: &Call<'_>, payload: &[u8]| encode(&method(&task, call, decode(payload)?)?);
                incoming.offload(place(&request), work);
            }
        }
    }

    /// Holds the server from its reading on: until it has made its task, nothing else would, and an end that
    /// was asked for before may come in between.
    fn create(&self, incoming: Incoming<'_>) {
        let hold = incoming.server.lifetime.hold();
        match decode::<CreateTaskRequest>(&incoming.payload) {
            Err(error) => incoming.answer(Err(error)),
            Ok(request) => {
                self.deletes.forget(&request.process());
                let task = self.task.clone();
                incoming.offload(request.place(), move |call, payload| {
                    let _held = hold;
                    encode(&task.create(call, decode(payload)?)?)
                });
            }
        }
    }

    /// Does it once for all who ask for it meanwhile.
    fn delete(&self, incoming: Incoming<'_>) {
        match decode::<DeleteRequest>(&incoming.payload) {
            Err(error) => incoming.answer(Err(error)),
            Ok(request) => {
                let begun = self.deletes.begin(&request.process(), &incoming.responder);
                let Some(first) = begun else {
                    log::debug!("asked again to delete `{}` while that is under way", request.id);
                    return;
                };
                let task = self.task.clone();
                incoming.offload(request.place(), move |call, payload| {
                    let deleted = decode(payload).and_then(|request| task.delete(call, request));
                    first.answer(&deleted.and_then(|answer| encode(&answer)));
                    Ok(Vec::new())
                });
            }
        }
    }

    /// Parks its answer. An author's method runs on a worker and may park it there.
    fn wait(&self, incoming: Incoming<'_>) {
        let prepared =
            decode::<WaitRequest>(&incoming.payload).and_then(|request| Ok((request, incoming.park()?)));
        match prepared {
            Err(error) => incoming.answer(Err(error)),
            Ok((request, parked)) if self.answers_at_once => {
                let reply = Reply::new(parked.responder);
                incoming.with_call(|call| self.task.wait(call, request, reply));
            }
            Ok((request, parked)) => {
                let (task, place) = (self.task.clone(), Place::Look(request.lane("Wait")));
                incoming.run_parked(place, parked, move |call, payload, responder| {
                    let reply = Reply::new(responder);
                    match decode(payload) {
                        Ok(request) => task.wait(call, request, reply),
                        Err(error) => reply.send(Err(error)),
                    }
                });
            }
        }
    }
}

impl<T: Task> Service for TaskService<T> {
    fn handle(&self, incoming: Incoming<'_>) {
        match incoming.method {
            "State" => self.quick(incoming, T::state),
            "Connect" => self.quick(incoming, T::connect),
            "Exec" => self.quick(incoming, T::exec),
            "CloseIO" => self.quick(incoming, T::close_io),
            "ResizePty" => self.quick(incoming, T::resize_pty),
            "Shutdown" => self.quick(incoming, T::shutdown),
            "Kill" => self.aside(incoming, T::kill),
            "Stats" => self.aside(incoming, T::stats),
            "Pids" => self.aside(incoming, T::pids),
            "Create" => self.create(incoming),
            "Start" => self.ordered(incoming, T::start),
            // More is asked for than by a plain one that may be under way.
            "Delete" if incoming.has(GIVE_UP_KEY) => self.ordered(incoming, T::delete),
            "Delete" => self.delete(incoming),
            "Pause" => self.ordered(incoming, T::pause),
            "Resume" => self.ordered(incoming, T::resume),
            "Update" => self.ordered(incoming, T::update),
            "Checkpoint" => self.ordered(incoming, T::checkpoint),
            "Wait" => self.wait(incoming),
            method => incoming.answer(Err(Error::unimplemented(format!("method {method}")))),
        }
    }
}

/// A payload that does not parse is `Internal`, as Go's server has it (contract 6.6).
fn decode<Q: Message>(payload: &[u8]) -> Result<Q> {
    Q::parse_from_bytes(payload)
        .map_err(|error| Error::internal(format!("cannot understand the payload: {error}")))
}

/// A request that names a process.
trait Named {
    /// A text that no other process has.
    fn process(&self) -> String;

    fn place(&self) -> Place {
        Place::Mailbox(self.process())
    }

    /// A text that only calls of this method for the same process have.
    fn lane(&self, method: &str) -> String {
        [method, " ", &self.process()].concat()
    }
}

/// One impl for each request: those that may name an exec, and those that always mean the init.
macro_rules! named {
    ($($request:ty => $exec:expr),+ $(,)?) => {$(
        impl Named for $request {
            fn process(&self) -> String {
                let exec: fn(&Self) -> &str = $exec;
                process_name(&self.id, exec(self))
            }
        }
    )+};
}

named!(
    CreateTaskRequest => |_| "",
    StartRequest => |request| &request.exec_id,
    DeleteRequest => |request| &request.exec_id,
    PauseRequest => |_| "",
    ResumeRequest => |_| "",
    UpdateTaskRequest => |_| "",
    CheckpointTaskRequest => |_| "",
    StateRequest => |request| &request.exec_id,
    ConnectRequest => |_| "",
    ExecProcessRequest => |request| &request.exec_id,
    CloseIORequest => |request| &request.exec_id,
    ResizePtyRequest => |request| &request.exec_id,
    ShutdownRequest => |_| "",
    KillRequest => |request| &request.exec_id,
    StatsRequest => |_| "",
    PidsRequest => |_| "",
    WaitRequest => |request| &request.exec_id,
);
