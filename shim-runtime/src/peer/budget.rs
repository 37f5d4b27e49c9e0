//! How many bytes a shim keeps for its clients: calls that are not answered, frames that are not complete, answers
//! that are not read. What one client may have kept is bounded, and so is what all of them may together.
//!
//! Small things are let in when large ones no longer are, so a client that sends or leaves unread as much as it can
//! keeps nobody from a Kill or a Delete. Calls that are answered where they are read, such as State, take nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::wire::MAX_PAYLOAD;

/// What is small.
const SMALL: usize = 4 << 10;
/// How much one client may have kept when something large comes: four messages of the largest size.
const CLIENT_LIMIT: usize = 4 * MAX_PAYLOAD;
/// How much all clients may have kept together when something large comes.
const LARGE_LIMIT: usize = 16 * MAX_PAYLOAD;
/// How much all clients may have kept together when something small comes.
const LIMIT: usize = 24 * MAX_PAYLOAD;

/// What all clients share. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Budget(Arc<AtomicUsize>);

impl Budget {
    /// The part of a client that has just come.
    pub(crate) fn share(&self) -> Share {
        Share { client: Arc::default(), all: self.0.clone() }
    }

    /// How many bytes are kept.
    pub(crate) fn kept(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// One client's part. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Share {
    client: Arc<AtomicUsize>,
    all: Arc<AtomicUsize>,
}

impl Share {
    /// Keeps so many bytes, if that is within the limits.
    pub(crate) fn keep(&self, bytes: usize) -> Option<Kept> {
        let mut kept = self.nothing();
        kept.resize(bytes).then_some(kept)
    }

    /// What has yet to grow.
    pub(crate) fn nothing(&self) -> Kept {
        Kept { share: self.clone(), bytes: 0 }
    }

    /// Threads that ask at the same time may together go beyond the limits, by one message each.
    fn allows(&self, size: usize, more: usize) -> bool {
        let all = self.all.load(Ordering::Relaxed) + more;
        if size <= SMALL {
            return all <= LIMIT;
        }
        all <= LARGE_LIMIT && self.client.load(Ordering::Relaxed) + more <= CLIENT_LIMIT
    }
}

/// Bytes that are kept for a client; given back when dropped, also after the client has gone.
pub(crate) struct Kept {
    share: Share,
    bytes: usize,
}

impl Kept {
    /// Whether so many bytes more would be within the limits.
    pub(crate) fn may_grow(&self, more: usize) -> bool {
        self.share.allows(self.bytes + more, more)
    }

    /// Becomes so many bytes, if that is within the limits; returns whether it did.
    pub(crate) fn resize(&mut self, bytes: usize) -> bool {
        let fits = bytes <= self.bytes || self.may_grow(bytes - self.bytes);
        if fits {
            self.set(bytes);
        }
        fits
    }

    /// Becomes so many bytes, which are there in any case.
    pub(crate) fn set(&mut self, bytes: usize) {
        for counter in [&self.share.client, &self.share.all] {
            // The order spares a counter from going below zero.
            counter.fetch_add(bytes, Ordering::Relaxed);
            counter.fetch_sub(self.bytes, Ordering::Relaxed);
        }
        self.bytes = bytes;
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_may_have_four_of_the_largest_messages_kept_and_small_ones_beyond_that() {
        let budget = Budget::default();
        let (greedy, other) = (budget.share(), budget.share());
        let mut kept: Vec<_> = (0..5).map_while(|_| greedy.keep(MAX_PAYLOAD)).collect();
        assert_eq!(kept.len(), 4);
        assert!(greedy.keep(SMALL + 1).is_none() && greedy.keep(SMALL).is_some());
        assert!(other.keep(MAX_PAYLOAD).is_some());
        kept.pop();
        assert!(greedy.keep(MAX_PAYLOAD).is_some(), "what was dropped is given back");
        drop(kept);
        assert_eq!(budget.kept(), 0);
    }

    #[test]
    fn many_clients_may_have_no_more_kept_than_a_few_and_small_things_have_room_of_their_own() {
        let budget = Budget::default();
        let clients: Vec<_> = (0..1000).map(|_| budget.share()).collect();
        let large: Vec<_> = clients.iter().filter_map(|client| client.keep(MAX_PAYLOAD)).collect();
        assert_eq!(large.len(), LARGE_LIMIT / MAX_PAYLOAD);
        let small: Vec<_> = (0..LIMIT).map_while(|n| clients[n % 1000].keep(SMALL)).collect();
        assert_eq!(small.len(), (LIMIT - LARGE_LIMIT) / SMALL);
        assert_eq!(budget.kept(), LIMIT);
    }

    #[test]
    fn what_grows_step_by_step_is_measured_by_its_size() {
        let budget = Budget::default();
        let mut growing = budget.share().nothing();
        let steps = (1..=LIMIT).take_while(|step| growing.resize(step * SMALL)).count();
        assert_eq!(steps, CLIENT_LIMIT / SMALL);
        growing.set(2 * LIMIT);
        assert!(!growing.resize(3 * LIMIT) && growing.resize(1), "less is possible at any time");
    }
}
