//! From the container's pipe or terminal to the end of a file. Writing to a file may block and cannot be polled,
//! and splice refuses to append, so a thread copies while there is something to copy and ends soon afterwards.

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::read;

use super::copier::{Control, Share, Watch};
use crate::event_loop::{EventLoop, Next, Ready, Source, Token};

/// How much is copied at a time.
const CHUNK: usize = 64 << 10;
/// How long a thread waits for more, in milliseconds, so that a steady writer does not cost one a line.
const LINGER: u16 = 100;
/// After how long it is tried again to start a thread.
const RETRY: Duration = Duration::from_secs(1);

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
    /// A thread copies.
    busy: AtomicBool,
    /// There is nothing left to copy.
    over: AtomicBool,
}

impl FileCopier {
    pub(super) fn start(control: &Arc<Control>, from: Arc<OwnedFd>, to: File, share: Option<Share>) {
        let (busy, over) = (AtomicBool::new(false), AtomicBool::new(false));
        let work = Arc::new(Work { from, to, share, busy, over });
        control.begin(Self { work, control: control.clone(), watch: Watch::default() });
    }

    /// Has a thread copy, which pokes the copier when it ends.
    fn work(&mut self, events: &mut EventLoop) {
        self.watch.stop(events);
        self.work.busy.store(true, Ordering::Release);
        let (work, control) = (self.work.clone(), self.control.clone());
        let copy = move || {
            work.copy(&control);
            work.busy.store(false, Ordering::Release);
            drop(work);
            control.poke();
        };
        if let Err(error) = thread::Builder::new().name("file".to_owned()).spawn(copy) {
            log::error!("cannot start a thread to copy a container's output: {error}");
            self.work.busy.store(false, Ordering::Release);
            let control = self.control.clone();
            events.after(RETRY, move |_| control.poke());
        }
    }
}

impl Source for FileCopier {
    fn ready(&mut self, token: Token, ready: Ready, events: &mut EventLoop) -> Next {
        if self.control.is_aborted() || self.work.over.load(Ordering::Acquire) {
            return Next::Close;
        }
        if self.work.busy.load(Ordering::Acquire) {
            return Next::Keep;
        }
        if !ready.is_empty() || self.control.is_finishing() {
            self.work(events);
            return Next::Keep;
        }
        match self.watch.start(&self.work.from, Ready::EPOLLIN, token, events) {
            Ok(()) => Next::Keep,
            Err(error) => {
                log::error!("cannot copy a container's output: {error}");
                Next::Close
            }
        }
    }

    fn close(&mut self, events: &mut EventLoop) {
        self.watch.stop(events);
    }
}

impl Work {
    /// Copies until there is nothing left for a while, or ever.
    fn copy(&self, control: &Control) {
        let mut buffer = vec![0; CHUNK];
        while !control.is_aborted() {
            match read(&self.from, &mut buffer) {
                Ok(count @ 1..) => self.deliver(&buffer[..count], control),
                Err(Errno::EINTR) => {}
                // A process that the container has left behind may keep the pipe open for good.
                Err(Errno::EAGAIN) if !control.is_finishing() => {
                    if !self.has_more_soon() && !control.is_finishing() {
                        return;
                    }
                }
                Ok(0) | Err(_) => break,
            }
        }
        self.over.store(true, Ordering::Release);
    }

    /// A file that takes nothing more does not hold up the container: what cannot be written is lost.
    fn deliver(&self, bytes: &[u8], control: &Control) {
        if let Err(error) = (&self.to).write_all(bytes) {
            log::error!("cannot write a container's output to its file: {error}");
        }
        if let Some(share) = self.share.as_ref().filter(|_| control.is_finishing()) {
            share.moved(bytes.len());
        }
    }

    fn has_more_soon(&self) -> bool {
        let mut fds = [PollFd::new(self.from.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(LINGER)).is_ok_and(|count| count > 0)
    }
}
