//! A process's stdio (contract 5): containerd's FIFOs on one side, pipes to the process on the other, and
//! between them copiers on the main loop. Pipes stay pipes, so a container outlives whoever reads it.

mod copier;
mod fifo;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::unistd::{Gid, Uid, fchown, pipe2};

use self::copier::{Input, InputCopier, Output, OutputCopier};
use crate::error::{Error, Result, WithContext};
use crate::event_loop::Handle;
use crate::spawn::Command;

/// The container's ends of its stdio. A stream that containerd does not connect is `None`. Dropping an end is
/// the end of that stream to the client.
#[derive(Debug, Default)]
pub struct Stdio {
    /// To read input from.
    pub stdin: Option<OwnedFd>,
    /// To write output to.
    pub stdout: Option<OwnedFd>,
    /// To write errors to.
    pub stderr: Option<OwnedFd>,
}

impl Stdio {
    /// Gives the streams to a command; those that are not connected become `/dev/null`. If the command runs
    /// under another user, the pipes become that user's, so that it can open `/dev/stdout`.
    ///
    /// # Errors
    /// When the owner cannot be changed.
    pub fn apply(self, command: &mut Command) -> Result<()> {
        let (uid, gid) = command.ids();
        for (number, fd) in [(0, self.stdin), (1, self.stdout), (2, self.stderr)] {
            let Some(fd) = fd else { continue };
            if uid.is_some() || gid.is_some() {
                fchown(fd.as_fd(), uid.map(Uid::from_raw), gid.map(Gid::from_raw))
                    .context(|| "cannot hand a pipe to the container's user")?;
            }
            command.descriptor(number, fd);
        }
        Ok(())
    }
}

/// What a client calls the streams of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Names {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

/// The runtime's half of a process's stdio.
pub(crate) struct Streams {
    input: Option<Arc<Input>>,
    outputs: Vec<Arc<Output>>,
}

impl Streams {
    /// Opens what the names name, without waiting for anybody, and starts to copy.
    pub(crate) fn open(names: &Names, main: &Handle) -> Result<(Self, Stdio)> {
        if names.terminal {
            return Err(Error::failed_precondition("terminals are not supported by this shim"));
        }
        let (mut streams, mut stdio) = (Self { input: None, outputs: Vec::new() }, Stdio::default());
        if let Some(fifo) = fifo::open("stdin", &names.stdin)? {
            let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
            streams.input = Some(InputCopier::start(fifo, write, main));
            stdio.stdin = Some(read);
        }
        stdio.stdout = streams.output("stdout", &names.stdout, main)?;
        stdio.stderr = if !names.stderr.is_empty() && names.stderr == names.stdout {
            stdio.stdout.as_ref().map(OwnedFd::try_clone).transpose()?
        } else {
            streams.output("stderr", &names.stderr, main)?
        };
        Ok((streams, stdio))
    }

    fn output(&mut self, stream: &str, name: &str, main: &Handle) -> Result<Option<OwnedFd>> {
        let Some(fifo) = fifo::open(stream, name)? else { return Ok(None) };
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        self.outputs.push(OutputCopier::start(read, fifo, main));
        Ok(Some(write))
    }

    /// The client sends no more input: what it has sent still arrives, then the end.
    pub(crate) fn close_input(&self) {
        if let Some(input) = &self.input {
            input.finish();
        }
    }

    /// The process is gone: nobody takes input any more.
    pub(crate) fn process_ended(&self) {
        if let Some(input) = &self.input {
            input.abort();
        }
    }

    /// Waits until all output that can still be delivered is, and ends the copying.
    pub(crate) fn drain(&self) {
        self.process_ended();
        self.outputs.iter().for_each(|output| output.begin_to_drain());
        self.outputs.iter().for_each(|output| output.wait_until_drained());
    }
}

impl Drop for Streams {
    /// Nothing is copied for a process that nobody knows any more.
    fn drop(&mut self) {
        self.process_ended();
        self.outputs.iter().for_each(|output| output.abort());
    }
}
