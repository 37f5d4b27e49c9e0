//! Shims that misbehave, each in one way, and the promise by whose name the stand-in reports it. A promise that
//! no misbehaviour breaks would watch nothing.

use std::error::Error;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::events::task::{TaskCreate, TaskDelete, TaskExit, TaskStart};
use containerd_shim_protos::shim::event::Envelope;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::empty::Empty;
use protobuf::well_known_types::timestamp::Timestamp;
use protobuf::{Message, MessageField, MessageFull};
use shim_testing::api::{
    ConnectResponse, CreateTaskResponse, DeleteResponse, StartResponse, StateResponse, Status, WaitResponse,
};
use shim_testing::{Bundle, Dialect, FakeContainerd, Frame, RawConnection, Result};
use ttrpc::{Request, Response};

type Done = Result<(), Box<dyn Error>>;

/// A stand-in, a bundle and a shell script for a shim. `$S` is the path of a socket in the right place.
struct Stage {
    ctrd: FakeContainerd,
    bundle: Bundle,
    socket: PathBuf,
    script: PathBuf,
}

impl Stage {
    fn new(dialect: Dialect, start: &str, delete: &str) -> Result<Self> {
        let ctrd = FakeContainerd::new(dialect)?;
        let bundle = ctrd.bundle("c1").build()?;
        let socket = ctrd.root().join("s/socket");
        let script = ctrd.root().join("shim");
        let text = format!(
            "#!/bin/sh\nS={}\nfor action; do :; done\ncase $action in\n{INFO}\nstart) {start} ;;\ndelete) {delete} ;;\nesac\n",
            socket.display()
        );
        fs::write(&script, text)?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        Ok(Self { ctrd, bundle, socket, script })
    }

    /// The names of the promises that were broken so far.
    fn broken(&self) -> Vec<&'static str> {
        self.ctrd.broken().iter().map(|broken| broken.promise.name).collect()
    }
}

/// A `RuntimeInfo` with a name, in protobuf.
const INFO: &str = r"-info) printf '\012\004liar' ;;";

const ANSWER: &str = "printf unix://$S > address; cat address";

/// What `start` alone breaks.
fn broken_by_start(dialect: Dialect, start: &str) -> Result<Vec<&'static str>> {
    let stage = Stage::new(dialect, start, "true")?;
    let _listener = UnixListener::bind(&stage.socket)?;
    let _ = stage.ctrd.start(&stage.script, &stage.bundle);
    Ok(stage.broken())
}

#[test]
fn what_start_does_wrong_is_reported_by_name() -> Done {
    let legacy = Dialect::V1_7;
    assert_eq!(broken_by_start(legacy, ANSWER)?, [""; 0]);
    let by = |extra: &str| broken_by_start(legacy, &format!("{extra}; {ANSWER}"));
    assert_eq!(by("echo starting >&2")?, ["start.silent"]);
    assert_eq!(by("sleep 60 & :")?, ["start.closes-output"]);
    let json = r#"printf '{"version":3,"address":"unix://%s","protocol":"ttrpc"}' $S"#;
    assert_eq!(broken_by_start(legacy, json)?, ["start.answer-form"]);
    assert_eq!(broken_by_start(legacy, "printf unix://$S")?, ["start.address-file"]);
    assert_eq!(broken_by_start(Dialect::V2_3, "printf unix://$S")?, [""; 0]);
    assert_eq!(broken_by_start(legacy, "sleep 60 >/dev/null 2>&1 & exit 1")?, ["start.failure-clean"]);
    assert_eq!(by("S=$S-nobody")?, ["start.listening"]);
    assert_eq!(broken_by_start(legacy, "")?, ["start.answer-form"]);
    Ok(())
}

#[test]
fn a_socket_in_the_wrong_place_or_open_to_others_is_reported() -> Done {
    let stage = Stage::new(Dialect::V2_3, "printf unix://$S-elsewhere", "true")?;
    let elsewhere = stage.ctrd.root().join("socket-elsewhere");
    let script = fs::read_to_string(&stage.script)?.replace("/s/socket", "/socket");
    fs::write(&stage.script, script)?;
    let _listener = UnixListener::bind(&elsewhere)?;
    fs::set_permissions(&elsewhere, fs::Permissions::from_mode(0o777))?;
    stage.ctrd.start(&stage.script, &stage.bundle)?;
    assert_eq!(stage.broken(), ["socket.private", "socket.dir"]);
    Ok(())
}

#[test]
fn an_info_that_fails_is_reported_and_start_goes_on() -> Done {
    let stage = Stage::new(Dialect::V2_3, ANSWER, "true")?;
    fs::write(&stage.script, fs::read_to_string(&stage.script)?.replace("liar'", "liar'; exit 1"))?;
    let _listener = UnixListener::bind(&stage.socket)?;
    stage.ctrd.start(&stage.script, &stage.bundle)?;
    assert_eq!(stage.broken(), ["info.answer"]);
    Ok(())
}

