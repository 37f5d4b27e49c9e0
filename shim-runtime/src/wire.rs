//! TTRPC frames (contract 6.6): the ten-byte header, a decoder that holds no more than what has arrived, and
//! a small blocking client. Server, publisher and `start`'s probe share them.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use protobuf::Message;
use ttrpc::proto::{
    Code as WireCode, KeyValue, MESSAGE_HEADER_LENGTH, MESSAGE_LENGTH_MAX, MESSAGE_TYPE_REQUEST,
    MESSAGE_TYPE_RESPONSE, Request, Response, Status,
};

use crate::error::Error;

const HEADER: usize = MESSAGE_HEADER_LENGTH;

/// The largest payload of a frame, 4 MiB.
pub(crate) const MAX_PAYLOAD: usize = MESSAGE_LENGTH_MAX;

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Length of the payload in bytes.
    pub(crate) length: u32,
    pub(crate) stream: u32,
    /// One of ttrpc's `MESSAGE_TYPE_*`.
    pub(crate) kind: u8,
    pub(crate) flags: u8,
}

impl Header {
    fn decode(bytes: [u8; HEADER]) -> Self {
        let [l0, l1, l2, l3, s0, s1, s2, s3, kind, flags] = bytes;
        Self {
            length: u32::from_be_bytes([l0, l1, l2, l3]),
            stream: u32::from_be_bytes([s0, s1, s2, s3]),
            kind,
            flags,
        }
    }

    fn encode(self) -> [u8; HEADER] {
        let [l0, l1, l2, l3] = self.length.to_be_bytes();
        let [s0, s1, s2, s3] = self.stream.to_be_bytes();
        [l0, l1, l2, l3, s0, s1, s2, s3, self.kind, self.flags]
    }

    fn is_oversized(self) -> bool {
        self.length as usize > MAX_PAYLOAD
    }
}

/// What a [`Decoder`] finds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    Whole(Header, &'a [u8]),
    /// Announced above [`MAX_PAYLOAD`]; its payload is skipped as it arrives.
    Oversized(Header),
}

/// Cuts a stream of bytes into frames. Holds an unfinished frame only, as far as it has arrived.
#[derive(Default)]
pub(crate) struct Decoder {
    pending: Vec<u8>,
    skip: usize,
}

