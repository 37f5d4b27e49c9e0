//! Sends events to containerd (contract 7). Publishing never blocks its caller, and an idle publisher sleeps.
//!
//! Events wait in one queue and arrive in the order in which they were published. The head of the queue is sent, and
//! stays there until containerd has answered it. On one connection it is sent once: a containerd that is silent, for
//! as long as it likes, is waited for, because it takes what lies in the socket when it goes on. The event is sent
//! again only on another connection, after the former one broke without an answer. Neither end of a Unix socket can
//! be lost without the other being told, so a broken connection is always noticed, and needs no deadline.
//!
//! Hence an event arrives twice only if containerd had taken it and the connection broke before the answer. It is
//! lost only if too many others wait (exits are the last to go), if containerd refuses it for good, or if the shim
//! ends before containerd has taken it.

use std::collections::VecDeque;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::timestamp::Timestamp;

use crate::sync::lock;
use crate::wire::{CallError, Client};

const SERVICE: &str = "containerd.services.events.ttrpc.v1.Events";
/// The topic that is given up last.
const EXIT_TOPIC: &str = "/tasks/exit";
/// How many events wait for containerd at the most; while it is away they only pile up here.
const CAPACITY: usize = 8192;
/// How many bytes they may have together: many times what so many usual ones have.
const BYTES: usize = 32 << 20;
/// How long to wait after a failed try; doubled from the first to the last.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// How often an event is tried that containerd answers with an error which may pass.
const REFUSALS: u32 = 10;

/// A queue of events and the thread that empties it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Publisher(Arc<Shared>);

struct Shared {
    /// containerd's TTRPC socket.
    address: String,
    namespace: String,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    queue: Queue,
    thread_runs: bool,
    /// Set when containerd showed a sign of life: try at once.
    nudged: bool,
    /// Nobody needs the thread any more.
    closed: bool,
}

struct Event {
    topic: &'static str,
    request: Vec<u8>,
    refusals: u32,
}

impl Publisher {
    /// Publishes to the containerd that listens at `address`, a path with or without `unix://`.
    pub(crate) fn new(address: &str, namespace: &str) -> Self {
        let address = address.strip_prefix(crate::socket::SCHEME).unwrap_or(address).to_owned();
        let shared = Shared {
            address,
            namespace: namespace.to_owned(),
            state: Mutex::default(),
            changed: Condvar::new(),
        };
        Self(Arc::new(shared))
    }

    /// Queues an event. Its time is now; its order is the order of these calls.
    pub(crate) fn publish(&self, topic: &'static str, type_name: &str, event: &impl Message) {
        let Some(envelope) = self.envelope(topic, type_name, event) else { return };
        let request = ForwardRequest { envelope: Some(envelope).into(), ..ForwardRequest::default() };
        let Ok(request) = request.write_to_bytes() else { return };
        let mut state = lock(&self.0.state);
        state.queue.push(Event { topic, request, refusals: 0 });
        if !state.thread_runs {
            state.thread_runs = self.start_thread();
        }
        drop(state);
        self.0.changed.notify_all();
    }

    fn envelope(&self, topic: &str, type_name: &str, event: &impl Message) -> Option<Envelope> {
        let value = event.write_to_bytes().ok()?;
        // The daemon looks types up by their bare name, without a host in front.
        let type_url = type_name.to_owned();
        Some(Envelope {
            timestamp: Some(Timestamp::now()).into(),
            namespace: self.0.namespace.clone(),
            topic: topic.to_owned(),
            event: Some(Any { type_url, value, ..Any::default() }).into(),
            ..Envelope::default()
        })
    }

    fn start_thread(&self) -> bool {
        let shared = self.0.clone();
        let started = thread::Builder::new().name("publisher".to_owned()).spawn(move || shared.run());
        started.inspect_err(|error| log::error!("cannot start the publisher: {error}")).is_ok()
    }

    /// Has a waiting event tried at once: a new connection shows that containerd is back.
    pub(crate) fn nudge(&self) {
        let mut state = lock(&self.0.state);
        if !state.queue.events.is_empty() {
            state.nudged = true;
            drop(state);
            self.0.changed.notify_all();
        }
    }

    /// Waits until every event has been answered, at most for `limit`; returns how many were left.
    pub(crate) fn flush(&self, limit: Duration) -> usize {
        let state = lock(&self.0.state);
        let waited = self.0.changed.wait_timeout_while(state, limit, |state| !state.queue.events.is_empty());
        waited.unwrap_or_else(PoisonError::into_inner).0.queue.events.len()
    }

