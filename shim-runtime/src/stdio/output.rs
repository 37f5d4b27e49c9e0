//! From the container's pipe or terminal to the client's FIFO, or to a logging program's pipe.
//!
//! The FIFO is held open for both directions, so a client may come late, leave and come again. At the end of
//! the output it is held for writing alone: if somebody reads, it can be closed, and the reader gets the rest
//! and the end. If nobody does, it is kept until a reader comes or the drain gives up.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::copier::{Control, Halt, Share, Watch, again, discard, held, pump};
use super::fifo;
use super::file::FileCopier;
use super::pace::{Pace, make_room};
use crate::error::Result;
use crate::event_loop::{EventLoop, Next, Ready, Source, Timer, Token};

/// How long output waits during the drain for a reader that is not there.
const ABSENCE: Duration = Duration::from_millis(100);

/// Where output goes.
pub(super) enum Sink {
    /// A client's, open for both directions.
    Fifo(OwnedFd),
    /// Open for appending.
    File(File),
    /// A logging program's, and what else is to be closed at the end of the output.
    Pipe(OwnedFd, Option<OwnedFd>),
    Nowhere,
}

/// Begins to copy. `from` never blocks.
pub(super) fn start(control: &Arc<Control>, from: Arc<OwnedFd>, to: Sink, share: Option<Share>) {
    let (to, is_fifo, companion) = match to {
        Sink::File(file) => return FileCopier::start(control, from, file, share),
        Sink::Fifo(fifo) => (Some(fifo), true, None),
        Sink::Pipe(pipe, companion) => (Some(pipe), false, companion),
        Sink::Nowhere => (None, false, None),
    };
    let to = to.map(Arc::new);
    control.gauge.comes_from(&from);
    if let Some(fifo) = to.as_ref().filter(|_| is_fifo) {
        control.gauge.goes_to(fifo);
    }
    control.begin(OutputCopier {
        from: Some(from),
        to,
        is_fifo,
        _companion: companion,
        control: control.clone(),
        share,
        left: None,
        is_roomy: false,
        writes_only: false,
        readers: None,
        absence: None,
        watch: Watch::default(),
        pace: Pace::default(),
    });
}

/// See the module.
struct OutputCopier {
    /// `None` once the output has ended.
    from: Option<Arc<OwnedFd>>,
    /// `None` if nobody takes the output.
    to: Option<Arc<OwnedFd>>,
    is_fifo: bool,
    _companion: Option<OwnedFd>,
    control: Arc<Control>,
    share: Option<Share>,
    /// How much is still to be copied, of what the pipe or terminal held when the drain began.
    left: Option<usize>,
    /// The FIFO was made larger for what is left.
    is_roomy: bool,
    writes_only: bool,
    /// Tells of readers that come.
    readers: Option<Arc<OwnedFd>>,
    /// Gives up on a reader that does not come.
    absence: Option<Timer>,
    watch: Watch,
    pace: Pace,
}

impl OutputCopier {
    fn turn(&mut self, token: Token, events: &mut EventLoop) -> Result<Next> {
        let draining = self.control.is_finishing();
        let control = self.control.clone();
        control.look_for_reader(|| self.has_reader(events))?;
        if let Some(from) = self.from.clone() {
            let (moved, halt) = self.copy(&from, draining);
            match (halt, &self.to) {
                (Halt::Paused, _) => again(token, events),
                (Halt::Starved | Halt::Full, Some(to))
                    if !draining && self.pace.rests(moved, [&from, to]) =>
                {
                    self.watch.rest(token, events);
                }
                (Halt::Starved, _) if !draining => self.watch.start(&from, Ready::EPOLLIN, token, events)?,
                (Halt::Deserted, _) if !self.control.has_process_ended() => self.watch.retry(token, events),
                (Halt::Full, Some(to)) if draining && self.is_fifo => {
                    let to = to.clone();
                    return self.wait_for_room(&from, &to, token, events);
                }
                (Halt::Full, Some(to)) => self.watch.start(to, Ready::EPOLLOUT, token, events)?,
                (Halt::Lost, _) => {
                    self.watch.stop(events);
                    self.to = None;
                    again(token, events);
                }
                _ => {
                    self.watch.stop(events);
                    self.from = None;
                    self.control.gauge.has_ended();
                }
            }
        }
        if self.from.is_none() { self.end(token, draining, events) } else { Ok(Next::Keep) }
    }

