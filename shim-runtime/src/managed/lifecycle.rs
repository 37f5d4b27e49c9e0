//! What happens between a call and its answer: author code is called, its result becomes a phase, an event,
//! an answer. The lock on a container's processes is taken before and after, never meanwhile.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::processes::{Rest, Told, wait_response};
use super::state::{Move, Phase};
use super::table::Entry;
use super::{Managed, author, memory};
use crate::api::{
    Container, Create, CreateTaskRequest, DeleteResponse, Exec, Kind, Running, Shim, Started, Target,
};
use crate::bundle::{InitRecord, Spec};
use crate::crash;
use crate::error::{Code, Error, Result, WithContext};
use crate::mount;
use crate::reaper::{Guard, lock};
use crate::server::Place;
use crate::spawn::Supervisor;
use crate::types::{Exit, Pid, Signal};

/// How long what can only be asked to stop has for it after a SIGKILL, before it is given up.
const GRACE: Duration = Duration::from_secs(5);
/// How long a process that is deleted before it was started has to die of its SIGKILL.
const DEATH: Duration = Duration::from_secs(5);
/// How long a container that was frozen has to die of a SIGKILL before it is thawed.
const FROZEN: Duration = Duration::from_millis(200);
/// When it is tried again to get a thread for what must be done.
const RETRY: Duration = Duration::from_secs(1);
/// How long a Delete lets signals and questions come back that are still under way.
const LATE_CALLS: Duration = Duration::from_secs(2);

impl<S: Shim> Managed<S> {
    /// Makes a container; returns its init's pid. On failure nothing is left of it, and no event tells of it.
    pub(super) fn create_container(&self, request: &CreateTaskRequest) -> Result<u32> {
        let id = &request.id;
        let entry = self.0.table.reserve(request, self.0.lifetime.hold())?;
        self.fill(&entry, request)
            .inspect_err(|_| {
                self.0.table.forget(id);
                entry.bundle.remove_record();
            })
            .context(|| format!("cannot create container `{id}`"))
    }

    fn fill(&self, entry: &Arc<Entry<S::Container>>, request: &CreateTaskRequest) -> Result<u32> {
        let supervisor = self.0.context.supervisor()?;
        crash::here("create.reserved");
        let guard = supervisor.guard();
        let names = entry.processes().init.names.clone();
        let (streams, stdio) = self.0.context.open_stdio(&request.id, names)?;
        let mut create = Create::new(self.0.context.clone(), request.clone(), stdio);
        let container = author(|| match request.checkpoint.as_str() {
            "" => self.0.shim.create(&mut create),
            image => self.0.shim.restore(&mut create, Path::new(image)),
        })?;
        streams.begin();
        // Read after author code, which may have changed it. One that cannot be read promises no namespace
        // (contract 6.5, 4).
        let spec = entry.bundle.spec().ok();
        crash::here("create.made");
        let running = register(supervisor, &guard, entry, &create, &container).inspect_err(|_| {
            let nobody = Target::new(None, None, Vec::new());
            if let Err(error) = author(|| container.delete(&nobody)) {
                log::warn!("cannot undo the creation of `{}`: {error}", entry.id);
            }
        })?;
        self.watch_memory(entry, running.as_deref());
        let restored = !request.checkpoint.is_empty();
        let pid = match running.as_ref().and_then(|running| running.pid) {
            Some(pid) => pid.get(),
            // Restored by start alone (contract 6.3, Create).
            None if restored => 0,
            None => Pid::own().get(),
        };
        crash::here("create.recorded");
        let leftover = create.finish();
        // Nobody else writes it: the id was reserved by this call.
        let _ = entry.container.set(container);
        {
            let mut processes = entry.processes();
            processes.shares_pids = spec.as_ref().is_none_or(Spec::shares_pids);
            let init = &mut processes.init;
            init.pid = pid;
            init.stdio = Some(leftover);
            init.connect(streams, spec.and_then(|spec| spec.process?.console_size));
            init.running.clone_from(&running);
            init.phase = Phase::Created;
            self.0.events.created(request, pid);
        }
        crash::here("create.queued");
        if let Some(running) = running {
            self.follow(entry, None, &running);
        }
        Ok(pid)
    }

