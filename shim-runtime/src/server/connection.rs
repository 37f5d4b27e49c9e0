//! One client's connection: cuts what arrives into calls, and sends answers without ever waiting for the
//! client to read them. Owned by the loop; the half that answers is shared with whoever answers.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use protobuf::Message;
use ttrpc::proto::{FLAG_REMOTE_OPEN, MESSAGE_TYPE_DATA, MESSAGE_TYPE_REQUEST, Request};

use super::Shared;
use super::budget::{Kept, Share};
use super::reply::Responder;
use super::service::Incoming;
use crate::caller::Cancellation;
use crate::error::{Error, Result};
use crate::event_loop::{EventLoop, Handle, Next, Ready, Source, Timer, Token};
use crate::reaper::lock;
use crate::socket::{LOOK_KEY, PROBE_KEY};
use crate::wire::{Decoder, Frame, Header, MAX_PAYLOAD, response_frame};

/// Reading stops while more than this is unsent: a client that does not read is not served.
const UNSENT_LIMIT: usize = 256 << 10;
/// Above this much unsent, an answer that is not small is left out: whatever calls were taken before the client
/// stopped to read, their answers must fit.
const ANSWERS_LIMIT: usize = 2 * MAX_PAYLOAD;
/// What is small.
const SMALL: usize = 1 << 10;
/// How many calls of one connection may be unanswered; parked ones are counted apart.
const CALLS_LIMIT: usize = 1024;
/// How many calls of one connection may be parked.
const PARKED_LIMIT: usize = 4096;
/// How much is read at a time, and how often before others have their turn.
const CHUNK: usize = 16 << 10;
const CHUNKS_PER_TURN: usize = 4;

/// The loop's half: what arrives.
pub(crate) struct Connection {
    peer: Arc<Peer>,
    server: Shared,
    decoder: Decoder,
    /// What the decoder holds of a frame.
    unfinished: Kept,
    last_stream: u32,
    used: bool,
    watched: Ready,
}

impl Connection {
    /// Serves a client that was accepted and may be served.
    pub(crate) fn serve(socket: UnixStream, server: &Shared, events: &mut EventLoop) -> Result<Token> {
        socket.set_nonblocking(true)?;
        let token = events.add(|token, events| {
            let watched = Ready::EPOLLIN | Ready::EPOLLRDHUP;
            events.watch(&socket, token, watched)?;
            let (handle, share) = (events.handle(), server.budget.share());
            let (unfinished, unsent) = (share.nothing(), server.budget.share().nothing());
            Ok(Box::new(Self {
                peer: Arc::new(Peer::new(socket, token, handle, share, unsent)),
                server: server.clone(),
                decoder: Decoder::default(),
                unfinished,
                last_stream: 0,
                used: false,
                watched,
            }))
        })?;
        server.lifetime.connected(token);
        Ok(token)
    }

