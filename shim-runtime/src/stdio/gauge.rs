//! How much of an output is still on its way: in the process's pipe or terminal, with the copier, or in the
//! client's FIFO. Any thread can look at any time, so that an exit without unread output costs nothing.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use nix::unistd::isatty;

use super::fifo;
use super::pace;
use crate::sync::lock;
use crate::sys;

/// More than a terminal holds, which does not tell how much that is.
const TERMINAL: u64 = pace::TERMINAL.unsigned_abs() as u64;
/// More than a copier has in its hands at a time.
const IN_HAND: u64 = 64 << 10;

/// See the module.
#[derive(Default)]
pub(super) struct Gauge {
    ends: Mutex<Ends>,
    /// How many bytes have passed the copier so far.
    moved: AtomicU64,
    /// The copier is at work: bytes may be neither where they come from nor where they go to.
    moving: AtomicBool,
}

#[derive(Default)]
struct Ends {
    from: Origin,
    /// The client's FIFO, while the copier has it.
    to: Weak<OwnedFd>,
    /// The client's FIFO, for reading alone, once the copier has closed it. The client sees the end of the output
    /// nevertheless, for that depends on writers.
    rest: Option<OwnedFd>,
    /// Nobody wants to know any more.
    over: bool,
}

/// Where output comes from.
#[derive(Default)]
enum Origin {
    #[default]
    Nowhere,
    /// An OCI runtime is about to send the terminal.
    Awaited,
    Pipe(Weak<OwnedFd>),
    Terminal(Weak<OwnedFd>),
}

/// The place in an output up to which it is to be read.
pub(super) struct Mark(u64);

impl Gauge {
    /// A terminal is awaited, which may be written to before it arrives here.
    pub(super) fn await_terminal(&self) {
        lock(&self.ends).from = Origin::Awaited;
    }

    /// The output comes from here.
    pub(super) fn comes_from(&self, from: &Arc<OwnedFd>) {
        let weak = Arc::downgrade(from);
        let is_terminal = isatty(&**from) == Ok(true);
        lock(&self.ends).from = if is_terminal { Origin::Terminal(weak) } else { Origin::Pipe(weak) };
    }

    /// Nothing comes any more.
    pub(super) fn has_ended(&self) {
        lock(&self.ends).from = Origin::Nowhere;
    }

    /// The output goes into this FIFO.
    pub(super) fn goes_to(&self, fifo: &Arc<OwnedFd>) {
        lock(&self.ends).to = Arc::downgrade(fifo);
    }

    /// The copier is about to close the FIFO, of which it has a writer.
    pub(super) fn is_closed(&self, writer: &OwnedFd) {
        let mut ends = lock(&self.ends);
        if !ends.over && sys::unread(writer) > 0 {
            ends.rest = fifo::reopen_to_read(writer).ok();
        }
    }

    /// Nobody wants to know any more.
    pub(super) fn release(&self) {
        let mut ends = lock(&self.ends);
        ends.over = true;
        ends.rest = None;
    }

    /// Does a step of the copier's, which tells how many bytes it has moved.
    pub(super) fn count<T>(&self, step: impl FnOnce() -> (usize, T)) -> (usize, T) {
        self.moving.store(true, Ordering::SeqCst);
        let (moved, outcome) = step();
        self.moved.fetch_add(moved as u64, Ordering::SeqCst);
        self.moving.store(false, Ordering::SeqCst);
        (moved, outcome)
    }

    /// Whether everything was read.
    pub(super) fn is_empty(&self) -> bool {
        self.behind() == 0 && self.unread() == 0
    }

    /// Marks what was written so far.
    pub(super) fn mark(&self) -> Mark {
        let behind = self.behind();
        Mark(self.moved.load(Ordering::SeqCst) + behind)
    }

    /// How many bytes before the mark were not read yet. What was written after it does not count, so a process
    /// that was left behind and writes on makes no difference.
    pub(super) fn left(&self, mark: &mut Mark) -> u64 {
        let behind = self.behind();
        let moved = self.moved.load(Ordering::SeqCst);
        // A mark that was set too far on, for want of knowledge, is corrected as soon as more is known.
        mark.0 = mark.0.min(moved + behind);
        let after = moved.saturating_sub(mark.0);
        mark.0.saturating_sub(moved) + self.unread().saturating_sub(after)
    }

    /// Whether somebody reads what the copier has left in the FIFO; `None` if it has left nothing. Without a reader
    /// it is given up.
    pub(super) fn rest_has_reader(&self) -> Option<bool> {
        let mut ends = lock(&self.ends);
        let rest = ends.rest.take()?;
        ends.rest = fifo::keep_reading(rest).ok().flatten();
        Some(ends.rest.is_some())
    }

