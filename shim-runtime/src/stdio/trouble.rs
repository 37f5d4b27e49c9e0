//! What goes wrong with a stream is said once, and once that it is over: a line for each block that cannot be written
//! would fill the daemon's log.

use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// For how long a stream has to work before its trouble counts as over: a disk that is almost full takes a block now
/// and then.
const QUIET: Duration = Duration::from_secs(1);

/// The trouble that one stream has, or has not.
pub(super) struct Trouble {
    /// `output` or `input`.
    stream: &'static str,
    /// The id of the container or exec.
    of: Arc<str>,
    /// When something failed last; `None` while all is well.
    last: Option<Instant>,
    /// How many bytes were dropped since it began.
    dropped: u64,
}

impl Trouble {
    pub(super) fn new(stream: &'static str, of: Arc<str>) -> Self {
        Self { stream, of, last: None, dropped: 0 }
    }

    /// Something failed.
    pub(super) fn failed(&mut self, error: &dyn Display) {
        if self.last.replace(Instant::now()).is_none() {
            log::error!("cannot pass on the {} of `{}`: {error}", self.stream, self.of);
        }
    }

    /// So many bytes were dropped because of what failed; without a trouble they were not meant to go anywhere.
    pub(super) fn dropped(&mut self, count: usize) {
        if self.last.is_some() {
            self.dropped += count as u64;
        }
    }

    /// Something was passed on.
    pub(super) fn worked(&mut self) {
        if self.last.is_some_and(|last| last.elapsed() >= QUIET) {
            let Self { stream, of, .. } = self;
            log::warn!("the {stream} of `{of}` is passed on again; {} bytes were dropped", self.dropped);
            (self.last, self.dropped) = (None, 0);
        }
    }
}

impl Drop for Trouble {
    fn drop(&mut self) {
        if self.dropped > 0 {
            log::warn!("{} bytes of the {} of `{}` were dropped", self.dropped, self.stream, self.of);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_is_over_only_once_the_stream_has_worked_for_a_while() {
        let mut trouble = Trouble::new("output", "c1".into());
        trouble.dropped(5);
        assert_eq!(trouble.dropped, 0);
        for _ in 0..3 {
            trouble.failed(&"no room");
            trouble.dropped(5);
            trouble.worked();
        }
        assert!(trouble.last.is_some() && trouble.dropped == 15);
        trouble.last = Instant::now().checked_sub(QUIET);
        trouble.worked();
        assert!(trouble.last.is_none() && trouble.dropped == 0);
    }
}
