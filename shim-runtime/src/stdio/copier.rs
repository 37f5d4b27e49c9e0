//! What copiers have in common: how bytes are moved without passing through user space, how a copier is told
//! what happened, and how others wait for what it still has to deliver.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};
use nix::poll::PollFlags;
use nix::unistd::{isatty, read};

use super::fifo;
use super::gauge::Gauge;
use super::pace::{BUSY, REST, TERMINAL};
use super::trouble::Trouble;
use crate::crash;
use crate::error::Result;
use crate::event_loop::{EventLoop, Handle, Ready, Source, Timer, Token};
use crate::sync::lock;
use crate::sys;

/// How much is moved at a time, all that a busy stream's pipe holds, and how often before others have their turn.
const CHUNK: usize = BUSY.unsigned_abs() as usize;
const MOVES_PER_TURN: usize = 16;
/// After how long a copier looks again where nothing tells it that it can go on.
const RETRY: Duration = Duration::from_millis(200);
/// A reader that takes nothing for so long during the drain ends it.
const STALL: Duration = Duration::from_secs(2);
/// How long the drain takes at most: a client gives the whole Delete 10 s (contract 5.3).
const DRAIN: Duration = Duration::from_secs(5);

/// Why moving stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Halt {
    /// Nothing to read now.
    Starved,
    /// No room to write now.
    Full,
    /// Nothing will ever be read again.
    Ended,
    /// Nobody will ever take it.
    Lost(Errno),
    /// The machine is short of something for a while.
    Hindered(Errno),
    /// It is others' turn.
    Paused,
    /// No process has the other side of the terminal open at this moment.
    Deserted,
}

/// Moves what can be moved; returns how much, and why no more. One of the two must be a pipe or a FIFO.
pub(super) fn pump(from: &OwnedFd, to: &OwnedFd) -> (usize, Halt) {
    let mut moved = 0;
    for _ in 0..MOVES_PER_TURN {
        let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
        let spliced = crash::failure("splice").map_or_else(
            || splice(from, None, to, None, CHUNK, flags),
            |number| Err(Errno::from_raw(number)),
        );
        match spliced {
            Ok(0) => return (moved, Halt::Ended),
            Ok(count) => moved += count,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) if fifo::ready_for(from, PollFlags::POLLIN) => return (moved, Halt::Full),
            Err(Errno::EAGAIN) => return (moved, Halt::Starved),
            Err(errno) => return (moved, halt_of(errno)),
        }
    }
    (moved, Halt::Paused)
}

/// Takes what there is and throws it away, so that a container is not held up by output that nobody gets.
pub(super) fn discard(from: &OwnedFd) -> (usize, Halt) {
    let mut taken = 0;
    let mut buffer = [0; 4096];
    for _ in 0..MOVES_PER_TURN * 16 {
        match read(from, &mut buffer) {
            Ok(count @ 1..) => taken += count,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return (taken, Halt::Starved),
            Ok(0) => return (taken, Halt::Ended),
            Err(errno) => {
                let halt = halt_of(errno);
                return (taken, if let Halt::Lost(_) = halt { Halt::Ended } else { halt });
            }
        }
    }
    (taken, Halt::Paused)
}

/// What an error of reading or writing means for a stream: a pause, or its end.
pub(super) fn halt_of(errno: Errno) -> Halt {
    match errno {
        Errno::EIO => Halt::Deserted,
        errno if passes(&errno.into()) => Halt::Hindered(errno),
        errno => Halt::Lost(errno),
    }
}

/// Whether an error is one of a machine that is short of something for a while, so that it is worth to try again.
pub(super) fn passes(error: &io::Error) -> bool {
    let passing = [libc::ENOMEM, libc::ENOBUFS, libc::EMFILE, libc::ENFILE, libc::ENOSPC, libc::ECONNABORTED];
    error.raw_os_error().is_some_and(|number| passing.contains(&number))
}

/// How much of an ended process's output its pipe, or its terminal, still holds: more than that was written later,
/// by a process that was left behind.
pub(super) fn held(from: &OwnedFd) -> usize {
    // A terminal does not tell all that it holds.
    if isatty(from).unwrap_or(false) { TERMINAL.unsigned_abs() as usize } else { sys::unread(from) }
}

