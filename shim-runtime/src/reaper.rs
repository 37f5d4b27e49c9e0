//! Knows which child is whose, and hands each exit to its one owner.
//! Children are registered by the thread that forks and reaps, so no exit can come before its owner; those
//! that a runtime command leaves behind are claimed from the exits seen since a [`Guard`] was taken.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::sync::lock;
use crate::sys;
use crate::types::{Exit, Pid, Signal};

type Callback = Box<dyn FnOnce(Exit) + Send>;

/// Where one exit arrives, once, and from where it is fetched: by waiting, or by callbacks.
#[derive(Clone, Default)]
pub(crate) struct ExitSlot(Arc<Slot>);

#[derive(Default)]
struct Slot {
    state: Mutex<SlotState>,
    arrived: Condvar,
}

#[derive(Default)]
struct SlotState {
    exit: Option<Exit>,
    callbacks: Vec<Callback>,
    /// The callbacks have been called: those who wait may go on.
    told: bool,
}

impl ExitSlot {
    /// Delivers the exit, first to the callbacks in their order and then to those who wait; all but the first
    /// exit are dropped.
    pub(crate) fn set(&self, exit: Exit) {
        let callbacks = {
            let mut state = lock(&self.0.state);
            if state.exit.is_some() {
                return;
            }
            state.exit = Some(exit);
            std::mem::take(&mut state.callbacks)
        };
        for callback in callbacks {
            callback(exit);
        }
        lock(&self.0.state).told = true;
        self.0.arrived.notify_all();
    }

    /// The exit, if it has arrived.
    pub(crate) fn get(&self) -> Option<Exit> {
        lock(&self.0.state).exit
    }

    /// Calls back when the exit arrives, at once if it already has.
    pub(crate) fn on_exit(&self, callback: impl FnOnce(Exit) + Send + 'static) {
        let exit = {
            let mut state = lock(&self.0.state);
            let Some(exit) = state.exit else {
                state.callbacks.push(Box::new(callback));
                return;
            };
            exit
        };
        callback(exit);
    }

    /// Waits for the exit, at most until `deadline`.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> Option<Exit> {
        let mut state = lock(&self.0.state);
        while !state.told {
            state = match deadline {
                None => self.0.arrived.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left =
                        deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
                    let woken = self.0.arrived.wait_timeout(state, left);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        state.exit
    }

    /// Waits for the exit, at most for `limit`.
    pub(crate) fn wait_for(&self, limit: Duration) -> Option<Exit> {
        self.wait(Some(Instant::now() + limit))
    }
}

/// What is to happen to a child's process group when the child ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    /// Nothing: the group is not the child's own, or lives on.
    Keep,
    /// The rest of the group is killed. Done while the leader is a zombie, so that its number is still its own.
    Kill,
}

/// The children of this process that somebody waits for.
#[derive(Clone, Default)]
pub(crate) struct Reaper(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    watched: HashMap<Pid, (ExitSlot, Group)>,
    /// Exits that nobody was registered for, kept while a guard is held.
    unclaimed: HashMap<Pid, Exit>,
    guards: usize,
}

impl Reaper {
    /// Registers a child that the calling thread, which is the reaping one, has just forked.
    pub(crate) fn watch(&self, pid: Pid, slot: ExitSlot, group: Group) {
        lock(&self.0).watched.insert(pid, (slot, group));
    }

    /// From now until the guard is dropped, exits of unknown children are remembered for [`Guard::adopt`].
    pub(crate) fn guard(&self) -> Guard {
        lock(&self.0).guards += 1;
        Guard(self.clone())
    }

    /// Collects all children that have ended. Called on the main thread, after SIGCHLD.
    pub(crate) fn collect(&self) {
        while let Some(ended) = sys::next_ended() {
            let exit = Exit::from_wait_status(ended.raw_status());
            if let Some(slot) = self.take(&ended, exit) {
                slot.set(exit);
            }
        }
    }

    fn take(&self, ended: &sys::Ended, exit: Exit) -> Option<ExitSlot> {
        let mut state = lock(&self.0);
        let watched = state.watched.remove(&ended.pid);
        if let Some((_, Group::Kill)) = watched {
            let _ = sys::kill_group(ended.pid, Signal::KILL);
        }
        // Reaped under the lock: `signal` never reaches a number that has gone to another process.
        sys::reap(ended);
        if watched.is_none() && state.guards > 0 {
            state.unclaimed.insert(ended.pid, exit);
        }
        watched.map(|(slot, _)| slot)
    }

