//! Brings what anybody in this process prints to standard error into the log. The pipe is always read, so a
//! print neither blocks nor fails, whatever becomes of the log.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::dup2_stderr;

use crate::error::{Result, WithContext};
use crate::event_loop::{EventLoop, Next, Ready, Source, Token};
use crate::spawn;

/// How much is read at a time.
const CHUNK: usize = 4096;

/// From here on a line of standard error is a line of the logger's.
pub(super) fn forward(events: &mut EventLoop) -> Result<()> {
    let read = replace()?;
    fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).with_context(|| "cannot set up standard error")?;
    events.add(|token, events| {
        events.watch(&read, token, Ready::EPOLLIN)?;
        Ok(Box::new(Lines { pipe: read.into(), begun: Vec::new() }))
    })?;
    Ok(())
}

/// From here on standard error is copied into the log as it is. Done on a thread of its own: an author's logger
/// may print on the main thread, which could then not read as well.
pub(super) fn copy(log: File) -> Result<()> {
    let mut read = File::from(replace()?);
    let copy = move || {
        let mut bytes = [0; CHUNK];
        loop {
            match read.read(&mut bytes) {
                // What does not fit is dropped, as the logger does.
                Ok(count) if count > 0 => drop((&log).write_all(&bytes[..count])),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                _ => return,
            }
        }
    };
    std::thread::Builder::new()
        .name("stderr".to_owned())
        .spawn(copy)
        .with_context(|| "cannot start the thread that copies standard error")?;
    Ok(())
}

/// Makes standard error a pipe, and returns its other end.
fn replace() -> Result<OwnedFd> {
    let (read, write) = spawn::pipe()?;
    dup2_stderr(&write).with_context(|| "cannot replace standard error")?;
    Ok(read)
}

struct Lines {
    pipe: File,
    /// The beginning of a line whose end was not in the last chunk.
    begun: Vec<u8>,
}

impl Source for Lines {
    /// Takes one chunk at a time: a process that prints without an end must not hold up everything else.
    fn ready(&mut self, _: Token, _: Ready, _: &mut EventLoop) -> Next {
        let mut chunk = [0; CHUNK];
        let count = self.pipe.read(&mut chunk).unwrap_or(0);
        for part in chunk[..count].split_inclusive(|byte| *byte == b'\n') {
            self.begun.extend_from_slice(part);
            // A line that comes in parts, or is longer than a chunk, is logged in parts.
            if part.ends_with(b"\n") || count < CHUNK || self.begun.len() > CHUNK {
                log::warn!("{}", String::from_utf8_lossy(self.begun.trim_ascii_end()));
                self.begun.clear();
            }
        }
        Next::Keep
    }

    fn close(&mut self, events: &mut EventLoop) {
        events.unwatch(&self.pipe);
    }
}
