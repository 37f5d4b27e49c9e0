//! Brings what anybody in this process prints to standard error into the log. The pipe is always read, so a
//! print neither blocks nor fails, whatever becomes of the log.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{dup2_stderr, pipe2};

use crate::error::{Result, WithContext};
use crate::event_loop::{EventLoop, Next, Ready, Source, Token};

/// From here on a line of standard error is a line of the logger's.
pub(super) fn forward(events: &mut EventLoop) -> Result<()> {
    let read = replace()?;
    fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    events.add(|token, events| {
        events.watch(&read, token, Ready::EPOLLIN)?;
        Ok(Box::new(Lines(BufReader::with_capacity(1024, read.into()))))
    })?;
    Ok(())
}

/// From here on standard error is copied into the log as it is. Done on a thread of its own: an author's logger
/// may print on the main thread, which could then not read as well.
pub(super) fn copy(log: File) -> Result<()> {
    let mut read = File::from(replace()?);
    let copy = move || {
        let mut bytes = [0; 4096];
        loop {
            match read.read(&mut bytes) {
                // What does not fit is dropped, as the logger does.
                Ok(count) if count > 0 => drop((&log).write_all(&bytes[..count])),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                _ => return,
            }
        }
    };
    std::thread::Builder::new().name("stderr".to_owned()).spawn(copy)?;
    Ok(())
}

/// Makes standard error a pipe, and returns its other end.
fn replace() -> Result<OwnedFd> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    dup2_stderr(&write).context(|| "cannot replace standard error")?;
    Ok(read)
}

struct Lines(BufReader<File>);

impl Source for Lines {
    fn ready(&mut self, _: Token, _: Ready, _: &mut EventLoop) -> Next {
        let mut line = Vec::new();
        // A line that comes in parts is logged in parts; nothing is kept between.
        while self.0.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) || !line.is_empty() {
            log::warn!("{}", String::from_utf8_lossy(line.trim_ascii_end()));
            line.clear();
        }
        Next::Keep
    }

    fn close(&mut self, events: &mut EventLoop) {
        events.unwatch(self.0.get_ref());
    }
}