/// What a copier waits for: one descriptor, or a time. Only one descriptor is watched at a time, because the kernel
/// reports a hang-up of a watched one whether it was asked for or not.
#[derive(Default)]
pub(super) struct Watch {
    descriptor: Option<(Arc<dyn AsFd + Send + Sync>, Ready)>,
    timer: Option<Timer>,
}

impl Watch {
    pub(super) fn start(
        &mut self,
        fd: &Arc<impl AsFd + Send + Sync + 'static>,
        ready: Ready,
        token: Token,
        events: &mut EventLoop,
    ) -> Result<()> {
        let is_same = |(watched, wanted): &(Arc<_>, _)| {
            std::ptr::addr_eq(Arc::as_ptr(watched), Arc::as_ptr(fd)) && *wanted == ready
        };
        if !self.descriptor.as_ref().is_some_and(is_same) {
            self.stop(events);
            events.watch(fd, token, ready)?;
            self.descriptor = Some((fd.clone(), ready));
        }
        Ok(())
    }

    /// Has the next turn come after a rest, not when a descriptor is ready.
    pub(super) fn rest(&mut self, token: Token, events: &mut EventLoop) {
        self.wait(REST, token, events);
    }

    /// Has the next turn come after a while, for want of a descriptor that tells when to go on.
    pub(super) fn retry(&mut self, token: Token, events: &mut EventLoop) {
        self.wait(RETRY, token, events);
    }

    fn wait(&mut self, time: Duration, token: Token, events: &mut EventLoop) {
        self.stop(events);
        self.timer = Some(events.after(time, move |events| events.poke(token, Ready::empty())));
    }

    pub(super) fn stop(&mut self, events: &mut EventLoop) {
        if let Some((fd, _)) = self.descriptor.take() {
            events.unwatch(&fd);
        }
        if let Some(timer) = self.timer.take() {
            events.cancel(timer);
        }
    }
}

/// A copier's handle, made before the copier: how others tell it what happened. What is told is read by the
/// copier on the loop, be it started already or not.
pub(super) struct Control {
    main: Handle,
    /// The id of the container or exec.
    of: Arc<str>,
    token: Mutex<Option<Token>>,
    withheld: AtomicBool,
    process_ended: AtomicBool,
    finishing: AtomicBool,
    aborted: AtomicBool,
    /// The copier is to look whether somebody reads what it delivers.
    asked_for_reader: AtomicBool,
    /// It has found nobody.
    without_reader: AtomicBool,
    /// How much is on its way, of an output.
    pub(super) gauge: Gauge,
}

impl Control {
    pub(super) fn new(main: &Handle, of: &Arc<str>) -> Arc<Self> {
        Arc::new(Self {
            main: main.clone(),
            of: of.clone(),
            token: Mutex::default(),
            withheld: AtomicBool::default(),
            process_ended: AtomicBool::default(),
            finishing: AtomicBool::default(),
            aborted: AtomicBool::default(),
            asked_for_reader: AtomicBool::default(),
            without_reader: AtomicBool::default(),
            gauge: Gauge::default(),
        })
    }

    /// The trouble that the copier may come to have with its stream, `output` or `input`.
    pub(super) fn trouble(&self, stream: &'static str) -> Trouble {
        Trouble::new(stream, self.of.clone())
    }

    /// Gives the copier its place on the loop, and its first turn.
    pub(super) fn begin(self: &Arc<Self>, copier: impl Source + Send + 'static) {
        let control = self.clone();
        self.main.post(move |events| {
            if let Ok(token) = events.add(|_, _| Ok(Box::new(copier))) {
                *lock(&control.token) = Some(token);
                events.poke(token, Ready::empty());
            }
        });
    }

    /// Has the copier called. Work posted earlier, its start included, comes first.
    pub(super) fn poke(self: &Arc<Self>) {
        let control = self.clone();
        self.main.post(move |events| {
            let token = *lock(&control.token);
            if let Some(token) = token {
                events.poke(token, Ready::empty());
            }
        });
    }

    /// The process is gone: a terminal that nobody has open is at its end.
    pub(super) fn process_ended(self: &Arc<Self>) {
        if !self.process_ended.swap(true, Ordering::Relaxed) {
            self.poke();
        }
    }

