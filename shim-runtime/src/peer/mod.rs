//! The client at the other end of a connection, as far as it is answered: answers by stream, parked calls, and what is
//! kept for it meanwhile. Answering never waits for the client to read. Whoever answers may do it on any thread.

mod budget;
mod reply;

use std::collections::HashMap;
use std::io::{ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Instant;

pub(crate) use self::budget::{Budget, Kept, Share};
pub use self::reply::{Reply, Waiters};
pub(crate) use self::reply::{Responder, encode};
use crate::caller::Cancellation;
use crate::error::{Error, Result};
use crate::event_loop::{EventLoop, Handle, Ready, Timer, Token};
use crate::sync::lock;
use crate::wire::{MAX_PAYLOAD, response_frame};

/// Reading stops while more than this is unsent: a client that does not read is not served.
const UNSENT_LIMIT: usize = 256 << 10;
/// Above this much unsent, an answer that is not small is left out: whatever calls were taken before the client
/// stopped to read, their answers must fit.
const ANSWERS_LIMIT: usize = 2 * MAX_PAYLOAD;
/// What is small.
const SMALL: usize = 1 << 10;
/// How many calls of one connection may be parked.
const PARKED_LIMIT: usize = 4096;
/// How large a buffer of answers is kept for the next burst.
const KEPT_BUFFER: usize = 16 << 10;

pub(crate) fn no_room() -> Error {
    Error::resource_exhausted("too much is unanswered; wait for answers, and read them")
}

/// See the module.
pub(crate) struct Peer {
    pub(crate) socket: UnixStream,
    pub(crate) token: Token,
    main: Handle,
    share: Share,
    outbox: Mutex<Outbox>,
    calls: Mutex<Calls>,
}

struct Outbox {
    unsent: Vec<u8>,
    /// How much `unsent` takes.
    kept: Kept,
    /// How much of `unsent` has left.
    sent: usize,
    /// How many wait for more before anything is sent.
    corks: usize,
    closed: bool,
}

impl Outbox {
    fn new(kept: Kept) -> Self {
        Self { unsent: Vec::new(), kept, sent: 0, corks: 0, closed: false }
    }

    /// Whether an answer can wait until the client reads it.
    fn has_room_for(&self, answer: &[u8]) -> bool {
        answer.len() <= SMALL || (self.unsent() <= ANSWERS_LIMIT && self.kept.may_grow(answer.len()))
    }

    fn unsent(&self) -> usize {
        self.unsent.len() - self.sent
    }

    /// Accounts for what `unsent` takes now.
    fn count(&mut self) {
        self.kept.set(self.unsent.len());
    }
}

/// The calls that were not answered where they were read.
#[derive(Default)]
struct Calls {
    open: HashMap<u32, OpenCall>,
    parked: usize,
    closed: bool,
}

#[derive(Default)]
struct OpenCall {
    cancelled: Arc<Cancellation>,
    parked: bool,
    timer: Option<Timer>,
    /// Takes the parked answer out of where it waits.
    dropped: Option<Box<dyn FnOnce() + Send>>,
}

impl Peer {
    pub(crate) fn new(socket: UnixStream, token: Token, main: Handle, share: Share, unsent: Kept) -> Self {
        Self { socket, token, main, share, outbox: Mutex::new(Outbox::new(unsent)), calls: Mutex::default() }
    }

    /// Keeps so many bytes of a call, if that is within the limits.
    pub(crate) fn keep(&self, bytes: usize) -> Result<Kept> {
        self.share.keep(bytes).ok_or_else(no_room)
    }

    /// Notes a call that will be answered later; the flag tells when its caller is gone.
    pub(crate) fn open(&self, stream: u32) -> Arc<Cancellation> {
        let call = OpenCall::default();
        let cancelled = call.cancelled.clone();
        lock(&self.calls).open.insert(stream, call);
        cancelled
    }

    /// Notes a call whose answer will be put aside, for at most until `deadline`; the flag tells when its caller is
    /// gone.
    pub(crate) fn open_parked(
        self: &Arc<Self>,
        stream: u32,
        deadline: Option<Instant>,
    ) -> Result<Arc<Cancellation>> {
        let mut calls = lock(&self.calls);
        if calls.parked >= PARKED_LIMIT {
            return Err(Error::resource_exhausted(format!(
                "{PARKED_LIMIT} calls of this connection wait already"
            )));
        }
        calls.parked += 1;
        let call = OpenCall { parked: true, ..OpenCall::default() };
        let cancelled = call.cancelled.clone();
        calls.open.insert(stream, call);
        drop(calls);
        if let Some(deadline) = deadline {
            let peer = Arc::downgrade(self);
            self.main.post(move |events| {
                let Some(peer) = peer.upgrade() else { return };
                let left = deadline.saturating_duration_since(Instant::now());
                let expiring = Arc::downgrade(&peer);
                let timer = events.after(left, move |_| {
                    if let Some(peer) = expiring.upgrade() {
                        peer.expire(stream);
                    }
                });
                peer.set_timer(stream, timer, events);
            });
        }
        Ok(cancelled)
    }

    fn set_timer(&self, stream: u32, timer: Timer, events: &mut EventLoop) {
        match lock(&self.calls).open.get_mut(&stream) {
            Some(call) => call.timer = Some(timer),
            None => events.cancel(timer),
        }
    }

    fn expire(&self, stream: u32) {
        let dropped = lock(&self.calls).open.get_mut(&stream).and_then(|call| call.dropped.take());
        self.finish(stream, Err(Error::deadline_exceeded("the call's deadline passed while it waited")));
        if let Some(dropped) = dropped {
            dropped();
        }
    }

    /// Has `dropped` called when nobody waits for a parked answer any more, at once if that is so already.
    pub(crate) fn when_dropped(&self, stream: u32, dropped: impl FnOnce() + Send + 'static) {
        if let Some(call) = lock(&self.calls).open.get_mut(&stream) {
            call.dropped = Some(Box::new(dropped));
            return;
        }
        dropped();
    }

    /// Whether a call still waits for its answer.
    pub(crate) fn expects(&self, stream: u32) -> bool {
        lock(&self.calls).open.contains_key(&stream)
    }

    pub(crate) fn open_calls(&self) -> usize {
        let calls = lock(&self.calls);
        calls.open.len() - calls.parked
    }

    /// Answers an open call, unless that was done or its caller is gone.
    pub(crate) fn finish(&self, stream: u32, result: Result<Vec<u8>>) {
        let call = {
            let mut calls = lock(&self.calls);
            let Some(call) = calls.open.remove(&stream) else { return };
            calls.parked -= usize::from(call.parked);
            call
        };
        if let Some(timer) = call.timer {
            self.main.post(move |events| events.cancel(timer));
        }
        self.answer(stream, result);
    }

    /// Answers a call that was never noted as open.
    pub(crate) fn answer(&self, stream: u32, result: Result<Vec<u8>>) {
        self.send(
            stream,
            &match result {
                Ok(payload) => response_frame(stream, Ok(payload)),
                Err(error) => response_frame(stream, Err(&error)),
            },
        );
    }

    /// Sends what the socket takes now, and leaves the rest to the loop.
    pub(crate) fn send(&self, stream: u32, answer: &[u8]) {
        let mut outbox = lock(&self.outbox);
        if outbox.closed {
            return;
        }
        let left_out;
        let bytes = if outbox.has_room_for(answer) {
            answer
        } else {
            let message = "the answer is left out: earlier ones are not read";
            left_out = response_frame(stream, Err(&Error::resource_exhausted(message)));
            &left_out
        };
        let had_unsent = !outbox.unsent.is_empty();
        let sent = if had_unsent || outbox.corks > 0 { 0 } else { self.write(&mut outbox, bytes) };
        if sent < bytes.len() {
            outbox.unsent.extend_from_slice(&bytes[sent..]);
            outbox.count();
            if !had_unsent && outbox.corks == 0 {
                self.ask_for_turn();
            }
        }
    }

    /// Has the loop look at the connection again, which then watches for room.
    fn ask_for_turn(&self) {
        let token = self.token;
        self.main.post(move |events| events.poke(token, Ready::empty()));
    }

    fn write(&self, outbox: &mut Outbox, bytes: &[u8]) -> usize {
        loop {
            match (&self.socket).write(bytes) {
                Ok(count) => return count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return 0,
                Err(_) => {
                    outbox.closed = true;
                    return bytes.len();
                }
            }
        }
    }

    /// Answers from now on leave together, at the last [`uncork`](Self::uncork).
    pub(crate) fn cork(&self) {
        lock(&self.outbox).corks += 1;
    }

    pub(crate) fn uncork(&self) {
        let is_last = {
            let mut outbox = lock(&self.outbox);
            // A hang-up meanwhile has taken all corks.
            outbox.corks = outbox.corks.saturating_sub(1);
            outbox.corks == 0
        };
        if is_last {
            self.flush();
            if self.has_unsent() {
                self.ask_for_turn();
            }
        }
    }

    pub(crate) fn flush(&self) {
        let mut outbox = lock(&self.outbox);
        if outbox.unsent.is_empty() {
            return;
        }
        let pending = std::mem::take(&mut outbox.unsent);
        let mut sent = outbox.sent;
        while sent < pending.len() && !outbox.closed {
            match self.write(&mut outbox, &pending[sent..]) {
                0 => break,
                count => sent += count,
            }
        }
        if sent < pending.len() && !outbox.closed {
            let mut pending = pending;
            // A client that never takes all would have us keep all that it ever took.
            if sent >= pending.len() / 2 {
                pending.drain(..sent);
                sent = 0;
            }
            outbox.unsent = pending;
            outbox.sent = sent;
        } else {
            // Small buffers are kept for the next burst, large ones given back.
            outbox.sent = 0;
            if pending.capacity() <= KEPT_BUFFER {
                outbox.unsent = pending;
                outbox.unsent.clear();
            }
        }
        outbox.count();
    }

    pub(crate) fn has_unsent(&self) -> bool {
        !lock(&self.outbox).unsent.is_empty()
    }

    pub(crate) fn is_congested(&self) -> bool {
        lock(&self.outbox).unsent() > UNSENT_LIMIT
    }

    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.outbox).closed
    }

    /// The client is gone: running calls are told, parked ones dropped. Returns whether there were any.
    pub(crate) fn hang_up(&self) -> bool {
        {
            let mut outbox = lock(&self.outbox);
            (outbox.unsent, outbox.sent, outbox.corks, outbox.closed) = (Vec::new(), 0, 0, true);
            outbox.count();
        }
        let open = {
            let mut calls = lock(&self.calls);
            calls.closed = true;
            calls.parked = 0;
            std::mem::take(&mut calls.open)
        };
        let had_calls = !open.is_empty();
        for call in open.into_values() {
            call.cancelled.cancel();
            if let Some(timer) = call.timer {
                self.main.post(move |events| events.cancel(timer));
            }
            if let Some(dropped) = call.dropped {
                dropped();
            }
        }
        had_calls
    }
}
