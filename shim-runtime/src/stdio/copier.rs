//! Moves bytes between a client's FIFO and a container's pipe, on the main loop and without copying them
//! through user space. What the two ends do at their ends is told in the design notes of each copier.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};
use nix::poll::PollFlags;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::fifo;
use crate::error::Result;
use crate::event_loop::{EventLoop, Handle, Next, Ready, Source, Timer, Token};
use crate::reaper::lock;

/// How much is moved at a time, a pipe's usual size, and how often before others have their turn.
const CHUNK: usize = 64 << 10;
const CHUNKS_PER_TURN: usize = 16;
/// A reader that takes nothing for so long during the drain ends it.
const STALL: Duration = Duration::from_secs(2);
/// How long output waits during the drain for a reader that is not there.
const ABSENCE: Duration = Duration::from_millis(100);

/// Why moving stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Halt {
    /// Nothing to read now.
    Starved,
    /// No room to write now.
    Full,
    /// Nothing will ever be read again.
    Ended,
    /// Nobody will ever take it.
    Broken,
    /// It is others' turn.
    Paused,
}

/// Moves what can be moved; returns how much, and why no more.
fn pump(from: &OwnedFd, to: &OwnedFd) -> (usize, Halt) {
    let mut moved = 0;
    for _ in 0..CHUNKS_PER_TURN {
        let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
        match splice(from, None, to, None, CHUNK, flags) {
            Ok(0) => return (moved, Halt::Ended),
            Ok(count) => moved += count,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) if fifo::ready_for(from, PollFlags::POLLIN) => return (moved, Halt::Full),
            Err(Errno::EAGAIN) => return (moved, Halt::Starved),
            Err(_) => return (moved, Halt::Broken),
        }
    }
    (moved, Halt::Paused)
}

/// The one descriptor that a copier waits for. Only one is watched at a time, because the kernel reports a
/// hang-up of a watched one whether it was asked for or not.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Waiting {
    Nothing,
    From,
    To,
    Reader,
}

/// A copier's handle: how others tell it what happened. What is told is read by the copier on the loop.
struct Control {
    main: Handle,
    token: Mutex<Option<Token>>,
    finishing: AtomicBool,
    aborted: AtomicBool,
}

impl Control {
    fn new(main: &Handle) -> Self {
        let (finishing, aborted) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { main: main.clone(), token: Mutex::new(None), finishing, aborted }
    }

    /// Sets a flag and has the copier look at it. Work posted earlier, its start included, comes first.
    fn tell(self: &Arc<Self>, flag: fn(&Self) -> &AtomicBool) {
        if !flag(self).swap(true, Ordering::Relaxed) {
            let control = self.clone();
            self.main.post(move |events| {
                let token = *lock(&control.token);
                if let Some(token) = token {
                    events.poke(token, Ready::empty());
                }
            });
        }
    }

    fn is_finishing(&self) -> bool {
        self.finishing.load(Ordering::Relaxed)
    }

    fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Relaxed)
    }
}

/// The handle of an [`InputCopier`].
pub(super) struct Input(Arc<Control>);

impl Input {
    /// No more input will be sent: the container sees the end after what was.
    pub(super) fn finish(&self) {
        self.0.tell(|control| &control.finishing);
    }

    /// Nobody wants input any more.
    pub(super) fn abort(&self) {
        self.0.tell(|control| &control.aborted);
    }
}

/// From the client's FIFO into the container's stdin.
///
/// The FIFO is held open for both directions, so a client that detaches is not an end of input. Once `CloseIO`
/// has come it is held for reading alone, and the end follows the last client's.
pub(super) struct InputCopier {
    from: OwnedFd,
    to: OwnedFd,
    control: Arc<Control>,
    reads_only: bool,
    waiting: Waiting,
}

impl InputCopier {
    pub(super) fn start(from: OwnedFd, to: OwnedFd, main: &Handle) -> Arc<Input> {
        let control = Arc::new(Control::new(main));
        let input = Arc::new(Input(control.clone()));
        main.post(move |events| {
            let place = control.clone();
            let copier = Self { from, to, control, reads_only: false, waiting: Waiting::Nothing };
            begin(Box::new(copier), &place, events);
        });
        input
    }

