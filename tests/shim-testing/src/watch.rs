//! The judge: hears every event and every answer of the shim and notes the promises that were broken.
//! It knows what each process went through, and nothing of how it is driven.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use super::events::{Event, What};
use super::failure::Broken;
use super::launch::printable;
use super::process::Process;
use super::promise::{self, Level, Promise};
use super::timeline::Timeline;
use super::{clock, lock};
use shim_runtime::Pid;

/// How much later than the answer an event may be stamped: it is stamped when it is sent, by another thread.
const STAMP_TOLERANCE: Duration = Duration::from_millis(100);

/// The judge of one run; clones share it.
#[derive(Clone)]
pub(crate) struct Watch {
    state: Arc<Mutex<State>>,
    timeline: Timeline,
}

#[derive(Default)]
struct State {
    broken: Vec<Broken>,
    refused: HashSet<String>,
    records: HashMap<(Name, u32), Record>,
    lives: HashMap<Name, Lives>,
    pids: Vec<Process>,
}

/// Container and exec; the exec of an init is empty.
type Name = (String, String);

/// An id may be used anew once its process was deleted. Events come later than answers, so the two sides
/// count the lives on their own and meet in the record of the same number.
#[derive(Clone, Copy, Default)]
struct Lives {
    called: u32,
    told: u32,
}

/// What is known of one process: of the calls that succeeded and of the events.
#[derive(Default)]
struct Record {
    called: Calls,
    told: Told,
    pid: Option<u32>,
    exit: Option<(&'static str, Exit)>,
}

#[derive(Default)]
struct Calls {
    created: bool,
    started: bool,
    deleted: bool,
}

#[derive(Default)]
struct Told {
    created: bool,
    started: bool,
    exits: u32,
    deleted: bool,
}

/// An exit as some answer or event told it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) status: u32,
    pub(crate) at: Option<SystemTime>,
}

/// A call that succeeded, as far as the judge cares.
pub(crate) enum Answer {
    Created { pid: u32 },
    ExecAdded,
    Started { pid: u32 },
    Exited { source: &'static str, exit: Exit },
    Deleted { pid: u32, exit: Exit },
}

impl Watch {
    pub(crate) fn new(timeline: Timeline) -> Self {
        Self { state: Arc::default(), timeline }
    }

    /// Notes a broken promise.
    pub(crate) fn report(
        &self,
        promise: &'static Promise,
        seen: impl Into<String>,
        expected: impl Into<String>,
    ) {
        let broken = Broken { promise, seen: seen.into(), expected: expected.into() };
        self.note(&mut lock(&self.state), broken);
    }

    fn note(&self, state: &mut State, broken: Broken) {
        self.timeline.note(format!("broken promise {}: {}", broken.promise, printable(&broken.seen)));
        state.broken.push(broken);
    }

    /// What was broken so far, the binding promises first.
    pub(crate) fn broken(&self) -> Vec<Broken> {
        let mut broken = lock(&self.state).broken.clone();
        broken.sort_by_key(|broken| broken.promise.level);
        broken
    }

    /// The binding promises that were broken so far.
    pub(crate) fn broken_musts(&self) -> Vec<Broken> {
        self.broken().into_iter().filter(|broken| broken.promise.level == Level::Must).collect()
    }

    /// The processes that the shim told of, held since they were.
    pub(crate) fn with_processes<T>(&self, look: impl FnOnce(&[Process]) -> T) -> T {
        look(&lock(&self.state).pids)
    }

    /// Hears of an event.
    pub(crate) fn event(&self, event: &Event) {
        let mut state = lock(&self.state);
        let found = state.judge_event(event);
        for broken in found {
            self.note(&mut state, broken);
        }
    }

    /// Hears of the answer to a call for a process; `exec` is empty for the init.
    pub(crate) fn answer(&self, container: &str, exec: &str, answer: &Answer) {
        let mut state = lock(&self.state);
        let found = state.judge_answer(container, exec, answer);
        for broken in found {
            self.note(&mut state, broken);
        }
    }

    /// Hears of a Create that failed.
    pub(crate) fn refused(&self, container: &str) {
        let mut state = lock(&self.state);
        let told = &state.told(container, "").told;
        if told.created || told.exits > 0 {
            let seen = format!("an event of `{container}` whose Create failed");
            self.note(&mut state, broken(promise::EVENT_NONE_IF_REFUSED, seen, "none"));
        }
        state.refused.insert(container.to_owned());
    }

