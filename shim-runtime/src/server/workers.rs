//! Threads for calls that may block: started on demand, gone when idle. Calls that move one process through
//! its life wait for each other as records in that process's mailbox; the rest has threads kept back for it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::caller::Cancellation;
use crate::reaper::lock;
use crate::sys;

/// How many lifecycle calls may block at once; further ones wait.
const ORDERED_LIMIT: usize = 64;
/// How many calls that only look or signal may block at once, whatever other kinds do.
const ASIDE_LIMIT: usize = 16;
/// How many calls of an author's own services may block at once.
const FOREIGN_LIMIT: usize = 64;
/// How long an idle worker waits for more.
const IDLE: Duration = Duration::from_secs(3);

/// Something to do.
struct Job {
    work: Box<dyn FnOnce() + Send>,
    /// The only one who needs it done; without one it is needed in any case.
    wanted_by: Option<Arc<Cancellation>>,
}

impl Job {
    fn new(work: impl FnOnce() + Send + 'static, wanted_by: Option<Arc<Cancellation>>) -> Self {
        Self { work: Box::new(work), wanted_by }
    }

    fn is_wanted(&self) -> bool {
        self.wanted_by.as_ref().is_none_or(|caller| !caller.is_cancelled())
    }
}

/// Where a job runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// After all earlier jobs of the same mailbox.
    Mailbox(String),
    /// At once, on a thread that no other kind of calls can take.
    Aside,
    /// At once, on a thread for calls of which nothing is known: they may take long.
    Foreign,
}

impl Place {
    /// Where the calls that move one process through its life wait for each other.
    pub(crate) fn of_process(id: &str, exec: &str) -> Self {
        Self::Mailbox(process_name(id, exec))
    }

    /// How many bytes it takes that a job waits here: the name of a mailbox is kept wherever its jobs are.
    pub(crate) fn size(&self) -> usize {
        if let Self::Mailbox(name) = self { 4 * name.len() } else { 0 }
    }
}

/// A text that no other process has; the init has no exec id, and `/` stands in no id.
pub(crate) fn process_name(id: &str, exec: &str) -> String {
    [id, "/", exec].concat()
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
    foreign: Pool,
    /// Jobs behind the one of their mailbox that is running or in the queue. A mailbox without one is absent.
    mailboxes: HashMap<String, VecDeque<Job>>,
    /// No more jobs will come, so nobody need wait for any.
    closed: bool,
}

/// One kind of workers and what they have to do next.
#[derive(Default)]
struct Pool {
    queue: VecDeque<(Option<String>, Job)>,
    threads: usize,
    /// Threads that wait for a job, and those that do one. The others have just been started, or are about to take
    /// the next.
    idle: usize,
    busy: usize,
}

impl Pool {
    /// Takes out the jobs that nobody wants any more, but for those to which a thread is on its way.
    fn take_unwanted(&mut self) -> VecDeque<(Option<String>, Job)> {
        let next = (self.threads - self.busy).min(self.queue.len());
        let mut waiting = self.queue.split_off(next);
        let unwanted = take_unwanted(&mut waiting, |(_, job)| job);
        self.queue.append(&mut waiting);
        unwanted
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ordered,
    Aside,
    Foreign,
}

impl Kind {
    /// How many threads it may have.
    fn limit(self) -> usize {
        match self {
            Self::Ordered => ORDERED_LIMIT,
            Self::Aside => ASIDE_LIMIT,
            Self::Foreign => FOREIGN_LIMIT,
        }
    }
}

impl State {
    fn pool(&mut self, kind: Kind) -> &mut Pool {
        match kind {
            Kind::Ordered => &mut self.ordered,
            Kind::Aside => &mut self.aside,
            Kind::Foreign => &mut self.foreign,
        }
    }

    fn pools(&self) -> [&Pool; 3] {
        [&self.ordered, &self.aside, &self.foreign]
    }

    fn is_idle(&self) -> bool {
        self.pools().iter().all(|pool| pool.busy == 0 && pool.queue.is_empty())
    }
}

impl Workers {
    /// Has `job` done on a worker. Where none can be started it waits until one can, at the next job.
    pub(crate) fn run(&self, place: Place, job: impl FnOnce() + Send + 'static) {
        self.place(place, Job::new(job, None), true);
    }

    /// Like [`run`](Self::run), for as long as the caller wants it.
    pub(crate) fn run_while_wanted(
        &self,
        place: Place,
        wanted_by: Arc<Cancellation>,
        job: impl FnOnce() + Send + 'static,
    ) {
        self.place(place, Job::new(job, Some(wanted_by)), true);
    }

