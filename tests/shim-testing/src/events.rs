//! The daemon's events service: takes what shims publish, judges it as the daemon does
//! ([contract 7](shim_runtime::contract#s7)) and keeps it with the time of its arrival. It can be stopped and brought back,
//! as a daemon that restarts.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::events::task as proto;
use containerd_shim_protos::shim::event::Envelope;
use protobuf::well_known_types::empty::Empty;
use protobuf::well_known_types::timestamp::Timestamp;
use protobuf::{Enum, Message, MessageFull};
use ttrpc::{Code, Request, Response};

use super::failure::{Doing, Failure, Result};
use super::frames::Frame;
use super::timeline::Timeline;
use super::watch::Watch;
use super::{lock, promise, system_time};

/// What an event tells.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the fields are those of the messages in `containerd.events`")]
pub enum What {
    Create {
        bundle: String,
        pid: u32,
    },
    Start {
        pid: u32,
    },
    Exit {
        pid: u32,
        status: u32,
        at: Option<SystemTime>,
    },
    Delete {
        pid: u32,
        status: u32,
        at: Option<SystemTime>,
    },
    ExecAdded,
    ExecStarted {
        pid: u32,
    },
    Paused,
    Resumed,
    Checkpointed {
        path: String,
    },
    Oom,
    /// Of a topic outside the task service.
    Other,
}

/// An event as it arrived. `Display` is its short form, which lists of expected events use: `create c1`,
/// `exit c1 3`, `exec-started c1/e1`.
#[derive(Clone, Debug)]
pub struct Event {
    /// When it arrived.
    pub arrived: Instant,
    /// When the shim stamped it.
    pub stamped: SystemTime,
    /// The topic, for example `/tasks/exit`.
    pub topic: String,
    /// The container.
    pub container: String,
    /// The exec; empty for the init.
    pub exec: String,
    /// What it tells.
    pub what: What,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.topic.strip_prefix("/tasks/").unwrap_or(&self.topic);
        write!(f, "{name} {}", self.container)?;
        if !self.exec.is_empty() {
            write!(f, "/{}", self.exec)?;
        }
        match &self.what {
            What::Exit { status, .. } | What::Delete { status, .. } => write!(f, " {status}"),
            _ => Ok(()),
        }
    }
}

impl Event {
    /// Whether the short form begins with the words of `pattern`: `exit c1` means any status.
    pub fn matches(&self, pattern: &str) -> bool {
        let text = self.to_string();
        let mut words = text.split_whitespace();
        pattern.split_whitespace().all(|wanted| words.next() == Some(wanted))
    }
}

/// The events service; clones share it.
#[derive(Clone)]
pub struct Events(Arc<Shared>);

struct Shared {
    path: PathBuf,
    namespace: String,
    timeline: Timeline,
    watch: Watch,
    seen: Mutex<Vec<Event>>,
    arrival: Condvar,
    /// Held from the taking of an event to its answer, so that stopping comes between two events.
    answering: Mutex<Answering>,
    /// Told when the service is mute no more, or has gone away.
    listening: Condvar,
    serving: Mutex<Option<Serving>>,
}

#[derive(Default)]
struct Answering {
    lose_next: bool,
    refuse_next: Option<Code>,
    mute: bool,
    /// How often the service went away; connections of before must not take what they had read by then.
    stops: u32,
    /// The latest event of each connection, by its descriptor.
    latest: HashMap<RawFd, Envelope>,
    /// What may come again: its connection was cut before the answer, or so soon after it that the shim may
    /// not have seen it. Publishers promise that an event comes at least once.
    lost: Vec<Envelope>,
}

struct Serving {
    listener: UnixListener,
    connections: Arc<Mutex<Vec<UnixStream>>>,
    accepting: JoinHandle<()>,
}

