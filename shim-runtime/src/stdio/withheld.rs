//! Output that is withheld from its client. An OCI runtime passes its own streams on to the container that it makes,
//! so what it complains of when it fails lies where the container's output will: only its exit tells whose words
//! those are.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use nix::poll::PollFlags;
use nix::unistd::read;

use super::copier::{Control, Watch};
use super::fifo;
use crate::error::Result;
use crate::event_loop::{EventLoop, Ready, Token};
use crate::sys;

/// One output of a process, whose copier can be told to wait.
#[derive(Clone)]
pub(super) struct Output {
    control: Arc<Control>,
    /// The copier's end of the pipe; gone once the copier is.
    pipe: Weak<OwnedFd>,
}

impl Output {
    pub(super) fn new(control: &Arc<Control>, pipe: &Arc<OwnedFd>) -> Self {
        Self { control: control.clone(), pipe: Arc::downgrade(pipe) }
    }
}

/// The outputs of a process while they are kept from its client, as [`Stdio::withhold`](super::Stdio::withhold) has
/// it. They are delivered once this is dropped, or earlier if there is no room for more: whoever writes then must not
/// wait for good.
#[derive(Default)]
pub struct Withheld(Vec<Output>);

impl Withheld {
    /// To be called before anybody writes.
    pub(super) fn new(outputs: Vec<Output>) -> Self {
        for output in &outputs {
            output.control.withhold(true);
        }
        Self(outputs)
    }

    /// Throws away what was written so far; returns what of it was written to standard error.
    pub fn discard(self) -> Vec<u8> {
        let mut words = Vec::new();
        // Standard error comes last. Where both outputs are one pipe, there is no other.
        for pipe in self.0.iter().filter_map(|output| output.pipe.upgrade()) {
            words = take(&pipe);
        }
        words
    }
}

impl std::fmt::Debug for Withheld {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Withheld").field("outputs", &self.0.len()).finish()
    }
}

impl Drop for Withheld {
    fn drop(&mut self) {
        for output in &self.0 {
            output.control.withhold(false);
            output.control.poke();
        }
    }
}

/// Reads what lies in a pipe now. A process that was left behind may go on to write.
fn take(pipe: &OwnedFd) -> Vec<u8> {
    let mut bytes = vec![0; sys::unread(pipe)];
    let count = read(pipe, &mut bytes).unwrap_or_default();
    bytes.truncate(count);
    bytes
}

/// Whether a copier has to leave alone what it reads from. It is called again when that may have changed.
pub(super) fn is_withheld(
    control: &Arc<Control>,
    from: &Arc<OwnedFd>,
    watch: &mut Watch,
    token: Token,
    events: &mut EventLoop,
) -> Result<bool> {
    if !control.is_withheld() {
        return Ok(false);
    }
    let is_empty = sys::unread(from) == 0;
    if control.is_finishing() || is_full(from) || (is_empty && fifo::has_ended(from)) {
        control.withhold(false);
        return Ok(false);
    }
    if is_empty {
        watch.start(from, Ready::EPOLLIN, token, events)?;
    } else {
        // Nothing is looked at while the pipe is empty; now it may become full.
        watch.retry(token, events);
    }
    Ok(true)
}

/// Whether a pipe takes no more. How much it holds does not tell: a short write may take as much room as a long one.
fn is_full(reader: &OwnedFd) -> bool {
    fifo::reopen_to_write(reader).is_ok_and(|writer| !fifo::ready_for(&writer, PollFlags::POLLOUT))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::*;
    use crate::stdio::fifo::End;

    #[test]
    fn a_pipe_is_full_when_its_writer_would_have_to_wait_however_little_it_holds() {
        let (reader, writer) = fifo::pipe(End::Write).unwrap();
        let mut writer = File::from(writer);
        assert!(!is_full(&reader));
        // Each write takes a page.
        while writer.write(&[b'x'; 2049]).is_ok() {
            assert!(sys::unread(&reader) < 60_000);
        }
        assert!(is_full(&reader));
        assert!(take(&reader).len() > 30_000);
        assert!(!is_full(&reader));
    }
}
