//! Delete: a process that has ended, or was never started, is given up and forgotten (contract 6.3).

use std::sync::Arc;
use std::time::Duration;

use super::Shim;
use super::end::tell;
use super::processes::{Processes, wait_response};
use super::state::{Move, Phase};
use super::table::Entry;
use super::{Managed, author};
use crate::api::{Container, DeleteResponse, Target};
use crate::crash;
use crate::error::{Error, Result};
use crate::mount;
use crate::types::Exit;

/// How long what is deleted before it was started has to die of its SIGKILL: longer than it takes to give up what can
/// only be asked to stop.
const DEATH: Duration = Duration::from_secs(7);
/// How long a Delete lets signals and questions come back that are still under way.
const LATE_CALLS: Duration = Duration::from_secs(2);

impl<S: Shim> Managed<S> {
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
        self.give_up(&entry, before).inspect_err(|_| {
            let init = &mut entry.processes().init;
            // Its exit may have been told meanwhile, and stands.
            init.phase = if init.exit.is_some() { Phase::Stopped } else { before };
        })
    }

    fn give_up(&self, entry: &Arc<Entry<S::Container>>, before: Phase) -> Result<DeleteResponse> {
        if before == Phase::Created {
            self.end_unstarted(entry)?;
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
        take_away(entry, &target).or_else(|error| {
            // What is left of an abandoned one the `delete` action takes away. Nobody would try again here.
            if !entry.processes().abandoned {
                return Err(error);
            }
            log::warn!("cannot take away all of container `{}`: {error}", entry.id);
            Ok(())
        })?;
        if let Some(streams) = streams {
            streams.drain();
        }
        // Without that `delete` finds nothing to do.
        entry.note(|record| record.given_up = true);
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

    /// Ends a container that was never started, with the execs that run in it, and waits until their exits are told:
    /// what has a create event or a start event has an exit event, before the delete event.
    fn end_unstarted(&self, entry: &Arc<Entry<S::Container>>) -> Result<()> {
        let (init, more) = {
            let processes = entry.processes();
            (processes.init.running.clone(), processes.has_live_execs() || processes.may_leave_more())
        };
        match init {
            // Whoever notices its end ends what it leaves.
            Some(init) => init.end(),
            None if more => self.kill_the_rest(entry),
            None => {}
        }
        self.settle(entry);
        if entry.wait_until(DEATH, Processes::are_at_rest) {
            return Ok(());
        }
        Err(Error::failed_precondition("its processes were killed, and do not die"))
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
            return Err(error);
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

/// Takes away what the container has outside of the shim.
fn take_away<C: Container>(entry: &Entry<C>, target: &Target<'_>) -> Result<()> {
    let container = entry.container()?;
    author(|| container.delete(target))?;
    crash::here("delete.given-up");
    mount::unmount_all(&entry.bundle.rootfs())
}

fn delete_response(pid: u32, exit: Exit) -> DeleteResponse {
    DeleteResponse {
        pid,
        exit_status: exit.status,
        exited_at: Some(exit.timestamp()).into(),
        ..DeleteResponse::default()
    }
}
