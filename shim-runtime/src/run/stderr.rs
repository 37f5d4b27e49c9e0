//! Makes log lines of what anybody in this process prints to standard error. The pipe is always read, so a
//! print neither blocks nor fails, whatever becomes of the log.

use std::fs::File;
use std::io::{BufRead, BufReader};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{dup2_stderr, pipe2};

use crate::error::{Result, WithContext};
use crate::event_loop::{EventLoop, Next, Ready, Source, Token};

/// From here on standard error leads into the log.
pub(super) fn forward(events: &mut EventLoop) -> Result<()> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    dup2_stderr(&write).context(|| "cannot replace standard error")?;
    events.add(|token, events| {
        events.watch(&read, token, Ready::EPOLLIN)?;
        Ok(Box::new(Lines(BufReader::with_capacity(1024, read.into()))))
    })?;
    Ok(())
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