    /// Whether what comes is to stay where it is for now.
    pub(super) fn withhold(&self, yes: bool) {
        self.withheld.store(yes, Ordering::Release);
    }

    pub(super) fn is_withheld(&self) -> bool {
        self.withheld.load(Ordering::Acquire)
    }

    /// Nothing more will come: what is there is to be delivered.
    pub(super) fn finish(self: &Arc<Self>) {
        if !self.finishing.swap(true, Ordering::Relaxed) {
            self.poke();
        }
    }

    /// Nobody wants it any more.
    pub(super) fn abort(self: &Arc<Self>) {
        if !self.aborted.swap(true, Ordering::Relaxed) {
            self.poke();
        }
    }

    pub(super) fn has_process_ended(&self) -> bool {
        self.process_ended.load(Ordering::Relaxed)
    }

    /// Whether somebody reads what the copier delivers, as far as that can be told.
    pub(super) fn has_reader(&self, events: &mut EventLoop) -> bool {
        if let Some(has_reader) = self.gauge.rest_has_reader() {
            return has_reader;
        }
        self.asked_for_reader.store(true, Ordering::Relaxed);
        let token = *lock(&self.token);
        if let Some(token) = token {
            events.poke(token, Ready::empty());
        }
        !self.without_reader.swap(false, Ordering::Relaxed)
    }

    /// Has the copier look for a reader, once for each time it was asked.
    pub(super) fn look_for_reader(&self, has_reader: impl FnOnce() -> bool) {
        if self.asked_for_reader.swap(false, Ordering::Relaxed) {
            self.without_reader.store(!has_reader(), Ordering::Relaxed);
        }
    }

    pub(super) fn is_finishing(&self) -> bool {
        self.finishing.load(Ordering::Relaxed)
    }

    pub(super) fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Relaxed)
    }
}

/// Asks for another turn after the others'.
pub(super) fn again(token: Token, events: &mut EventLoop) {
    events.handle().post(move |events| events.poke(token, Ready::empty()));
}

/// What all output copiers of one process together still have to deliver.
#[derive(Default)]
pub(super) struct Drain {
    state: Mutex<Left>,
    changed: Condvar,
}

#[derive(Default)]
struct Left {
    /// How many copiers are not done.
    copiers: usize,
    /// How much they have delivered since they were told to finish.
    moved: u64,
}

impl Drain {
    /// For a copier, which drops it when it is done.
    pub(super) fn share(self: &Arc<Self>) -> Share {
        lock(&self.state).copiers += 1;
        Share(self.clone())
    }

    /// Waits until everything was delivered, as long as somebody takes it.
    pub(super) fn wait(&self) {
        let end = Instant::now() + DRAIN;
        let mut left = lock(&self.state);
        loop {
            let before = left.moved;
            let limit = STALL.min(end.saturating_duration_since(Instant::now()));
            let waited =
                self.changed.wait_timeout_while(left, limit, |left| left.copiers > 0 && left.moved == before);
            left = waited.unwrap_or_else(PoisonError::into_inner).0;
            if left.copiers == 0 || left.moved == before || limit.is_zero() {
                return;
            }
        }
    }
}

/// One copier's part of a [`Drain`].
pub(super) struct Share(Arc<Drain>);

impl Share {
    /// Tells that something was delivered to the end.
    pub(super) fn moved(&self, count: usize) {
        if count > 0 {
            lock(&self.0.state).moved += count as u64;
            self.0.changed.notify_all();
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        lock(&self.0.state).copiers -= 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_does_not_pass_ends_a_stream() {
        assert_eq!(halt_of(Errno::EIO), Halt::Deserted);
        for errno in [Errno::ENOMEM, Errno::ENOBUFS, Errno::EMFILE, Errno::ENFILE, Errno::ENOSPC] {
            assert_eq!(halt_of(errno), Halt::Hindered(errno));
        }
        for errno in [Errno::EPIPE, Errno::EBADF, Errno::EINVAL, Errno::EPERM] {
            assert_eq!(halt_of(errno), Halt::Lost(errno));
        }
    }
}
