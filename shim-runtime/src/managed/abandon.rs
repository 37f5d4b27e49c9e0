//! A container that its daemon has given up while the shim lives (contract 2.6): it is ended, and deleted although
//! nobody will ask for that any more, and the shim does not stay because of it.

use std::sync::Arc;

use super::Managed;
use super::Shim;
use super::state::Move;
use super::table::Entry;
use crate::api::DeleteResponse;
use crate::error::{Error, Result};
use crate::types::Signal;
use crate::workers::Place;

impl<S: Shim> Managed<S> {
    /// What the `delete` action asks for. A container that has ended, or never began, is deleted as by any Delete.
    /// Another one is killed, and deleted as soon as its exit is told, whether or not the caller waits for that.
    ///
    /// # Errors
    /// `FailedPrecondition` while the container is being ended.
    pub(super) fn abandon(&self, id: &str) -> Result<DeleteResponse> {
        // The daemon that would say Shutdown knows this container no more. Others are served until their own end.
        self.0.lifetime.leave_though_connected();
        let Ok(entry) = self.0.table.find(id) else { return self.delete_container(id) };
        let is_over = {
            let mut processes = entry.processes();
            processes.abandoned = true;
            processes.init.check(Move::Delete).is_ok()
        };
        if is_over {
            return self.delete_container(id);
        }
        log::info!("ending container `{id}`, which containerd has given up");
        if let Err(error) = self.kill_process(&entry, "", Signal::KILL, true) {
            log::info!("cannot kill container `{id}`: {error}");
        }
        Err(Error::failed_precondition(format!("container `{id}` is being ended")))
    }

    /// Deletes a container whose exit was just told and that nobody else will delete.
    pub(super) fn delete_abandoned(&self, entry: &Arc<Entry<S::Container>>) {
        let (managed, id) = (self.clone(), entry.id.clone());
        self.0.workers.run(Place::of_process(&entry.id, ""), move || {
            if let Err(error) = managed.delete_container(&id) {
                log::error!("{error}");
            }
        });
    }
}