impl Decoder {
    /// Takes the bytes that came next and calls `found` for each frame that they complete.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], mut found: impl FnMut(Frame<'_>)) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let skipped = self.skip.min(bytes.len());
                self.skip -= skipped;
                bytes = &bytes[skipped..];
            } else if self.pending.is_empty() {
                bytes = self.direct(bytes, &mut found);
            } else {
                bytes = self.complete(bytes, &mut found);
            }
        }
    }

    /// How many bytes it holds of an unfinished frame, room for more included.
    pub(crate) fn held(&self) -> usize {
        self.pending.capacity()
    }

    /// Gives up the frame that is unfinished: what is still to come of it is skipped as it arrives. `None` as long as
    /// its header is unfinished too.
    pub(crate) fn give_up(&mut self) -> Option<Header> {
        let (head, payload) = self.pending.split_first_chunk::<HEADER>()?;
        let header = Header::decode(*head);
        self.skip = header.length as usize - payload.len();
        self.pending = Vec::new();
        Some(header)
    }

    /// Takes one frame straight from the input, or keeps its beginning.
    fn direct<'a>(&mut self, bytes: &'a [u8], found: &mut impl FnMut(Frame<'_>)) -> &'a [u8] {
        let Some((head, rest)) = bytes.split_first_chunk::<HEADER>() else {
            self.pending.extend_from_slice(bytes);
            return &[];
        };
        let header = Header::decode(*head);
        if header.is_oversized() {
            self.skip = header.length as usize;
            found(Frame::Oversized(header));
            return rest;
        }
        if let Some((payload, rest)) = rest.split_at_checked(header.length as usize) {
            found(Frame::Whole(header, payload));
            return rest;
        }
        self.pending.extend_from_slice(bytes);
        &[]
    }

    /// Adds to the frame that was begun, no more than it lacks.
    fn complete<'a>(&mut self, bytes: &'a [u8], found: &mut impl FnMut(Frame<'_>)) -> &'a [u8] {
        let lacking = match self.pending.split_first_chunk::<HEADER>() {
            None => HEADER - self.pending.len(),
            Some((head, payload)) => Header::decode(*head).length as usize - payload.len(),
        };
        let (taken, rest) = bytes.split_at(lacking.min(bytes.len()));
        if self.pending.len() + taken.len() > self.pending.capacity() {
            // Twice as much as before, but never more than the frame will be.
            self.pending.reserve_exact(lacking.min(self.pending.len().max(taken.len())));
        }
        self.pending.extend_from_slice(taken);
        if let Some((head, payload)) = self.pending.split_first_chunk::<HEADER>() {
            let header = Header::decode(*head);
            if header.is_oversized() {
                self.skip = header.length as usize;
                found(Frame::Oversized(header));
                self.pending = Vec::new();
            } else if payload.len() == header.length as usize {
                found(Frame::Whole(header, payload));
                self.pending = Vec::new();
            }
        }
        rest
    }
}

/// An encoded response frame. One that would be too large becomes an error that says so.
pub(crate) fn response_frame(stream: u32, result: Result<Vec<u8>, &Error>) -> Vec<u8> {
    let mut response = Response::new();
    let status = match result {
        Ok(payload) if payload.len() > MAX_PAYLOAD - 64 => Some(status(
            WireCode::RESOURCE_EXHAUSTED,
            &format!("the answer is {} bytes long, more than a message may be", payload.len()),
        )),
        Ok(payload) => {
            response.payload = payload;
            None
        }
        // A message that fills a frame tells nobody anything.
        Err(error) => {
            let code = error.code() as i32;
            let message: String = error.to_string().chars().take(16 << 10).collect();
            let mut status = status(WireCode::UNKNOWN, &message);
            status.code = protobuf::EnumOrUnknown::from_i32(code);
            Some(status)
        }
    };
    response.status = status.into();
    frame(MESSAGE_TYPE_RESPONSE, stream, &response)
}

fn status(code: WireCode, message: &str) -> Status {
    Status { code: code.into(), message: message.to_owned(), ..Status::default() }
}

fn frame(kind: u8, stream: u32, message: &impl Message) -> Vec<u8> {
    let length = message.compute_size();
    let mut bytes = Vec::with_capacity(HEADER + length as usize);
    bytes.extend_from_slice(&Header { length: length as u32, stream, kind, flags: 0 }.encode());
    // Writing a message without required fields into memory cannot fail.
    let written = message.write_to_vec(&mut bytes);
    debug_assert!(written.is_ok());
    bytes
}

/// Why a call through [`Client`] failed.
#[derive(Debug)]
pub(crate) enum CallError {
    /// The connection broke, or was silent for longer than the call's limit; the call may or may not have arrived.
    Transport(io::Error),
    /// The peer answered with this status.
    Status {
        /// As gRPC numbers it.
        code: i32,
        message: String,
    },
}

impl From<io::Error> for CallError {
    fn from(error: io::Error) -> Self {
        Self::Transport(error)
    }
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Transport(error) => error.fmt(f),
            Self::Status { code, message } => write!(f, "{message} (code {code})"),
        }
    }
}

/// One connection with one call at a time on it.
pub(crate) struct Client {
    stream: UnixStream,
    decoder: Decoder,
    next_stream: u32,
}

impl Client {
    /// Speaks over a connected, blocking socket.
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { stream, decoder: Decoder::default(), next_stream: 1 }
    }

    /// Calls a method and waits for its answer: at most for `limit`, or without one for as long as the connection
    /// stands, however silent the peer is. After a transport error the client is of no more use.
    pub(crate) fn call(
        &mut self,
        (service, method): (&str, &str),
        payload: Vec<u8>,
        metadata: &[(&str, &str)],
        limit: impl Into<Option<Duration>>,
    ) -> Result<Vec<u8>, CallError> {
        let limit = limit.into();
        let metadata = metadata.iter().map(|(key, value)| KeyValue {
            key: (*key).to_owned(),
            value: (*value).to_owned(),
            ..KeyValue::default()
        });
        let request = Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload,
            timeout_nano: limit.map_or(0, |limit| i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX)),
            metadata: metadata.collect(),
            ..Request::default()
        };
        let stream = self.next_stream;
        self.next_stream = self.next_stream.checked_add(2).unwrap_or(1);
        let deadline = limit.map(|limit| Instant::now() + limit);
        self.stream.set_write_timeout(limit)?;
        match self.stream.write_all(&frame(MESSAGE_TYPE_REQUEST, stream, &request)) {
            Ok(()) => self.read_response(stream, deadline),
            Err(error) => self.answered_before(stream, error),
        }
    }

    /// After sending has failed: the answer, if the peer gave it before the connection broke, else the error.
    fn answered_before(&mut self, stream: u32, error: io::Error) -> Result<Vec<u8>, CallError> {
        self.stream.set_nonblocking(true)?;
        match self.read_response(stream, None) {
            Err(CallError::Transport(_)) => Err(error.into()),
            answered => answered,
        }
    }

    fn read_response(&mut self, wanted: u32, deadline: Option<Instant>) -> Result<Vec<u8>, CallError> {
        let mut answer = None;
        let mut chunk = [0; 4096];
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(io::Error::from(io::ErrorKind::TimedOut).into());
            }
            self.stream.set_read_timeout(left)?;
            let count = match self.stream.read(&mut chunk) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            self.decoder.feed(&chunk[..count], |frame| match frame {
                Frame::Whole(header, payload)
                    if header.kind == MESSAGE_TYPE_RESPONSE && header.stream == wanted =>
                {
                    answer = Some(Response::parse_from_bytes(payload));
                }
                _ => {}
            });
            if let Some(answer) = answer.take() {
                return unpack(answer.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?);
            }
        }
    }
}

