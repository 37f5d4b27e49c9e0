//! Calls that are with author code beside a container's lifecycle: signals and questions.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::sync::lock;

/// Counts the calls of one container. Its Delete lets them come back first: whoever has deleted a container
/// hangs up, and answers that are late find nobody.
#[derive(Default)]
pub(super) struct Calls {
    count: Mutex<usize>,
    none: Condvar,
}

/// A call, until it is dropped.
pub(super) struct Inside<'a>(&'a Calls);

impl Calls {
    pub(super) fn enter(&self) -> Inside<'_> {
        *lock(&self.count) += 1;
        Inside(self)
    }

    /// Waits until no call is left, but no longer than `limit`: one that hangs holds up nothing for good.
    pub(super) fn wait_for_none(&self, limit: Duration) {
        let count = lock(&self.count);
        let waited = self.none.wait_timeout_while(count, limit, |count| *count > 0);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let mut count = lock(&self.0.count);
        *count -= 1;
        if *count == 0 {
            self.0.none.notify_all();
        }
    }
}
