//! From the container's pipe or terminal to the end of a file. Writing to a file may block and cannot be polled,
//! and splice refuses to append, so a thread copies while there is something to copy and ends soon afterwards.

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::unistd::read;

use super::copier::{Control, Halt, Share, Watch, halt_of, held};
use super::trouble::Trouble;
use super::withheld::is_withheld;
use crate::error::Result;
use crate::event_loop::{EventLoop, Next, Ready, Source, Token};
use crate::sync::lock;
use crate::wait::ready_within;

/// How much is copied at a time.
const CHUNK: usize = 64 << 10;
/// How long a thread waits for more, so that a steady writer does not cost one a line.
const LINGER: Duration = Duration::from_millis(100);

/// Opens a file for appending, and makes it and the folders above it.
pub(super) fn open(path: &Path) -> io::Result<File> {
    if let Some(parent) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    File::options().append(true).create(true).mode(0o644).open(path)
}

/// See the module. Watches for output while no thread copies.
pub(super) struct FileCopier {
    work: Arc<Work>,
    control: Arc<Control>,
    watch: Watch,
}

/// What the thread works on.
struct Work {
    from: Arc<OwnedFd>,
    to: File,
    share: Option<Share>,
    /// Why the last thread has ended; `None` while one copies.
    halt: Mutex<Option<Halt>>,
    trouble: Mutex<Trouble>,
}

impl FileCopier {
    pub(super) fn start(control: &Arc<Control>, from: Arc<OwnedFd>, to: File, share: Option<Share>) {
        control.gauge.comes_from(&from);
        let (halt, trouble) = (Mutex::new(Some(Halt::Starved)), Mutex::new(control.trouble("output")));
        let work = Arc::new(Work { from, to, share, halt, trouble });
        control.begin(Self { work, control: control.clone(), watch: Watch::default() });
    }

    fn turn(&mut self, token: Token, ready: Ready, events: &mut EventLoop) -> Result<Next> {
        let Some(halt) = *lock(&self.work.halt) else { return Ok(Next::Keep) };
        if is_withheld(&self.control, &self.work.from, &mut self.watch, token, events)? {
            return Ok(Next::Keep);
        }
        match halt {
            Halt::Ended => return Ok(Next::Close),
            Halt::Deserted | Halt::Hindered(_) => {
                *lock(&self.work.halt) = Some(Halt::Starved);
                self.watch.retry(token, events);
            }
            _ if !ready.is_empty() || self.control.is_finishing() => self.work(token, events),
            _ => self.watch.start(&self.work.from, Ready::EPOLLIN, token, events)?,
        }
        Ok(Next::Keep)
    }

    /// Has a thread copy, which pokes the copier when it ends.
    fn work(&mut self, token: Token, events: &mut EventLoop) {
        self.watch.stop(events);
        *lock(&self.work.halt) = None;
        let (work, control) = (self.work.clone(), self.control.clone());
        let copy = move || {
            let halt = work.copy(&control);
            *lock(&work.halt) = Some(halt);
            drop(work);
            control.poke();
        };
        if let Err(error) = thread::Builder::new().name("file".to_owned()).spawn(copy) {
            lock(&self.work.trouble).failed(&error);
            *lock(&self.work.halt) = Some(Halt::Starved);
            self.watch.retry(token, events);
        }
    }
}

impl Source for FileCopier {
    fn ready(&mut self, token: Token, ready: Ready, events: &mut EventLoop) -> Next {
        if self.control.is_aborted() {
            return Next::Close;
        }
        self.turn(token, ready, events).unwrap_or_else(|error| {
            lock(&self.work.trouble).failed(&error);
            self.watch.retry(token, events);
            Next::Keep
        })
    }

    fn close(&mut self, events: &mut EventLoop) {
        self.watch.stop(events);
    }
}

impl Work {
    /// Copies until there is nothing left for a while, or ever; returns which.
    fn copy(&self, control: &Control) -> Halt {
        let mut buffer = vec![0; CHUNK];
        let mut left = None;
        while !control.is_aborted() {
            // A process that the container has left behind may keep the pipe open for good, and write on.
            if control.is_finishing() && left.is_none() {
                left = Some(held(&self.from));
            }
            if left == Some(0) {
                break;
            }
            match self.step(&mut buffer, control) {
                Ok(count @ 1..) => left = left.map(|left| left.saturating_sub(count)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if !control.is_finishing() => {
                    if !self.has_more_soon() && !control.is_finishing() {
                        return Halt::Starved;
                    }
                }
                Err(Errno::EAGAIN) | Ok(0) => break,
                Err(errno) => match halt_of(errno) {
                    Halt::Deserted if !control.has_process_ended() => return Halt::Deserted,
                    Halt::Hindered(errno) => {
                        lock(&self.trouble).failed(&errno);
                        return Halt::Hindered(errno);
                    }
                    _ => break,
                },
            }
        }
        control.gauge.has_ended();
        Halt::Ended
    }

    /// Copies what there is, as far as the buffer takes it; returns how much that was.
    fn step(&self, buffer: &mut [u8], control: &Control) -> nix::Result<usize> {
        let copy = || {
            let taken = read(&self.from, buffer);
            let count = taken.unwrap_or(0);
            if count > 0 {
                self.deliver(&buffer[..count], control);
            }
            (count, taken)
        };
        control.gauge.count(copy).1
    }

    /// A file that takes nothing more does not hold up the container: what cannot be written is lost.
    fn deliver(&self, bytes: &[u8], control: &Control) {
        let (written, result) = self.write(bytes);
        let mut trouble = lock(&self.trouble);
        match result {
            Ok(()) => trouble.worked(),
            Err(error) => trouble.failed(&error),
        }
        trouble.dropped(bytes.len() - written);
        drop(trouble);
        if let Some(share) = self.share.as_ref().filter(|_| control.is_finishing()) {
            share.moved(bytes.len());
        }
    }

    /// Writes as much as the file takes; returns how much that was.
    fn write(&self, bytes: &[u8]) -> (usize, io::Result<()>) {
        let mut written = 0;
        while written < bytes.len() {
            match (&self.to).write(&bytes[written..]) {
                Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (written, Err(error)),
            }
        }
        (written, Ok(()))
    }

    fn has_more_soon(&self) -> bool {
        ready_within(&self.from, PollFlags::POLLIN, LINGER).unwrap_or(false)
    }
}
