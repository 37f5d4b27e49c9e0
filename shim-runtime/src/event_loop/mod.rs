//! The loop that the main thread runs: descriptors, timers, and work posted by other threads.
//! Everything that cannot block happens here, so an idle shim is one thread asleep in `epoll_wait`.

mod opens;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

pub(crate) use self::opens::OpenWatch;
use self::opens::Opens;
use crate::error::{Result, WithContext};
use crate::sync::lock;

/// What a [`Source`] is waited for; the kernel adds `EPOLLERR` and `EPOLLHUP` unasked.
pub(crate) type Ready = EpollFlags;

/// Names a source. A slot is used again under another generation, so a late event of the source that had it
/// before is recognised and dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Token(u64);

impl Token {
    const WAKE: Self = Self(u64::MAX);
    const ALARM: Self = Self(u64::MAX - 1);

    fn new(slot: usize, generation: u32) -> Self {
        Self((u64::from(generation) << 32) | slot as u64)
    }

    fn slot(self) -> usize {
        (self.0 & 0xffff_ffff) as usize
    }

    fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// Something the loop waits for, through one descriptor or several.
pub(crate) trait Source {
    /// Called when a watched descriptor is ready. Returning [`Next::Close`] drops the source.
    fn ready(&mut self, token: Token, ready: Ready, events: &mut EventLoop) -> Next;

    /// Called before the source is dropped, to stop watching its descriptors: closing one is not enough
    /// while a forked child still holds a copy.
    fn close(&mut self, events: &mut EventLoop);
}

/// What becomes of a source after it was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Keep,
    Close,
}

/// Work for the loop's thread.
type Work = Box<dyn FnOnce(&mut EventLoop) + Send>;

/// Names a timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Timer(u64);

struct Slot {
    generation: u32,
    source: Option<Box<dyn Source>>,
}

/// See the module.
pub(crate) struct EventLoop {
    epoll: Epoll,
    slots: Vec<Slot>,
    free: Vec<usize>,
    due: BinaryHeap<Reverse<(Instant, Timer)>>,
    timers: HashMap<Timer, Work>,
    next_timer: u64,
    /// Goes off with the first timer: `epoll_wait` counts in milliseconds, some timers are shorter.
    alarm: TimerFd,
    /// When it is set to go off.
    alarmed: Option<Instant>,
    handle: Handle,
    stopped: bool,
    /// Files of which sources want to know when somebody opens them.
    pub(crate) opens: Opens,
}