    /// Holds the event of a call to the call's return. `returned` is when the answer came.
    pub(crate) fn stamped_before(&self, event: &Event, returned: SystemTime) {
        if event.stamped > returned + STAMP_TOLERANCE {
            let seen =
                format!("`{event}` stamped {}, Create answered {}", clock(event.stamped), clock(returned));
            self.report(promise::EVENT_CREATE_BEFORE_RETURN, seen, "the event first");
        }
    }

    /// What events the calls so far still lack for those processes, as promises with the short form of the event.
    pub(crate) fn owed(&self, whose: impl Fn(&str, &str) -> bool) -> Vec<(&'static Promise, String)> {
        let state = lock(&self.state);
        state
            .records
            .iter()
            .filter(|(((container, exec), _), _)| whose(container, exec))
            .flat_map(|(((container, exec), _), record)| record.owed(container, exec))
            .collect()
    }

    /// Forgets those processes, but for what is broken and for those that live.
    pub(crate) fn forget(&self, whose: impl Fn(&str, &str) -> bool) {
        let mut state = lock(&self.state);
        let state = &mut *state;
        let is_theirs = |name: &Name| whose(&name.0, &name.1);
        let forgotten = state.records.extract_if(|(name, _), _| is_theirs(name));
        let pids: HashSet<_> = forgotten.filter_map(|(_, record)| record.pid).collect();
        state.pids.retain(|process| !pids.contains(&process.pid().get()) || process.is_alive());
        state.lives.retain(|name, _| !is_theirs(name));
        state.refused.retain(|container| !whose(container, ""));
    }
}

fn broken(promise: &'static Promise, seen: impl Into<String>, expected: impl Into<String>) -> Broken {
    Broken { promise, seen: seen.into(), expected: expected.into() }
}

impl State {
    /// The record that events of the process belong to now.
    fn told(&mut self, container: &str, exec: &str) -> &mut Record {
        let key = (container.to_owned(), exec.to_owned());
        let life = self.lives.get(&key).copied().unwrap_or_default().told;
        self.records.entry((key, life)).or_default()
    }

    /// The record that answers about the process belong to now.
    fn called(&mut self, container: &str, exec: &str) -> &mut Record {
        let key = (container.to_owned(), exec.to_owned());
        let life = self.lives.get(&key).copied().unwrap_or_default().called;
        self.records.entry((key, life)).or_default()
    }

    fn lives(&mut self, container: &str, exec: &str) -> &mut Lives {
        self.lives.entry((container.to_owned(), exec.to_owned())).or_default()
    }

    fn judge_event(&mut self, event: &Event) -> Vec<Broken> {
        let (container, exec) = (event.container.as_str(), event.exec.as_str());
        let mut found = Vec::new();
        if self.refused.contains(container) {
            let seen = format!("`{event}`, and Create failed");
            found.push(broken(promise::EVENT_NONE_IF_REFUSED, seen, "no event"));
        }
        let told = &self.told(container, exec).told;
        // No event tells that an exec was deleted (contract 6.4), so a second exec-added begins its new life.
        let anew = match event.what {
            What::Create { .. } => told.deleted,
            What::ExecAdded => told.created,
            _ => false,
        };
        if anew {
            self.lives(container, exec).told += 1;
        }
        let init = self.told(container, "");
        let (init_created, init_exited) = (init.told.created, init.told.exits > 0);
        if init.told.deleted && !matches!(event.what, What::Create { .. } | What::Other) {
            found.push(broken(
                promise::EVENT_DELETE_AFTER_EXIT,
                format!("`{event}` after the delete event"),
                "no further event",
            ));
        }
        if !exec.is_empty() {
            let exec_event = matches!(event.what, What::ExecAdded | What::ExecStarted { .. });
            if exec_event && !init_created {
                found.push(broken(
                    promise::EVENT_EXEC_ORDER,
                    format!("`{event}` before `create {container}`"),
                    "create first",
                ));
            }
            if init_exited && matches!(event.what, What::Exit { .. }) {
                found.push(broken(
                    promise::EVENT_INIT_EXIT_LAST,
                    format!("`{event}` after the exit of the init"),
                    "the init's exit last",
                ));
            }
        }
        self.told(container, exec).judge_event(event, &mut found);
        found
    }