#[test]
fn a_start_that_hangs_is_killed() -> Done {
    let stage = Stage::new(Dialect::V1_7, "exec sleep 60", "true")?;
    let mut launch = stage.ctrd.launch(&stage.script, &stage.bundle, "start");
    launch.limit = Duration::from_millis(100);
    let output = launch.run()?;
    assert!(stage.ctrd.take_start(&stage.script, &stage.bundle, &output).is_err());
    assert_eq!(stage.broken(), ["start.exits"]);
    Ok(())
}

#[test]
fn what_delete_does_wrong_is_reported_by_name() -> Done {
    for (delete, promise) in [("exit 1", "delete.quick"), ("echo done", "delete.answer")] {
        let stage = Stage::new(Dialect::V1_7, ANSWER, delete)?;
        let _listener = UnixListener::bind(&stage.socket)?;
        let shim = stage.ctrd.start(&stage.script, &stage.bundle)?;
        assert!(shim.delete_action().is_err());
        assert_eq!(stage.broken(), [promise]);
    }
    Ok(())
}

/// A shim's server in the test itself. It does everything right but what it is told to do wrong.
#[derive(Clone, Default)]
struct Liar {
    /// The pid that it claims the container has.
    pid: u32,
    /// Events that it publishes before the answer, by method.
    events: PathBuf,
    namespace: String,
    lie: &'static str,
}

const EXITED: i64 = 1_700_000_000;

impl Liar {
    fn serve(self: Arc<Self>, listener: UnixListener) {
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let liar = Arc::clone(&self);
                thread::spawn(move || liar.connection(&stream));
            }
        });
    }

    fn connection(&self, stream: &UnixStream) {
        while let Ok(Some(frame)) = Frame::read_from(stream) {
            let Ok(request) = Request::parse_from_bytes(&frame.body) else { return };
            let Some(payload) = self.answer(&request.method) else { continue };
            let response = Response { payload, ..Response::default() };
            let sent = Frame::response(frame.stream, &response).and_then(|frame| frame.write_to(stream));
            if sent.is_err() {
                return;
            }
        }
    }

    fn is(&self, lie: &str) -> bool {
        self.lie == lie
    }

    fn answer(&self, method: &str) -> Option<Vec<u8>> {
        let (pid, id) = (self.pid, "c1".to_owned());
        let exit_status = 3;
        let exited_at = Self::time(EXITED);
        match method {
            "Create" => {
                self.publish("/tasks/create", &TaskCreate { container_id: id, pid, ..Default::default() });
                let pid = if self.is("create.pid") { u32::MAX >> 2 } else { pid };
                CreateTaskResponse { pid, ..Default::default() }.write_to_bytes().ok()
            }
            "Connect" => {
                let shim_pid = if self.is("connect.always") { 0 } else { std::process::id() };
                ConnectResponse { shim_pid, task_pid: pid, ..Default::default() }.write_to_bytes().ok()
            }
            "Start" => {
                let pid = if self.is("event.pid") { 1 } else { pid };
                self.publish("/tasks/start", &TaskStart { container_id: id, pid, ..Default::default() });
                StartResponse { pid: self.pid, ..Default::default() }.write_to_bytes().ok()
            }
            "State" => {
                let status = if self.is("state.true") { Status::CREATED } else { Status::STOPPED };
                let exit_status = if self.is("exit.same-status-everywhere") { 4 } else { exit_status };
                StateResponse { id, pid, status: status.into(), exit_status, exited_at, ..Default::default() }
                    .write_to_bytes()
                    .ok()
            }
            "Wait" if self.is("wait.ends") => None,
            "Wait" => WaitResponse { exit_status, exited_at, ..Default::default() }.write_to_bytes().ok(),
            "Delete" => {
                let exit = TaskExit {
                    container_id: id.clone(),
                    id: id.clone(),
                    pid,
                    exit_status,
                    exited_at,
                    ..Default::default()
                };
                let delete = TaskDelete {
                    container_id: id,
                    pid,
                    exit_status,
                    exited_at: Self::time(EXITED),
                    ..Default::default()
                };
                self.publish("/tasks/exit", &exit);
                if self.is("event.one-exit") {
                    self.publish("/tasks/exit", &exit);
                }
                self.publish("/tasks/delete", &delete);
                let seconds = if self.is("exit.same-time-everywhere") { EXITED + 1 } else { EXITED };
                DeleteResponse { pid, exit_status, exited_at: Self::time(seconds), ..Default::default() }
                    .write_to_bytes()
                    .ok()
            }
            _ => Empty::new().write_to_bytes().ok(),
        }
    }

    fn time(seconds: i64) -> MessageField<Timestamp> {
        MessageField::some(Timestamp { seconds, ..Timestamp::default() })
    }

    /// Publishes an event, unless to keep silent about it is the lie.
    fn publish<M: MessageFull>(&self, topic: &str, event: &M) {
        let silent = match topic {
            "/tasks/create" => "event.create",
            "/tasks/start" => "event.start-after-create",
            "/tasks/delete" => "event.delete-after-exit",
            _ => "nothing",
        };
        if self.is(silent) {
            return;
        }
        let prefix = if self.is("event.type") { "type.googleapis.com/" } else { "" };
        let any = Any {
            type_url: format!("{prefix}{}", M::descriptor().full_name()),
            value: event.write_to_bytes().unwrap_or_default(),
            ..Any::default()
        };
        let namespace = if self.is("event.namespace") { "other".to_owned() } else { self.namespace.clone() };
        // Long before the answer, or long after it.
        let late = self.is("event.create-before-return");
        let envelope = Envelope {
            timestamp: Self::time(if late { i64::from(i32::MAX) } else { 1 }),
            namespace,
            topic: topic.to_owned(),
            event: MessageField::some(any),
            ..Envelope::default()
        };
        let forward = ForwardRequest { envelope: MessageField::some(envelope), ..ForwardRequest::default() };
        if let Ok(mut connection) = RawConnection::connect(&self.events) {
            let service = "containerd.services.events.ttrpc.v1.Events";
            let _ = connection.ask::<_, Empty>(service, "Forward", &forward);
        }
    }
}

