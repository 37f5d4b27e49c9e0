//! The lives of containers: which call is allowed when, which event follows which, who waits for what
//! (contract 6). Author code is called from here and nowhere else: its result becomes a phase, an event, an answer.
//! The lock on a container's processes is taken before and after, never meanwhile.

mod abandon;
mod calls;
mod create;
mod delete;
mod end;
mod events;
pub(crate) mod level;
mod memory;
mod processes;
mod service;
mod shim;
mod start;
mod state;
mod table;

use std::sync::Arc;

use self::events::Events;
pub use self::shim::Shim;
use self::table::Table;
use crate::api::Context;
use crate::error::Result;
use crate::lifetime::Lifetime;
use crate::publisher::Publisher;
use crate::sync::caught;
use crate::workers::{Authored, Workers};

/// The runtime's own [`Task`](crate::Task): answers every RPC with the help of a [`Shim`] and its containers.
///
/// Its own calls (the kill of what is left when an init process ends, for example) do not pass through a
/// `Task` that wraps it; behaviour that must hold on every path belongs in the [`Container`](crate::Container).
pub struct Managed<S: Shim>(Arc<Inner<S>>);

struct Inner<S: Shim> {
    shim: Authored<S>,
    context: Context,
    table: Table<S::Container>,
    events: Events,
    workers: Workers,
    lifetime: Lifetime,
}

impl<S: Shim> Clone for Managed<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S: Shim> Managed<S> {
    pub(crate) fn new(
        shim: S,
        context: &Context,
        publisher: &Publisher,
        workers: &Workers,
        lifetime: &Lifetime,
    ) -> Self {
        Self(Arc::new(Inner {
            shim: Authored::new(shim),
            context: context.clone(),
            table: Table::default(),
            events: Events::new(publisher.clone()),
            workers: workers.clone(),
            lifetime: lifetime.clone(),
        }))
    }

    /// The shim itself.
    pub fn shim(&self) -> &S {
        &self.0.shim
    }

    /// Calls `with` with a container; `None` if there is none of this id.
    pub fn with_container<R>(&self, id: &str, with: impl FnOnce(&S::Container) -> R) -> Option<R> {
        self.0.table.find(id).ok()?.container().ok().map(with)
    }
}

/// Calls author code. A panic there is that call's error, and leaves no state behind half-changed.
fn author<T>(call: impl FnOnce() -> Result<T>) -> Result<T> {
    caught(call).flatten()
}
