//! The two levels at which a shim can be written, as [`Entry`] names them.

use std::marker::PhantomData;

use crate::api::{Any, Context, Info, RawShim, Shim, Task};
use crate::bundle::Bundle;
use crate::entry::Entry;
use crate::error::Result;
use crate::publisher::Publisher;
use crate::server::{Lifetime, Registry, TaskService, Workers};
use crate::types::Exit;

/// The level of [`Shim`]: the runtime manages the containers' lives.
pub struct Managed<S>(PhantomData<S>);

/// The level of [`RawShim`]: the shim answers the task RPCs itself.
pub struct Raw<S>(PhantomData<S>);

/// What the process needs of a shim in each of its lives. Not for implementation elsewhere.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a level that a shim can be written at",
    label = "neither `level::Managed` nor `level::Raw`",
    note = "write `type Level = shim_runtime::level::Managed<Self>` for a `Shim`, `level::Raw<Self>` for a `RawShim`"
)]
pub trait Level: sealed::Sealed {
    #[doc(hidden)]
    fn serve(parts: &Parts<'_>, registry: &mut Registry) -> Result<()>;
    #[doc(hidden)]
    fn cleanup(context: &Context) -> Result<Option<Exit>>;
    #[doc(hidden)]
    fn group(context: &Context, bundle: Option<&Bundle>) -> Result<Option<String>>;
    #[doc(hidden)]
    fn info(options: Option<&Any>) -> Result<Info>;
}

mod sealed {
    pub trait Sealed {}
}

/// What a server is made of.
#[doc(hidden)]
pub struct Parts<'a> {
    pub(crate) context: &'a Context,
    pub(crate) publisher: &'a Publisher,
    pub(crate) workers: &'a Workers,
    pub(crate) lifetime: &'a Lifetime,
}

impl<S: Shim + Entry> sealed::Sealed for Managed<S> {}

impl<S: Shim + Entry> Level for Managed<S> {
    fn serve(parts: &Parts<'_>, registry: &mut Registry) -> Result<()> {
        let shim = S::new(parts.context)?;
        let managed =
            crate::managed::Managed::new(shim, parts.context, parts.publisher, parts.workers, parts.lifetime);
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

impl<S: RawShim + Task + Entry> sealed::Sealed for Raw<S> {}

impl<S: RawShim + Task + Entry> Level for Raw<S> {
    fn serve(parts: &Parts<'_>, registry: &mut Registry) -> Result<()> {
        // None of it is the runtime's own.
        TaskService::register::<()>(S::new(parts.context)?, S::CONFIG.task, registry);
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