    /// Ends the thread with its present try, and with it the trying; what waits is dropped.
    #[cfg(feature = "testing")]
    pub(crate) fn close(&self) {
        lock(&self.0.state).closed = true;
        self.0.changed.notify_all();
    }

    /// How many events wait.
    pub(crate) fn len(&self) -> usize {
        lock(&self.0.state).queue.events.len()
    }
}

/// The events that wait.
#[derive(Default)]
struct Queue {
    events: VecDeque<Event>,
    bytes: usize,
}

impl Queue {
    fn push(&mut self, event: Event) {
        while self.events.len() >= CAPACITY || self.bytes + event.request.len() > BYTES {
            if !self.drop_one() {
                break;
            }
        }
        self.bytes += event.request.len();
        self.events.push_back(event);
    }

    /// Makes room: by the oldest event that is not an exit, else by the oldest. The head is spared, for it may be
    /// on its way. Returns whether there was another.
    fn drop_one(&mut self) -> bool {
        let others = self.events.iter().skip(1);
        let victim = others.clone().position(|event| event.topic != EXIT_TOPIC).unwrap_or(0) + 1;
        let Some(event) = self.events.remove(victim) else { return false };
        log::error!("dropped a {} event: {} events wait for containerd", event.topic, self.events.len() + 1);
        self.bytes -= event.request.len();
        true
    }

    fn pop(&mut self) {
        if let Some(event) = self.events.pop_front() {
            self.bytes -= event.request.len();
        }
    }
}

impl Shared {
    fn run(&self) {
        let mut client = None;
        let mut back_off = BACK_OFF.0;
        while let Some((topic, request)) = self.head() {
            match self.forward(&mut client, request) {
                Ok(()) => {
                    self.done();
                    back_off = BACK_OFF.0;
                }
                Err(CallError::Status { code, message }) if self.is_final(code) => {
                    log::error!("containerd refused a {topic} event, which is passed over: {message}");
                    self.done();
                }
                Err(error) => {
                    if matches!(error, CallError::Transport(_)) {
                        client = None;
                    }
                    log::debug!("cannot publish a {topic} event yet: {error}");
                    back_off = self.rest(back_off);
                }
            }
        }
    }