impl EventLoop {
    pub(crate) fn new() -> Result<Self> {
        let epoll =
            Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).with_context(|| "cannot create an epoll set")?;
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .with_context(|| "cannot create an eventfd")?;
        let alarm =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)
                .with_context(|| "cannot create a timer")?;
        epoll
            .add(&wake, EpollEvent::new(Ready::EPOLLIN, Token::WAKE.0))
            .and_then(|()| epoll.add(&alarm, EpollEvent::new(Ready::EPOLLIN, Token::ALARM.0)))
            .with_context(|| "cannot fill an epoll set")?;
        let posted = Mutex::new(Some(Vec::new()));
        Ok(Self {
            epoll,
            slots: Vec::new(),
            free: Vec::new(),
            due: BinaryHeap::new(),
            timers: HashMap::new(),
            next_timer: 0,
            alarm,
            alarmed: None,
            handle: Handle(Arc::new(Shared { posted, wake, thread: OnceLock::new() })),
            stopped: false,
            opens: Opens::default(),
        })
    }

    /// For other threads.
    pub(crate) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Takes a place for a source that `make` builds with the token its descriptors are watched under.
    pub(crate) fn add(
        &mut self,
        make: impl FnOnce(Token, &mut Self) -> Result<Box<dyn Source>>,
    ) -> Result<Token> {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, source: None });
            self.slots.len() - 1
        });
        let token = Token::new(slot, self.slots[slot].generation);
        match make(token, self) {
            Ok(source) => {
                self.slots[slot].source = Some(source);
                Ok(token)
            }
            Err(error) => {
                self.release(slot);
                Err(error)
            }
        }
    }

    /// Calls a source as if it had become ready.
    pub(crate) fn poke(&mut self, token: Token, ready: Ready) {
        let Some(mut source) = self.take(token) else { return };
        match source.ready(token, ready, self) {
            Next::Keep => self.slots[token.slot()].source = Some(source),
            Next::Close => {
                source.close(self);
                self.release(token.slot());
            }
        }
    }

    fn take(&mut self, token: Token) -> Option<Box<dyn Source>> {
        let slot = self.slots.get_mut(token.slot())?;
        if slot.generation == token.generation() { slot.source.take() } else { None }
    }

    fn release(&mut self, slot: usize) {
        // One generation value is kept from ever naming a source: it belongs to the loop's own descriptors.
        self.slots[slot].generation = (self.slots[slot].generation + 1) % u32::MAX;
        self.free.push(slot);
    }

    /// Starts to watch a descriptor of a source.
    pub(crate) fn watch(&mut self, fd: impl AsFd, token: Token, ready: Ready) -> Result<()> {
        self.epoll.add(fd, EpollEvent::new(ready, token.0)).with_context(|| "cannot watch a descriptor")
    }

    /// Changes what a watched descriptor is waited for.
    pub(crate) fn rewatch(&mut self, fd: impl AsFd, token: Token, ready: Ready) {
        let _ = self.epoll.modify(fd, &mut EpollEvent::new(ready, token.0));
    }

    /// Stops to watch a descriptor.
    pub(crate) fn unwatch(&mut self, fd: impl AsFd) {
        let _ = self.epoll.delete(fd);
    }

    /// Does `work` after `delay`.
    pub(crate) fn after(&mut self, delay: Duration, work: impl FnOnce(&mut Self) + Send + 'static) -> Timer {
        let timer = Timer(self.next_timer);
        self.next_timer += 1;
        self.due.push(Reverse((Instant::now() + delay, timer)));
        self.timers.insert(timer, Box::new(work));
        timer
    }

    /// Drops a timer that has not gone off.
    pub(crate) fn cancel(&mut self, timer: Timer) {
        self.timers.remove(&timer);
        // What is left of a cancelled timer goes when its time comes, which may be in years.
        if self.due.len() > 2 * self.timers.len() + 64 {
            self.due.retain(|Reverse((_, timer))| self.timers.contains_key(timer));
        }
    }

    /// Makes [`run`](Self::run) return once the present event is dealt with.
    pub(crate) fn stop(&mut self) {
        self.stopped = true;
    }

    /// Runs until [`stop`](Self::stop). Work posted afterwards is dropped, which its sender notices.
    pub(crate) fn run(&mut self) -> Result<()> {
        let _ = self.handle.0.thread.set(thread::current().id());
        let result = self.turn_until_stopped();
        lock(&self.handle.0.posted).take();
        result
    }

    fn turn_until_stopped(&mut self) -> Result<()> {
        let mut ready = [EpollEvent::empty(); 64];
        while !self.stopped {
            self.set_alarm()?;
            let count = match self.epoll.wait(&mut ready, EpollTimeout::NONE) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(errno) => return Err(errno).with_context(|| "cannot wait for events"),
            };
            for event in &ready[..count] {
                match Token(event.data()) {
                    Token::WAKE => self.run_posted(),
                    Token::ALARM => {}
                    token => self.poke(token, event.events()),
                }
            }
            self.run_due();
        }
        Ok(())
    }

    fn run_posted(&mut self) {
        // Read before the queue is emptied: work posted in between is either taken or wakes the loop again.
        let _ = self.handle.0.wake.read();
        let posted = lock(&self.handle.0.posted).as_mut().map(std::mem::take);
        for work in posted.into_iter().flatten() {
            work(self);
        }
    }

    fn run_due(&mut self) {
        let now = Instant::now();
        while let Some(Reverse((due, timer))) = self.due.peek().copied() {
            if due > now && self.timers.contains_key(&timer) {
                break;
            }
            self.due.pop();
            if let Some(work) = self.timers.remove(&timer) {
                work(self);
            }
        }
    }

    /// Sets the alarm to the first timer; cancelled ones were dropped by `run_due`, so they wake nobody. An alarm
    /// that has gone off is quiet again only because it is set anew.
    fn set_alarm(&mut self) -> Result<()> {
        let due = self.due.peek().map(|Reverse((due, _))| *due);
        if due == self.alarmed {
            return Ok(());
        }
        self.alarmed = due;
        let set = due.map_or_else(
            || self.alarm.unset(),
            |due| {
                // Nothing at all would be no alarm.
                let left = due.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
                self.alarm.set(Expiration::OneShot(TimeSpec::from(left)), TimerSetTimeFlags::empty())
            },
        );
        set.with_context(|| "cannot set a timer")
    }
}

