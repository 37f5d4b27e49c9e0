//! [`Shim`] as a level at which a shim can be written.

use std::marker::PhantomData;

use super::{Managed as ManagedTask, Shim};
use crate::api::{Any, Context};
use crate::bundle::Bundle;
use crate::entry::level::sealed::Sealed;
use crate::entry::level::{Level, Parts};
use crate::entry::{Entry, Info};
use crate::error::Result;
use crate::server::{Registry, TaskService};
use crate::types::Exit;

/// The level of [`Shim`]: the runtime manages the containers' lives.
pub struct Managed<S>(PhantomData<S>);

impl<S: Shim + Entry> Sealed for Managed<S> {}

impl<S: Shim + Entry> Level for Managed<S> {
    fn serve(parts: &Parts<'_>, registry: &mut Registry) -> Result<()> {
        let shim = S::new(parts.context)?;
        let managed = ManagedTask::new(shim, parts.context, parts.publisher, parts.workers, parts.lifetime);
        S::services(&managed, registry);
        TaskService::register::<crate::managed::Managed<S>>(S::task(managed), S::CONFIG.task, registry);
        Ok(())
    }

    fn cleanup(context: &Context) -> Result<Option<Exit>> {
        S::cleanup(context)
    }

    fn group(context: &Context, bundle: Option<&Bundle>) -> Result<Option<String>> {
        S::group(context, bundle)
    }

    fn info(options: Option<&Any>) -> Result<Info> {
        S::info(options)
    }
}
