//! Ends and signals: what happens when a process has ended, and how it is made to (contract 6.5).

use std::sync::Arc;
use std::time::Duration;

use super::Shim;
use super::processes::{Rest, Told};
use super::state::Phase;
use super::table::Entry;
use super::{Managed, author, memory};
use crate::api::{Container, Running, Target};
use crate::crash;
use crate::error::{Code, Result};
use crate::types::{Exit, Signal};
use crate::workers::Place;

/// How long what can only be asked to stop has for it after a SIGKILL, before it is given up.
const GRACE: Duration = Duration::from_secs(5);
/// How long a container that was frozen has to die of a SIGKILL before it is thawed.
const FROZEN: Duration = Duration::from_millis(200);

impl<S: Shim> Managed<S> {
    /// Has the end of a process noticed. One that came before is noticed at once.
    pub(super) fn follow(&self, entry: &Arc<Entry<S::Container>>, exec: Option<&str>, running: &Running) {
        let (managed, entry, exec) = (self.clone(), entry.clone(), exec.map(str::to_owned));
        running.exit.on_exit(move |exit| managed.process_ended(&entry, exec.as_deref(), exit));
    }

    /// Runs on whatever thread notices, the main thread above all, so nothing here may block.
    pub(super) fn process_ended(&self, entry: &Arc<Entry<S::Container>>, exec: Option<&str>, exit: Exit) {
        if exec.is_none() {
            memory::stop_watching(entry);
            // Before any event can tell of it, so that `delete` tells the same after a crash.
            entry.note(|record| record.exit = Some(exit.into()));
            crash::here("exit.recorded");
        }
        let streams = entry.processes().ended(exec, exit);
        // Its output comes first: whoever waits for it hangs up when the exit is told (contract 5.3).
        if let Some(streams) = streams {
            let (managed, entry, exec) = (self.clone(), entry.clone(), exec.map(str::to_owned));
            streams.on_delivered(move || managed.delivered(&entry, exec.as_deref()));
        }
        self.settle(entry);
    }

    fn delivered(&self, entry: &Arc<Entry<S::Container>>, exec: Option<&str>) {
        entry.processes().delivered(exec);
        self.settle(entry);
    }

    /// Publishes the exits that nothing holds back, and has that looked after which holds the init's.
    pub(super) fn settle(&self, entry: &Arc<Entry<S::Container>>) {
        let (told, rest, is_unwanted) = {
            let mut processes = entry.processes();
            let was_over = processes.init.exit.is_some();
            let (told, rest) = processes.settle(&self.0.events);
            let is_over = processes.init.exit.is_some();
            (told, rest, processes.abandoned && is_over && !was_over)
        };
        if !told.is_empty() {
            crash::here("exit.queued");
        }
        tell(told);
        entry.notify_settled();
        if is_unwanted {
            self.delete_abandoned(entry);
        }
        if let Some(rest) = rest {
            self.end_later(entry, rest);
        }
    }

    /// The init is gone, and author code ends what it has left; then its exit is published (contract 6.5, 4).
    pub(super) fn end_later(&self, entry: &Arc<Entry<S::Container>>, rest: Rest) {
        // A pause may be under way, and resuming keeps its turn.
        let place = if rest.frozen {
            Place::of_process(&entry.id, "")
        } else {
            Place::Aside(format!("rest of {}", entry.id))
        };
        let (managed, ended) = (self.clone(), entry.clone());
        self.0.workers.insist(place, move || managed.end_rest(&ended, rest));
        let Ok(supervisor) = self.0.context.supervisor() else { return };
        // Author code may hang, which the exit is not held for in the end, nor the shim for this.
        let (managed, entry) = (self.clone(), Arc::downgrade(entry));
        supervisor.main().post(move |events| {
            events.after(GRACE, move |_| {
                if let Some(entry) = entry.upgrade() {
                    managed.rest_ended(&entry);
                }
            });
        });
    }

    fn end_rest(&self, entry: &Arc<Entry<S::Container>>, rest: Rest) {
        if rest.frozen && entry.processes().init.phase == Phase::Paused {
            // What is frozen cannot die (contract 11.5).
            resume_killed(entry);
        }
        if rest.alive {
            self.kill_the_rest(entry);
        }
        self.rest_ended(entry);
    }

