//! The client of the task service, version 2 or 3, which differ in nothing but the service's name (contract 6).
//! Calls block, are written to the timeline, and tell the judge what the shim answered.

use std::fmt::Write as _;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, ExecProcessRequest, KillRequest, PauseRequest,
    PidsRequest, PidsResponse, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest, StartResponse,
    StateRequest, StateResponse, StatsRequest, StatsResponse, Status, UpdateTaskRequest, WaitRequest,
    WaitResponse,
};
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::empty::Empty;
use protobuf::well_known_types::timestamp::Timestamp;
use protobuf::{Message, MessageField};
use ttrpc::Request;
use ttrpc::proto::KeyValue;

use super::bundle::Bundle;
use super::events::Events;
use super::failure::{Failure, Result};
use super::promise;
use super::stdio::Stdio;
use super::system_time;
use super::timeline::Timeline;
use super::watch::{Answer, Exit, Watch};
use shim_runtime::{Code, Signal};

/// What the daemon gives State and Shutdown (contract 6.2); other calls have their client's deadline.
const STATE_LIMIT: Duration = Duration::from_secs(2);
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(3);
const CLIENT_LIMIT: Duration = Duration::from_secs(30);

/// The task service, aimed at one process of one container.
#[derive(Clone)]
pub struct Task {
    pub(crate) client: ttrpc::Client,
    pub(crate) version: u32,
    pub(crate) metadata: Vec<KeyValue>,
    pub(crate) timeline: Timeline,
    pub(crate) watch: Watch,
    pub(crate) events: Events,
    pub(crate) id: String,
    pub(crate) exec_id: String,
    pub(crate) limit: Option<Duration>,
}

/// A Wait under way.
#[derive(Debug)]
pub struct Waiting {
    answer: Receiver<Result<WaitResponse>>,
    name: String,
    timeline: Timeline,
}

impl Waiting {
    /// Its answer, when it comes within the limit.
    pub fn answer(&self, limit: Duration) -> Result<WaitResponse> {
        self.answer.recv_timeout(limit).unwrap_or_else(|_| {
            Err(Failure::broken(vec![super::Broken {
                promise: promise::WAIT_ENDS,
                seen: format!("no answer to Wait for {} within {limit:?}", self.name),
                expected: "an answer when the process has ended".to_owned(),
            }])
            .with(&self.timeline))
        })
    }

    /// Its answer, however long it takes.
    pub fn answer_at_last(&self) -> Result<WaitResponse> {
        self.answer
            .recv()
            .unwrap_or_else(|_| Err(Failure::setup("the thread of a Wait has ended").with(&self.timeline)))
    }
}

impl Task {
    /// The same service, aimed at an exec of the container.
    pub fn exec(&self, exec_id: &str) -> Self {
        Self { exec_id: exec_id.to_owned(), ..self.clone() }
    }

    /// The same service, aimed at another container of the same shim.
    pub fn container(&self, id: &str) -> Self {
        Self { id: id.to_owned(), exec_id: String::new(), ..self.clone() }
    }

    /// The same service with another deadline for each call.
    pub fn within(&self, limit: Duration) -> Self {
        Self { limit: Some(limit), ..self.clone() }
    }

    /// The container's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The full name of the service that is called.
    pub fn service(&self) -> String {
        service(self.version)
    }

    /// Whether a process is the one that this is aimed at, or an exec of it.
    pub(crate) fn is_for(&self, container: &str, exec: &str) -> bool {
        self.id == container && (self.exec_id.is_empty() || self.exec_id == exec)
    }

    /// Container, or container and exec.
    fn name(&self) -> String {
        if self.exec_id.is_empty() { self.id.clone() } else { format!("{}/{}", self.id, self.exec_id) }
    }

    /// Any method with any message; `limit` is the deadline on the wire, zero for none.
    pub fn call<Q: Message, R: Message>(&self, method: &str, request: &Q, limit: Duration) -> Result<R> {
        self.call_told(method, request, limit, |_| String::new())
    }

    fn call_told<Q: Message, R: Message>(
        &self,
        method: &str,
        request: &Q,
        limit: Duration,
        tell: impl FnOnce(&R) -> String,
    ) -> Result<R> {
        let limit = self.limit.filter(|_| !limit.is_zero()).unwrap_or(limit);
        let running = self.timeline.call(format!("{method} {}", self.name()));
        match self.request(method, request, limit) {
            Ok(response) => {
                running.done(tell(&response));
                Ok(response)
            }
            Err(failure) => {
                running.done(failure.to_string());
                Err(failure.with(&self.timeline))
            }
        }
    }

