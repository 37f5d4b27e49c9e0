//! How a copier keeps pace with a busy stream. Being woken for every block costs more than moving it, so while
//! data flows the copier rests between two turns instead of waiting for the next block; the pipes on both sides
//! are larger meanwhile, so that neither side waits for the copier. What comes after a pause is moved at once.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

/// How long a rest takes.
pub(super) const REST: Duration = Duration::from_micros(100);
/// How many turns follow each other within a rest's time before the stream counts as busy.
const STREAK: u32 = 8;
/// The size of a busy stream's pipes: as large as anybody may make them (`pipe-max-size`), for on a busy machine a
/// rest takes longer than it should. All pipes of a user have a limit in common (`pipe-user-pages-soft`), beyond
/// which new ones are tiny, so it is taken only while needed.
pub(super) const BUSY: i32 = 1 << 20;
/// More than a terminal holds: 4 KiB to be read, and 8 KiB and a page on their way there.
pub(super) const TERMINAL: i32 = 64 << 10;

/// See the module.
#[derive(Default)]
pub(super) struct Pace {
    last: Option<Instant>,
    streak: u32,
    is_busy: bool,
    /// The sizes of the two pipes before they were enlarged.
    sizes: Option<[i32; 2]>,
}

impl Pace {
    /// Whether to rest after a turn that moved so much between two pipes, instead of waiting for either.
    pub(super) fn rests(&mut self, moved: usize, pipes: [&OwnedFd; 2]) -> bool {
        let now = Instant::now();
        let last = self.last.replace(now);
        if moved == 0 {
            (self.streak, self.is_busy) = (0, false);
            self.shrink(pipes);
        } else if !self.is_busy {
            let is_quick = last.is_some_and(|last| now.duration_since(last) < REST);
            self.streak = if is_quick { self.streak + 1 } else { 0 };
            if self.streak >= STREAK {
                self.streak = 0;
                self.is_busy = self.enlarge(pipes).is_ok();
            }
        }
        self.is_busy
    }

    /// Fails where one of the two is a terminal, or beyond the user's limit.
    fn enlarge(&mut self, [from, to]: [&OwnedFd; 2]) -> Result<(), Errno> {
        let sizes = [size(from)?, size(to)?];
        self.sizes.get_or_insert(sizes);
        resize(from, sizes[0].max(BUSY))?;
        resize(to, sizes[1].max(BUSY))
    }

    /// Gives back what is not needed any more; a pipe that still holds more is tried again after the next turn.
    fn shrink(&mut self, pipes: [&OwnedFd; 2]) {
        if let Some(sizes) = self.sizes {
            let shrunk = [resize(pipes[0], sizes[0]), resize(pipes[1], sizes[1])];
            if shrunk.iter().all(Result::is_ok) {
                self.sizes = None;
            }
        }
    }
}

/// Makes a FIFO large enough for all that another pipe, or a terminal, can hold in addition.
pub(super) fn make_room(fifo: &OwnedFd, from: &OwnedFd) -> Result<(), Errno> {
    resize(fifo, size(fifo)? + size(from).unwrap_or(TERMINAL))
}

fn size(pipe: &OwnedFd) -> Result<i32, Errno> {
    fcntl(pipe, FcntlArg::F_GETPIPE_SZ)
}

fn resize(pipe: &OwnedFd, size: i32) -> Result<(), Errno> {
    fcntl(pipe, FcntlArg::F_SETPIPE_SZ(size)).map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::unistd::{read, write};

    use super::*;
    use crate::stdio::fifo::{self, End};

    /// What a pipe holds unless told otherwise.
    const USUAL: i32 = 64 << 10;

    /// Two pipes: the ends that a copier has, and the others.
    fn pipes() -> [(OwnedFd, OwnedFd); 2] {
        [fifo::pipe(End::Read).unwrap(), fifo::pipe(End::Write).unwrap()]
    }

    fn streak(pace: &mut Pace, ends: [&OwnedFd; 2]) {
        // A turn may be held up, which begins a new streak.
        for _ in 0..1000 * STREAK {
            if pace.rests(1, ends) {
                return;
            }
        }
        panic!("never busy");
    }

    #[test]
    fn a_stream_is_busy_while_every_turn_moves_something_and_its_pipes_are_larger_meanwhile() {
        let [(from, _writer), (_reader, to)] = pipes();
        let mut pace = Pace::default();
        assert!(!pace.rests(1, [&from, &to]));
        streak(&mut pace, [&from, &to]);
        assert_eq!([size(&from), size(&to)], [Ok(BUSY); 2]);
        assert!(pace.rests(1, [&from, &to]));
        assert!(!pace.rests(0, [&from, &to]));
        assert_eq!([size(&from), size(&to)], [Ok(USUAL); 2]);
    }

    #[test]
    fn a_pipe_that_is_full_is_made_smaller_later() {
        let [(from, writer), (_reader, to)] = pipes();
        let mut pace = Pace::default();
        streak(&mut pace, [&from, &to]);
        let mut buffer = vec![0; 2 * USUAL as usize];
        assert_eq!(write(&writer, &buffer), Ok(buffer.len()));
        assert!(!pace.rests(0, [&from, &to]));
        assert_eq!([size(&from), size(&to)], [Ok(BUSY), Ok(USUAL)]);
        // Busy again: what it had is not forgotten.
        streak(&mut pace, [&from, &to]);
        assert_eq!(read(from.as_fd(), &mut buffer), Ok(buffer.len()));
        assert!(!pace.rests(0, [&from, &to]));
        assert_eq!([size(&from), size(&to)], [Ok(USUAL); 2]);
    }

    #[test]
    fn a_terminal_is_never_busy() {
        let terminal = nix::pty::openpty(None, None).unwrap();
        let (_reader, to) = fifo::pipe(End::Write).unwrap();
        let mut pace = Pace::default();
        assert!((0..10 * STREAK).all(|_| !pace.rests(1, [&terminal.master, &to])));
        assert_eq!(size(&to), Ok(USUAL));
    }
}