    fn rest_ended(&self, entry: &Arc<Entry<S::Container>>) {
        entry.processes().rest_ended();
        self.settle(entry);
    }

    pub(super) fn kill_the_rest(&self, entry: &Arc<Entry<S::Container>>) {
        if let Err(error) = self.send_signal(entry, "", Signal::KILL, true)
            && error.code() != Code::NotFound
        {
            log::warn!("cannot end what is left of container `{}`: {error}", entry.id);
        }
    }

    /// Kills a process of which there may be nothing yet to be killed: one that is being started gets the signal
    /// once it runs (contract 6.5, 3), and one that only would be made by its start never is.
    pub(super) fn kill_process(
        &self,
        entry: &Arc<Entry<S::Container>>,
        exec: &str,
        signal: Signal,
        all: bool,
    ) -> Result<()> {
        let is_made = entry.processes().get(exec)?.running.is_some();
        let sent = self.send_signal(entry, exec, signal, all);
        let unknown = sent.as_ref().is_err_and(|error| error.code() == Code::NotFound);
        if is_made || !(unknown || sent.is_ok()) {
            return sent;
        }
        let exit = Exit::now(128 + signal.number().unsigned_abs());
        {
            let mut processes = entry.processes();
            let process = processes.get(exec)?;
            match process.phase {
                Phase::Starting if unknown && process.running.is_none() => {
                    process.signal_early(signal, all);
                    return Ok(());
                }
                Phase::Created if exec.is_empty() && matches!(signal, Signal::KILL | Signal::TERM) => {
                    processes.ended(None, exit);
                }
                Phase::Running if unknown => {
                    drop(processes);
                    return self.send_signal(entry, exec, signal, all);
                }
                _ => return sent,
            }
        }
        self.process_ended(entry, None, exit);
        Ok(())
    }

    /// Sends a signal to a process, or with `all` to every process of the container.
    pub(super) fn send_signal(
        &self,
        entry: &Arc<Entry<S::Container>>,
        exec: &str,
        signal: Signal,
        all: bool,
    ) -> Result<()> {
        let target = entry.processes().target(exec)?.with_all(all);
        let container = entry.container()?;
        let _inside = entry.calls.enter();
        author(|| container.kill(&target, signal))?;
        if signal == Signal::KILL {
            self.give_up_later(&target);
            if exec.is_empty() {
                self.thaw_later(entry);
            }
        }
        Ok(())
    }

    /// A container that was frozen may not die of its SIGKILL: cgroups of version 1 keep it until they are thawed,
    /// which not every engine does.
    fn thaw_later(&self, entry: &Arc<Entry<S::Container>>) {
        let running = {
            let processes = entry.processes();
            processes.init.running.clone().filter(|_| processes.init.phase == Phase::Paused)
        };
        let Some(running) = running else { return };
        let entry = entry.clone();
        self.0.workers.run(Place::of_process(&entry.id, ""), move || {
            if running.exit.wait_for(FROZEN).is_none() && entry.processes().init.phase == Phase::Paused {
                resume_killed(&entry);
            }
        });
    }

    /// What can only be asked to stop, and does not, is reported as killed and left behind.
    fn give_up_later(&self, target: &Target<'_>) {
        let Ok(supervisor) = self.0.context.supervisor() else { return };
        for exit in target.only_stopping() {
            supervisor.main().post(move |events| {
                events.after(GRACE, move |_| exit.set(Exit::now(128 + Signal::KILL.number() as u32)));
            });
        }
    }
}

/// Lets what was killed die.
fn resume_killed<C: Container>(entry: &Entry<C>) {
    let resumed = entry.container().and_then(|container| author(|| container.resume()));
    if let Err(error) = resumed {
        log::info!("cannot resume container `{}`, which was killed: {error}", entry.id);
    }
}

/// Answers those who waited, once no lock is held.
pub(super) fn tell(told: Told) {
    for (waiters, response) in told {
        waiters.answer(&response);
    }
}