    fn wait_for(&mut self, token: Token, waiting: Waiting, events: &mut EventLoop) -> Result<()> {
        if self.waiting != waiting {
            self.close(events);
            match waiting {
                Waiting::From => events.watch(&self.from, token, Ready::EPOLLIN)?,
                Waiting::To => events.watch(&self.to, token, Ready::EPOLLOUT)?,
                Waiting::Nothing | Waiting::Reader => {}
            }
            self.waiting = waiting;
        }
        Ok(())
    }

    fn turn(&mut self, token: Token, events: &mut EventLoop) -> Result<Next> {
        if self.control.is_finishing() && !self.reads_only {
            self.close(events);
            self.from = fifo::reopen_to_read(&self.from)?;
            self.reads_only = true;
        }
        match pump(&self.from, &self.to).1 {
            Halt::Ended | Halt::Broken => return Ok(Next::Close),
            Halt::Starved => self.wait_for(token, Waiting::From, events)?,
            Halt::Full => self.wait_for(token, Waiting::To, events)?,
            Halt::Paused => again(token, events),
        }
        Ok(Next::Keep)
    }
}

impl Source for InputCopier {
    fn ready(&mut self, token: Token, _: Ready, events: &mut EventLoop) -> Next {
        if self.control.is_aborted() {
            return Next::Close;
        }
        self.turn(token, events).unwrap_or_else(|error| {
            log::error!("cannot copy a container's input: {error}");
            Next::Close
        })
    }

    fn close(&mut self, events: &mut EventLoop) {
        match self.waiting {
            Waiting::From => events.unwatch(&self.from),
            Waiting::To => events.unwatch(&self.to),
            Waiting::Nothing | Waiting::Reader => {}
        }
        self.waiting = Waiting::Nothing;
    }
}

/// The handle of an [`OutputCopier`].
pub(super) struct Output {
    control: Arc<Control>,
    progress: Arc<Progress>,
}

#[derive(Default)]
struct Progress {
    state: Mutex<(u64, bool)>,
    changed: Condvar,
}

impl Progress {
    fn moved(&self, count: usize, draining: bool) {
        if count > 0 && draining {
            lock(&self.state).0 += count as u64;
            self.changed.notify_all();
        }
    }
}

impl Output {
    /// The container has ended: what its pipe holds now is all that is still to be delivered. A process that
    /// it left behind may keep the pipe open for good.
    pub(super) fn begin_to_drain(&self) {
        self.control.tell(|control| &control.finishing);
    }

    /// Waits until everything was delivered, as long as somebody takes it.
    pub(super) fn wait_until_drained(&self) {
        let mut state = lock(&self.progress.state);
        loop {
            let before = state.0;
            let waited = self
                .progress
                .changed
                .wait_timeout_while(state, STALL, |(moved, done)| !*done && *moved == before);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            if state.1 || state.0 == before {
                break;
            }
        }
        drop(state);
        self.abort();
    }

    /// Nobody wants output any more.
    pub(super) fn abort(&self) {
        self.control.tell(|control| &control.aborted);
    }
}

/// From the container's pipe into the client's FIFO.
///
/// The FIFO is held open for both directions, so a client may come late, leave and come again. At the end of
/// the output it is held for writing alone: if somebody reads, it can be closed, and the reader gets the rest
/// and the end. If nobody does, it is kept until a reader comes or the drain gives up.
pub(super) struct OutputCopier {
    /// `None` once the output has ended.
    from: Option<OwnedFd>,
    to: OwnedFd,
    control: Arc<Control>,
    progress: Arc<Progress>,
    writes_only: bool,
    readers: Option<Inotify>,
    /// Gives up on a reader that does not come.
    absence: Option<Timer>,
    waiting: Waiting,
}

impl OutputCopier {
    pub(super) fn start(from: OwnedFd, to: OwnedFd, main: &Handle) -> Arc<Output> {
        let control = Arc::new(Control::new(main));
        let progress = Arc::new(Progress::default());
        let output = Arc::new(Output { control: control.clone(), progress: progress.clone() });
        main.post(move |events| {
            let place = control.clone();
            let copier = Self {
                from: Some(from),
                to,
                control,
                progress,
                writes_only: false,
                readers: None,
                absence: None,
                waiting: Waiting::Nothing,
            };
            begin(Box::new(copier), &place, events);
        });
        output
    }

