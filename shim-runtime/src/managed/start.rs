//! Start: author code runs what was created, or an exec. The start is published before whatever follows it
//! (contract 6.4).

use std::sync::Arc;

use super::Shim;
use super::create::{adopt, record_init};
use super::end::tell;
use super::state::{Move, Phase};
use super::table::Entry;
use super::{Managed, author};
use crate::api::{Container, Exec, Kind, Running, Started};
use crate::crash;
use crate::error::{Error, Result};
use crate::reaper::Guard;
use crate::types::Pid;

impl<S: Shim> Managed<S> {
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
            if let Some(streams) = &entry.processes().init.streams {
                streams.begin();
            }
            self.init_of(started, created.as_ref(), &guard)
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
                Err(error)
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
            self.exec_of(started, &guard)
        };
        match run() {
            Ok(running) => Ok(self.started(&entry, Some(exec), &running, false)),
            Err(error) => {
                let told = entry.processes().exec_failed(exec);
                tell(told);
                // The init's exit may have been held for it (contract 6.5, 5).
                self.settle(&entry);
                Err(error)
            }
        }
    }

    /// The init that runs now: what `create` made, if it made one, for nobody would be told of another's exit.
    fn init_of(
        &self,
        started: Started,
        created: Option<&Arc<Running>>,
        guard: &Guard,
    ) -> Result<Arc<Running>> {
        let refuse = |message: &str| Err(Error::failed_precondition(message));
        let Some(created) = created else {
            return match started.into_kind() {
                Kind::Created => refuse(
                    "`start` returned `Started::created()`, but `create` made no process; return the one that `start` \
                     has started",
                ),
                Kind::Adopt(pid) => adopt(self.0.context.supervisor()?, guard, pid),
                Kind::Running(running) => Ok(running),
            };
        };
        match started.into_kind() {
            Kind::Adopt(pid) if created.pid != Some(pid) => {
                adopt(self.0.context.supervisor()?, guard, pid)?.end();
            }
            Kind::Running(running) => running.end(),
            Kind::Created | Kind::Adopt(_) if created.waits_at_gate() => {
                return refuse(
                    "`start` returned before it had opened the gate of the process that `create` made; call \
                     `Gated::open` in `start`",
                );
            }
            Kind::Created | Kind::Adopt(_) => return Ok(created.clone()),
        }
        refuse(
            "`start` returned another process than `create` made; return `Started::created()`, or make none in \
             `create`",
        )
    }

    /// The exec that runs now.
    fn exec_of(&self, started: Started, guard: &Guard) -> Result<Arc<Running>> {
        match started.into_kind() {
            Kind::Running(running) => Ok(running),
            Kind::Adopt(pid) => adopt(self.0.context.supervisor()?, guard, pid),
            Kind::Created => Err(Error::failed_precondition(
                "`exec` returned `Started::created()`, which is what `start` returns for the init; return the process \
                 that `exec` has started",
            )),
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
            let early_signals = processes.started(exec.unwrap_or_default(), running, pid);
            self.0.events.started(&entry.id, exec, pid);
            let init_goes = processes.init.is_over() || processes.init.phase == Phase::Deleting;
            (early_signals, exec.is_some() && init_goes)
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
}
