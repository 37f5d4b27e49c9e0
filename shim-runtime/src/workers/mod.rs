//! Threads for calls that may block: started on demand, gone when idle. Calls that must not overlap, or not too often,
//! share a lane, in which they wait for each other as records; kinds of calls do not take each other's threads. One
//! thread is kept back for the day on which the system gives no more.

mod authored;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::caller::Cancellation;
use crate::event_loop::Handle;
use crate::sync::{caught, lock};
use crate::sys;

pub(crate) use self::authored::{Authored, keep_destructors_off_this_thread};

/// How many lifecycle calls may block at once; further ones wait.
const ORDERED_LIMIT: usize = 64;
/// How many signals and measurements may block at once, and how many of one lane.
const ASIDE_LIMIT: usize = 64;
const ASIDE_LANE: usize = 8;
/// How many questions that author code answers may block at once, and how many of one lane.
const LOOK_LIMIT: usize = 64;
const LOOK_LANE: usize = 4;
/// How many calls of an author's own services may block at once.
const FOREIGN_LIMIT: usize = 64;
/// How long an idle worker waits for more.
const IDLE: Duration = Duration::from_secs(3);
/// When it is tried again to get a thread that the system has refused.
const RETRY: Duration = Duration::from_secs(1);

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
    /// After all earlier jobs of the same lane.
    Mailbox(String),
    /// Beside whatever else is done: signals and measurements, which an engine may hold up.
    Aside(String),
    /// Beside whatever else is done, signals and measurements too: questions about what is known.
    Look(String),
    /// Beside whatever else is done, for work of which nothing is known: it may take long.
    Foreign,
}

impl Place {
    /// Where the calls that move one process through its life wait for each other.
    pub(crate) fn of_process(id: &str, exec: &str) -> Self {
        Self::Mailbox(process_name(id, exec))
    }

    /// How many bytes it takes that a job waits here: the name of a lane is kept wherever its jobs are.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Mailbox(lane) | Self::Aside(lane) | Self::Look(lane) => 4 * lane.len(),
            Self::Foreign => 0,
        }
    }

    fn split(self) -> (Kind, Option<String>) {
        match self {
            Self::Mailbox(lane) => (Kind::Ordered, Some(lane)),
            Self::Aside(lane) => (Kind::Aside, Some(lane)),
            Self::Look(lane) => (Kind::Look, Some(lane)),
            Self::Foreign => (Kind::Foreign, None),
        }
    }
}

/// A text that no other process has; the init has no exec id, and `/` stands in no id.
pub(crate) fn process_name(id: &str, exec: &str) -> String {
    [id, "/", exec].concat()
}

/// What is to happen with a job for which the system has no thread.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// It is dropped, and whoever wants it done is told.
    Refusable,
    /// It waits for a thread, however long that takes.
    Patient,
    /// The thread that is kept back does it: what ends containers must go on.
    Vital,
}

/// See the module.
#[derive(Clone, Default)]
pub(crate) struct Workers(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// The loop whose timers tell when to try again to get a thread.
    main: Option<Handle>,
    state: Mutex<State>,
    changed: Condvar,
    /// The thread that is kept back has something to do.
    spare_wanted: Condvar,
}

#[derive(Default)]
struct State {
    ordered: Pool,
    aside: Pool,
    look: Pool,
    foreign: Pool,
    lanes: HashMap<(Kind, String), Lane>,
    /// What the thread that is kept back is to do; `None` where there is no such thread.
    spare: Option<VecDeque<Task>>,
    /// It does something.
    spare_is_busy: bool,
    /// It will be tried again to get a thread.
    retries: bool,
    /// No more jobs will come, so nobody need wait for any.
    closed: bool,
}

/// A job, and the lane that it occupies.
struct Task {
    kind: Kind,
    lane: Option<String>,
    job: Job,
}

/// The jobs that share a lane. A lane without any is absent.
#[derive(Default)]
struct Lane {
    /// How many are being done, or are in a queue of their kind.
    busy: usize,
    waiting: VecDeque<Job>,
}

/// One kind of workers and what they have to do next.
#[derive(Default)]
struct Pool {
    queue: VecDeque<Task>,
    threads: usize,
    /// Threads that wait for a job, and those that do one. The others have just been started, or are about to take
    /// the next.
    idle: usize,
    busy: usize,
}