    /// Has the end of a process noticed. One that came before is noticed at once.
    fn follow(&self, entry: &Arc<Entry<S::Container>>, exec: Option<&str>, running: &Running) {
        let (managed, entry, exec) = (self.clone(), entry.clone(), exec.map(str::to_owned));
        running.exit.on_exit(move |exit| managed.process_ended(&entry, exec.as_deref(), exit));
    }

    /// Runs on whatever thread notices, the main thread above all, so nothing here may block.
    fn process_ended(&self, entry: &Arc<Entry<S::Container>>, exec: Option<&str>, exit: Exit) {
        if exec.is_none() {
            memory::stop_watching(entry);
            // Before any event can tell of it, so that `delete` tells the same after a crash.
            let mut record = lock(&entry.record);
            record.exit = Some(exit.into());
            if let Err(error) = entry.bundle.write_record(&record) {
                log::warn!("{error}");
            }
            crash::here("exit.recorded");
        }
        entry.processes().ended(exec, exit);
        self.settle(entry);
        crash::here("exit.queued");
    }

    /// Publishes the exits that nothing holds back, and has that looked after which holds the init's.
    fn settle(&self, entry: &Arc<Entry<S::Container>>) {
        let (told, rest) = entry.processes().settle(&self.0.events);
        tell(told);
        if let Some(rest) = rest {
            self.end_later(entry, rest);
        }
    }