/// A process for the liar to show.
struct Sleeper(Child);

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a container's life with that lie breaks.
fn broken_by(lie: &'static str) -> Result<Vec<&'static str>> {
    live(&Stage::new(Dialect::V1_7, ANSWER, "true")?, lie)
}

fn live(stage: &Stage, lie: &'static str) -> Result<Vec<&'static str>> {
    let sleeper = Sleeper(Command::new("sleep").arg("60").spawn()?);
    let (events, namespace) = (stage.ctrd.events().path().to_owned(), stage.ctrd.namespace().to_owned());
    let liar = Liar { pid: sleeper.0.id(), events, namespace, lie };
    Arc::new(liar).serve(UnixListener::bind(&stage.socket)?);
    let mut shim = stage.ctrd.start(&stage.script, &stage.bundle)?;
    let waiting = shim.run()?;
    if let Err(failure) = waiting.answer(Duration::from_millis(300)) {
        return Ok(failure.promises().iter().map(|broken| broken.promise.name).collect());
    }
    if lie == "leak.rootfs" {
        fs::write(stage.bundle.path().join("rootfs/file"), "")?;
    }
    let _ = shim.remove();
    let mut broken = stage.broken();
    broken.dedup();
    Ok(broken)
}

#[test]
fn a_delete_that_fails_after_a_normal_deletion_is_reported() -> Done {
    let stage = Stage::new(Dialect::V1_7, ANSWER, "exit 1")?;
    let broken = live(&stage, "")?;
    assert_eq!(broken, ["delete.idempotent"]);
    // The liar's socket is still there.
    let failure = stage.ctrd.check().err().ok_or("a socket that was left was not found")?;
    assert!(failure.promises().iter().any(|broken| broken.promise.name == "leak.socket"), "{failure:?}");
    Ok(())
}

#[test]
fn an_honest_server_breaks_nothing() -> Done {
    assert_eq!(broken_by("")?, [""; 0]);
    Ok(())
}

#[test]
fn each_lie_of_a_server_is_reported_by_its_name() -> Done {
    let lies = [
        "connect.always",
        "create.pid",
        "event.create-before-return",
        "event.namespace",
        "event.one-exit",
        "event.pid",
        "exit.same-status-everywhere",
        "exit.same-time-everywhere",
        "leak.rootfs",
        "state.true",
        "wait.ends",
    ];
    for lie in lies {
        let broken = broken_by(lie)?;
        assert!(broken.contains(&lie), "{lie}: {broken:?}");
    }
    Ok(())
}

#[test]
fn each_event_that_is_kept_back_is_missed() -> Done {
    let threads: Vec<_> =
        ["event.create", "event.start-after-create", "event.delete-after-exit", "event.type"]
            .map(|lie| thread::spawn(move || (lie, broken_by(lie))))
            .into();
    for thread in threads {
        let (lie, broken) = thread.join().map_err(|_| "a thread panicked")?;
        let broken = broken?;
        assert!(broken.contains(&lie), "{lie}: {broken:?}");
    }
    Ok(())
}