impl Pool {
    /// Takes out the jobs that nobody wants any more, but for those to which a thread is on its way.
    fn take_unwanted(&mut self) -> VecDeque<Task> {
        let next = (self.threads - self.busy).min(self.queue.len());
        let mut waiting = self.queue.split_off(next);
        let unwanted = take_unwanted(&mut waiting, |task| &task.job);
        self.queue.append(&mut waiting);
        unwanted
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Ordered,
    Aside,
    Look,
    Foreign,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Ordered, Self::Aside, Self::Look, Self::Foreign];

    /// How many threads it may have.
    fn limit(self) -> usize {
        match self {
            Self::Ordered => ORDERED_LIMIT,
            Self::Aside => ASIDE_LIMIT,
            Self::Look => LOOK_LIMIT,
            Self::Foreign => FOREIGN_LIMIT,
        }
    }

    /// How many jobs of one lane may be done at once.
    fn width(self) -> usize {
        match self {
            Self::Ordered => 1,
            Self::Aside => ASIDE_LANE,
            Self::Look => LOOK_LANE,
            Self::Foreign => usize::MAX,
        }
    }
}

impl State {
    fn pool(&mut self, kind: Kind) -> &mut Pool {
        match kind {
            Kind::Ordered => &mut self.ordered,
            Kind::Aside => &mut self.aside,
            Kind::Look => &mut self.look,
            Kind::Foreign => &mut self.foreign,
        }
    }

    fn pools(&self) -> [&Pool; 4] {
        [&self.ordered, &self.aside, &self.look, &self.foreign]
    }

    fn is_idle(&self) -> bool {
        let spare_is_idle = !self.spare_is_busy && self.spare.as_ref().is_none_or(VecDeque::is_empty);
        spare_is_idle && self.pools().iter().all(|pool| pool.busy == 0 && pool.queue.is_empty())
    }

    /// Puts a job into the queue of its kind, unless its lane is full; returns whether it is there.
    fn enqueue(&mut self, kind: Kind, lane: Option<String>, job: Job) -> bool {
        if let Some(name) = &lane {
            let lane = self.lanes.entry((kind, name.clone())).or_default();
            if lane.busy >= kind.width() {
                lane.waiting.push_back(job);
                return false;
            }
            lane.busy += 1;
        }
        self.pool(kind).queue.push_back(Task { kind, lane, job });
        true
    }

    /// A job of a lane is done, or will never be: the next has its turn, behind those of others.
    fn leave_lane(&mut self, kind: Kind, name: String) {
        let key = (kind, name);
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        if let Some(job) = lane.waiting.pop_front() {
            let lane = Some(key.1);
            self.pool(kind).queue.push_back(Task { kind, lane, job });
            return;
        }
        lane.busy -= 1;
        if lane.busy == 0 {
            self.lanes.remove(&key);
        }
    }
}

impl Workers {
    /// Workers beside a loop.
    pub(crate) fn new(main: Handle) -> Self {
        Self(Arc::new(Shared { main: Some(main), ..Shared::default() }))
    }

    /// Has `job` done on a worker. Where none can be started it waits until one can.
    pub(crate) fn run(&self, place: Place, job: impl FnOnce() + Send + 'static) {
        self.place(place, Need::Patient, Job::new(job, None));
    }

    /// Has `job` done, by the thread that is kept back where no worker can be started.
    pub(crate) fn insist(&self, place: Place, job: impl FnOnce() + Send + 'static) {
        self.place(place, Need::Vital, Job::new(job, None));
    }

    /// Like [`run`](Self::run), for as long as the caller wants it.
    pub(crate) fn run_while_wanted(
        &self,
        place: Place,
        wanted_by: Arc<Cancellation>,
        job: impl FnOnce() + Send + 'static,
    ) {
        self.place(place, Need::Patient, Job::new(job, Some(wanted_by)));
    }

    /// Has `job` done on a worker, as far as one is needed, and for as long as the caller wants it, if only that needs
    /// it. Returns false when the job was dropped, which only one that is [`Need::Refusable`] is: there is no worker
    /// for it, and none can be started.
    pub(crate) fn offer_while_wanted(
        &self,
        place: Place,
        need: Need,
        wanted_by: Option<Arc<Cancellation>>,
        job: impl FnOnce() + Send + 'static,
    ) -> bool {
        self.place(place, need, Job::new(job, wanted_by))
    }

