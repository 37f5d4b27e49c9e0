//! Create: author code makes a container, whose process becomes ours. On failure nothing is left of it (contract
//! 6.3).

use std::path::Path;
use std::sync::Arc;

use super::Shim;
use super::state::Phase;
use super::table::Entry;
use super::{Managed, author};
use crate::api::{Container, Create, CreateTaskRequest, Running, Target};
use crate::bundle::{InitRecord, Spec};
use crate::crash;
use crate::error::{Error, Result, WithContext};
use crate::reaper::Guard;
use crate::spawn::Supervisor;
use crate::sync::lock;
use crate::types::Pid;
use crate::workers::Authored;

impl<S: Shim> Managed<S> {
    /// Makes a container; returns its init's pid. On failure nothing is left of it, and no event tells of it.
    pub(super) fn create_container(&self, request: &CreateTaskRequest) -> Result<u32> {
        let entry = self.0.table.reserve(request, self.0.lifetime.hold())?;
        self.fill(&entry, request).inspect_err(|_| {
            self.0.table.forget(&request.id);
            entry.bundle.remove_record();
        })
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
        {
            let mut processes = entry.processes();
            // Nobody else writes it: the id was reserved by this call. From now on the container is found, and its
            // processes are as they should be by the time that this lock is given up.
            let _ = entry.container.set(Authored::new(container));
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
}

/// Finds the process that author code has made, and notes it in the bundle.
fn register<C: Container>(
    supervisor: &Supervisor,
    guard: &Guard,
    entry: &Entry<C>,
    create: &Create,
    container: &C,
) -> Result<Option<Arc<Running>>> {
    let running = match (create.init.clone(), author(|| Ok(container.pid()))?) {
        (None, Some(pid)) => {
            Some(adopt(supervisor, guard, pid).with_context(|| "`Container::pid` tells a wrong one")?)
        }
        (Some(made), Some(told)) if made.pid != Some(told) => return Err(wrong_pid(&made, told)),
        (spawned, _) => spawned,
    };
    record_init(entry, running.as_deref())?;
    Ok(running)
}

fn wrong_pid(made: &Running, told: Pid) -> Error {
    let made = made.pid.map_or(0, Pid::get);
    Error::failed_precondition(format!(
        "`Container::pid` tells process {told}, but `spawn_gated` has made process {made}; tell that one, or none"
    ))
}

/// Writes into the bundle whom a `delete` after our death may kill: the init, if it is a process.
pub(super) fn record_init<C: Container>(entry: &Entry<C>, running: Option<&Running>) -> Result<()> {
    let mut record = lock(&entry.record);
    record.init = running.and_then(|running| running.pid).and_then(InitRecord::of);
    entry.bundle.write_record(&record)
}

/// Claims a process that a runtime command left behind.
pub(super) fn adopt(supervisor: &Supervisor, guard: &Guard, pid: Pid) -> Result<Arc<Running>> {
    Ok(Arc::new(Running::adopted(Supervisor::adopt(guard, pid)?, supervisor)))
}