    fn wait_for(&mut self, token: Token, waiting: Waiting, events: &mut EventLoop) -> Result<()> {
        if self.waiting != waiting {
            self.close(events);
            match (waiting, &self.from, &self.readers) {
                (Waiting::From, Some(from), _) => events.watch(from, token, Ready::EPOLLIN)?,
                (Waiting::To, ..) => events.watch(&self.to, token, Ready::EPOLLOUT)?,
                (Waiting::Reader, _, Some(readers)) => {
                    events.watch(readers.as_fd(), token, Ready::EPOLLIN)?;
                }
                _ => {}
            }
            self.waiting = waiting;
        }
        Ok(())
    }

    fn turn(&mut self, token: Token, events: &mut EventLoop) -> Result<Next> {
        let draining = self.control.is_finishing();
        if let Some(from) = &self.from {
            let (moved, halt) = pump(from, &self.to);
            self.progress.moved(moved, draining);
            match halt {
                Halt::Paused => again(token, events),
                Halt::Starved if !draining => self.wait_for(token, Waiting::From, events)?,
                Halt::Full if !draining => self.wait_for(token, Waiting::To, events)?,
                Halt::Full => return self.wait_for_room(token, events),
                Halt::Broken => return Ok(Next::Close),
                Halt::Ended | Halt::Starved => {
                    self.close(events);
                    self.from = None;
                }
            }
        }
        if self.from.is_none() { self.end(token, draining, events) } else { Ok(Next::Keep) }
    }

    /// The container is gone and the FIFO is full: only a reader can make room.
    fn wait_for_room(&mut self, token: Token, events: &mut EventLoop) -> Result<Next> {
        self.write_only(events)?;
        if fifo::has_reader(&self.to) {
            self.wait_for(token, Waiting::To, events)?;
            return Ok(Next::Keep);
        }
        self.wait_for_reader(token, true, events)
    }

    /// All is in the FIFO.
    fn end(&mut self, token: Token, draining: bool, events: &mut EventLoop) -> Result<Next> {
        self.write_only(events)?;
        if fifo::has_reader(&self.to) {
            return Ok(Next::Close);
        }
        self.wait_for_reader(token, draining, events)
    }

    fn wait_for_reader(&mut self, token: Token, draining: bool, events: &mut EventLoop) -> Result<Next> {
        if self.readers.is_none() {
            let readers = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
            readers.add_watch(fifo::link_of(&self.to).as_str(), AddWatchFlags::IN_OPEN)?;
            self.readers = Some(readers);
            // One may have come while nobody watched.
            if fifo::has_reader(&self.to) {
                again(token, events);
            }
        }
        if let Some(readers) = &self.readers {
            let _ = readers.read_events();
        }
        self.wait_for(token, Waiting::Reader, events)?;
        if draining && self.absence.is_none() {
            let control = self.control.clone();
            self.absence = Some(events.after(ABSENCE, move |_| control.tell(|control| &control.aborted)));
        }
        Ok(Next::Keep)
    }

    fn write_only(&mut self, events: &mut EventLoop) -> Result<()> {
        if !self.writes_only {
            self.close(events);
            self.to = fifo::reopen_to_write(&self.to)?;
            self.writes_only = true;
        }
        Ok(())
    }
}

impl Source for OutputCopier {
    fn ready(&mut self, token: Token, _: Ready, events: &mut EventLoop) -> Next {
        if self.control.is_aborted() {
            return Next::Close;
        }
        self.turn(token, events).unwrap_or_else(|error| {
            log::error!("cannot copy a container's output: {error}");
            Next::Close
        })
    }

    fn close(&mut self, events: &mut EventLoop) {
        match (self.waiting, &self.from, &self.readers) {
            (Waiting::From, Some(from), _) => events.unwatch(from),
            (Waiting::To, ..) => events.unwatch(&self.to),
            (Waiting::Reader, _, Some(readers)) => events.unwatch(readers.as_fd()),
            _ => {}
        }
        if let Some(timer) = self.absence.take() {
            events.cancel(timer);
        }
        self.waiting = Waiting::Nothing;
    }
}

impl Drop for OutputCopier {
    fn drop(&mut self) {
        lock(&self.progress.state).1 = true;
        self.progress.changed.notify_all();
    }
}

/// Gives a copier its place on the loop, and its first turn.
fn begin(copier: Box<dyn Source>, control: &Arc<Control>, events: &mut EventLoop) {
    if let Ok(token) = events.add(|_, _| Ok(copier)) {
        *lock(&control.token) = Some(token);
        events.poke(token, Ready::empty());
    }
}

/// Asks for another turn after the others'.
fn again(token: Token, events: &mut EventLoop) {
    events.handle().post(move |events| events.poke(token, Ready::empty()));
}
