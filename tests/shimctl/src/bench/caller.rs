//! A TTRPC client that does no more than it must, so that what is measured is the shim: requests are encoded
//! once, answers are cut off the stream and not looked into, but for whether they are answers.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use protobuf::Message;
use shim_testing::Frame;
use ttrpc::proto::Request;

/// The length of a frame's header.
const HEADER: usize = 10;

/// A connection that makes one kind of call over and over.
pub(super) struct Caller {
    stream: UnixStream,
    request: Vec<u8>,
    next: u32,
    buffer: Vec<u8>,
}

impl Caller {
    /// Connects, to call this method with this request.
    pub(super) fn connect(
        socket: &Path,
        service: &str,
        method: &str,
        request: &impl Message,
    ) -> io::Result<Self> {
        let payload = request.write_to_bytes().map_err(io::Error::other)?;
        let (service, method) = (service.to_owned(), method.to_owned());
        let request = Request { service, method, payload, ..Request::default() };
        let mut bytes = Vec::new();
        Frame::request(1, &request)?.write_to(&mut bytes)?;
        Ok(Self { stream: UnixStream::connect(socket)?, request: bytes, next: 1, buffer: Vec::new() })
    }

    /// Sends a call, without waiting for its answer.
    pub(super) fn send(&mut self) -> io::Result<()> {
        self.request[4..8].copy_from_slice(&self.next.to_be_bytes());
        self.next += 2;
        self.stream.write_all(&self.request)
    }

    /// Waits for answers; returns how many came.
    pub(super) fn receive(&mut self) -> io::Result<usize> {
        let mut chunk = [0; 16 << 10];
        loop {
            let count = self.stream.read(&mut chunk)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.buffer.extend_from_slice(&chunk[..count]);
            let mut answers = 0;
            while let Some(length) = first_frame(&self.buffer) {
                self.buffer.drain(..length);
                answers += 1;
            }
            if answers > 0 {
                return Ok(answers);
            }
        }
    }

    /// Makes `count` calls, one after the other; returns how long each took, in microseconds.
    pub(super) fn one_by_one(&mut self, count: u32) -> io::Result<Vec<f64>> {
        let mut times = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let began = Instant::now();
            self.send()?;
            self.receive()?;
            times.push(began.elapsed().as_secs_f64() * 1e6);
        }
        Ok(times)
    }

    /// Makes `count` calls, `window` of them at a time on their way; returns how many were answered a second.
    pub(super) fn in_flight(&mut self, count: usize, window: usize) -> io::Result<f64> {
        let began = Instant::now();
        let (mut sent, mut answered) = (0, 0);
        while answered < count {
            while sent < count && sent - answered < window {
                self.send()?;
                sent += 1;
            }
            answered += self.receive()?;
        }
        Ok(count as f64 / began.elapsed().as_secs_f64())
    }
}

/// The length of the first frame, if it is all there.
fn first_frame(bytes: &[u8]) -> Option<usize> {
    let length = u32::from_be_bytes(*bytes.first_chunk()?) as usize + HEADER;
    (bytes.len() >= length).then_some(length)
}