    fn judge_answer(&mut self, container: &str, exec: &str, answer: &Answer) -> Vec<Broken> {
        if let Answer::Created { pid } | Answer::Started { pid } = *answer {
            let held = self.pids.iter().any(|process| process.pid().get() == pid && process.is_alive());
            let opened = Pid::new(pid).filter(|_| !held).and_then(|pid| Process::open(pid).ok());
            self.pids.extend(opened);
        }
        let name = name(container, exec);
        if let Answer::Created { .. } = answer {
            self.refused.remove(container);
        }
        let begins = matches!(answer, Answer::Created { .. } | Answer::ExecAdded);
        if begins && self.called(container, exec).called.deleted {
            self.lives(container, exec).called += 1;
        }
        let record = self.called(container, exec);
        let mut found = Vec::new();
        match *answer {
            Answer::Created { pid } => {
                record.called.created = true;
                found.extend(record.same_pid(pid, &name, "Create"));
            }
            Answer::ExecAdded => record.called.created = true,
            Answer::Started { pid } => {
                record.called.started = true;
                found.extend(record.same_pid(pid, &name, "Start"));
            }
            Answer::Exited { source, exit } => found.extend(record.same_exit(&name, source, exit)),
            Answer::Deleted { pid, exit } => {
                record.called.deleted = true;
                if record.called.started {
                    found.extend(record.same_pid(pid, &name, "Delete"));
                    found.extend(record.same_exit(&name, "Delete", exit));
                }
            }
        }
        found
    }
}

fn name(container: &str, exec: &str) -> String {
    if exec.is_empty() { container.to_owned() } else { format!("{container}/{exec}") }
}

impl Record {
    fn judge_event(&mut self, event: &Event, found: &mut Vec<Broken>) {
        let name = name(&event.container, &event.exec);
        match event.what {
            What::Create { pid, .. } => {
                if self.told.created {
                    found.push(broken(promise::EVENT_CREATE, format!("a second `{event}`"), "one"));
                }
                self.told.created = true;
                found.extend(self.same_pid(pid, &name, "the create event"));
            }
            What::ExecAdded => self.told.created = true,
            What::Start { pid } => {
                self.judge_start(event, promise::EVENT_START_AFTER_CREATE, found);
                found.extend(self.same_pid(pid, &name, "the start event"));
            }
            What::ExecStarted { pid } => {
                self.judge_start(event, promise::EVENT_EXEC_ORDER, found);
                found.extend(self.same_pid(pid, &name, "the exec-started event"));
            }
            What::Exit { pid, status, at } => {
                self.told.exits += 1;
                if self.told.exits > 1 {
                    found.push(broken(
                        promise::EVENT_ONE_EXIT,
                        format!("exit number {} of {name}", self.told.exits),
                        "one",
                    ));
                }
                // An init may die between Create and Start; an exec cannot end before it was started.
                let begun = if event.exec.is_empty() { self.told.created } else { self.told.started };
                if !begun {
                    found.push(broken(
                        promise::EVENT_EXIT_AFTER_START,
                        format!("`{event}` with no start before"),
                        "start first",
                    ));
                }
                found.extend(self.same_pid(pid, &name, "the exit event"));
                found.extend(self.same_exit(&name, "the exit event", Exit { status, at }));
            }
            What::Delete { pid, status, at } => self.judge_delete(event, pid, Exit { status, at }, found),
            _ => {}
        }
    }

    fn judge_start(&mut self, event: &Event, order: &'static Promise, found: &mut Vec<Broken>) {
        if !self.told.created {
            found.push(broken(order, format!("`{event}` with no create or exec-added before"), "that first"));
        }
        if self.told.started {
            found.push(broken(order, format!("a second `{event}`"), "one"));
        }
        if self.told.exits > 0 {
            found.push(broken(
                promise::EVENT_EXIT_AFTER_START,
                format!("`{event}` after the exit event"),
                "start first",
            ));
        }
        self.told.started = true;
    }