    /// Takes what has arrived; false at the connection's end.
    fn read(&mut self, events: &mut EventLoop) -> bool {
        let mut chunk = [0; CHUNK];
        for _ in 0..CHUNKS_PER_TURN {
            if self.peer.is_congested() {
                break;
            }
            match (&self.peer.socket).read(&mut chunk) {
                Ok(0) => return false,
                Ok(count) => {
                    self.take(&chunk[..count], events);
                    if count < chunk.len() {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    fn take(&mut self, bytes: &[u8], events: &mut EventLoop) {
        let mut decoder = std::mem::take(&mut self.decoder);
        // Answers to a burst of calls leave in one write.
        self.peer.cork();
        decoder.feed(bytes, |frame| match frame {
            Frame::Whole(header, payload) => self.frame(header, payload, events),
            Frame::Oversized(header) => self.oversized(header),
        });
        if !self.unfinished.resize(decoder.held()) {
            self.give_up_frame(&mut decoder);
        }
        self.decoder = decoder;
        self.peer.uncork();
    }

    /// There is no room for the rest of a frame.
    fn give_up_frame(&mut self, decoder: &mut Decoder) {
        if let Some(header) = decoder.give_up() {
            self.leave_out(header, &no_room());
        }
        self.unfinished.set(decoder.held());
    }

    fn oversized(&mut self, header: Header) {
        let message = format!("message of {} bytes exceeds the limit of {MAX_PAYLOAD}", header.length);
        self.leave_out(header, &Error::resource_exhausted(message));
    }

    /// Answers a frame whose payload is skipped.
    fn leave_out(&mut self, header: Header, error: &Error) {
        if matches!(header.kind, MESSAGE_TYPE_REQUEST | MESSAGE_TYPE_DATA) {
            self.refuse(header.stream, error);
        }
        if header.kind == MESSAGE_TYPE_REQUEST {
            self.last_stream = self.last_stream.max(header.stream);
        }
    }

    fn frame(&mut self, header: Header, payload: &[u8], events: &mut EventLoop) {
        // Whatever is kept of it from now on is kept of the call.
        self.unfinished.set(0);
        match header.kind {
            MESSAGE_TYPE_REQUEST => {
                if let Err(error) = self.request(header, payload, events) {
                    self.refuse(header.stream, &error);
                }
            }
            // Data belongs to a stream, and no method here opens one.
            MESSAGE_TYPE_DATA => {
                self.refuse(header.stream, &Error::invalid_argument(format!("no stream {}", header.stream)));
            }
            _ => {}
        }
    }

    fn request(&mut self, header: Header, payload: &[u8], events: &mut EventLoop) -> Result<()> {
        self.check_stream(header)?;
        let request = Request::parse_from_bytes(payload)
            .map_err(|error| Error::invalid_argument(format!("cannot understand the request: {error}")))?;
        let service = self.server.service(&request.service)?;
        if self.peer.open_calls() >= CALLS_LIMIT {
            return Err(Error::resource_exhausted(format!(
                "{CALLS_LIMIT} calls of this connection are unanswered"
            )));
        }
        let incoming = Incoming {
            server: &self.server,
            responder: Responder::new(self.peer.clone(), header.stream),
            method: &request.method,
            deadline: deadline(&request)?,
            payload: request.payload,
            metadata: request.metadata,
        };
        if !self.used && !incoming.has(LOOK_KEY) {
            self.used = true;
            let by_probe = incoming.has(PROBE_KEY);
            self.server.lifetime.used(self.peer.token, by_probe, events);
        }
        service.handle(incoming);
        Ok(())
    }

    /// A client's streams are odd and only grow.
    fn check_stream(&mut self, header: Header) -> Result<()> {
        let stream = header.stream;
        if stream.is_multiple_of(2) || stream <= self.last_stream {
            let last = self.last_stream;
            let message = format!("stream {stream} is no new odd number; the last was {last}");
            return Err(Error::invalid_argument(message));
        }
        self.last_stream = stream;
        if header.flags & FLAG_REMOTE_OPEN != 0 {
            return Err(Error::unimplemented("streaming calls"));
        }
        Ok(())
    }

    fn refuse(&self, stream: u32, error: &Error) {
        self.peer.send(stream, &response_frame(stream, Err(error)));
    }

    /// Watches for what the connection can use now.
    fn rewatch(&mut self, events: &mut EventLoop) {
        let mut wanted = Ready::EPOLLRDHUP;
        wanted.set(Ready::EPOLLIN, !self.peer.is_congested());
        wanted.set(Ready::EPOLLOUT, self.peer.has_unsent());
        if wanted != self.watched {
            events.rewatch(&self.peer.socket, self.peer.token, wanted);
            self.watched = wanted;
        }
    }
}

fn no_room() -> Error {
    Error::resource_exhausted("too much is unanswered; wait for answers, and read them")
}

/// When a call's caller gives up. No time at all means never; a time before now has come, but not for Shutdown: a
/// daemon sends it with what time a failed Create has left, which may be none, and not again (contract 6.2).
fn deadline(request: &Request) -> Result<Option<Instant>> {
    match u64::try_from(request.timeout_nano) {
        Ok(0) => Ok(None),
        Ok(nanos) => Ok(Instant::now().checked_add(Duration::from_nanos(nanos))),
        Err(_) if request.method == "Shutdown" => Ok(None),
        Err(_) => Err(Error::deadline_exceeded("the call's deadline had passed before it arrived")),
    }
}

impl Source for Connection {
    fn ready(&mut self, _: Token, ready: Ready, events: &mut EventLoop) -> Next {
        if ready.contains(Ready::EPOLLOUT) {
            self.peer.flush();
        }
        let hung_up = ready.intersects(Ready::EPOLLRDHUP | Ready::EPOLLHUP | Ready::EPOLLERR);
        let readable = ready.contains(Ready::EPOLLIN) && !self.peer.is_congested();
        // What arrived before a hang-up is still taken; the read then ends with the end of the stream.
        if (readable && !self.read(events)) || (hung_up && !readable) || self.peer.is_closed() {
            return Next::Close;
        }
        self.rewatch(events);
        Next::Keep
    }

    fn close(&mut self, events: &mut EventLoop) {
        events.unwatch(&self.peer.socket);
        if self.peer.hang_up() {
            self.server.workers.drop_unwanted();
        }
        self.server.lifetime.disconnected(self.peer.token, events);
    }
}

/// The answering half.
pub(crate) struct Peer {
    socket: UnixStream,
    token: Token,
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
    fn new(socket: UnixStream, token: Token, main: Handle, share: Share, unsent: Kept) -> Self {
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

    fn open_calls(&self) -> usize {
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
    fn send(&self, stream: u32, answer: &[u8]) {
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

    fn flush(&self) {
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
            if pending.capacity() <= CHUNK {
                outbox.unsent = pending;
                outbox.unsent.clear();
            }
        }
        outbox.count();
    }

    fn has_unsent(&self) -> bool {
        !lock(&self.outbox).unsent.is_empty()
    }

    fn is_congested(&self) -> bool {
        lock(&self.outbox).unsent() > UNSENT_LIMIT
    }

    fn is_closed(&self) -> bool {
        lock(&self.outbox).closed
    }

    /// The client is gone: running calls are told, parked ones dropped. Returns whether there were any.
    fn hang_up(&self) -> bool {
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
