//! The lower of the two levels: [`RawShim`] answers every RPC itself. Both levels share what a shim tells of itself.

use std::collections::HashMap;

use super::Entry;
use crate::api::{Any, Context};
use crate::bundle::Bundle;
use crate::error::Result;
use crate::types::Exit;

/// A shim that answers the task RPCs itself, by its own [`Task`](crate::Task) impl.
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

    /// See [`Shim::cleanup`](crate::Shim::cleanup); called after every container, for the runtime cannot know what a Delete of yours
    /// has done. While the shim lives, its [`Task::delete`](crate::Task::delete) is called first.
    fn cleanup(cx: &Context) -> Result<Option<Exit>> {
        let _ = cx;
        Ok(None)
    }

    /// See [`Shim::group`](crate::Shim::group).
    fn group(cx: &Context, bundle: Option<&Bundle>) -> Result<Option<String>>
    where
        Self: Entry,
    {
        annotated_group(cx, bundle, Self::CONFIG.group)
    }

    /// See [`Shim::info`](crate::Shim::info).
    fn info(options: Option<&Any>) -> Result<Info> {
        let _ = options;
        Ok(Info::default())
    }
}

/// The value of the first label that is among the bundle's annotations. A bundle without a `config.json` is
/// one of a sandbox, which shims without a sandbox service are not started for.
pub(crate) fn annotated_group(
    cx: &Context,
    bundle: Option<&Bundle>,
    labels: &[&str],
) -> Result<Option<String>> {
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