    /// Sends a signal to a child, or to the whole group it leads; never to a process that took over its pid.
    pub(crate) fn signal(&self, pid: Pid, signal: Signal, group: bool) -> Result<()> {
        let state = lock(&self.0);
        if !state.watched.contains_key(&pid) {
            return Err(finished(pid));
        }
        let sent = if group { sys::kill_group(pid, signal) } else { sys::kill(pid, signal) };
        sent.map_err(|error| match error.raw_os_error() {
            Some(libc::ESRCH) => finished(pid),
            _ => Error::from(error).context(format!("cannot send {signal} to process {pid}")),
        })
    }

    /// Kills all watched children and sees them to their end. For the thread that forked them, before it ends:
    /// its children would go to a thread that knows nothing of them.
    #[cfg(feature = "testing")]
    pub(crate) fn end_all(&self) {
        let children: Vec<Pid> = lock(&self.0).watched.keys().copied().collect();
        for pid in children {
            let Ok(process) = sys::watch_process(pid) else { continue };
            // A container's group goes with its leader; see `take`.
            let _ = self.signal(pid, Signal::KILL, false);
            let _ = crate::wait::ready_within(&process, nix::poll::PollFlags::POLLIN, Duration::from_secs(2));
        }
        self.collect();
    }

    /// How many children are watched.
    pub(crate) fn len(&self) -> usize {
        lock(&self.0).watched.len()
    }
}

fn finished(pid: Pid) -> Error {
    Error::not_found(format!("process already finished: {pid}"))
}

/// Held around a runtime command that leaves a child to this process.
pub(crate) struct Guard(Reaper);

impl Guard {
    /// Makes a process that a runtime command left behind one of ours. Its exit may have been seen already.
    pub(crate) fn adopt(&self, pid: Pid, slot: &ExitSlot) -> Result<()> {
        let claimed = {
            let mut state = lock(&self.0.0);
            // Its exit has gone, or will go, to whom it belongs.
            if state.watched.contains_key(&pid) {
                return Err(Error::failed_precondition(format!(
                    "process {pid} is known already: this shim has started or adopted it before"
                )));
            }
            // A living child is the newest process of that number; a remembered exit is then of an older one.
            if sys::is_child(pid) {
                state.watched.insert(pid, (slot.clone(), Group::Keep));
                return Ok(());
            }
            state.unclaimed.remove(&pid)
        };
        match claimed {
            Some(exit) => {
                slot.set(exit);
                Ok(())
            }
            None => Err(Error::failed_precondition(format!(
                "process {pid} is not a child of this shim, so its exit could not be seen"
            ))),
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut state = lock(&self.0.0);
        state.guards -= 1;
        if state.guards == 0 {
            state.unclaimed = HashMap::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_that_came_first_is_handed_to_a_later_callback() {
        let slot = ExitSlot::default();
        slot.set(Exit::now(3));
        slot.set(Exit::now(4));
        let (tx, rx) = std::sync::mpsc::channel();
        slot.on_exit(move |exit| tx.send(exit.status).unwrap());
        assert_eq!(rx.recv(), Ok(3));
    }

    #[test]
    fn everybody_who_asked_is_called_back_in_turn() {
        let slot = ExitSlot::default();
        let (tx, rx) = std::sync::mpsc::channel();
        for n in 0..2 {
            let tx = tx.clone();
            slot.on_exit(move |exit| tx.send((n, exit.status)).unwrap());
        }
        slot.set(Exit::now(3));
        assert_eq!([rx.recv(), rx.recv()], [Ok((0, 3)), Ok((1, 3))]);
    }

    #[test]
    fn a_stranger_cannot_be_adopted() {
        let reaper = Reaper::default();
        let error = reaper.guard().adopt(Pid::own(), &ExitSlot::default()).unwrap_err();
        assert!(error.to_string().contains("is not a child of this shim"), "{error}");
    }

    #[test]
    fn a_signal_to_an_unwatched_pid_is_not_sent() {
        let error = Reaper::default().signal(Pid::own(), Signal::KILL, false).unwrap_err();
        assert_eq!(error.code(), crate::Code::NotFound);
    }
}