    fn place(&self, place: Place, need: Need, job: Job) -> bool {
        let (kind, lane) = place.split();
        let mut state = lock(&self.0.state);
        if !state.enqueue(kind, lane, job) {
            return true;
        }
        let has_thread = self.ensure_thread(kind, &mut state);
        if has_thread || need == Need::Patient {
            return true;
        }
        let only_hung_ones = state.pool(kind).threads > 0;
        let Some(task) = state.pool(kind).queue.pop_back() else { return true };
        match (&mut state.spare, need) {
            (Some(spare), Need::Vital) => {
                spare.push_back(task);
                self.0.spare_wanted.notify_one();
                true
            }
            (_, Need::Refusable) if !only_hung_ones => {
                if let Some(name) = task.lane {
                    state.leave_lane(kind, name);
                }
                drop(state);
                drop(task.job);
                false
            }
            _ => {
                state.pool(kind).queue.push_back(task);
                true
            }
        }
    }

    /// Sees to it that somebody takes the next job of a kind; false when the system refuses the thread for it, so that
    /// the job waits for another to end, or for a later try.
    fn ensure_thread(&self, kind: Kind, state: &mut State) -> bool {
        let pool = state.pool(kind);
        if pool.idle >= pool.queue.len() || pool.threads >= kind.limit() {
            // All kinds wait on one condition variable; idle workers are few and short-lived.
            self.0.changed.notify_all();
            return true;
        }
        let workers = self.clone();
        match thread::Builder::new().name("worker".to_owned()).spawn(move || workers.work(kind)) {
            Ok(_) => {
                pool.threads += 1;
                true
            }
            Err(error) => {
                log::error!("cannot start a worker: {error}");
                self.retry_later(state);
                false
            }
        }
    }

    /// Tries again after some time to get the threads that jobs wait for.
    fn retry_later(&self, state: &mut State) {
        let Some(main) = &self.0.main else { return };
        if std::mem::replace(&mut state.retries, true) {
            return;
        }
        let workers = self.clone();
        main.post(move |events| {
            events.after(RETRY, move |_| workers.retry());
        });
    }

    fn retry(&self) {
        let mut state = lock(&self.0.state);
        state.retries = false;
        for kind in Kind::ALL {
            if !state.pool(kind).queue.is_empty() {
                self.ensure_thread(kind, &mut state);
            }
        }
    }

    fn work(&self, kind: Kind) {
        while let Some(task) = self.next(kind) {
            self.perform(task, |state| state.pool(kind).busy -= 1);
        }
    }