    fn request<R: Message>(&self, method: &str, request: &impl Message, limit: Duration) -> Result<R> {
        let internal = |error: protobuf::Error| Failure::call(method, Code::Internal, error.to_string());
        let request = Request {
            service: self.service(),
            method: method.to_owned(),
            payload: request.write_to_bytes().map_err(internal)?,
            timeout_nano: i64::try_from(limit.as_nanos()).unwrap_or(0),
            metadata: self.metadata.clone(),
            ..Request::default()
        };
        let response = self.client.request(request).map_err(|error| refused(method, error))?;
        R::parse_from_bytes(&response.payload).map_err(internal)
    }

    fn tell(&self, answer: &Answer) {
        self.watch.answer(&self.id, &self.exec_id, answer);
    }

    /// Create, with the bundle's streams, options and mounts.
    pub fn create(&self, bundle: &Bundle) -> Result<CreateTaskResponse> {
        let stdio = bundle.stdio();
        self.create_with(&CreateTaskRequest {
            id: bundle.id().to_owned(),
            bundle: bundle.path().to_string_lossy().into_owned(),
            rootfs: bundle.mounts().to_vec(),
            terminal: stdio.terminal(),
            stdin: stdio.stdin(),
            stdout: stdio.stdout(),
            stderr: stdio.stderr(),
            options: MessageField(bundle.options().cloned().map(Box::new)),
            ..CreateTaskRequest::default()
        })
    }

    /// Create, with any request.
    pub fn create_with(&self, request: &CreateTaskRequest) -> Result<CreateTaskResponse> {
        let tell = |answer: &CreateTaskResponse| format!("pid {}", answer.pid);
        let answer: CreateTaskResponse =
            self.call_told("Create", request, CLIENT_LIMIT, tell).inspect_err(|failure| {
                // Refused because of another Create, whose events are right.
                if failure.code() != Some(Code::AlreadyExists) {
                    self.watch.refused(&request.id);
                }
            })?;
        self.watch.answer(&request.id, "", &Answer::Created { pid: answer.pid });
        Ok(answer)
    }

    /// Adds the exec that this is aimed at, with the container's process spec and another command.
    pub fn add(&self, bundle: &Bundle, args: &[&str], stdio: &Stdio) -> Result<()> {
        self.add_with(bundle, args, stdio, |_| ())
    }