    fn judge_delete(&mut self, event: &Event, pid: u32, exit: Exit, found: &mut Vec<Broken>) {
        let ended = self.told.exits > 0 || !self.told.started;
        if !ended || self.told.deleted {
            let before = if self.told.deleted { "a delete event" } else { "no exit" };
            let seen = format!("`{event}` with {before} before");
            found.push(broken(promise::EVENT_DELETE_AFTER_EXIT, seen, "one delete event after the exit"));
        }
        self.told.deleted = true;
        if self.told.exits > 0 {
            let name = name(&event.container, &event.exec);
            found.extend(self.same_pid(pid, &name, "the delete event"));
            found.extend(self.same_exit(&name, "the delete event", exit));
        }
    }

    fn same_pid(&mut self, pid: u32, name: &str, source: &str) -> Option<Broken> {
        // One that is restored has none before its start (contract 6.3, Create).
        self.pid = self.pid.filter(|known| *known != 0);
        let known = *self.pid.get_or_insert(pid);
        (known != pid).then(|| {
            broken(
                promise::EVENT_PID,
                format!("pid {pid} of {name} in {source}"),
                format!("{known} as before"),
            )
        })
    }

    fn same_exit(&mut self, name: &str, source: &'static str, exit: Exit) -> Vec<Broken> {
        let (first, known) = *self.exit.get_or_insert((source, exit));
        let mut found = Vec::new();
        if known.status != exit.status {
            let seen = format!("status {} of {name} in {source}", exit.status);
            found.push(broken(promise::EXIT_SAME_STATUS, seen, format!("{} as in {first}", known.status)));
        }
        if known.at != exit.at {
            let time = |at: Option<SystemTime>| at.map_or_else(|| "none".to_owned(), clock);
            let seen = format!("time {} of {name} in {source}", time(exit.at));
            found.push(broken(promise::EXIT_SAME_TIME, seen, format!("{} as in {first}", time(known.at))));
        }
        found
    }

    fn owed(&self, container: &str, exec: &str) -> Vec<(&'static Promise, String)> {
        let (called, told) = (&self.called, &self.told);
        let init = exec.is_empty();
        let [create, start] = if init { ["create", "start"] } else { ["exec-added", "exec-started"] };
        let order = if init { promise::EVENT_START_AFTER_CREATE } else { promise::EVENT_EXEC_ORDER };
        let create_promise = if init { promise::EVENT_CREATE } else { promise::EVENT_EXEC_ORDER };
        let ended = called.started && self.exit.is_some();
        // Deletion of an exec is told by better shims only (contract 6.4).
        [
            (called.created && !told.created, create_promise, create),
            (called.started && !told.started, order, start),
            (ended && told.exits == 0, promise::EVENT_ONE_EXIT, "exit"),
            (init && called.deleted && !told.deleted, promise::EVENT_DELETE_AFTER_EXIT, "delete"),
        ]
        .into_iter()
        .filter(|(owed, ..)| *owed)
        .map(|(_, promise, event)| (promise, format!("{event} {}", name(container, exec))))
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const AT: Option<SystemTime> = Some(SystemTime::UNIX_EPOCH);

    fn event(topic: &str, exec: &str, what: What) -> Event {
        Event {
            arrived: Instant::now(),
            stamped: SystemTime::UNIX_EPOCH,
            topic: format!("/tasks/{topic}"),
            container: "c1".into(),
            exec: exec.into(),
            what,
        }
    }

    fn create() -> Event {
        event("create", "", What::Create { bundle: String::new(), pid: 7 })
    }
    fn start() -> Event {
        event("start", "", What::Start { pid: 7 })
    }
    fn exit() -> Event {
        event("exit", "", What::Exit { pid: 7, status: 3, at: AT })
    }
    fn delete() -> Event {
        event("delete", "", What::Delete { pid: 7, status: 3, at: AT })
    }
    fn added() -> Event {
        event("exec-added", "e1", What::ExecAdded)
    }
    fn exec_started() -> Event {
        event("exec-started", "e1", What::ExecStarted { pid: 8 })
    }
    fn exec_exit() -> Event {
        event("exit", "e1", What::Exit { pid: 8, status: 0, at: AT })
    }

    /// The names of what these events, in this order, break.
    fn judge(events: &[Event]) -> Vec<&'static str> {
        let watch = Watch::new(Timeline::new());
        for event in events {
            watch.event(event);
        }
        watch.broken().iter().map(|broken| broken.promise.name).collect()
    }