    /// Has the calling thread be the one that is kept back, for good. It never ends, so its children stay its own.
    pub(crate) fn stand_by(&self) {
        let mut state = lock(&self.0.state);
        state.spare.get_or_insert_default();
        while !state.closed {
            let Some(task) = state.spare.as_mut().and_then(VecDeque::pop_front) else {
                state = self.0.spare_wanted.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.spare_is_busy = true;
            drop(state);
            let kind = task.kind;
            self.perform(task, |state| state.spare_is_busy = false);
            state = lock(&self.0.state);
            // What waited for it has no worker that would go on with it.
            if !state.pool(kind).queue.is_empty() {
                self.ensure_thread(kind, &mut state);
            }
        }
    }

    fn perform(&self, Task { kind, lane, job }: Task, done: impl FnOnce(&mut State)) {
        // Every job answers for its own panics; one that failed to must not cost the pool a thread.
        let _ = caught(job.work);
        let mut state = lock(&self.0.state);
        done(&mut state);
        if let Some(name) = lane {
            state.leave_lane(kind, name);
        }
        if state.is_idle() {
            self.0.changed.notify_all();
        }
    }

    /// Drops the jobs that nobody wants any more and that wait for others to end. What has a thread, or is about to
    /// get one, is done.
    pub(crate) fn drop_unwanted(&self) {
        let mut unwanted = Vec::new();
        let mut state = lock(&self.0.state);
        for lane in state.lanes.values_mut() {
            unwanted.extend(take_unwanted(&mut lane.waiting, |job| job));
        }
        for kind in Kind::ALL {
            for task in state.pool(kind).take_unwanted() {
                unwanted.push(task.job);
                if let Some(lane) = task.lane {
                    state.leave_lane(kind, lane);
                }
            }
        }
        drop(state);
        // Whoever waits for the end of one of them is told it, outside the lock.
        drop(unwanted);
    }

    /// Waits for a job; `None` when there was none for a while.
    fn next(&self, kind: Kind) -> Option<Task> {
        let mut state = lock(&self.0.state);
        loop {
            let pool = state.pool(kind);
            if let Some(task) = pool.queue.pop_front() {
                pool.busy += 1;
                return Some(task);
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

    /// Waits until all jobs are done, at most for `limit`: some may hang. Returns whether they are.
    pub(crate) fn finish(&self, limit: Duration) -> bool {
        let state = lock(&self.0.state);
        let waited = self.0.changed.wait_timeout_while(state, limit, |state| !state.is_idle());
        waited.unwrap_or_else(PoisonError::into_inner).0.is_idle()
    }

    /// Lets idle workers end at once.
    #[cfg(feature = "testing")]
    pub(crate) fn close(&self) {
        lock(&self.0.state).closed = true;
        self.0.changed.notify_all();
        self.0.spare_wanted.notify_all();
    }

    /// How many threads there are, and how many jobs wait behind others.
    pub(crate) fn load(&self) -> (usize, usize) {
        let state = lock(&self.0.state);
        let waiting: usize = state.lanes.values().map(|lane| lane.waiting.len()).sum();
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
        workers.offer_while_wanted(mailbox(), Need::Refusable, Some(gone.clone()), telling(0, &tx));
        workers.offer_while_wanted(mailbox(), Need::Refusable, Some(there), telling(1, &tx));
        workers.offer_while_wanted(mailbox(), Need::Refusable, None, telling(2, &tx));
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
        workers.offer_while_wanted(
            Place::Mailbox("last".into()),
            Need::Refusable,
            Some(gone.clone()),
            telling(0, &tx),
        );
        workers.drop_unwanted();
        assert_eq!(rx.recv(), Ok(0), "there was a thread left");
        held.push(hold(&workers, Place::Mailbox("last".into())));
        workers.offer_while_wanted(
            Place::Mailbox("b".into()),
            Need::Refusable,
            Some(gone.clone()),
            telling(1, &tx),
        );
        workers.offer_while_wanted(Place::Mailbox("b".into()), Need::Refusable, None, telling(2, &tx));
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
        workers.run(Place::Aside("a".into()), move || tx.send("aside").unwrap());
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
        workers.run(Place::Aside("a".into()), move || aside.send(()).unwrap());
        rx.recv().unwrap();
        workers.run(Place::Mailbox("a".into()), move || tx.send(()).unwrap());
        rx.recv().unwrap();
        workers.finish(Duration::from_millis(1));
        assert!(!lock(&workers.0.state).is_idle());
        drop(held);
        workers.finish(Duration::from_mins(1));
        assert!(lock(&workers.0.state).is_idle());
    }

    #[test]
    fn what_hangs_in_one_lane_leaves_the_others_going_and_so_do_the_signals_that_hang_the_questions() {
        let workers = Workers::default();
        let gate = Arc::new(Mutex::new(()));
        let held = gate.lock().unwrap();
        let hang = |place: Place| {
            let gate = gate.clone();
            workers.run(place, move || drop(gate.lock().unwrap()));
        };
        for n in 0..64 {
            hang(Place::Aside("kill a".into()));
            hang(Place::Look("state a".into()));
            // So many lanes that all signals wait.
            hang(Place::Aside(format!("kill {n}")));
        }
        let (tx, rx) = mpsc::channel();
        for lane in ["state b", "connect a"] {
            let tx = tx.clone();
            workers.run(Place::Look(lane.into()), move || tx.send(lane).unwrap());
        }
        let mut seen = [rx.recv().unwrap(), rx.recv().unwrap()];
        seen.sort_unstable();
        assert_eq!(seen, ["connect a", "state b"]);
        workers.run(Place::Aside("kill a".into()), move || tx.send("at last").unwrap());
        drop(held);
        assert_eq!(rx.recv(), Ok("at last"));
        assert!(workers.finish(Duration::from_mins(1)));
        assert!(lock(&workers.0.state).lanes.is_empty());
    }
}
