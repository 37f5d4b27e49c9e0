//! The shim as a whole, at the two levels: [`Shim`] says what a container is, [`RawShim`] answers every RPC.

use std::collections::HashMap;
use std::path::Path;

use super::{Any, Container, Context, Create, Task};
use crate::bundle::Bundle;
use crate::error::{Error, Result};
use crate::managed::Managed;
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
        Self: crate::Entry,
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

/// A shim that answers the task RPCs itself, by its own [`Task`] impl.
///
/// The runtime still is the process, and lends a task its parts: [`Context::spawn_gated`] for processes,
/// [`Context::open_stdio`], [`Context::publish`] for events, [`Waiters`](crate::Waiters) for those who wait.
#[diagnostic::on_unimplemented(
    message = "`{Self}` has no constructor for a raw shim",
    label = "`RawShim` is missing for this struct",
    note = "with `raw` in the attribute, implement `RawShim` for `{Self}`: only `new` is required"
)]
pub trait RawShim: Sized + Send + Sync + 'static {
    /// Called once, before the first request is taken.
    fn new(cx: &Context) -> Result<Self>;

    /// See [`Shim::cleanup`]; called after every container, for the runtime cannot know what a Delete of yours
    /// has done. While the shim lives, its [`Task::delete`] is called first.
    fn cleanup(cx: &Context) -> Result<Option<Exit>> {
        let _ = cx;
        Ok(None)
    }

    /// See [`Shim::group`].
    fn group(cx: &Context, bundle: Option<&Bundle>) -> Result<Option<String>>
    where
        Self: crate::Entry,
    {
        annotated_group(cx, bundle, Self::CONFIG.group)
    }

    /// See [`Shim::info`].
    fn info(options: Option<&Any>) -> Result<Info> {
        let _ = options;
        Ok(Info::default())
    }
}

/// The value of the first label that is among the bundle's annotations. A bundle without a `config.json` is
/// one of a sandbox, which shims without a sandbox service are not started for.
fn annotated_group(cx: &Context, bundle: Option<&Bundle>, labels: &[&str]) -> Result<Option<String>> {
    let mut annotations = bundle.unwrap_or(cx.bundle()).annotations()?;
    let found = labels.iter().find_map(|label| annotations.remove(*label));
    Ok(found.filter(|group| !group.is_empty()))
}

/// What a shim tells of itself when it is asked by `-info`: containerd learns from it which mounts the shim can
/// take ([contract 3](crate::contract#s3)).
#[derive(Clone, Debug, Default)]
pub struct Info {
    /// The revision of the source that the shim was built from.
    pub revision: String,
    /// Features of the runtime, such as the OCI features object.
    pub features: Option<Any>,
    /// Free-form notes, such as `containerd.io/runtime-allow-mounts`.
    pub annotations: HashMap<String, String>,
}
