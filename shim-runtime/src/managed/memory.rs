//! Kills for want of memory: told as events, each before the exit that it causes (contract 6.5, 12).

use super::Managed;
use super::Shim;
use super::table::Entry;
use crate::api::{Container, Running, TaskOOM};
use crate::error::Result;
use crate::sync::lock;

impl<S: Shim> Managed<S> {
    /// Watches the cgroup of a container's init from its creation on. A container whose cgroup is the shim's, or
    /// that has no process, is not watched; what else fails is only logged, for the container runs all the same.
    pub(super) fn watch_memory(&self, entry: &Entry<S::Container>, running: Option<&Running>) {
        let Some(running) = running.filter(|running| running.pid.is_some()) else { return };
        if let Err(error) = self.watch_cgroup(entry, running) {
            log::debug!("kills for want of memory in `{}` are not told: {error}", entry.id);
        }
    }

    fn watch_cgroup(&self, entry: &Entry<S::Container>, running: &Running) -> Result<()> {
        let group = running.cgroup()?;
        if let Err(error) = group.enable_controllers() {
            log::warn!("cannot enable all controllers for the cgroup of `{}`: {error}", entry.id);
        }
        let (context, container_id) = (self.0.context.clone(), entry.id.clone());
        let watch = group.watch_oom(self.0.context.supervisor()?.main(), move || {
            context.publish(&TaskOOM { container_id: container_id.clone(), ..TaskOOM::default() });
        })?;
        *lock(&entry.memory) = Some(watch);
        Ok(())
    }
}

/// The init has ended: a last look before that is told, for the kernel's word may come later.
pub(super) fn stop_watching<C: Container>(entry: &Entry<C>) {
    let watch = lock(&entry.memory).take();
    if let Some(watch) = watch {
        watch.check();
    }
}