    /// As [`Task::add`], with a request that is changed before it is sent.
    pub fn add_with(
        &self,
        bundle: &Bundle,
        args: &[&str],
        stdio: &Stdio,
        change: impl FnOnce(&mut ExecProcessRequest),
    ) -> Result<()> {
        let spec = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned(),
            value: bundle.exec_spec(args, stdio.terminal()),
            ..Any::default()
        };
        let mut request = ExecProcessRequest {
            id: self.id.clone(),
            exec_id: self.exec_id.clone(),
            terminal: stdio.terminal(),
            stdin: stdio.stdin(),
            stdout: stdio.stdout(),
            stderr: stdio.stderr(),
            spec: MessageField::some(spec),
            ..ExecProcessRequest::default()
        };
        change(&mut request);
        let _: Empty = self.call("Exec", &request, CLIENT_LIMIT)?;
        self.tell(&Answer::ExecAdded);
        Ok(())
    }

    /// Start.
    pub fn start(&self) -> Result<StartResponse> {
        let request =
            StartRequest { id: self.id.clone(), exec_id: self.exec_id.clone(), ..StartRequest::default() };
        let tell = |answer: &StartResponse| format!("pid {}", answer.pid);
        let answer: StartResponse = self.call_told("Start", &request, CLIENT_LIMIT, tell)?;
        self.tell(&Answer::Started { pid: answer.pid });
        Ok(answer)
    }

    /// State.
    pub fn state(&self) -> Result<StateResponse> {
        let request =
            StateRequest { id: self.id.clone(), exec_id: self.exec_id.clone(), ..StateRequest::default() };
        let tell = |answer: &StateResponse| {
            let mut text = format!("{:?} pid {}", answer.status, answer.pid);
            if is_stopped(answer) {
                let _ = write!(text, " status {}", answer.exit_status);
            }
            text
        };
        let answer: StateResponse = self.call_told("State", &request, STATE_LIMIT, tell)?;
        if is_stopped(&answer) {
            self.tell(&Answer::Exited { source: "State", exit: exit(answer.exit_status, &answer.exited_at) });
        }
        Ok(answer)
    }

    /// Wait, in the background, as containerd's clients do it: beside Start, often before it.
    pub fn wait(&self) -> Waiting {
        let (sender, answer) = mpsc::channel();
        let (task, name) = (self.clone(), self.name());
        thread::spawn(move || {
            let _ = sender.send(task.wait_here());
        });
        Waiting { answer, name, timeline: self.timeline.clone() }
    }

    fn wait_here(&self) -> Result<WaitResponse> {
        let request =
            WaitRequest { id: self.id.clone(), exec_id: self.exec_id.clone(), ..WaitRequest::default() };
        let tell = |answer: &WaitResponse| format!("status {}", answer.exit_status);
        let answer: WaitResponse = self.call_told("Wait", &request, Duration::ZERO, tell)?;
        self.tell(&Answer::Exited { source: "Wait", exit: exit(answer.exit_status, &answer.exited_at) });
        Ok(answer)
    }

    /// Kill: the process, never the whole container.
    pub fn kill(&self, signal: Signal) -> Result<()> {
        self.kill_with(signal, false)
    }

    /// Kill, with the flag for the whole container.
    pub fn kill_with(&self, signal: Signal, all: bool) -> Result<()> {
        let signal = u32::try_from(signal.number()).unwrap_or_default();
        let (id, exec_id) = (self.id.clone(), self.exec_id.clone());
        let request = KillRequest { id, exec_id, signal, all, ..KillRequest::default() };
        self.call::<_, Empty>("Kill", &request, CLIENT_LIMIT).map(drop)
    }

    /// Delete.
    pub fn delete(&self) -> Result<DeleteResponse> {
        let request =
            DeleteRequest { id: self.id.clone(), exec_id: self.exec_id.clone(), ..DeleteRequest::default() };
        let tell = |answer: &DeleteResponse| format!("status {}", answer.exit_status);
        let answer: DeleteResponse = self.call_told("Delete", &request, CLIENT_LIMIT, tell)?;
        self.tell(&Answer::Deleted { pid: answer.pid, exit: exit(answer.exit_status, &answer.exited_at) });
        Ok(answer)
    }

    /// Connect.
    pub fn connect(&self) -> Result<ConnectResponse> {
        let request = ConnectRequest { id: self.id.clone(), ..ConnectRequest::default() };
        let tell = |answer: &ConnectResponse| format!("shim {} task {}", answer.shim_pid, answer.task_pid);
        self.call_told("Connect", &request, CLIENT_LIMIT, tell)
    }

    /// Pids.
    pub fn pids(&self) -> Result<PidsResponse> {
        let request = PidsRequest { id: self.id.clone(), ..PidsRequest::default() };
        self.call_told("Pids", &request, CLIENT_LIMIT, |answer: &PidsResponse| {
            format!("{} pids", answer.processes.len())
        })
    }

    /// Stats.
    pub fn stats(&self) -> Result<StatsResponse> {
        self.call("Stats", &StatsRequest { id: self.id.clone(), ..StatsRequest::default() }, CLIENT_LIMIT)
    }

    /// Pause.
    pub fn pause(&self) -> Result<()> {
        let request = PauseRequest { id: self.id.clone(), ..PauseRequest::default() };
        self.call::<_, Empty>("Pause", &request, CLIENT_LIMIT).map(drop)
    }

    /// Resume.
    pub fn resume(&self) -> Result<()> {
        let request = ResumeRequest { id: self.id.clone(), ..ResumeRequest::default() };
        self.call::<_, Empty>("Resume", &request, CLIENT_LIMIT).map(drop)
    }

    /// `CloseIO` of stdin.
    pub fn close_io(&self) -> Result<()> {
        let (id, exec_id) = (self.id.clone(), self.exec_id.clone());
        let request = CloseIORequest { id, exec_id, stdin: true, ..CloseIORequest::default() };
        self.call::<_, Empty>("CloseIO", &request, CLIENT_LIMIT).map(drop)
    }

    /// `ResizePty`.
    pub fn resize_pty(&self, width: u32, height: u32) -> Result<()> {
        let (id, exec_id) = (self.id.clone(), self.exec_id.clone());
        let request = ResizePtyRequest { id, exec_id, width, height, ..ResizePtyRequest::default() };
        self.call::<_, Empty>("ResizePty", &request, CLIENT_LIMIT).map(drop)
    }

    /// Update, with the JSON of `LinuxResources`.
    pub fn update(&self, resources: &serde_json::Value) -> Result<()> {
        let resources = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".to_owned(),
            value: resources.to_string().into_bytes(),
            ..Any::default()
        };
        let request = UpdateTaskRequest {
            id: self.id.clone(),
            resources: MessageField::some(resources),
            ..UpdateTaskRequest::default()
        };
        self.call::<_, Empty>("Update", &request, CLIENT_LIMIT).map(drop)
    }

    /// Checkpoint, without options.
    pub fn checkpoint(&self, path: &str) -> Result<()> {
        let (id, path) = (self.id.clone(), path.to_owned());
        let request = CheckpointTaskRequest { id, path, ..CheckpointTaskRequest::default() };
        self.call::<_, Empty>("Checkpoint", &request, CLIENT_LIMIT).map(drop)
    }

    /// Shutdown. A connection that ends before the answer is no error, as for the daemon.
    pub fn shutdown(&self) -> Result<()> {
        let request = ShutdownRequest { id: self.id.clone(), ..ShutdownRequest::default() };
        match self.call::<_, Empty>("Shutdown", &request, SHUTDOWN_LIMIT) {
            Err(failure) if failure.code() != Some(Code::Unavailable) => Err(failure),
            _ => Ok(()),
        }
    }
}

