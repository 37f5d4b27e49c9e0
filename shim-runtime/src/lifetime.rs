//! When a server ends by itself: nobody came, or it was shut down and nobody needs it any more. Against leaks
//! of shims (contract 0.7, 6.3) on one side, and on the other a daemon that was just promised this address,
//! by the server's own `start` or by another one that found it living.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::event_loop::{EventLoop, Handle, Timer, Token};
use crate::sync::lock;

/// How long a daemon has for its first call, counted from the answer of its `start`, and again from its
/// connection.
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
    /// A daemon has made use of the server.
    used: bool,
    /// The server was asked to end.
    asked: bool,
    /// A daemon has given up what it had here, and may have forgotten its connection as well.
    forgotten: bool,
    connections: usize,
    /// What the shim holds: tasks, and later sandboxes.
    holds: usize,
    /// Until when each daemon is expected that a `start` has told this address.
    expected: VecDeque<Instant>,
    /// Until when each connection is trusted to say something that has not yet.
    silent: HashMap<Token, Instant>,
    /// When it is looked whether the server may end.
    look: Option<Timer>,
    retire: Option<Retire>,
}

impl State {
    /// Forgets whom there is no use waiting for any more; returns when the next will be forgotten.
    fn next_to_forget(&mut self) -> Option<Instant> {
        let now = Instant::now();
        self.expected.retain(|until| *until > now);
        self.silent.retain(|_, until| *until > now);
        self.expected.iter().chain(self.silent.values()).min().copied()
    }
}

/// Keeps the server from ending while it exists.
pub(crate) struct Hold(Lifetime);

impl Lifetime {
    pub(crate) fn new(main: Handle) -> Self {
        Self(Arc::new(Shared { main, state: Mutex::default() }))
    }

    /// Begins: from now on the server may end, through `retire`.
    pub(crate) fn begin(&self, retire: impl Fn() -> bool + Send + 'static) {
        lock(&self.0.state).retire = Some(Box::new(retire));
    }

    /// A daemon was told this address, and is given time to come.
    pub(crate) fn expect(&self, events: &mut EventLoop) {
        lock(&self.0.state).expected.push_back(Instant::now() + PATIENCE);
        self.look_again(events, PATIENCE);
    }

    fn look_again(&self, events: &mut EventLoop, delay: Duration) {
        let lifetime = self.clone();
        // A little later, so that what runs out then has run out when it is looked at.
        let look = events.after(delay + Duration::from_millis(1), move |events| lifetime.end_if_free(events));
        if let Some(before) = lock(&self.0.state).look.replace(look) {
            events.cancel(before);
        }
    }

    /// A connection was made.
    pub(crate) fn connected(&self, connection: Token) {
        let mut state = lock(&self.0.state);
        state.connections += 1;
        state.silent.insert(connection, Instant::now() + PATIENCE);
    }

    /// A connection has sent its first call: that of a `start` that asks for a daemon of its own, or that of
    /// a daemon which was expected.
    pub(crate) fn used(&self, connection: Token, by_probe: bool, events: &mut EventLoop) {
        let needless = {
            let mut state = lock(&self.0.state);
            state.silent.remove(&connection);
            if !by_probe {
                state.used = true;
                state.expected.pop_front();
            }
            // Whoever asks the server to end has it looked at then; until that the loop can sleep.
            if by_probe || state.asked { None } else { state.look.take() }
        };
        if let Some(look) = needless {
            events.cancel(look);
        }
        if by_probe {
            self.expect(events);
        }
    }

    /// A connection ended.
    pub(crate) fn disconnected(&self, connection: Token, events: &mut EventLoop) {
        let asked = {
            let mut state = lock(&self.0.state);
            state.connections -= 1;
            state.silent.remove(&connection);
            state.asked
        };
        if asked {
            self.end_if_free(events);
        }
    }

    /// Asks the server to end once nobody needs it, and it has answered what it is answering. Asked while
    /// tasks are left, it ends after the last: no other Shutdown may follow (contract 6.3).
    pub(crate) fn leave(&self) {
        lock(&self.0.state).asked = true;
        self.look_soon();
    }

    /// As [`leave`](Self::leave), but whatever connections are left by then are no reason to stay: a daemon that has
    /// given up a container may keep one for good that it knows nothing of any more.
    pub(crate) fn leave_though_connected(&self) {
        lock(&self.0.state).forgotten = true;
        self.leave();
    }

    fn look_soon(&self) {
        let lifetime = self.clone();
        self.0.main.post(move |events| lifetime.end_if_free(events));
    }

    /// Something begins that the server must not end before.
    pub(crate) fn hold(&self) -> Hold {
        lock(&self.0.state).holds += 1;
        Hold(self.clone())
    }

    fn end_if_free(&self, events: &mut EventLoop) {
        let (wanted, unused, wait) = {
            let mut state = lock(&self.0.state);
            let wait = state.next_to_forget();
            ((state.asked || !state.used) && state.holds == 0, !state.used && !state.asked, wait)
        };
        match wait {
            _ if !wanted => {}
            Some(until) => self.look_again(events, until.saturating_duration_since(Instant::now())),
            None => {
                if unused {
                    log::warn!("nobody used this shim within {} seconds of its start", PATIENCE.as_secs());
                }
                self.end(events);
            }
        }
    }

    fn end(&self, events: &mut EventLoop) {
        let Some(retire) = lock(&self.0.state).retire.take() else { return };
        if retire() {
            events.stop();
        } else {
            // Whoever has come may go without a call, and nobody else would look.
            lock(&self.0.state).retire = Some(retire);
            self.look_again(events, PATIENCE);
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
        let asked = {
            let mut state = lock(&self.0.0.state);
            state.holds -= 1;
            // With connections left, the last of them to end will ask.
            state.holds == 0 && state.asked && (state.connections == 0 || state.forgotten)
        };
        if asked {
            self.0.look_soon();
        }
    }
}
