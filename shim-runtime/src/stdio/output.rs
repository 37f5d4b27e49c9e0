//! From the container's pipe or terminal to the client's FIFO, or to a logging program's pipe.
//!
//! The FIFO is held open for both directions, so a client may come late, leave and come again. At the end of
//! the output it is held for writing alone: if somebody reads, it can be closed, and the reader gets the rest
//! and the end. If nobody does, it is kept until a reader comes or the drain gives up.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;

use super::copier::{Control, Halt, Share, Watch, again, discard, held, pump};
use super::fifo;
use super::file::FileCopier;
use super::pace::{Pace, make_room};
use super::trouble::Trouble;
use super::withheld::is_withheld;
use crate::error::Result;
use crate::event_loop::{EventLoop, Next, OpenWatch, Ready, Source, Timer, Token};

/// How long output waits during the drain for a reader that is not there.
const ABSENCE: Duration = Duration::from_millis(100);
/// How long the first pause is between two looks for a reader where nothing tells of it. Each is twice as long as
/// the one before, up to the longest.
const FIRST_LOOK: Duration = Duration::from_millis(250);
const LONGEST_LOOK: Duration = Duration::from_secs(1);

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
        opens: None,
        look: None,
        pause: FIRST_LOOK,
        absence: None,
        watch: Watch::default(),
        pace: Pace::default(),
        trouble: control.trouble("output"),
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
    opens: Option<OpenWatch>,
    /// Looks for readers where nothing tells of them, and how long the next one waits.
    look: Option<Timer>,
    pause: Duration,
    /// Gives up on a reader that does not come.
    absence: Option<Timer>,
    watch: Watch,
    pace: Pace,
    trouble: Trouble,
}

impl OutputCopier {
    fn turn(&mut self, token: Token, events: &mut EventLoop) -> Result<Next> {
        let draining = self.control.is_finishing();
        let control = self.control.clone();
        control.look_for_reader(|| self.has_reader(events));
        if let Some(from) = self.from.clone() {
            if is_withheld(&self.control, &from, &mut self.watch, token, events)? {
                return Ok(Next::Keep);
            }
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
                (Halt::Hindered(errno), _) => {
                    self.trouble.failed(&errno);
                    self.watch.retry(token, events);
                }
                (Halt::Lost(errno), _) => {
                    // That a client has gone is its own affair.
                    if !(self.is_fifo && errno == Errno::EPIPE) {
                        self.trouble.failed(&errno);
                    }
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
        match &self.to {
            Some(_) if moved > 0 => self.trouble.worked(),
            Some(_) => {}
            None => self.trouble.dropped(moved),
        }
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
            Some(to) => Ok(self.wait_for_reader(&to, token, true, events)),
            None => Ok(Next::Close),
        }
    }

    /// All was written.
    fn end(&mut self, token: Token, draining: bool, events: &mut EventLoop) -> Result<Next> {
        match self.write_only(events)? {
            Some(to) if !fifo::has_reader(&to) => Ok(self.wait_for_reader(&to, token, draining, events)),
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
    ) -> Next {
        self.watch.stop(events);
        if self.opens.is_none() {
            match events.watch_opens(&fifo::link_of(fifo), token) {
                Ok(opens) => self.opens = Some(opens),
                Err(_) => self.look_later(token, events),
            }
            // One may have come while nobody watched.
            if fifo::has_reader(fifo) {
                again(token, events);
            }
        }
        if draining && self.absence.is_none() {
            let control = self.control.clone();
            self.absence = Some(events.after(ABSENCE, move |_| control.abort()));
        }
        Next::Keep
    }

    /// Looks for a reader after a while.
    fn look_later(&mut self, token: Token, events: &mut EventLoop) {
        let pause = self.pause;
        self.pause = LONGEST_LOOK.min(pause * 2);
        let look = events.after(pause, move |events| events.poke(token, Ready::empty()));
        if let Some(before) = self.look.replace(look) {
            events.cancel(before);
        }
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

    /// Whether somebody reads the FIFO, which shows only while we have nothing but a writer of it. Where that cannot
    /// be told, somebody may.
    fn has_reader(&mut self, events: &mut EventLoop) -> bool {
        let only_wrote = self.writes_only;
        let Ok(Some(writer)) = self.write_only(events) else { return true };
        let has_reader = fifo::has_reader(&writer);
        // Where it cannot be opened again it stays as it is.
        if !only_wrote && let Ok(fifo) = fifo::reopen(&writer) {
            let fifo = Arc::new(fifo);
            self.control.gauge.goes_to(&fifo);
            self.to = Some(fifo);
            self.writes_only = false;
        }
        has_reader
    }
}

impl Source for OutputCopier {
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
        if let Some(opens) = self.opens.take() {
            events.unwatch_opens(&opens);
        }
        for timer in [self.absence.take(), self.look.take()].into_iter().flatten() {
            events.cancel(timer);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use nix::sys::stat::Mode;
    use nix::unistd::{mkfifo, write};

    use super::*;
    use crate::stdio::fifo::{End, Opened};

    /// What a reader gets that comes once the process has ended.
    fn read_late(mut events: EventLoop) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stdout");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let Ok(Opened::Fifo(fifo)) = fifo::open(&path, false) else { panic!("no FIFO") };
        let (from, process) = fifo::pipe(End::Read).unwrap();
        write(&process, b"late").unwrap();
        drop(process);
        start(&Control::new(&events.handle(), &"c1".into()), Arc::new(from), Sink::Fifo(fifo), None);
        let (ended, end) = mpsc::channel();
        // Posted after the copier's first turn, which sees the end.
        events.handle().post(move |_| ended.send(()).unwrap());
        let handle = events.handle();
        let reader = thread::spawn(move || {
            end.recv().unwrap();
            let read = std::fs::read(path).unwrap();
            handle.post(EventLoop::stop);
            read
        });
        events.run().unwrap();
        reader.join().unwrap()
    }

    #[test]
    fn a_late_reader_gets_everything() {
        assert_eq!(read_late(EventLoop::new().unwrap()), b"late");
    }

    #[test]
    fn a_late_reader_gets_everything_where_there_is_no_inotify_to_be_had() {
        let mut events = EventLoop::new().unwrap();
        events.opens.is_exhausted = true;
        assert_eq!(read_late(events), b"late");
    }
}