impl Events {
    /// A record of events to which nobody can connect yet.
    pub(crate) fn new(path: PathBuf, namespace: &str, timeline: Timeline, watch: Watch) -> Self {
        Self(Arc::new(Shared {
            path,
            namespace: namespace.to_owned(),
            timeline,
            watch,
            seen: Mutex::default(),
            arrival: Condvar::new(),
            answering: Mutex::default(),
            listening: Condvar::new(),
            serving: Mutex::default(),
        }))
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Takes connections, again after [`Events::stop`]; nothing changes if it does already.
    pub fn resume(&self) -> Result<()> {
        self.0.timeline.note("events service back");
        self.listen()
    }

    pub(crate) fn listen(&self) -> Result<()> {
        let mut serving = lock(&self.0.serving);
        if serving.is_some() {
            return Ok(());
        }
        let path = &self.0.path;
        let listener = UnixListener::bind(path).doing(|| format!("cannot listen on `{}`", path.display()))?;
        let connections = Arc::new(Mutex::new(Vec::new()));
        let stops = lock(&self.0.answering).stops;
        let accepting = thread::spawn({
            let (listener, connections) = (listener.try_clone()?, Arc::clone(&connections));
            let shared = Arc::downgrade(&self.0);
            move || {
                while let Ok((stream, _)) = listener.accept() {
                    let (Some(shared), Ok(copy)) = (shared.upgrade(), stream.try_clone()) else { return };
                    let (number, connections) = (copy.as_raw_fd(), Arc::clone(&connections));
                    lock(&connections).push(copy);
                    thread::spawn(move || {
                        Self(shared).connection(&stream, stops);
                        lock(&connections).retain(|copy| copy.as_raw_fd() != number);
                    });
                }
            }
        });
        *serving = Some(Serving { listener, connections, accepting });
        Ok(())
    }

    /// Goes away as a daemon does that is killed: the socket is gone, connections are cut.
    pub fn stop(&self) {
        let Some(serving) = lock(&self.0.serving).take() else { return };
        self.0.timeline.note("events service gone");
        let mut answering = lock(&self.0.answering);
        let latest: Vec<_> = answering.latest.drain().map(|(_, envelope)| envelope).collect();
        answering.lost.extend(latest);
        answering.stops += 1;
        self.0.listening.notify_all();
        let _ = fs::remove_file(&self.0.path);
        serving.end();
    }

    /// Takes the next event and cuts the connection before acknowledging it, as a daemon that is killed in
    /// between. The shim must send it again; the second copy is not counted.
    pub fn lose_next_answer(&self) {
        lock(&self.0.answering).lose_next = true;
    }

    /// Refuses the next event with that code, as a daemon does that cannot take it. It is not counted.
    pub fn refuse_next(&self, code: shim_runtime::Code) {
        lock(&self.0.answering).refuse_next = Code::from_i32(code as i32);
    }

    /// While mute, events are neither taken nor answered, as by a daemon that was stopped. When it goes on, it
    /// takes what has come meanwhile, even from connections that were closed since.
    pub fn set_mute(&self, mute: bool) {
        self.0.timeline.note(if mute { "events service mute" } else { "events service answers again" });
        lock(&self.0.answering).mute = mute;
        self.0.listening.notify_all();
    }

    /// All events so far, in the order of their arrival.
    pub fn all(&self) -> Vec<Event> {
        lock(&self.0.seen).clone()
    }

    pub(crate) fn forget(&self, whose: impl Fn(&str, &str) -> bool) {
        lock(&self.0.seen).retain(|event| !whose(&event.container, &event.exec));
    }

    /// Waits for the first event of `topic` that `is_it` accepts, among those that came and those to come.
    pub fn wait_for(&self, topic: &str, limit: Duration, is_it: impl Fn(&Event) -> bool) -> Result<Event> {
        let found = |seen: &[Event]| seen.iter().find(|event| event.topic == topic && is_it(event)).cloned();
        self.wait_until(limit, found).ok_or_else(|| {
            Failure::setup(format!("no event `{topic}` of the kind waited for within {limit:?}"))
                .with(&self.0.timeline)
        })
    }

    /// Waits until `decide` makes something of the events; `None` when the time is over.
    pub fn wait_until<T>(&self, limit: Duration, decide: impl Fn(&[Event]) -> Option<T>) -> Option<T> {
        let end = Instant::now() + limit;
        let mut seen = lock(&self.0.seen);
        loop {
            let decided = decide(&seen);
            let left = end.saturating_duration_since(Instant::now());
            if decided.is_some() || left.is_zero() {
                return decided;
            }
            seen = self.0.arrival.wait_timeout(seen, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn connection(&self, stream: &UnixStream, stops: u32) {
        while let Ok(Some(frame)) = Frame::read_from(stream) {
            let is_stopped = |answering: &mut Answering| answering.mute && answering.stops == stops;
            let waited = self.0.listening.wait_while(lock(&self.0.answering), is_stopped);
            let mut answering = waited.unwrap_or_else(PoisonError::into_inner);
            if answering.stops != stops {
                return;
            }
            let response = self.answer(&frame.body, &mut answering, stream.as_raw_fd());
            if std::mem::take(&mut answering.lose_next) {
                let lost = answering.latest.remove(&stream.as_raw_fd());
                answering.lost.extend(lost);
                let _ = stream.shutdown(Shutdown::Both);
                return;
            }
            if Frame::response(frame.stream, &response).and_then(|frame| frame.write_to(stream)).is_err() {
                return;
            }
        }
    }

    fn answer(&self, body: &[u8], answering: &mut Answering, connection: RawFd) -> Response {
        let refuse = |code, message: String| Response {
            status: protobuf::MessageField::some(ttrpc::get_status(code, message)),
            ..Response::default()
        };
        let request = match Request::parse_from_bytes(body) {
            Ok(request) => request,
            Err(error) => return refuse(Code::INVALID_ARGUMENT, error.to_string()),
        };
        if (request.service.as_str(), request.method.as_str()) != (SERVICE, "Forward") {
            return refuse(Code::UNIMPLEMENTED, format!("{}/{}", request.service, request.method));
        }
        let envelope = match ForwardRequest::parse_from_bytes(&request.payload) {
            Ok(forward) => forward.envelope.unwrap_or_default(),
            Err(error) => return refuse(Code::INTERNAL, error.to_string()),
        };
        if let Err(reason) = self.validate(&envelope) {
            return refuse(Code::INVALID_ARGUMENT, reason);
        }
        if let Some(code) = answering.refuse_next.take() {
            self.0.timeline.note(format!("`{}` refused with {code:?}", envelope.topic));
            return refuse(code, "refused on purpose".to_owned());
        }
        if let Some(index) = answering.lost.iter().position(|lost| *lost == envelope) {
            answering.lost.swap_remove(index);
            self.0.timeline.note(format!("`{}` again, after its connection was cut", envelope.topic));
        } else {
            self.take(&envelope);
        }
        answering.latest.insert(connection, envelope);
        let payload = Empty::new().write_to_bytes().unwrap_or_default();
        Response {
            status: protobuf::MessageField::some(ttrpc::get_status(Code::OK, "")),
            payload,
            ..Response::default()
        }
    }

    fn validate(&self, envelope: &Envelope) -> Result<(), String> {
        validate(envelope).inspect_err(|reason| {
            let seen = format!("{reason} in the envelope of `{}`", envelope.topic);
            self.0.watch.report(promise::EVENT_ENVELOPE, seen, "an envelope that the daemon takes");
        })
    }

    fn take(&self, envelope: &Envelope) {
        if envelope.namespace != self.0.namespace {
            let seen = format!("namespace `{}` on `{}`", envelope.namespace, envelope.topic);
            self.0.watch.report(promise::EVENT_NAMESPACE, seen, format!("`{}`", self.0.namespace));
        }
        let event = match decode(envelope) {
            Ok(event) => event,
            Err((seen, expected)) => return self.0.watch.report(promise::EVENT_TYPE, seen, expected),
        };
        self.0.timeline.event(event.to_string());
        // Judged under the lock, so that the judge sees events in the order of the list.
        let mut seen = lock(&self.0.seen);
        self.0.watch.event(&event);
        seen.push(event);
        drop(seen);
        self.0.arrival.notify_all();
    }
}

impl Serving {
    fn end(self) {
        // accept(2) returns an error once the listener is shut down.
        let _ = nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        let _ = self.accepting.join();
        for connection in lock(&self.connections).drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(serving) = lock(&self.serving).take() {
            serving.end();
        }
    }
}

const SERVICE: &str = "containerd.services.events.ttrpc.v1.Events";

/// The daemon's own checks ([contract 7](shim_runtime::contract#s7)); the error is what it would answer.
pub fn validate(envelope: &Envelope) -> Result<(), String> {
    if !is_identifier(&envelope.namespace) {
        return Err(format!("invalid namespace `{}`", envelope.namespace));
    }
    let topic = envelope
        .topic
        .strip_prefix('/')
        .ok_or_else(|| format!("topic `{}` must start with `/`", envelope.topic))?;
    if let Some(component) = topic.split('/').find(|component| !is_identifier(component)) {
        return Err(format!("invalid component `{component}` in the topic `{}`", envelope.topic));
    }
    match envelope.timestamp.as_ref() {
        Some(stamp) if stamp.seconds != 0 || stamp.nanos != 0 => Ok(()),
        _ => Err("no timestamp".to_owned()),
    }
}

/// At most 76 bytes: letters and digits, parted by single `.`, `_` or `-`.
fn is_identifier(text: &str) -> bool {
    let alphanumeric = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric());
    text.len() <= 76 && text.split(['.', '_', '-']).all(alphanumeric)
}

/// Reads the event by its topic; the error tells what was seen and what was expected.
fn decode(envelope: &Envelope) -> Result<Event, (String, String)> {
    fn parse<M: MessageFull>(bytes: &[u8]) -> Result<M, (String, String)> {
        M::parse_from_bytes(bytes)
            .map_err(|error| (error.to_string(), format!("a `{}`", M::descriptor().full_name())))
    }
    let any = envelope.event.clone().unwrap_or_default();
    let topic = envelope.topic.as_str();
    let wanted = message_of(topic);
    if wanted.is_some_and(|wanted| any.type_url != wanted) {
        let expected = format!("`{}`", wanted.unwrap_or_default());
        return Err((format!("type `{}` on topic `{topic}`", any.type_url), expected));
    }
    let bytes = &any.value;
    let time = |stamp: &protobuf::MessageField<Timestamp>| stamp.as_ref().and_then(system_time);
    let (container, exec, what) = match topic {
        "/tasks/create" => {
            let it: proto::TaskCreate = parse(bytes)?;
            (it.container_id, String::new(), What::Create { bundle: it.bundle, pid: it.pid })
        }
        "/tasks/start" => {
            let it: proto::TaskStart = parse(bytes)?;
            (it.container_id, String::new(), What::Start { pid: it.pid })
        }
        "/tasks/exit" => {
            let it: proto::TaskExit = parse(bytes)?;
            let what = What::Exit { pid: it.pid, status: it.exit_status, at: time(&it.exited_at) };
            // The init goes by the container's id here, unlike everywhere else (contract 6.4).
            let exec = if it.id == it.container_id { String::new() } else { it.id };
            (it.container_id, exec, what)
        }
        "/tasks/delete" => {
            let it: proto::TaskDelete = parse(bytes)?;
            let what = What::Delete { pid: it.pid, status: it.exit_status, at: time(&it.exited_at) };
            let exec = if it.id == it.container_id { String::new() } else { it.id };
            (it.container_id, exec, what)
        }
        "/tasks/exec-added" => {
            let it: proto::TaskExecAdded = parse(bytes)?;
            (it.container_id, it.exec_id, What::ExecAdded)
        }
        "/tasks/exec-started" => {
            let it: proto::TaskExecStarted = parse(bytes)?;
            (it.container_id, it.exec_id, What::ExecStarted { pid: it.pid })
        }
        "/tasks/paused" => (parse::<proto::TaskPaused>(bytes)?.container_id, String::new(), What::Paused),
        "/tasks/resumed" => (parse::<proto::TaskResumed>(bytes)?.container_id, String::new(), What::Resumed),
        "/tasks/oom" => (parse::<proto::TaskOOM>(bytes)?.container_id, String::new(), What::Oom),
        "/tasks/checkpointed" => {
            let it: proto::TaskCheckpointed = parse(bytes)?;
            (it.container_id, String::new(), What::Checkpointed { path: it.checkpoint })
        }
        _ => (String::new(), String::new(), What::Other),
    };
    let stamped = envelope.timestamp.as_ref().and_then(system_time).unwrap_or(SystemTime::UNIX_EPOCH);
    Ok(Event { arrived: Instant::now(), stamped, topic: topic.to_owned(), container, exec, what })
}

/// The message that belongs to a topic of the task service.
fn message_of(topic: &str) -> Option<&'static str> {
    Some(match topic {
        "/tasks/create" => "containerd.events.TaskCreate",
        "/tasks/start" => "containerd.events.TaskStart",
        "/tasks/exit" => "containerd.events.TaskExit",
        "/tasks/delete" => "containerd.events.TaskDelete",
        "/tasks/exec-added" => "containerd.events.TaskExecAdded",
        "/tasks/exec-started" => "containerd.events.TaskExecStarted",
        "/tasks/paused" => "containerd.events.TaskPaused",
        "/tasks/resumed" => "containerd.events.TaskResumed",
        "/tasks/oom" => "containerd.events.TaskOOM",
        "/tasks/checkpointed" => "containerd.events.TaskCheckpointed",
        _ => return None,
    })
}

/// Publishes an event as a shim would, for tests of the stand-in itself.
#[cfg(test)]
pub(crate) fn publish(socket: &Path, envelope: Envelope) -> std::io::Result<Response> {
    let mut connection = super::frames::RawConnection::connect(socket)?;
    let forward =
        ForwardRequest { envelope: protobuf::MessageField::some(envelope), ..ForwardRequest::default() };
    connection.call(SERVICE, "Forward", forward.write_to_bytes().map_err(std::io::Error::other)?)
}

#[cfg(test)]
mod tests {
    use protobuf::MessageField;
    use protobuf::well_known_types::any::Any;

    use super::*;

    fn envelope(topic: &str, type_url: &str, event: &impl Message) -> Envelope {
        Envelope {
            timestamp: MessageField::some(Timestamp { seconds: 1, ..Timestamp::default() }),
            namespace: "ns".into(),
            topic: topic.into(),
            event: MessageField::some(Any {
                type_url: type_url.into(),
                value: event.write_to_bytes().unwrap(),
                ..Any::default()
            }),
            ..Envelope::default()
        }
    }

    fn exit(status: u32) -> Envelope {
        let event = proto::TaskExit {
            container_id: "c1".into(),
            id: "c1".into(),
            exit_status: status,
            ..Default::default()
        };
        envelope("/tasks/exit", "containerd.events.TaskExit", &event)
    }

    fn service() -> (tempfile::TempDir, Events, Watch) {
        let dir = tempfile::tempdir().unwrap();
        let (timeline, watch) = (Timeline::new(), Watch::new(Timeline::new()));
        let events = Events::new(dir.path().join("e"), "ns", timeline, watch.clone());
        events.listen().unwrap();
        (dir, events, watch)
    }

    #[test]
    fn what_the_daemon_refuses_is_refused() {
        assert_eq!(validate(&exit(0)), Ok(()));
        for namespace in ["", "a..b", "-a", "a b", "ä", &"x".repeat(77)] {
            let wrong = Envelope { namespace: namespace.into(), ..exit(0) };
            assert!(validate(&wrong).is_err(), "namespace `{namespace}`");
        }
        for topic in ["", "tasks/exit", "/", "/tasks//exit", "/tasks/ex it"] {
            let wrong = Envelope { topic: topic.into(), ..exit(0) };
            assert!(validate(&wrong).is_err(), "topic `{topic}`");
        }
        for timestamp in [MessageField::none(), MessageField::some(Timestamp::new())] {
            assert!(validate(&Envelope { timestamp, ..exit(0) }).is_err());
        }
    }

    #[test]
    fn an_event_is_recorded_in_its_short_form_and_a_wrong_one_breaks_a_promise() {
        let (dir, events, watch) = service();
        let socket = dir.path().join("e");
        let answer = publish(&socket, exit(3)).unwrap();
        assert_eq!(answer.status.code.value(), 0);
        let event = events.wait_for("/tasks/exit", Duration::from_secs(5), |_| true).unwrap();
        assert_eq!(event.to_string(), "exit c1 3");
        assert!(event.matches("exit c1") && event.matches("exit c1 3") && !event.matches("exit c1 33"));

        let answer = publish(&socket, Envelope { topic: "exit".into(), ..exit(3) }).unwrap();
        assert_eq!(answer.status.code.value(), 3);
        publish(
            &socket,
            envelope("/tasks/oom", "type.googleapis.com/containerd.events.TaskOOM", &proto::TaskOOM::new()),
        )
        .unwrap();
        let names: Vec<_> = watch.broken().iter().map(|broken| broken.promise.name).collect();
        assert!(names.contains(&"event.envelope") && names.contains(&"event.type"), "{names:?}");
        assert_eq!(events.all().len(), 1);
    }

    #[test]
    fn an_event_whose_answer_was_lost_counts_once() {
        let (dir, events, _) = service();
        let socket = dir.path().join("e");
        events.lose_next_answer();
        assert!(publish(&socket, exit(3)).is_err());
        publish(&socket, exit(3)).unwrap();
        assert_eq!(events.all().len(), 1);
        publish(&socket, exit(3)).unwrap();
        assert_eq!(events.all().len(), 2);
    }

    #[test]
    fn an_event_can_be_refused_once() {
        let (dir, events, _) = service();
        let socket = dir.path().join("e");
        events.refuse_next(shim_runtime::Code::InvalidArgument);
        assert_eq!(publish(&socket, exit(3)).unwrap().status.code.value(), 3);
        assert!(events.all().is_empty());
        assert_eq!(publish(&socket, exit(3)).unwrap().status.code.value(), 0);
        assert_eq!(events.all().len(), 1);
    }

    #[test]
    fn a_mute_service_answers_nothing_until_it_goes_on_and_then_takes_what_came_meanwhile() {
        let (dir, events, _) = service();
        let mut connection = super::super::RawConnection::connect(dir.path().join("e")).unwrap();
        connection.set_timeout(Some(Duration::from_millis(50))).unwrap();
        events.set_mute(true);
        let forward = ForwardRequest { envelope: MessageField::some(exit(3)), ..Default::default() };
        connection.begin(SERVICE, "Forward", forward.write_to_bytes().unwrap()).unwrap();
        assert!(connection.receive().is_err());
        assert!(events.all().is_empty());
        drop(connection);
        events.set_mute(false);
        events.wait_for("/tasks/exit", Duration::from_mins(1), |_| true).unwrap();
    }

    #[test]
    fn the_service_can_go_and_come_back() {
        let (dir, events, _) = service();
        let socket = dir.path().join("e");
        let stream = UnixStream::connect(&socket).unwrap();
        events.stop();
        assert_eq!(Frame::read_from(&stream).ok().flatten(), None);
        assert!(publish(&socket, exit(1)).is_err());
        events.resume().unwrap();
        publish(&socket, exit(2)).unwrap();
        assert_eq!(events.all().len(), 1);
    }
}
