//! When a server ends by itself: nobody came, or it was shut down and holds nothing. Against leaks of shims
//! (contract 0.7, 6.3) on one side, and a `start` that has just promised its address on the other.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::service::Incoming;
use crate::event_loop::{EventLoop, Handle};
use crate::reaper::lock;
use crate::socket::PROBE_KEY;

/// How long a new server, or one that a `start` has just answered for, waits for a client.
const PATIENCE: Duration = Duration::from_secs(30);

/// Decides the server's end. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Lifetime(Arc<Shared>);

/// Takes the socket away, unless somebody has come at the last moment; returns whether it did.
type Retire = Box<dyn Fn() -> bool + Send>;

struct Shared {
    main: Handle,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// A client has sent something.
    used: bool,
    /// The shim was asked to end.
    asked: bool,
    connections: usize,
    /// What the shim holds: tasks, and later sandboxes.
    holds: usize,
    /// When each probe was answered whose daemon has not yet made use of it.
    probes: VecDeque<Instant>,
    retire: Option<Retire>,
}

/// Keeps the shim from ending while it exists.
pub(crate) struct Hold(Lifetime);

impl Lifetime {
    pub(crate) fn new(main: Handle) -> Self {
        Self(Arc::new(Shared { main, state: Mutex::default() }))
    }

    /// Begins: from now on the server may end, through `retire`.
    pub(crate) fn begin(&self, events: &mut EventLoop, retire: impl Fn() -> bool + Send + 'static) {
        lock(&self.0.state).retire = Some(Box::new(retire));
        let lifetime = self.clone();
        events.after(PATIENCE, move |events| {
            if !lock(&lifetime.0.state).used {
                log::warn!("nobody used this shim within {} seconds of its start", PATIENCE.as_secs());
                lifetime.end(events);
            }
        });
    }

    /// A connection was made.
    pub(crate) fn connected(&self) {
        lock(&self.0.state).connections += 1;
    }

    /// A connection has sent a frame.
    pub(crate) fn used(&self) {
        lock(&self.0.state).used = true;
    }

    /// A connection ended.
    pub(crate) fn disconnected(&self, events: &mut EventLoop) {
        let lonely = {
            let mut state = lock(&self.0.state);
            state.connections -= 1;
            state.asked && state.connections == 0
        };
        if lonely {
            self.end_if_free(events);
        }
    }

    /// Looks at a call for what it means to the server's life.
    pub(crate) fn note(&self, incoming: &Incoming<'_>, events: &mut EventLoop) {
        if incoming.metadata.iter().any(|pair| pair.key == PROBE_KEY) {
            lock(&self.0.state).probes.push_back(Instant::now());
            let lifetime = self.clone();
            // Once more than the patience, so that the probe has run out when it is looked at.
            events.after(PATIENCE + Duration::from_millis(1), move |events| lifetime.probe_ran_out(events));
        } else if incoming.method == "Create" {
            lock(&self.0.state).probes.pop_front();
        }
    }

    fn probe_ran_out(&self, events: &mut EventLoop) {
        if lock(&self.0.state).asked {
            self.end_if_free(events);
        }
    }

    /// Asks the server to end once it holds nothing, nobody waits for it, and it has answered what it is
    /// answering.
    pub(crate) fn leave(&self) {
        lock(&self.0.state).asked = true;
        let lifetime = self.clone();
        self.0.main.post(move |events| lifetime.end_if_free(events));
    }

    /// Something begins that the server must not end before.
    pub(crate) fn hold(&self) -> Hold {
        lock(&self.0.state).holds += 1;
        Hold(self.clone())
    }

    fn end_if_free(&self, events: &mut EventLoop) {
        let free = {
            let mut state = lock(&self.0.state);
            let fresh = |probe: &Instant| probe.elapsed() <= PATIENCE;
            state.probes.retain(fresh);
            state.holds == 0 && state.probes.is_empty()
        };
        if free {
            self.end(events);
        }
    }

    fn end(&self, events: &mut EventLoop) {
        let Some(retire) = lock(&self.0.state).retire.take() else { return };
        if retire() {
            events.stop();
        } else {
            lock(&self.0.state).retire = Some(retire);
        }
    }
}

/// What is held, for a report.
impl fmt::Display for Lifetime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = lock(&self.0.state);
        write!(f, "{} tasks and {} connections", state.holds, state.connections)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let ask = {
            let mut state = lock(&self.0.0.state);
            state.holds -= 1;
            // After a Shutdown that came while tasks were left no other may follow (contract 6.3).
            state.holds == 0 && state.asked && state.connections == 0
        };
        if ask {
            self.0.leave();
        }
    }
}