fn unpack(response: Response) -> Result<Vec<u8>, CallError> {
    match response.status.as_ref() {
        Some(status) if status.code.value() != 0 => {
            Err(CallError::Status { code: status.code.value(), message: status.message.clone() })
        }
        _ => Ok(response.payload),
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;
    use crate::mutation::{Mutations, rounds};

    fn encoded(stream: u32, payload: &[u8]) -> Vec<u8> {
        let header = Header { length: payload.len() as u32, stream, kind: MESSAGE_TYPE_REQUEST, flags: 0 };
        [&header.encode(), payload].concat()
    }

    fn frames(decoder: &mut Decoder, bytes: &[u8]) -> Vec<(u32, Option<Vec<u8>>)> {
        let mut all = Vec::new();
        decoder.feed(bytes, |frame| {
            all.push(match frame {
                Frame::Whole(header, payload) => (header.stream, Some(payload.to_vec())),
                Frame::Oversized(header) => (header.stream, None),
            });
        });
        all
    }

    #[test]
    fn every_split_of_a_byte_stream_gives_the_same_frames() {
        let bytes = [encoded(1, b"one"), encoded(3, b""), encoded(5, &[7; 40])].concat();
        let expected = frames(&mut Decoder::default(), &bytes);
        assert_eq!(expected.len(), 3);
        for first in 0..bytes.len() {
            for second in first..bytes.len() {
                let mut decoder = Decoder::default();
                let mut found = frames(&mut decoder, &bytes[..first]);
                found.extend(frames(&mut decoder, &bytes[first..second]));
                found.extend(frames(&mut decoder, &bytes[second..]));
                assert_eq!(found, expected, "split at {first} and {second}");
            }
        }
    }

    #[test]
    fn an_oversized_frame_is_skipped_without_being_kept() {
        let length = MAX_PAYLOAD as u32 + 1;
        let header = Header { length, stream: 1, kind: MESSAGE_TYPE_REQUEST, flags: 0 };
        let mut decoder = Decoder::default();
        assert_eq!(frames(&mut decoder, &header.encode()), [(1, None)]);
        assert!(frames(&mut decoder, &vec![0; MAX_PAYLOAD]).is_empty());
        assert_eq!(decoder.pending.capacity(), 0);
        let rest = [&[0][..], &encoded(3, b"next")].concat();
        assert_eq!(frames(&mut decoder, &rest), [(3, Some(b"next".to_vec()))]);
    }

    #[test]
    fn a_frame_that_was_given_up_is_skipped_and_the_next_one_found() {
        let mut decoder = Decoder::default();
        let bytes = encoded(1, &[7; 40]);
        assert!(frames(&mut decoder, &bytes[..HEADER - 1]).is_empty());
        assert_eq!(decoder.give_up(), None, "it is not known yet what that will be");
        assert!(frames(&mut decoder, &bytes[HEADER - 1..30]).is_empty());
        assert_eq!(decoder.give_up().map(|header| header.stream), Some(1));
        assert_eq!(decoder.held(), 0);
        let rest = [&bytes[30..], &encoded(3, b"next")].concat();
        assert_eq!(frames(&mut decoder, &rest), [(3, Some(b"next".to_vec()))]);
    }

    #[test]
    fn an_unfinished_frame_takes_no_more_room_than_it_will_have() {
        let mut decoder = Decoder::default();
        let bytes = encoded(1, &vec![7; MAX_PAYLOAD]);
        for part in bytes[..bytes.len() - 1].chunks(5000) {
            decoder.feed(part, |_| unreachable!());
            assert!(decoder.held() <= bytes.len());
        }
    }

    #[test]
    fn an_answer_above_the_limit_becomes_resource_exhausted() {
        let frame = response_frame(1, Ok(vec![0; MAX_PAYLOAD]));
        let response = Response::parse_from_bytes(&frame[HEADER..]).unwrap();
        assert_eq!(response.status.code.value(), WireCode::RESOURCE_EXHAUSTED as i32);
    }

    /// Reads the request that a client sends, and its stream.
    fn request_on(mut stream: &UnixStream) -> (u32, Request) {
        let mut head = [0; HEADER];
        stream.read_exact(&mut head).unwrap();
        let header = Header::decode(head);
        let mut payload = vec![0; header.length as usize];
        stream.read_exact(&mut payload).unwrap();
        (header.stream, Request::parse_from_bytes(&payload).unwrap())
    }

    #[test]
    fn a_call_without_a_limit_has_no_deadline_on_either_side() {
        let (client, mut peer) = UnixStream::pair().unwrap();
        let socket = client.try_clone().unwrap();
        let calling =
            std::thread::spawn(move || Client::new(client).call(("s", "m"), Vec::new(), &[], None).unwrap());
        let (stream, request) = request_on(&peer);
        assert_eq!(request.timeout_nano, 0);
        // The option belongs to the socket that the client waits on.
        assert_eq!((socket.read_timeout().unwrap(), socket.write_timeout().unwrap()), (None, None));
        peer.write_all(&response_frame(stream, Ok(b"late".to_vec()))).unwrap();
        assert_eq!(calling.join().unwrap(), b"late");
    }

    #[test]
    fn an_answer_counts_that_came_before_the_connection_broke() {
        let calls: [fn(UnixStream, UnixStream) -> _; 2] = [
            // Broken when it is read: the peer answers and closes at once.
            |client, mut peer| {
                let calling =
                    std::thread::spawn(move || Client::new(client).call(("s", "m"), Vec::new(), &[], None));
                let (stream, _) = request_on(&peer);
                peer.write_all(&response_frame(stream, Ok(b"there".to_vec()))).unwrap();
                drop(peer);
                calling.join().unwrap()
            },
            // Broken when it is still being written.
            |client, mut peer| {
                peer.write_all(&response_frame(1, Ok(b"there".to_vec()))).unwrap();
                drop(peer);
                Client::new(client).call(("s", "m"), Vec::new(), &[], None)
            },
        ];
        for call in calls {
            let (client, peer) = UnixStream::pair().unwrap();
            assert_eq!(call(client, peer).unwrap(), b"there");
        }
        let (client, peer) = UnixStream::pair().unwrap();
        drop(peer);
        let failure = Client::new(client).call(("s", "m"), Vec::new(), &[], None);
        assert!(
            matches!(failure, Err(CallError::Transport(error)) if error.kind() == io::ErrorKind::BrokenPipe)
        );
    }

    fn fed(parts: &[&[u8]]) -> Vec<(u32, Option<Vec<u8>>)> {
        let mut decoder = Decoder::default();
        parts.iter().flat_map(|part| frames(&mut decoder, part)).collect()
    }

    proptest! {
        #[test]
        fn any_split_of_any_byte_stream_gives_the_same_frames(
            frames in vec((any::<u32>(), vec(any::<u8>(), 0..40)), 0..8),
            noise in vec(any::<u8>(), 0..40),
            cuts in vec(any::<Index>(), 0..12),
        ) {
            let sound = frames.iter().flat_map(|(stream, payload)| encoded(*stream, payload));
            let bytes: Vec<u8> = sound.chain(noise).collect();
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.sort_unstable();
            let mut parts = Vec::new();
            let mut rest = &bytes[..];
            for cut in cuts.iter().rev() {
                let (first, last) = rest.split_at(*cut);
                parts.insert(0, last);
                rest = first;
            }
            parts.insert(0, rest);
            let whole = fed(&[&bytes]);
            prop_assert_eq!(fed(&parts), whole.clone());
            let expected: Vec<_> = frames.into_iter().map(|(stream, bytes)| (stream, Some(bytes))).collect();
            prop_assert!(whole.starts_with(&expected));
        }
    }

    #[test]
    fn broken_frames_neither_panic_nor_are_kept() {
        let sound = [encoded(1, b"one"), encoded(3, &[7; 40]), encoded(5, b"")].concat();
        let mut mutations = Mutations::seeded(1);
        for _ in 0..rounds(20_000) {
            let bytes = mutations.change(&sound);
            let mut decoder = Decoder::default();
            for part in bytes.chunks(1 + mutations.below(30)) {
                decoder.feed(part, |frame| {
                    if let Frame::Whole(header, payload) = frame {
                        assert_eq!(header.length as usize, payload.len());
                        let _ = Request::parse_from_bytes(payload);
                        let _ = Response::parse_from_bytes(payload);
                    }
                });
            }
            assert!(decoder.pending.len() <= bytes.len());
        }
    }
}