    /// How many bytes have not reached where they go, at most. Looked at before [`unread`](Self::unread), because
    /// that is the way they take.
    fn behind(&self) -> u64 {
        let left = match &lock(&self.ends).from {
            Origin::Nowhere => 0,
            Origin::Awaited => TERMINAL,
            Origin::Pipe(pipe) => pipe.upgrade().map_or(0, |pipe| sys::unread(&pipe) as u64),
            Origin::Terminal(master) => {
                let has_more = master.upgrade().is_some_and(|master| fifo::has_input(&master));
                if has_more { TERMINAL } else { 0 }
            }
        };
        left + if self.moving.load(Ordering::SeqCst) { IN_HAND } else { 0 }
    }

    /// How many bytes the FIFO holds.
    fn unread(&self) -> u64 {
        let ends = lock(&self.ends);
        let fifo = ends.to.upgrade();
        fifo.as_deref().or(ends.rest.as_ref()).map_or(0, |fifo| sys::unread(fifo) as u64)
    }
}

#[cfg(test)]
mod tests {
    use nix::unistd::{read, write};

    use super::*;
    use crate::stdio::fifo::End;

    /// A pipe as the process has it, one as the client has it, and the gauge between.
    fn output() -> (Gauge, [Arc<OwnedFd>; 2], [OwnedFd; 2]) {
        let (from, process) = fifo::pipe(End::Read).unwrap();
        let (client, to) = fifo::pipe(End::Write).unwrap();
        let (gauge, ends) = (Gauge::default(), [Arc::new(from), Arc::new(to)]);
        gauge.comes_from(&ends[0]);
        gauge.goes_to(&ends[1]);
        (gauge, ends, [process, client])
    }

    fn take(from: &OwnedFd, count: usize) {
        assert_eq!(read(from, &mut vec![0; count]), Ok(count));
    }

    /// What the copier does.
    fn pass(gauge: &Gauge, [from, to]: &[Arc<OwnedFd>; 2], count: usize) {
        gauge.count(|| {
            take(from, count);
            (write(&**to, &vec![0; count]).unwrap(), ())
        });
    }

    #[test]
    fn output_is_on_its_way_until_the_client_has_read_it() {
        let (gauge, ends, [process, client]) = output();
        assert!(gauge.is_empty());
        write(&process, &[0; 10]).unwrap();
        let mut mark = gauge.mark();
        assert_eq!((gauge.is_empty(), gauge.left(&mut mark)), (false, 10));
        pass(&gauge, &ends, 10);
        assert_eq!((gauge.is_empty(), gauge.left(&mut mark)), (false, 10));
        take(&client, 4);
        assert_eq!(gauge.left(&mut mark), 6);
        take(&client, 6);
        assert_eq!((gauge.is_empty(), gauge.left(&mut mark)), (true, 0));
    }

    #[test]
    fn what_is_written_after_the_mark_does_not_count() {
        let (gauge, ends, [process, client]) = output();
        write(&process, &[0; 10]).unwrap();
        let mut mark = gauge.mark();
        write(&process, &[0; 100]).unwrap();
        assert_eq!(gauge.left(&mut mark), 10);
        pass(&gauge, &ends, 110);
        take(&client, 9);
        assert_eq!(gauge.left(&mut mark), 1);
        write(&process, &[0; 100]).unwrap();
        take(&client, 1);
        assert_eq!((gauge.is_empty(), gauge.left(&mut mark)), (false, 0));
    }

    #[test]
    fn of_a_terminal_all_counts_until_it_was_seen_empty() {
        let terminal = nix::pty::openpty(None, None).unwrap();
        let (gauge, master) = (Gauge::default(), Arc::new(terminal.master));
        gauge.await_terminal();
        assert!(!gauge.is_empty());
        gauge.comes_from(&master);
        assert!(gauge.is_empty());
        write(&terminal.slave, b"0123456789").unwrap();
        let mut mark = gauge.mark();
        assert_eq!(gauge.left(&mut mark), TERMINAL);
        gauge.count(|| {
            take(&master, 10);
            (10, ())
        });
        assert_eq!(gauge.left(&mut mark), 0);
        // With nobody on the other side a terminal reports a hang-up, which is no output.
        drop(terminal.slave);
        assert!(gauge.is_empty());
    }

    #[test]
    fn what_a_copier_has_in_its_hands_counts() {
        let (gauge, _ends, _others) = output();
        gauge.count(|| {
            assert!(!gauge.is_empty());
            (0, ())
        });
        assert!(gauge.is_empty());
    }

    #[test]
    fn what_was_left_in_a_fifo_is_seen_until_it_is_read_or_its_reader_has_gone() {
        let (gauge, [from, to], [process, client]) = output();
        drop((process, from));
        write(&*to, &[0; 10]).unwrap();
        gauge.is_closed(&to);
        drop(to);
        let mut mark = gauge.mark();
        assert_eq!((gauge.left(&mut mark), gauge.rest_has_reader()), (10, Some(true)));
        take(&client, 4);
        assert_eq!((gauge.left(&mut mark), gauge.rest_has_reader()), (6, Some(true)));
        drop(client);
        assert_eq!(gauge.rest_has_reader(), Some(false));
        assert_eq!((gauge.left(&mut mark), gauge.rest_has_reader()), (0, None));
    }
}