    /// Like [`run`](Self::run), but drops the job and returns false when there is no worker for it and none can
    /// be started.
    pub(crate) fn offer(&self, place: Place, job: impl FnOnce() + Send + 'static) -> bool {
        self.place(place, Job::new(job, None), false)
    }

    /// Like [`offer`](Self::offer), for as long as the caller wants it, if only that needs it.
    pub(crate) fn offer_while_wanted(
        &self,
        place: Place,
        wanted_by: Option<Arc<Cancellation>>,
        job: impl FnOnce() + Send + 'static,
    ) -> bool {
        self.place(place, Job::new(job, wanted_by), false)
    }

    fn place(&self, place: Place, job: Job, keep: bool) -> bool {
        let mut state = lock(&self.0.state);
        let kind = match place {
            Place::Aside => {
                state.aside.queue.push_back((None, job));
                Kind::Aside
            }
            Place::Foreign => {
                state.foreign.queue.push_back((None, job));
                Kind::Foreign
            }
            Place::Mailbox(key) => {
                if let Some(waiting) = state.mailboxes.get_mut(&key) {
                    waiting.push_back(job);
                    return true;
                }
                state.mailboxes.insert(key.clone(), VecDeque::new());
                state.ordered.queue.push_back((Some(key), job));
                Kind::Ordered
            }
        };
        let pool = state.pool(kind);
        if pool.idle < pool.queue.len() && pool.threads < kind.limit() {
            self.start_thread(kind, pool);
            if pool.threads == 0 && !keep {
                let refused = pool.queue.pop_back();
                if let Some((Some(key), _)) = &refused {
                    state.mailboxes.remove(key);
                }
                drop(state);
                return false;
            }
        } else {
            // All kinds wait on one condition variable; idle workers are few and short-lived.
            self.0.changed.notify_all();
        }
        true
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
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job.work));
            let mut state = lock(&self.0.state);
            state.pool(kind).busy -= 1;
            if let Some(key) = key {
                Self::next_of_mailbox(&mut state, key);
            }
            if state.is_idle() {
                self.0.changed.notify_all();
            }
        }
    }

    /// Puts the next job of a mailbox into the queue, behind those of others.
    fn next_of_mailbox(state: &mut State, key: String) {
        match state.mailboxes.get_mut(&key).and_then(VecDeque::pop_front) {
            Some(job) => state.ordered.queue.push_back((Some(key), job)),
            None => {
                state.mailboxes.remove(&key);
            }
        }
    }

    /// Drops the jobs that nobody wants any more and that wait for others to end. What has a thread, or is about to
    /// get one, is done.
    pub(crate) fn drop_unwanted(&self) {
        let mut unwanted = Vec::new();
        let mut state = lock(&self.0.state);
        for waiting in state.mailboxes.values_mut() {
            unwanted.extend(take_unwanted(waiting, |job| job));
        }
        for kind in [Kind::Ordered, Kind::Aside, Kind::Foreign] {
            for (key, job) in state.pool(kind).take_unwanted() {
                unwanted.push(job);
                if let Some(key) = key {
                    Self::next_of_mailbox(&mut state, key);
                }
            }
        }
        drop(state);
        // Whoever waits for the end of one of them is told it, outside the lock.
        drop(unwanted);
    }

    /// Waits for a job; `None` when there was none for a while.
    fn next(&self, kind: Kind) -> Option<(Option<String>, Job)> {
        let mut state = lock(&self.0.state);
        loop {
            let pool = state.pool(kind);
            if let Some(job) = pool.queue.pop_front() {
                pool.busy += 1;
                return Some(job);
            }
            pool.idle += 1;
            let idle = |state: &mut State| state.pool(kind).queue.is_empty() && !state.closed;
            let waited = self.0.changed.wait_timeout_while(state, IDLE, idle);
            let timed_out;
            (state, timed_out) = waited.unwrap_or_else(PoisonError::into_inner);
            state.pool(kind).idle -= 1;
            // The children of a thread that ends go to the main thread, whose reaper would take their exits
            // from whoever waits for them.
            let out_of_time = timed_out.timed_out() && !sys::thread_has_children();
            if (out_of_time || state.closed) && state.pool(kind).queue.is_empty() {
                state.pool(kind).threads -= 1;
                return None;
            }
        }
    }

    /// Waits until all jobs are done, at most for `limit`: some may hang.
    pub(crate) fn finish(&self, limit: Duration) {
        let state = lock(&self.0.state);
        drop(self.0.changed.wait_timeout_while(state, limit, |state| !state.is_idle()));
    }

    /// Lets idle workers end at once.
    #[cfg(feature = "testing")]
    pub(crate) fn close(&self) {
        lock(&self.0.state).closed = true;
        self.0.changed.notify_all();
    }

    /// How many threads there are, and how many jobs wait behind others.
    pub(crate) fn load(&self) -> (usize, usize) {
        let state = lock(&self.0.state);
        let waiting: usize = state.mailboxes.values().map(VecDeque::len).sum();
        let queued: usize = state.pools().iter().map(|pool| pool.queue.len()).sum();
        (state.pools().iter().map(|pool| pool.threads).sum(), waiting + queued)
    }
}

