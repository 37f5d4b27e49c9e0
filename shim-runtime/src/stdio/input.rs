//! From the client's FIFO into the container's stdin, a pipe or a terminal.
//!
//! The FIFO is held open for both directions, so a client that detaches is not an end of input. Once `CloseIO`
//! has come it is held for reading alone, and the end follows the last client's.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::termios::{SpecialCharacterIndices, tcgetattr};
use nix::unistd::write;

use super::copier::{Control, Halt, Watch, again, pump};
use super::fifo;
use super::pace::Pace;
use super::trouble::Trouble;
use crate::error::Result;
use crate::event_loop::{EventLoop, Next, Ready, Source, Token};

/// See the module.
pub(super) struct InputCopier {
    from: Arc<OwnedFd>,
    to: Arc<OwnedFd>,
    to_terminal: bool,
    control: Arc<Control>,
    reads_only: bool,
    /// How often the end was typed into a terminal.
    ends_typed: usize,
    watch: Watch,
    pace: Pace,
    trouble: Trouble,
}

impl InputCopier {
    pub(super) fn start(control: &Arc<Control>, from: OwnedFd, to: Arc<OwnedFd>, to_terminal: bool) {
        control.begin(Self {
            from: Arc::new(from),
            to,
            to_terminal,
            control: control.clone(),
            reads_only: false,
            ends_typed: 0,
            watch: Watch::default(),
            pace: Pace::default(),
            trouble: control.trouble("input"),
        });
    }

    fn turn(&mut self, token: Token, events: &mut EventLoop) -> Result<Next> {
        if self.control.is_finishing() && !self.reads_only {
            self.watch.stop(events);
            self.from = Arc::new(fifo::reopen_to_read(&self.from)?);
            self.reads_only = true;
        }
        let (moved, halt) = pump(&self.from, &self.to);
        if moved > 0 {
            self.trouble.worked();
        }
        match halt {
            Halt::Starved | Halt::Full if self.pace.rests(moved, [&self.from, &self.to]) => {
                self.watch.rest(token, events);
            }
            Halt::Starved => self.watch.start(&self.from, Ready::EPOLLIN, token, events)?,
            Halt::Full => self.watch.start(&self.to, Ready::EPOLLOUT, token, events)?,
            Halt::Paused => again(token, events),
            Halt::Deserted => self.watch.retry(token, events),
            Halt::Hindered(errno) => {
                self.trouble.failed(&errno);
                self.watch.retry(token, events);
            }
            Halt::Ended if self.to_terminal => return self.type_end(token, events),
            Halt::Ended => return Ok(Next::Close),
            Halt::Lost(errno) => {
                // That nobody reads any more is the process's own affair.
                if errno != Errno::EPIPE {
                    self.trouble.failed(&errno);
                }
                return Ok(Next::Close);
            }
        }
        Ok(Next::Keep)
    }

    /// A terminal has no end of input but the one that is typed: once to pass on a line that was begun, once more
    /// for the end itself.
    fn type_end(&mut self, token: Token, events: &mut EventLoop) -> Result<Next> {
        let Ok(settings) = tcgetattr(&self.to) else { return Ok(Next::Close) };
        let end = settings.control_chars[SpecialCharacterIndices::VEOF as usize];
        // Zero is how a terminal says that it has none.
        while end != 0 && self.ends_typed < 2 {
            match write(&self.to, &[end]) {
                Ok(count) => self.ends_typed += count,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    self.watch.start(&self.to, Ready::EPOLLOUT, token, events)?;
                    return Ok(Next::Keep);
                }
                Err(Errno::EIO) => {
                    self.watch.retry(token, events);
                    return Ok(Next::Keep);
                }
                Err(_) => break,
            }
        }
        Ok(Next::Close)
    }
}

impl Source for InputCopier {
    fn ready(&mut self, token: Token, _: Ready, events: &mut EventLoop) -> Next {
        if self.control.is_aborted() {
            return Next::Close;
        }
        self.turn(token, events).unwrap_or_else(|error| {
            self.trouble.failed(&error);
            self.watch.retry(token, events);
            Next::Keep
        })
    }

    fn close(&mut self, events: &mut EventLoop) {
        self.watch.stop(events);
    }
}