struct Shared {
    /// `None` once the loop has ended.
    posted: Mutex<Option<Vec<Work>>>,
    wake: EventFd,
    /// Whose thread runs the loop.
    thread: OnceLock<ThreadId>,
}

/// Posts work to the loop from any thread.
#[derive(Clone)]
pub(crate) struct Handle(Arc<Shared>);

impl Handle {
    /// Whether the calling thread is the loop's, which must not wait for what is posted.
    pub(crate) fn is_here(&self) -> bool {
        self.0.thread.get() == Some(&thread::current().id())
    }

    /// Has `work` done on the loop's thread, soon and in the order of posting; dropped if the loop has ended.
    pub(crate) fn post(&self, work: impl FnOnce(&mut EventLoop) + Send + 'static) {
        let first = match lock(&self.0.posted).as_mut() {
            Some(posted) => {
                posted.push(Box::new(work));
                posted.len() == 1
            }
            None => false,
        };
        if first {
            let _ = self.0.wake.write(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn posted_work_runs_in_order_and_what_comes_after_the_end_is_dropped() {
        let mut events = EventLoop::new().unwrap();
        let handle = events.handle();
        let (tx, rx) = std::sync::mpsc::channel();
        for n in 0..3 {
            let tx = tx.clone();
            handle.post(move |_| tx.send(n).unwrap());
        }
        handle.post(EventLoop::stop);
        events.run().unwrap();
        handle.post(move |_| tx.send(9).unwrap());
        assert_eq!(rx.iter().collect::<Vec<_>>(), [0, 1, 2]);
    }

    #[test]
    fn a_cancelled_timer_does_not_go_off_and_the_others_do_in_order() {
        let mut events = EventLoop::new().unwrap();
        let (tx, rx) = std::sync::mpsc::channel();
        let never = tx.clone();
        let timer = events.after(Duration::from_millis(1), move |_| never.send(0).unwrap());
        events.cancel(timer);
        let late = tx.clone();
        events.after(Duration::from_millis(3), move |events| {
            late.send(2).unwrap();
            events.stop();
        });
        events.after(Duration::from_millis(2), move |_| tx.send(1).unwrap());
        events.run().unwrap();
        assert_eq!(rx.try_iter().collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn cancelled_timers_leave_nothing_behind_and_the_others_stay() {
        let mut events = EventLoop::new().unwrap();
        let kept = events.after(Duration::from_hours(1), |_| {});
        for _ in 0..1000 {
            let timer = events.after(Duration::from_hours(1000), |_| {});
            events.cancel(timer);
        }
        assert!(events.due.len() <= 70, "{}", events.due.len());
        assert!(events.due.iter().any(|Reverse((_, timer))| *timer == kept));
    }
}
