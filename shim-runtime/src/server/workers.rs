//! Threads for calls that may block: started on demand, gone when idle. Calls that move one process through
//! its life wait for each other as records in that process's mailbox; the rest has threads kept back for it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::reaper::lock;
use crate::sys;

/// How many lifecycle calls may block at once; further ones wait.
const ORDERED_LIMIT: usize = 64;
/// How many other calls may block at once, whatever the first kind does.
const ASIDE_LIMIT: usize = 16;
/// How long an idle worker waits for more.
const IDLE: Duration = Duration::from_secs(3);

type Job = Box<dyn FnOnce() + Send>;

/// Where a job runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// After all earlier jobs of the same mailbox.
    Mailbox(String),
    /// At once, on a thread that lifecycle calls cannot take.
    Aside,
}

/// See the module.
#[derive(Clone, Default)]
pub(crate) struct Workers(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    ordered: Pool,
    aside: Pool,
    /// Jobs behind the one of their mailbox that is running or in the queue. A mailbox without one is absent.
    mailboxes: HashMap<String, VecDeque<Job>>,
}

/// One kind of workers and what they have to do next.
#[derive(Default)]
struct Pool {
    queue: VecDeque<(Option<String>, Job)>,
    threads: usize,
    idle: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ordered,
    Aside,
}

impl State {
    fn pool(&mut self, kind: Kind) -> &mut Pool {
        match kind {
            Kind::Ordered => &mut self.ordered,
            Kind::Aside => &mut self.aside,
        }
    }
}

impl Workers {
    /// Has `job` done on a worker.
    pub(crate) fn run(&self, place: Place, job: impl FnOnce() + Send + 'static) {
        let mut state = lock(&self.0.state);
        let kind = match place {
            Place::Aside => {
                state.aside.queue.push_back((None, Box::new(job)));
                Kind::Aside
            }
            Place::Mailbox(key) => {
                if let Some(waiting) = state.mailboxes.get_mut(&key) {
                    waiting.push_back(Box::new(job));
                    return;
                }
                state.mailboxes.insert(key.clone(), VecDeque::new());
                state.ordered.queue.push_back((Some(key), Box::new(job)));
                Kind::Ordered
            }
        };
        let pool = state.pool(kind);
        let limit = if kind == Kind::Ordered { ORDERED_LIMIT } else { ASIDE_LIMIT };
        if pool.idle < pool.queue.len() && pool.threads < limit {
            self.start_thread(kind, pool);
        } else {
            // All kinds wait on one condition variable; idle workers are few and short-lived.
            self.0.changed.notify_all();
        }
    }

    /// Starts a worker. Without one the job waits for another worker to end its own.
    fn start_thread(&self, kind: Kind, pool: &mut Pool) {
        let workers = self.clone();
        match thread::Builder::new().name("worker".to_owned()).spawn(move || workers.work(kind)) {
            Ok(_) => pool.threads += 1,
            Err(error) => log::error!("cannot start a worker: {error}"),
        }
    }

    fn work(&self, kind: Kind) {
        while let Some((key, job)) = self.next(kind) {
            // Every job answers for its own panics; one that failed to must not cost the pool a thread.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
            if let Some(key) = key {
                self.next_of_mailbox(key);
            }
        }
    }

    /// Puts the next job of a mailbox into the queue, behind those of others.
    fn next_of_mailbox(&self, key: String) {
        let mut state = lock(&self.0.state);
        match state.mailboxes.get_mut(&key).and_then(VecDeque::pop_front) {
            Some(job) => state.ordered.queue.push_back((Some(key), job)),
            None => {
                state.mailboxes.remove(&key);
            }
        }
    }

    /// Waits for a job; `None` when there was none for a while.
    fn next(&self, kind: Kind) -> Option<(Option<String>, Job)> {
        let mut state = lock(&self.0.state);
        loop {
            if let Some(job) = state.pool(kind).queue.pop_front() {
                return Some(job);
            }
            state.pool(kind).idle += 1;
            let waited =
                self.0.changed.wait_timeout_while(state, IDLE, |state| state.pool(kind).queue.is_empty());
            let timed_out;
            (state, timed_out) = waited.unwrap_or_else(PoisonError::into_inner);
            state.pool(kind).idle -= 1;
            // The children of a thread that ends go to the main thread, whose reaper would take their exits
            // from whoever waits for them.
            if timed_out.timed_out() && state.pool(kind).queue.is_empty() && !sys::thread_has_children() {
                state.pool(kind).threads -= 1;
                return None;
            }
        }
    }

    /// How many threads there are, and how many jobs wait behind others.
    pub(crate) fn load(&self) -> (usize, usize) {
        let state = lock(&self.0.state);
        let waiting: usize = state.mailboxes.values().map(VecDeque::len).sum();
        let queued = state.ordered.queue.len() + state.aside.queue.len();
        (state.ordered.threads + state.aside.threads, waiting + queued)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn jobs_of_one_mailbox_keep_their_order_and_cost_one_thread() {
        let workers = Workers::default();
        let (open, gate) = mpsc::channel::<()>();
        let (tx, rx) = mpsc::channel();
        let (running, runs) = mpsc::channel();
        workers.run(Place::Mailbox("a".into()), move || {
            running.send(()).unwrap();
            gate.recv().unwrap();
        });
        runs.recv().unwrap();
        for n in 0..100 {
            let tx = tx.clone();
            workers.run(Place::Mailbox("a".into()), move || tx.send(n).unwrap());
        }
        assert_eq!(workers.load(), (1, 100));
        open.send(()).unwrap();
        drop(tx);
        assert_eq!(rx.iter().collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_full_house_of_hung_lifecycle_calls_leaves_the_rest_going() {
        let workers = Workers::default();
        let gate = Arc::new(Mutex::new(()));
        let held = gate.lock().unwrap();
        for n in 0..ORDERED_LIMIT + 10 {
            let gate = gate.clone();
            workers.run(Place::Mailbox(n.to_string()), move || drop(gate.lock().unwrap()));
        }
        let (tx, rx) = mpsc::channel();
        let after = tx.clone();
        workers.run(Place::Mailbox("after".into()), move || after.send("after").unwrap());
        workers.run(Place::Aside, move || tx.send("aside").unwrap());
        assert_eq!(rx.recv().unwrap(), "aside");
        assert_eq!(workers.load().0, ORDERED_LIMIT + 1);
        drop(held);
        assert_eq!(rx.recv().unwrap(), "after");
    }

    #[test]
    fn a_panicking_job_neither_blocks_its_mailbox_nor_loses_a_worker() {
        let workers = Workers::default();
        let (tx, rx) = mpsc::channel();
        workers.run(Place::Mailbox("a".into()), || panic!("on purpose"));
        workers.run(Place::Mailbox("a".into()), move || tx.send(()).unwrap());
        assert_eq!(rx.recv(), Ok(()));
    }
}
