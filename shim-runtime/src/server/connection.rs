//! One client's connection, owned by the loop: what arrives is cut into calls. Its [`Peer`] answers them.

use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use protobuf::Message;
use ttrpc::proto::{FLAG_REMOTE_OPEN, MESSAGE_TYPE_DATA, MESSAGE_TYPE_REQUEST, Request};

use super::Shared;
use super::service::Incoming;
use crate::error::{Error, Result};
use crate::event_loop::{EventLoop, Next, Ready, Source, Token};
use crate::peer::{Kept, Peer, Responder, no_room};
use crate::socket::{LOOK_KEY, PROBE_KEY};
use crate::wire::{Decoder, Frame, Header, MAX_PAYLOAD, response_frame};

/// How many calls of one connection may be unanswered; parked ones are counted apart.
const CALLS_LIMIT: usize = 1024;
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
