//! The levels at which a shim can be written, as [`Entry`] names them, and the lower of them.

use std::marker::PhantomData;

use super::{Info, RawShim};
use crate::api::{Any, Context, Task};
use crate::bundle::Bundle;
use crate::entry::Entry;
use crate::error::Result;
use crate::lifetime::Lifetime;
use crate::publisher::Publisher;
use crate::server::{Registry, TaskService};
use crate::types::Exit;
use crate::workers::Workers;

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

/// Keeps the levels to those of this crate.
pub(crate) mod sealed {
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