/// The name of the task service of that version.
pub(crate) fn service(version: u32) -> String {
    format!("containerd.task.v{version}.Task")
}

pub(crate) fn is_stopped(state: &StateResponse) -> bool {
    state.status.enum_value() == Ok(Status::STOPPED)
}

fn exit(status: u32, at: &MessageField<Timestamp>) -> Exit {
    Exit { status, at: at.as_ref().and_then(system_time) }
}

pub(crate) fn refused(method: &str, error: ttrpc::Error) -> Failure {
    match error {
        ttrpc::Error::RpcStatus(status) => Failure::call(method, code(status.code.value()), status.message),
        // The client's own words for a deadline, the one case that it does not tell by type.
        ttrpc::Error::Others(text) if text.contains("timeout") || text.contains("timed out") => {
            Failure::call(method, Code::DeadlineExceeded, "no answer in time")
        }
        error => Failure::call(method, Code::Unavailable, error.to_string()),
    }
}

/// The code of that number, as far as the runtime knows it.
fn code(number: i32) -> Code {
    use Code::{
        Aborted, AlreadyExists, Cancelled, DeadlineExceeded, FailedPrecondition, Internal, InvalidArgument,
        NotFound, OutOfRange, PermissionDenied, ResourceExhausted, Unavailable, Unimplemented, Unknown,
    };
    let known = [
        Cancelled,
        InvalidArgument,
        DeadlineExceeded,
        NotFound,
        AlreadyExists,
        PermissionDenied,
        ResourceExhausted,
        FailedPrecondition,
        Aborted,
        OutOfRange,
        Unimplemented,
        Internal,
        Unavailable,
    ];
    known.into_iter().find(|code| *code as i32 == number).unwrap_or(Unknown)
}

/// Closes a connection at once, whatever threads still hold it.
pub(crate) struct HangUp(pub(crate) std::os::unix::net::UnixStream);

impl HangUp {
    pub(crate) fn now(&self) {
        let _ = self.0.shutdown(std::net::Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_keep_their_numbers() {
        assert_eq!(code(5), Code::NotFound);
        assert_eq!(code(12), Code::Unimplemented);
        assert_eq!(code(15), Code::Unknown);
    }

    #[test]
    fn a_deadline_is_told_from_a_hang_up() {
        let of = |error| refused("State", error).code();
        assert_eq!(of(ttrpc::Error::Socket("gone".into())), Some(Code::Unavailable));
        let timeout = "Receive packet from Receiver timeout: timed out waiting on channel";
        assert_eq!(of(ttrpc::Error::Others(timeout.into())), Some(Code::DeadlineExceeded));
    }
}