    /// Waits for an event; `None` once nobody needs it sent.
    fn head(&self) -> Option<(&'static str, Vec<u8>)> {
        let mut state = lock(&self.state);
        loop {
            if state.closed {
                return None;
            }
            if let Some(event) = state.queue.events.front() {
                return Some((event.topic, event.request.clone()));
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn forward(&self, client: &mut Option<Client>, request: Vec<u8>) -> Result<(), CallError> {
        if client.is_none() {
            *client = Some(Client::new(UnixStream::connect(&self.address)?));
        }
        let Some(connected) = client.as_mut() else { return Ok(()) };
        connected.call((SERVICE, "Forward"), request, &[], None).map(drop)
    }

    /// Whether an error means that the same event would be refused for ever.
    fn is_final(&self, code: i32) -> bool {
        let mut state = lock(&self.state);
        let Some(head) = state.queue.events.front_mut() else { return true };
        head.refusals += 1;
        // Invalid argument and unimplemented say so; others may pass, but must not hold back the rest for good.
        matches!(code, 3 | 12) || head.refusals >= REFUSALS
    }

    fn done(&self) {
        lock(&self.state).queue.pop();
        self.changed.notify_all();
    }

    /// Waits before the next try, less if containerd shows itself; returns how long to wait after that.
    fn rest(&self, back_off: Duration) -> Duration {
        let until = Instant::now() + back_off;
        let mut state = lock(&self.state);
        while !state.nudged && !state.closed {
            let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
            else {
                return (back_off * 2).min(BACK_OFF.1);
            };
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.nudged = false;
        BACK_OFF.0
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read, Write};
    use std::os::unix::net::UnixListener;

    use containerd_shim_protos::events::task::TaskStart;

    use super::*;
    use crate::wire::{Decoder, Frame, response_frame};

    fn event(topic: &'static str, size: usize) -> Event {
        Event { topic, request: vec![0; size], refusals: 0 }
    }

    fn topics(queue: &Queue) -> Vec<&'static str> {
        queue.events.iter().map(|event| event.topic).collect()
    }

    #[test]
    fn exits_are_given_up_last() {
        let mut queue = Queue::default();
        for topic in ["/tasks/create", EXIT_TOPIC, "/tasks/start", EXIT_TOPIC] {
            queue.push(event(topic, 0));
        }
        assert!(queue.drop_one());
        assert_eq!(topics(&queue), ["/tasks/create", EXIT_TOPIC, EXIT_TOPIC], "the head may be on its way");
        assert!(queue.drop_one() && queue.drop_one() && !queue.drop_one());
        assert_eq!(topics(&queue), ["/tasks/create"]);
    }

    #[test]
    fn large_events_are_bounded_by_their_bytes_and_small_ones_by_their_number() {
        let mut queue = Queue::default();
        for _ in 0..100 {
            queue.push(event("/tasks/create", BYTES / 10));
            queue.push(event(EXIT_TOPIC, 100));
        }
        assert!(queue.bytes <= BYTES);
        assert_eq!(topics(&queue).iter().filter(|topic| **topic == EXIT_TOPIC).count(), 100);
        for _ in 0..2 * CAPACITY {
            queue.push(event(EXIT_TOPIC, 100));
        }
        assert_eq!(queue.events.len(), CAPACITY);
        while !queue.events.is_empty() {
            queue.pop();
        }
        assert_eq!(queue.bytes, 0);
        queue.push(event("/tasks/create", 2 * BYTES));
        assert_eq!(queue.events.len(), 1, "one is possible in any case");
    }

    /// A containerd that shows what it is sent, and answers when it is told to.
    struct StandIn {
        listener: UnixListener,
        folder: tempfile::TempDir,
    }

    impl StandIn {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            Self { listener: UnixListener::bind(folder.path().join("e")).unwrap(), folder }
        }

        fn publisher(&self, ids: &[&str]) -> Publisher {
            let publisher = Publisher::new(&self.folder.path().join("e").to_string_lossy(), "default");
            for id in ids {
                let start = TaskStart { container_id: (*id).to_owned(), ..TaskStart::default() };
                publisher.publish("/tasks/start", "containerd.events.TaskStart", &start);
            }
            publisher
        }

        fn accept(&self) -> UnixStream {
            self.listener.accept().unwrap().0
        }
    }

    /// The next event on a connection: the stream and the container.
    fn receive(connection: &mut UnixStream, decoder: &mut Decoder) -> (u32, String) {
        let mut found = None;
        let mut byte = [0];
        while found.is_none() {
            connection.read_exact(&mut byte).unwrap();
            decoder.feed(&byte, |frame| {
                let Frame::Whole(header, payload) = frame else { panic!("an oversized event") };
                let request = ttrpc::Request::parse_from_bytes(payload).unwrap();
                let forward = ForwardRequest::parse_from_bytes(&request.payload).unwrap();
                let start = TaskStart::parse_from_bytes(&forward.envelope.event.value).unwrap();
                found = Some((header.stream, start.container_id));
            });
        }
        found.unwrap()
    }

    fn answer(connection: &mut UnixStream, stream: u32) {
        connection.write_all(&response_frame(stream, Ok(Vec::new()))).unwrap();
    }

    #[test]
    fn a_silent_containerd_gets_nothing_again_and_nothing_further_before_it_has_answered() {
        let containerd = StandIn::new();
        let publisher = containerd.publisher(&["c1", "c2"]);
        let (mut connection, mut decoder) = (containerd.accept(), Decoder::default());
        let (stream, id) = receive(&mut connection, &mut decoder);
        assert_eq!(id, "c1");
        publisher.nudge();
        assert_eq!(publisher.flush(Duration::from_millis(20)), 2);
        connection.set_nonblocking(true).unwrap();
        assert_eq!(connection.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        connection.set_nonblocking(false).unwrap();
        answer(&mut connection, stream);
        let (stream, id) = receive(&mut connection, &mut decoder);
        assert_eq!(id, "c2");
        answer(&mut connection, stream);
        assert_eq!(publisher.flush(Duration::from_mins(1)), 0);
    }

    #[test]
    fn an_event_is_sent_again_after_a_connection_that_broke_without_an_answer_and_only_then() {
        let containerd = StandIn::new();
        let publisher = containerd.publisher(&["c1", "c2"]);
        let taken = |answers: bool| {
            let mut connection = containerd.accept();
            let (stream, id) = receive(&mut connection, &mut Decoder::default());
            if answers {
                answer(&mut connection, stream);
            }
            id
        };
        assert_eq!(taken(false), "c1");
        // It answers, and ends at once.
        assert_eq!(taken(true), "c1");
        assert_eq!(taken(true), "c2");
        assert_eq!(publisher.flush(Duration::from_mins(1)), 0);
    }

    #[test]
    fn an_absent_containerd_neither_blocks_nor_loses_an_event() {
        let publisher = Publisher::new("unix:///nowhere/at/all.sock", "default");
        publisher.publish("/tasks/start", "containerd.events.TaskStart", &TaskStart::default());
        assert_eq!(publisher.flush(Duration::from_millis(1)), 1);
    }
}
