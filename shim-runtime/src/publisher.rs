//! Sends events to containerd (contract 7): one queue in order, whose head is tried again until containerd
//! has it. Publishing never blocks its caller, and an idle publisher sleeps on a condition variable.

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

use crate::reaper::lock;
use crate::wire::{CallError, Client};

const SERVICE: &str = "containerd.services.events.ttrpc.v1.Events";
/// The topic that is given up last.
const EXIT_TOPIC: &str = "/tasks/exit";
/// How many events wait for containerd at the most; while it is away they only pile up here.
const CAPACITY: usize = 8192;
/// How long one try may take.
const TRY_LIMIT: Duration = Duration::from_secs(5);
/// How long to wait after a failed try; doubled from the first to the last.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// How often an event is tried that containerd answers with an error which may pass.
const REFUSALS: u32 = 10;

/// A queue of events and the thread that empties it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Publisher(Arc<Shared>);

/// Takes events in containerd's place.
#[cfg(feature = "testing")]
type Sink = Box<dyn Fn(&Envelope) + Send + Sync>;

struct Shared {
    /// containerd's TTRPC socket.
    address: String,
    #[cfg(feature = "testing")]
    sink: Option<Sink>,
    namespace: String,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Event>,
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
            #[cfg(feature = "testing")]
            sink: None,
            namespace: namespace.to_owned(),
            state: Mutex::default(),
            changed: Condvar::new(),
        };
        Self(Arc::new(shared))
    }

    /// Hands each event to `sink` where it is published, without queue and thread.
    #[cfg(feature = "testing")]
    pub(crate) fn to_sink(namespace: &str, sink: impl Fn(&Envelope) + Send + Sync + 'static) -> Self {
        let shared = Shared {
            address: String::new(),
            sink: Some(Box::new(sink)),
            namespace: namespace.to_owned(),
            state: Mutex::default(),
            changed: Condvar::new(),
        };
        Self(Arc::new(shared))
    }

    /// Queues an event. Its time is now; its order is the order of these calls.
    pub(crate) fn publish(&self, topic: &'static str, type_name: &str, event: &impl Message) {
        let Some(envelope) = self.envelope(topic, type_name, event) else { return };
        #[cfg(feature = "testing")]
        if let Some(sink) = &self.0.sink {
            return sink(&envelope);
        }
        let request = ForwardRequest { envelope: Some(envelope).into(), ..ForwardRequest::default() };
        let Ok(request) = request.write_to_bytes() else { return };
        let mut state = lock(&self.0.state);
        if state.queue.len() >= CAPACITY {
            drop_one(&mut state.queue);
        }
        state.queue.push_back(Event { topic, request, refusals: 0 });
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
        if !state.queue.is_empty() {
            state.nudged = true;
            drop(state);
            self.0.changed.notify_all();
        }
    }

    /// Waits until every event has been taken, at most for `limit`; returns how many were left.
    pub(crate) fn flush(&self, limit: Duration) -> usize {
        let state = lock(&self.0.state);
        let waited = self.0.changed.wait_timeout_while(state, limit, |state| !state.queue.is_empty());
        waited.unwrap_or_else(PoisonError::into_inner).0.queue.len()
    }

    /// Ends the thread, and with it the trying; what waits is dropped.
    #[cfg(feature = "testing")]
    pub(crate) fn close(&self) {
        lock(&self.0.state).closed = true;
        self.0.changed.notify_all();
    }

    /// How many events wait.
    pub(crate) fn len(&self) -> usize {
        lock(&self.0.state).queue.len()
    }
}

/// Makes room: by the oldest event that is not an exit, else by the oldest. The head is spared, for it may
/// be on its way.
fn drop_one(queue: &mut VecDeque<Event>) {
    let victim = queue.iter().skip(1).position(|event| event.topic != EXIT_TOPIC).unwrap_or(0) + 1;
    if let Some(event) = queue.remove(victim) {
        log::error!("dropped a {} event: {CAPACITY} events wait for containerd", event.topic);
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
            if let Some(event) = state.queue.front() {
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
        connected.call((SERVICE, "Forward"), request, &[], TRY_LIMIT).map(drop)
    }

    /// Whether an error means that the same event would be refused for ever.
    fn is_final(&self, code: i32) -> bool {
        let mut state = lock(&self.state);
        let Some(head) = state.queue.front_mut() else { return true };
        head.refusals += 1;
        // Invalid argument and unimplemented say so; others may pass, but must not hold back the rest for good.
        matches!(code, 3 | 12) || head.refusals >= REFUSALS
    }

    fn done(&self) {
        lock(&self.state).queue.pop_front();
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
    use super::*;

    fn event(topic: &'static str) -> Event {
        Event { topic, request: Vec::new(), refusals: 0 }
    }

    #[test]
    fn exits_are_given_up_last() {
        let topics = ["/tasks/create", EXIT_TOPIC, "/tasks/start", EXIT_TOPIC];
        let mut queue: VecDeque<_> = topics.into_iter().map(event).collect();
        drop_one(&mut queue);
        let left: Vec<_> = queue.iter().map(|event| event.topic).collect();
        assert_eq!(left, ["/tasks/create", EXIT_TOPIC, EXIT_TOPIC], "the head may be on its way");
        drop_one(&mut queue);
        assert_eq!(queue.len(), 2);
    }

    #[test]
    fn an_absent_containerd_neither_blocks_nor_loses_an_event() {
        let publisher = Publisher::new("unix:///nowhere/at/all.sock", "default");
        publisher.publish(
            "/tasks/start",
            "containerd.events.TaskStart",
            &containerd_shim_protos::events::task::TaskStart::default(),
        );
        assert_eq!(publisher.flush(Duration::from_millis(1)), 1);
    }
}
