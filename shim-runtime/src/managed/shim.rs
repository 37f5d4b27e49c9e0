//! The upper of the two levels: [`Shim`] says what a container is, and the runtime manages its life.

use std::path::Path;

use super::Managed;
use crate::api::{Any, Container, Context, Create, Task};
use crate::bundle::Bundle;
use crate::entry::{Entry, Info, annotated_group};
use crate::error::{Error, Result};
use crate::server::Registry;
use crate::types::Exit;

/// A shim whose containers' lives the runtime manages.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is a containerd shim by name only: it does not implement `Shim`",
    label = "`Shim` is missing for this struct",
    note = "#[containerd_shim] writes `main`; you write `impl Shim for {Self}` with `type Container`, `fn new` and `fn create`",
    note = "to answer the task RPCs yourself, add `raw` to the attribute and implement `Task`"
)]
pub trait Shim: Sized + Send + Sync + 'static {
    /// What [`create`](Self::create) makes.
    type Container: Container;

    /// Called once, before the first request is taken.
    fn new(cx: &Context) -> Result<Self>;

    /// Prepares a container: nothing of the user's may run yet. What it returns is started by
    /// [`Container::start`].
    fn create(&self, req: &mut Create) -> Result<Self::Container>;

    /// Prepares a container from a checkpoint's image, to be resumed by [`Container::start`].
    fn restore(&self, req: &mut Create, image: &Path) -> Result<Self::Container> {
        // Not `Unimplemented`, which containerd would answer with an older API (contract 6.3).
        let (id, image) = (req.id(), image.display());
        let message =
            format!("cannot restore `{id}` from `{image}`: this runtime does not support checkpoints");
        Err(Error::failed_precondition(message))
    }

    /// The `delete` action, in a process of its own: gives up what is left of a container whose shim has died, or
    /// does not answer. Returns its exit where the runtime cannot know it. Not called for a container whose Delete
    /// was carried out, for nothing is left of that.
    ///
    /// It is called after a [`create`](Self::create) that failed, too, and then must leave alone what that did not
    /// make: an id may be taken by somebody else's container. containerd gives the whole action 5 s, of which this
    /// has some 4; commands that it runs are killed then.
    fn cleanup(cx: &Context) -> Result<Option<Exit>> {
        let _ = cx;
        Ok(None)
    }

    /// The name of the group whose containers share one shim; `None` for a shim of its own. By default the
    /// first annotation that the attribute's `group` lists. `bundle` is absent where there is no `config.json`.
    fn group(cx: &Context, bundle: Option<&Bundle>) -> Result<Option<String>>
    where
        Self: Entry,
    {
        annotated_group(cx, bundle, Self::CONFIG.group)
    }

    /// What `-info` adds to name and version.
    fn info(options: Option<&Any>) -> Result<Info> {
        let _ = options;
        Ok(Info::default())
    }

    /// The seam between the two levels: wrap `managed` in a [`Task`] of yours to answer some RPCs differently.
    fn task(managed: Managed<Self>) -> impl Task {
        managed
    }

    /// Adds further TTRPC services to the shim's socket.
    fn services(managed: &Managed<Self>, registry: &mut Registry) {
        let _ = (managed, registry);
    }
}