    /// Copies what there is; returns how much that was, and why no more. A process that the container has left
    /// behind may keep the pipe open for good, and write on, so what there was when the drain began is all.
    fn copy(&mut self, from: &OwnedFd, draining: bool) -> (usize, Halt) {
        if draining && self.left.is_none() {
            self.left = Some(held(from));
        }
        let step = || self.to.as_ref().map_or_else(|| discard(from), |to| pump(from, to));
        let (moved, halt) = self.control.gauge.count(step);
        if let Some(share) = self.share.as_ref().filter(|_| draining) {
            share.moved(moved);
        }
        self.left = self.left.map(|left| left.saturating_sub(moved));
        (moved, if self.left == Some(0) { Halt::Ended } else { halt })
    }

    /// The container is gone and the FIFO is full. Once it is as large as both, a reader gets the rest whenever
    /// it likes, and nobody has to wait for it; where that is not allowed, only a reader can make room.
    fn wait_for_room(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        token: Token,
        events: &mut EventLoop,
    ) -> Result<Next> {
        if !self.is_roomy && make_room(to, from).is_ok() {
            self.is_roomy = true;
            again(token, events);
            return Ok(Next::Keep);
        }
        match self.write_only(events)? {
            Some(to) if fifo::has_reader(&to) => {
                self.watch.start(&to, Ready::EPOLLOUT, token, events)?;
                Ok(Next::Keep)
            }
            Some(to) => self.wait_for_reader(&to, token, true, events),
            None => Ok(Next::Close),
        }
    }

    /// All was written.
    fn end(&mut self, token: Token, draining: bool, events: &mut EventLoop) -> Result<Next> {
        match self.write_only(events)? {
            Some(to) if !fifo::has_reader(&to) => self.wait_for_reader(&to, token, draining, events),
            Some(to) => {
                self.control.gauge.is_closed(&to);
                Ok(Next::Close)
            }
            None => Ok(Next::Close),
        }
    }

    fn wait_for_reader(
        &mut self,
        fifo: &OwnedFd,
        token: Token,
        draining: bool,
        events: &mut EventLoop,
    ) -> Result<Next> {
        let is_first = self.readers.is_none();
        let readers = self.readers.take().map_or_else(|| watch_opens(fifo).map(Arc::new), Ok)?;
        // One may have come while nobody watched.
        if is_first && fifo::has_reader(fifo) {
            again(token, events);
        }
        let _ = discard(&readers);
        self.watch.start(&readers, Ready::EPOLLIN, token, events)?;
        self.readers = Some(readers);
        if draining && self.absence.is_none() {
            let control = self.control.clone();
            self.absence = Some(events.after(ABSENCE, move |_| control.abort()));
        }
        Ok(Next::Keep)
    }

    /// The FIFO, of which we now hold nothing but a writer; `None` if it is none.
    fn write_only(&mut self, events: &mut EventLoop) -> Result<Option<Arc<OwnedFd>>> {
        let Some(to) = self.to.as_ref().filter(|_| self.is_fifo) else { return Ok(None) };
        if self.writes_only {
            return Ok(Some(to.clone()));
        }
        let writer = Arc::new(fifo::reopen_to_write(to)?);
        self.watch.stop(events);
        self.control.gauge.goes_to(&writer);
        self.to = Some(writer.clone());
        self.writes_only = true;
        Ok(Some(writer))
    }

    /// Whether somebody reads the FIFO, which shows only while we have nothing but a writer of it.
    fn has_reader(&mut self, events: &mut EventLoop) -> Result<bool> {
        let only_wrote = self.writes_only;
        let Some(writer) = self.write_only(events)? else { return Ok(true) };
        let has_reader = fifo::has_reader(&writer);
        if !only_wrote {
            let fifo = Arc::new(fifo::reopen(&writer)?);
            self.control.gauge.goes_to(&fifo);
            self.to = Some(fifo);
            self.writes_only = false;
        }
        Ok(has_reader)
    }
}

/// A descriptor that can be read once somebody opens the FIFO.
fn watch_opens(fifo: &OwnedFd) -> Result<OwnedFd> {
    let opens = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    opens.add_watch(fifo::link_of(fifo).as_str(), AddWatchFlags::IN_OPEN)?;
    Ok(opens.into())
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
        self.watch.stop(events);
        if let Some(timer) = self.absence.take() {
            events.cancel(timer);
        }
    }
}
