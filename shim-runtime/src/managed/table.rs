//! The containers of a shim by id, and what is remembered of those that were deleted.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use super::calls::Calls;
use super::processes::Processes;
use crate::api::{Container, CreateTaskRequest, DeleteResponse};
use crate::bundle::{Bundle, Record};
use crate::cgroup::OomWatch;
use crate::error::{Error, Result};
use crate::lifetime::Hold;
use crate::sync::lock;
use crate::workers::Authored;

/// How many deletions are remembered, for callers that did not get their answer.
const TOMBSTONES: usize = 256;

/// A container and its processes.
pub(super) struct Entry<C: Container> {
    pub(super) id: String,
    pub(super) bundle: Bundle,
    /// Set once author code has made it.
    pub(super) container: OnceLock<Authored<C>>,
    processes: Mutex<Processes>,
    /// Something was settled among the processes.
    settled: Condvar,
    /// What the bundle tells after our death.
    pub(super) record: Mutex<Record>,
    /// While its init lives.
    pub(super) memory: Mutex<Option<OomWatch>>,
    pub(super) calls: Calls,
    _hold: Hold,
}

impl<C: Container> Entry<C> {
    /// Locked for look-ups and changes of state, never across a system call that may block.
    pub(super) fn processes(&self) -> MutexGuard<'_, Processes> {
        lock(&self.processes)
    }

    /// Waits, at most for `limit`, until something is so among the processes; returns whether it is.
    pub(super) fn wait_until(&self, limit: Duration, is_so: impl Fn(&Processes) -> bool) -> bool {
        let waited = self.settled.wait_timeout_while(self.processes(), limit, |processes| !is_so(processes));
        let (processes, _) = waited.unwrap_or_else(PoisonError::into_inner);
        is_so(&processes)
    }

    /// Has whoever waits for the processes look at them again.
    pub(super) fn notify_settled(&self) {
        self.settled.notify_all();
    }

    /// Changes what the bundle tells after our death. A bundle that its daemon has taken away tells nothing.
    pub(super) fn note(&self, change: impl FnOnce(&mut Record)) {
        let mut record = lock(&self.record);
        change(&mut record);
        if let Err(error) = self.bundle.write_record(&record)
            && self.bundle.path().exists()
        {
            log::warn!("{error}");
        }
    }

    /// The author's container, which exists once Create has been answered.
    pub(super) fn container(&self) -> Result<&C> {
        let container = self.container.get().map(|container| &**container);
        container.ok_or_else(|| Error::not_found(format!("container `{}` is being created", self.id)))
    }
}

/// See the module.
pub(super) struct Table<C: Container> {
    state: Mutex<State<C>>,
}

struct State<C: Container> {
    entries: HashMap<String, Arc<Entry<C>>>,
    tombstones: VecDeque<(String, DeleteResponse)>,
}

impl<C: Container> Default for Table<C> {
    fn default() -> Self {
        Self { state: Mutex::new(State { entries: HashMap::new(), tombstones: VecDeque::new() }) }
    }
}

impl<C: Container> Table<C> {
    /// Takes the id of a container that is about to be created. An earlier one of the same id is forgotten.
    pub(super) fn reserve(&self, request: &CreateTaskRequest, hold: Hold) -> Result<Arc<Entry<C>>> {
        let id = &request.id;
        let mut state = lock(&self.state);
        if state.entries.contains_key(id) {
            return Err(Error::already_exists(format!("container `{id}` exists")));
        }
        state.tombstones.retain(|(known, _)| known != id);
        let entry = Arc::new(Entry {
            id: id.clone(),
            bundle: Bundle::new(&request.bundle),
            container: OnceLock::new(),
            processes: Mutex::new(Processes::new(id, request)),
            settled: Condvar::new(),
            record: Mutex::default(),
            memory: Mutex::default(),
            calls: Calls::default(),
            _hold: hold,
        });
        state.entries.insert(id.clone(), entry.clone());
        Ok(entry)
    }

    /// A container, as soon as there is one: while author code still makes it, callers are told what they are told
    /// before its Create (contract 6.3).
    pub(super) fn find(&self, id: &str) -> Result<Arc<Entry<C>>> {
        let found = lock(&self.state).entries.get(id).cloned();
        let entry = found.ok_or_else(|| Error::not_found(format!("no container `{id}`")))?;
        entry.container()?;
        Ok(entry)
    }

    /// Forgets a container that was never finished.
    pub(super) fn forget(&self, id: &str) {
        let forgotten = lock(&self.state).entries.remove(id);
        drop(forgotten);
    }

    /// Forgets a container but for the answer to its Delete (contract 6.5, 10 and 11).
    pub(super) fn bury(&self, id: &str, answer: &DeleteResponse) {
        let forgotten = {
            let mut state = lock(&self.state);
            if state.tombstones.len() == TOMBSTONES {
                state.tombstones.pop_front();
            }
            state.tombstones.push_back((id.to_owned(), answer.clone()));
            state.entries.remove(id)
        };
        drop(forgotten);
    }

    /// The answer to the Delete of a container that is gone.
    pub(super) fn tombstone(&self, id: &str) -> Option<DeleteResponse> {
        let state = lock(&self.state);
        let found = state.tombstones.iter().rev().find(|(known, _)| known == id);
        found.map(|(_, answer)| answer.clone())
    }
}