/// Takes the jobs out of a queue that nobody wants any more.
fn take_unwanted<T>(queue: &mut VecDeque<T>, job: impl Fn(&T) -> &Job) -> VecDeque<T> {
    let (wanted, unwanted) = std::mem::take(queue).into_iter().partition(|item| job(item).is_wanted());
    *queue = wanted;
    unwanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// A job that tells its number when it is done, for a caller or for nobody in particular.
    fn telling(n: usize, tx: &mpsc::Sender<usize>) -> impl FnOnce() + Send + 'static {
        let tx = tx.clone();
        move || tx.send(n).unwrap()
    }

    /// Has a job running until the returned end is dropped.
    fn hold(workers: &Workers, place: Place) -> mpsc::Sender<()> {
        let (held, gate) = mpsc::channel::<()>();
        let (running, runs) = mpsc::channel();
        workers.run(place, move || {
            running.send(()).unwrap();
            let _ = gate.recv();
        });
        runs.recv().unwrap();
        held
    }

    #[test]
    fn what_waits_in_a_mailbox_for_a_caller_that_has_gone_is_dropped_at_once_and_the_rest_is_done() {
        let workers = Workers::default();
        let mailbox = || Place::Mailbox("a".into());
        let held = hold(&workers, mailbox());
        let (gone, there) = (Arc::<Cancellation>::default(), Arc::<Cancellation>::default());
        let (tx, rx) = mpsc::channel();
        workers.offer_while_wanted(mailbox(), Some(gone.clone()), telling(0, &tx));
        workers.offer_while_wanted(mailbox(), Some(there), telling(1, &tx));
        workers.offer_while_wanted(mailbox(), None, telling(2, &tx));
        workers.run_while_wanted(mailbox(), gone.clone(), telling(3, &tx));
        drop(tx);
        workers.drop_unwanted();
        assert_eq!(workers.load(), (1, 4), "all are wanted");
        gone.cancel();
        workers.drop_unwanted();
        assert_eq!(workers.load(), (1, 2));
        drop(held);
        assert_eq!(rx.iter().collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn what_waits_for_a_thread_is_dropped_with_its_caller_and_what_can_have_one_is_done() {
        let workers = Workers::default();
        let gone = Arc::<Cancellation>::default();
        gone.cancel();
        let (tx, rx) = mpsc::channel();
        let mut held: Vec<_> =
            (1..ORDERED_LIMIT).map(|n| hold(&workers, Place::Mailbox(n.to_string()))).collect();
        workers.offer_while_wanted(Place::Mailbox("last".into()), Some(gone.clone()), telling(0, &tx));
        workers.drop_unwanted();
        assert_eq!(rx.recv(), Ok(0), "there was a thread left");
        held.push(hold(&workers, Place::Mailbox("last".into())));
        workers.offer_while_wanted(Place::Mailbox("b".into()), Some(gone.clone()), telling(1, &tx));
        workers.offer_while_wanted(Place::Mailbox("b".into()), None, telling(2, &tx));
        workers.drop_unwanted();
        drop((held, tx));
        assert_eq!(rx.iter().collect::<Vec<_>>(), [2], "the next of the mailbox takes its place");
    }

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

    #[test]
    fn no_kind_of_jobs_can_take_the_threads_of_another_and_the_end_waits_for_them_in_vain() {
        let workers = Workers::default();
        let gate = Arc::new(Mutex::new(()));
        let held = gate.lock().unwrap();
        for _ in 0..FOREIGN_LIMIT + 10 {
            let gate = gate.clone();
            workers.run(Place::Foreign, move || drop(gate.lock().unwrap()));
        }
        let (tx, rx) = mpsc::channel();
        let aside = tx.clone();
        workers.run(Place::Aside, move || aside.send(()).unwrap());
        rx.recv().unwrap();
        workers.run(Place::Mailbox("a".into()), move || tx.send(()).unwrap());
        rx.recv().unwrap();
        workers.finish(Duration::from_millis(1));
        assert!(!lock(&workers.0.state).is_idle());
        drop(held);
        workers.finish(Duration::from_mins(1));
        assert!(lock(&workers.0.state).is_idle());
    }
}
