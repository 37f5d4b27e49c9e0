//! What every server is made of, whoever is served by it: a real shim, or a test in its own process.

use std::sync::{Arc, OnceLock};

use crate::api::{Context, Serving, Setup};
use crate::entry::Entry;
use crate::entry::level::{Level, Parts};
use crate::error::Result;
use crate::event_loop::Handle;
use crate::lifetime::Lifetime;
use crate::peer::Budget;
use crate::publisher::Publisher;
use crate::server::{Registry, Server};
use crate::spawn::Supervisor;
use crate::sync::caught;
use crate::workers::{Workers, keep_destructors_off_this_thread};

/// A server on a loop, which is the supervisor's if there is one. It has no services yet.
pub(crate) fn assemble(
    setup: Setup,
    main: Handle,
    supervisor: Option<Supervisor>,
    publisher: Publisher,
) -> Arc<Server> {
    let workers = Workers::new(main.clone());
    let beside = workers.clone();
    main.post(move |_| keep_destructors_off_this_thread(&beside));
    let lifetime = Lifetime::new(main);
    let serving =
        Serving { lifetime: lifetime.clone(), publisher: publisher.clone(), workers: workers.clone() };
    let context = Context::new(setup, supervisor, Some(serving));
    let (registry, budget) = (OnceLock::new(), Budget::default());
    Arc::new(Server { context, registry, workers, lifetime, publisher, budget })
}

/// Calls the author's constructor, which may block and fork, and gives the server its services.
pub(crate) fn construct<S: Entry>(server: &Server) -> Result<()> {
    let mut registry = Registry::default();
    let parts = Parts {
        context: &server.context,
        publisher: &server.publisher,
        workers: &server.workers,
        lifetime: &server.lifetime,
    };
    caught(|| S::Level::serve(&parts, &mut registry)).flatten()?;
    let _ = server.registry.set(registry);
    Ok(())
}
