//! A process of the shim in the hands of an author who answers the RPCs: its pid, signals, and its exit, once.

use std::fmt;
use std::sync::Arc;

use super::{Context, Running};
use crate::bundle::{Bundle, InitRecord, Record};
use crate::error::{Error, Result};
use crate::types::{Exit, Pid, Signal};
use crate::workers::{Authored, Place, Workers};

/// A process that the shim started; see [`Context::spawn_gated`].
///
/// Cheap to clone; every clone is the same process.
#[derive(Clone)]
pub struct Child {
    pid: Pid,
    pub(crate) running: Arc<Running>,
    workers: Workers,
}

impl Child {
    pub(crate) fn new(context: &Context, running: Running) -> Result<Self> {
        let pid = running.pid.ok_or_else(|| Error::internal("a child without a pid"))?;
        Ok(Self { pid, running: Arc::new(running), workers: context.workers() })
    }

    /// Its process id, from its creation to its end.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends a signal to the process, or with `all` to the whole process group that it leads.
    ///
    /// # Errors
    /// `NotFound` when it has finished; another process that got its pid is never signalled.
    pub fn signal(&self, signal: Signal, all: bool) -> Result<()> {
        self.running.signal(signal, all)
    }

    /// Calls back once it has ended, at once if it already has. The callback runs on a worker thread and may
    /// block; it may come before the call that started the process has returned.
    pub fn on_exit(&self, callback: impl FnOnce(Exit) + Send + 'static) {
        let (workers, callback) = (self.workers.clone(), Authored::new(callback));
        self.running.exit.on_exit(move |exit| {
            workers.run(Place::Foreign, move || {
                if let Some(callback) = callback.into_inner() {
                    callback(exit);
                }
            });
        });
    }

    /// Notes in the bundle that this is its container's init process, and later how it ended. When the shim has
    /// died, the `delete` action kills the process by that note and tells containerd its exit.
    ///
    /// # Errors
    /// When the bundle cannot be written to.
    pub fn note_in(&self, bundle: &Bundle) -> Result<()> {
        let mut record = Record::of(InitRecord::of(self.pid));
        bundle.write_record(&record)?;
        let bundle = bundle.clone();
        // Before any event can tell of it, for it was asked for first.
        self.running.exit.on_exit(move |exit| {
            record.exit = Some(exit.into());
            if let Err(error) = bundle.write_record(&record) {
                log::warn!("{error}");
            }
        });
        Ok(())
    }
}

impl fmt::Debug for Child {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Child").field(&self.pid).finish()
    }
}