    #[test]
    fn a_proper_life_breaks_nothing_and_an_id_may_be_used_anew() {
        let life = [create(), added(), start(), exec_started(), exec_exit(), exit(), delete()];
        assert_eq!(judge(&life), [""; 0]);
        assert_eq!(judge(&[create(), exit(), delete()]), [""; 0], "died before Start");
        assert_eq!(judge(&[create(), delete()]), [""; 0], "never started");
        assert_eq!(
            judge(&[create(), start(), exit(), delete(), create(), start(), exit(), delete()]),
            [""; 0]
        );
    }

    #[test]
    fn each_wrong_order_is_named() {
        assert_eq!(judge(&[start()]), ["event.start-after-create"]);
        assert_eq!(judge(&[create(), create()]), ["event.create"]);
        assert_eq!(judge(&[create(), exit(), start()]), ["event.exit-after-start"]);
        assert_eq!(judge(&[create(), start(), exit(), exit()]), ["event.one-exit"]);
        assert_eq!(judge(&[create(), start(), delete()]), ["event.delete-after-exit"]);
        assert_eq!(judge(&[create(), start(), exit(), delete(), delete()]).len(), 2);
        assert_eq!(judge(&[added()]), ["event.exec-order"]);
        assert_eq!(judge(&[create(), exec_started()]), ["event.exec-order"]);
        assert_eq!(
            judge(&[create(), start(), added(), exec_started(), exit(), exec_exit()]),
            ["event.init-exit-last"]
        );
        assert_eq!(judge(&[create(), added(), exec_exit()]), ["event.exit-after-start"]);
        let other_pid = event("start", "", What::Start { pid: 9 });
        assert_eq!(judge(&[create(), other_pid]), ["event.pid"]);
    }

    #[test]
    fn status_and_time_of_an_exit_are_compared_across_sources() {
        let watch = Watch::new(Timeline::new());
        watch.event(&create());
        watch.event(&start());
        watch.answer("c1", "", &Answer::Exited { source: "Wait", exit: Exit { status: 3, at: AT } });
        watch.event(&exit());
        assert_eq!(watch.broken(), []);
        let late = AT.map(|at| at + Duration::from_nanos(1));
        watch.answer("c1", "", &Answer::Exited { source: "State", exit: Exit { status: 3, at: late } });
        watch.answer("c1", "", &Answer::Exited { source: "State", exit: Exit { status: 4, at: AT } });
        let names: Vec<_> = watch.broken().iter().map(|broken| broken.promise.name).collect();
        assert_eq!(names, ["exit.same-time-everywhere", "exit.same-status-everywhere"]);
    }

    #[test]
    fn a_refused_create_must_stay_without_events() {
        let watch = Watch::new(Timeline::new());
        watch.refused("c1");
        watch.answer("c1", "", &Answer::Created { pid: 7 });
        watch.event(&create());
        assert_eq!(watch.broken(), []);
        for late in [false, true] {
            let watch = Watch::new(Timeline::new());
            if late {
                watch.event(&create());
            }
            watch.refused("c1");
            if !late {
                watch.event(&create());
            }
            assert_eq!(watch.broken()[0].promise.name, "event.none-if-refused");
        }
    }

    #[test]
    fn calls_that_succeeded_owe_their_events() {
        let watch = Watch::new(Timeline::new());
        watch.answer("c1", "", &Answer::Created { pid: 7 });
        watch.answer("c1", "", &Answer::Started { pid: 7 });
        let owed: Vec<_> = watch.owed(|_, _| true).into_iter().map(|(_, event)| event).collect();
        assert_eq!(owed, ["create c1", "start c1"]);
        watch.event(&create());
        watch.event(&start());
        assert_eq!(watch.owed(|_, _| true), []);
    }

    #[test]
    fn a_process_that_was_forgotten_owes_nothing_and_may_live_again() {
        let watch = Watch::new(Timeline::new());
        watch.answer("c1", "", &Answer::Created { pid: Pid::own().get() });
        watch.answer("c2", "", &Answer::Created { pid: 7 });
        watch.forget(|container, _| container == "c1");
        let owed: Vec<_> = watch.owed(|_, _| true).into_iter().map(|(_, event)| event).collect();
        assert_eq!(owed, ["create c2"]);
        watch.with_processes(|all| assert!(all.iter().any(|process| process.pid() == Pid::own())));
        watch.answer("c1", "", &Answer::Created { pid: 8 });
        assert_eq!(watch.broken(), []);
    }
}