    /// The init is gone, and author code ends what it has left; then its exit is published (contract 6.5, 4).
    fn end_later(&self, entry: &Arc<Entry<S::Container>>, rest: Rest) {
        // A pause may be under way, and resuming keeps its turn.
        let place = if rest.frozen { Place::of_process(&entry.id, "") } else { Place::Aside };
        let (managed, ended) = (self.clone(), entry.clone());
        let taken = self.0.workers.offer(place, move || managed.end_rest(&ended, rest));
        let Ok(supervisor) = self.0.context.supervisor() else { return };
        let managed = self.clone();
        if taken {
            // Author code may hang, which the exit is not held for in the end, nor the shim for this.
            let entry = Arc::downgrade(entry);
            supervisor.main().post(move |events| {
                events.after(GRACE, move |_| {
                    if let Some(entry) = entry.upgrade() {
                        managed.rest_ended(&entry);
                    }
                });
            });
        } else {
            let entry = entry.clone();
            supervisor.main().post(move |events| {
                events.after(RETRY, move |_| managed.end_later(&entry, rest));
            });
        }
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

    fn kill_the_rest(&self, entry: &Arc<Entry<S::Container>>) {
        if let Err(error) = self.send_signal(entry, "", Signal::KILL, true)
            && error.code() != Code::NotFound
        {
            log::warn!("cannot end what is left of container `{}`: {error}", entry.id);
        }
    }

    /// Starts the init; returns its pid. If it cannot be started it stays what it is, or has ended meanwhile.
    pub(super) fn start_init(&self, id: &str) -> Result<u32> {
        let entry = self.0.table.find(id)?;
        let (stdio, created) = {
            let mut processes = entry.processes();
            processes.init.advance(Move::Start, Phase::Starting)?;
            (processes.init.stdio.take().unwrap_or_default(), processes.init.running.clone())
        };
        crash::here("start.begun");
        let run = || {
            let guard = self.0.context.supervisor()?.guard();
            let started = author(|| entry.container()?.start(stdio))?;
            self.resolve(started, created.as_ref(), &guard)
        };
        match run() {
            Ok(running) => {
                crash::here("start.running");
                Ok(self.started(&entry, None, &running, created.is_some()))
            }
            Err(error) => {
                {
                    let init = &mut entry.processes().init;
                    init.phase = Phase::Created;
                    init.early_signals.clear();
                }
                self.settle(&entry);
                Err(error.context(format!("cannot start container `{id}`")))
            }
        }
    }

    /// Starts an exec; returns its pid. If it cannot be started, those who wait for it are told.
    pub(super) fn start_exec(&self, id: &str, exec: &str) -> Result<u32> {
        let entry = self.0.table.find(id)?;
        let (names, spec) = {
            let mut processes = entry.processes();
            let process = processes.begin_exec(exec)?;
            (process.names.clone(), process.spec.clone().unwrap_or_default())
        };
        let run = || {
            let supervisor = self.0.context.supervisor()?;
            let guard = supervisor.guard();
            let (streams, stdio) = self.0.context.open_stdio(exec, names.clone())?;
            let request = Exec::new(self.0.context.clone(), id, exec, names.terminal, spec);
            let size = if names.terminal { request.process()?.console_size } else { None };
            entry.processes().get(exec)?.connect(streams, size);
            let started = author(|| entry.container()?.exec(&request, stdio))?;
            if let Some(streams) = &entry.processes().get(exec)?.streams {
                streams.begin();
            }
            self.resolve(started, None, &guard)
        };
        match run() {
            Ok(running) => Ok(self.started(&entry, Some(exec), &running, false)),
            Err(error) => {
                let told = entry.processes().exec_failed(exec);
                tell(told);
                // The init's exit may have been held for it (contract 6.5, 5).
                self.settle(&entry);
                Err(error.context(format!("cannot start exec `{exec}` of container `{id}`")))
            }
        }
    }

    /// Finds what runs now.
    fn resolve(
        &self,
        started: Started,
        created: Option<&Arc<Running>>,
        guard: &Guard,
    ) -> Result<Arc<Running>> {
        match started.into_kind() {
            Kind::Running(running) => Ok(running),
            Kind::Adopt(pid) => adopt(self.0.context.supervisor()?, guard, pid),
            Kind::Created => created.cloned().ok_or_else(|| {
                Error::internal("`start` returned `Started::created()`, but `create` made no process")
            }),
        }
    }

    /// Publishes a start, and with it an exit that was held for it; delivers the signals that came too early.
    /// Returns the pid.
    fn started(
        &self,
        entry: &Arc<Entry<S::Container>>,
        exec: Option<&str>,
        running: &Arc<Running>,
        followed: bool,
    ) -> u32 {
        let pid = running.pid.unwrap_or_else(Pid::own).get();
        if exec.is_none() && !followed {
            self.watch_memory(entry, Some(running));
            if let Err(error) = record_init(entry, Some(running)) {
                log::warn!("{error}");
            }
        }
        let (early_signals, too_late) = {
            let mut processes = entry.processes();
            let mut early_signals = Vec::new();
            if let Ok(process) = processes.get(exec.unwrap_or_default()) {
                process.running = Some(running.clone());
                process.pid = pid;
                process.phase = Phase::Running;
                early_signals = std::mem::take(&mut process.early_signals);
            }
            self.0.events.started(&entry.id, exec, pid);
            (early_signals, exec.is_some() && processes.init.is_over())
        };
        self.settle(entry);
        crash::here("start.queued");
        if !followed {
            self.follow(entry, exec, running);
        }
        for (signal, all) in early_signals {
            if let Err(error) = self.send_signal(entry, exec.unwrap_or_default(), signal, all) {
                log::info!("cannot send {signal} to what was started meanwhile: {error}");
            }
        }
        if too_late {
            self.kill_the_rest(entry);
        }
        pid
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

    /// Deletes a container that has ended or was never started. Asked again, it gives the same answer.
    pub(super) fn delete_container(&self, id: &str) -> Result<DeleteResponse> {
        let entry = match self.0.table.find(id) {
            Ok(entry) => entry,
            Err(error) => return self.0.table.tombstone(id).ok_or(error),
        };
        let before = {
            let mut processes = entry.processes();
            let before = processes.init.phase;
            processes.init.advance(Move::Delete, Phase::Deleting)?;
            before
        };
        self.give_up(&entry, before)
            .inspect_err(|_| entry.processes().init.phase = before)
            .context(|| format!("cannot delete container `{id}`"))
    }

    fn give_up(&self, entry: &Arc<Entry<S::Container>>, before: Phase) -> Result<DeleteResponse> {
        if before == Phase::Created {
            end_unstarted(entry);
            self.settle(entry);
        }
        let (target, streams) = {
            let mut processes = entry.processes();
            processes.init.stdio = None;
            (processes.target("")?, processes.init.streams.clone())
        };
        crash::here("delete.begun");
        // The engine may take longer to tell that a signal was sent than the container to die of it.
        entry.calls.wait_for_none(LATE_CALLS);
        // What is left of the output is delivered while the container is given up: nobody writes any more.
        if let Some(streams) = &streams {
            streams.finish();
        }
        let container = entry.container()?;
        author(|| container.delete(&target))?;
        crash::here("delete.given-up");
        mount::unmount_all(&entry.bundle.rootfs())?;
        if let Some(streams) = streams {
            streams.drain();
        }
        record_given_up(entry);
        let (answer, told) = {
            let processes = entry.processes();
            let exit = processes.init.exit.unwrap_or(Exit::now(0));
            self.0.events.deleted(&entry.id, processes.init.pid, exit);
            (delete_response(processes.init.pid, exit), processes.never_started(exit))
        };
        crash::here("delete.queued");
        self.0.table.bury(&entry.id, &answer);
        tell(told);
        Ok(answer)
    }

    /// Deletes an exec that has ended or was never started. It has no event (contract 6.3).
    pub(super) fn delete_exec(&self, id: &str, exec: &str) -> Result<DeleteResponse> {
        let entry = self.0.table.find(id)?;
        let (target, streams, before) = {
            let mut processes = entry.processes();
            let target = processes.target(exec)?;
            let process = processes.get(exec)?;
            let before = process.phase;
            process.advance(Move::Delete, Phase::Deleting)?;
            (target, process.streams.clone(), before)
        };
        if let Some(streams) = streams {
            streams.drain();
        }
        let deleted = author(|| entry.container()?.delete(&target));
        let mut processes = entry.processes();
        if let Err(error) = deleted {
            processes.get(exec)?.phase = before;
            return Err(error).context(|| format!("cannot delete exec `{exec}` of container `{id}`"));
        }
        let process = processes.get(exec)?;
        let exit = process.exit.unwrap_or(Exit::now(0));
        let (answer, waiters) = (delete_response(process.pid, exit), process.waiters.clone());
        processes.execs.remove(exec);
        drop(processes);
        // Only those are left who waited for an exec that was never started.
        waiters.answer(&wait_response(exit));
        Ok(answer)
    }
}

/// Finds the process that author code has made, and notes it in the bundle.
fn register<C: Container>(
    supervisor: &Supervisor,
    guard: &Guard,
    entry: &Entry<C>,
    create: &Create,
    container: &C,
) -> Result<Option<Arc<Running>>> {
    let running = match (create.init.clone(), container.pid()) {
        (None, Some(pid)) => Some(adopt(supervisor, guard, pid)?),
        (spawned, _) => spawned,
    };
    record_init(entry, running.as_deref())?;
    Ok(running)
}

/// Writes into the bundle whom a `delete` after our death may kill: the init, if it is a process.
fn record_init<C>(entry: &Entry<C>, running: Option<&Running>) -> Result<()> {
    let mut record = lock(&entry.record);
    record.init = running.and_then(|running| running.pid).and_then(InitRecord::of);
    entry.bundle.write_record(&record)
}

/// Writes into the bundle that there is nothing left to do for `delete`. Without that it finds nothing to do.
fn record_given_up<C>(entry: &Entry<C>) {
    let mut record = lock(&entry.record);
    record.given_up = true;
    if let Err(error) = entry.bundle.write_record(&record) {
        log::warn!("{error}");
    }
}

/// Ends a process that waits at its gate, and waits until its exit is published: it has a create event, so
/// it has an exit event, before the delete event.
fn end_unstarted<C>(entry: &Entry<C>) {
    let running = entry.processes().init.running.clone();
    let Some(running) = running else { return };
    running.end();
    if running.exit.wait_for(DEATH).is_none() {
        log::warn!("the process of container `{}` does not die", entry.id);
    }
}

/// Lets what was killed die.
fn resume_killed<C: Container>(entry: &Entry<C>) {
    let resumed = entry.container().and_then(|container| author(|| container.resume()));
    if let Err(error) = resumed {
        log::info!("cannot resume container `{}`, which was killed: {error}", entry.id);
    }
}

fn delete_response(pid: u32, exit: Exit) -> DeleteResponse {
    DeleteResponse {
        pid,
        exit_status: exit.status,
        exited_at: Some(exit.timestamp()).into(),
        ..DeleteResponse::default()
    }
}

/// Claims a process that a runtime command left behind.
fn adopt(supervisor: &Supervisor, guard: &Guard, pid: Pid) -> Result<Arc<Running>> {
    Ok(Arc::new(Running::adopted(Supervisor::adopt(guard, pid)?, supervisor)))
}

/// Answers those who waited, once no lock is held.
fn tell(told: Told) {
    for (waiters, response) in told {
        waiters.answer(&response);
    }
}
