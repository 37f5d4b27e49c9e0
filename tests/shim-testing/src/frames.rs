//! TTRPC frames by hand, one thread and no library between the test and the wire: for measuring, for calls
//! that no client would make, and for the events service (contract 6.6).

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use protobuf::Message;
use ttrpc::proto::{MESSAGE_LENGTH_MAX, MESSAGE_TYPE_REQUEST, MESSAGE_TYPE_RESPONSE};
use ttrpc::{Request, Response};

use super::client::refused;
use super::failure::{Doing, Result};

const HEADER: usize = 10;

/// One frame: header and body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// The stream, odd for requests of a client.
    pub stream: u32,
    /// 1 request, 2 response, 3 data.
    pub kind: u8,
    /// 1 remote closed, 2 remote open, 4 no data.
    pub flags: u8,
    /// What follows the header.
    pub body: Vec<u8>,
}

impl Frame {
    /// A unary request.
    pub fn request(stream: u32, request: &Request) -> io::Result<Self> {
        let body = request.write_to_bytes().map_err(io::Error::other)?;
        Ok(Self { stream, kind: MESSAGE_TYPE_REQUEST, flags: 0, body })
    }

    /// The answer to a unary request.
    pub fn response(stream: u32, response: &Response) -> io::Result<Self> {
        let body = response.write_to_bytes().map_err(io::Error::other)?;
        Ok(Self { stream, kind: MESSAGE_TYPE_RESPONSE, flags: 0, body })
    }

    /// Reads one frame; `None` at an end between two frames.
    pub fn read_from(mut from: impl Read) -> io::Result<Option<Self>> {
        let mut header = [0; HEADER];
        let mut filled = 0;
        while filled < HEADER {
            match from.read(&mut header[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let [l0, l1, l2, l3, s0, s1, s2, s3, kind, flags] = header;
        let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        if length > MESSAGE_LENGTH_MAX {
            return Err(io::Error::other(format!("a frame of {length} bytes; the limit is 4 MiB")));
        }
        let mut body = vec![0; length];
        from.read_exact(&mut body)?;
        Ok(Some(Self { stream: u32::from_be_bytes([s0, s1, s2, s3]), kind, flags, body }))
    }

    /// Writes the frame in one piece.
    pub fn write_to(&self, mut to: impl Write) -> io::Result<()> {
        let length = u32::try_from(self.body.len()).map_err(io::Error::other)?;
        let mut bytes = Vec::with_capacity(HEADER + self.body.len());
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&self.stream.to_be_bytes());
        bytes.extend_from_slice(&[self.kind, self.flags]);
        bytes.extend_from_slice(&self.body);
        to.write_all(&bytes)
    }
}

/// A connection that speaks frames.
#[derive(Debug)]
pub struct RawConnection {
    stream: UnixStream,
    next: u32,
}

impl RawConnection {
    /// Connects to the socket at `path`.
    pub fn connect(path: impl AsRef<Path>) -> io::Result<Self> {
        Ok(Self { stream: UnixStream::connect(path)?, next: 1 })
    }

    /// How long a receive may take; without it, for ever.
    pub fn set_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        self.stream.set_read_timeout(limit)
    }

    /// The socket itself, for bytes that are no frame.
    pub fn stream(&mut self) -> &mut UnixStream {
        &mut self.stream
    }

    /// Sends a frame as it is, sensible or not.
    pub fn send(&mut self, frame: &Frame) -> io::Result<()> {
        frame.write_to(&mut self.stream)
    }

    /// The next frame; `None` when the shim has hung up.
    pub fn receive(&mut self) -> io::Result<Option<Frame>> {
        Frame::read_from(&mut self.stream)
    }

    /// Sends a request on the next stream and returns the stream's id, without waiting.
    pub fn begin(&mut self, service: &str, method: &str, payload: Vec<u8>) -> io::Result<u32> {
        let stream = self.next;
        self.begin_many(service, method, payload, 1)?;
        Ok(stream)
    }

    /// Sends the same request many times in one write: a shim whose answers are not read may stop to read.
    pub fn begin_many(
        &mut self,
        service: &str,
        method: &str,
        payload: Vec<u8>,
        count: u32,
    ) -> io::Result<()> {
        let (service, method) = (service.to_owned(), method.to_owned());
        let request = Request { service, method, payload, ..Request::default() };
        let mut bytes = Vec::new();
        for _ in 0..count {
            Frame::request(self.next, &request)?.write_to(&mut bytes)?;
            self.next += 2;
        }
        self.stream.write_all(&bytes)
    }

    /// Calls a method and waits for its answer; answers of other streams in between are dropped.
    pub fn call(&mut self, service: &str, method: &str, payload: Vec<u8>) -> io::Result<Response> {
        let stream = self.begin(service, method, payload)?;
        loop {
            let frame = self.receive()?.ok_or(io::ErrorKind::UnexpectedEof)?;
            if frame.stream == stream {
                return Response::parse_from_bytes(&frame.body).map_err(io::Error::other);
            }
        }
    }

    /// Calls a method by its messages; an answer that is no success is a failure with its code.
    pub fn ask<Q: Message, R: Message>(&mut self, service: &str, method: &str, request: &Q) -> Result<R> {
        let payload = request.write_to_bytes().doing(|| "cannot encode a request")?;
        let response = self.call(service, method, payload).doing(|| method.to_owned())?;
        if response.status.code.value() != 0 {
            return Err(refused(method, ttrpc::Error::RpcStatus(response.status.unwrap_or_default())));
        }
        R::parse_from_bytes(&response.payload).doing(|| format!("cannot decode the answer to `{method}`"))
    }
}

impl From<RawConnection> for OwnedFd {
    fn from(connection: RawConnection) -> Self {
        connection.stream.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_survives_the_wire_and_a_cut_one_is_an_error() {
        let frame = Frame { stream: 5, kind: 1, flags: 2, body: b"abc".to_vec() };
        let mut bytes = Vec::new();
        frame.write_to(&mut bytes).unwrap();
        assert_eq!(bytes, b"\0\0\0\x03\0\0\0\x05\x01\x02abc");
        assert_eq!(Frame::read_from(&bytes[..]).unwrap(), Some(frame));
        assert_eq!(Frame::read_from(&b""[..]).unwrap(), None);
        assert!(Frame::read_from(&bytes[..12]).is_err() && Frame::read_from(&bytes[..4]).is_err());
        assert!(Frame::read_from(&b"\xff\xff\xff\xff\0\0\0\x01\x01\0"[..]).is_err());
    }
}
