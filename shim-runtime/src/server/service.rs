//! Services by name, and one call on its way to one.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use ttrpc::proto::KeyValue;

use super::reply::Responder;
use super::{Place, Server, Shared};
use crate::api::Call;
use crate::caller::{Caller, Cancellation};
use crate::error::{Error, Result};
use crate::logger::panic_message;

impl Server {
    /// The service of that name, as soon as there are services.
    pub(crate) fn service(&self, name: &str) -> Result<Arc<dyn Service>> {
        let found = self.registry.get().and_then(|registry| registry.find(name));
        found.ok_or_else(|| Error::unimplemented(format!("service {name}")))
    }
}

/// Answers the calls of one service. `handle` runs on the loop and must not block.
pub(crate) trait Service: Send + Sync {
    fn handle(&self, incoming: Incoming<'_>);
}

/// The services that a socket offers, by their full names.
#[derive(Default)]
pub struct Registry(HashMap<String, Arc<dyn Service>>);

impl Registry {
    pub(crate) fn insert(&mut self, name: &str, service: Arc<dyn Service>) {
        self.0.insert(name.to_owned(), service);
    }

    fn find(&self, name: &str) -> Option<Arc<dyn Service>> {
        self.0.get(name).cloned()
    }

    /// Adds a service. `handler` is given the method's name and the encoded request, and returns the encoded
    /// response; it runs on a worker thread and may block. It answers methods that it does not know with
    /// [`Error::unimplemented`].
    ///
    /// # Errors
    /// `AlreadyExists` when the name is taken, by the task service for example.
    pub fn add<F>(&mut self, name: &str, handler: F) -> Result<()>
    where
        F: Fn(&Call<'_>, &str, &[u8]) -> Result<Vec<u8>> + Send + Sync + 'static,
    {
        if self.0.contains_key(name) {
            return Err(Error::already_exists(format!("the service `{name}` is there already")));
        }
        self.insert(name, Arc::new(Custom(Arc::new(handler))));
        Ok(())
    }
}

/// A service of the author's own.
struct Custom<F>(Arc<F>);

impl<F> Service for Custom<F>
where
    F: Fn(&Call<'_>, &str, &[u8]) -> Result<Vec<u8>> + Send + Sync + 'static,
{
    fn handle(&self, incoming: Incoming<'_>) {
        let (method, payload) = (incoming.method.to_owned(), incoming.payload.to_owned());
        let handler = self.0.clone();
        incoming.offload(Place::Foreign, move |call| handler(call, &method, &payload));
    }
}

/// A call that has been read and not yet answered.
pub(crate) struct Incoming<'a> {
    pub(crate) server: &'a Shared,
    pub(crate) responder: Responder,
    pub(crate) method: &'a str,
    pub(crate) payload: &'a [u8],
    pub(crate) deadline: Option<Instant>,
    pub(crate) metadata: Vec<KeyValue>,
}

impl Incoming<'_> {
    fn call<'c>(&'c self, cancelled: Option<&'c Cancellation>) -> Call<'c> {
        Call { context: &self.server.context, deadline: self.deadline, metadata: &self.metadata, cancelled }
    }

    /// Answers on the spot, on the loop.
    pub(crate) fn answer(&self, result: Result<Vec<u8>>) {
        self.responder.answer(result);
    }

    /// Answers on the spot with what `work` says, which must not block.
    pub(crate) fn answer_with(&self, work: impl FnOnce(&Call<'_>) -> Result<Vec<u8>>) {
        let call = self.call(None);
        self.answer(caught(|| work(&call)));
    }

    /// Answers from a worker.
    pub(crate) fn offload(
        self,
        place: Place,
        work: impl FnOnce(&Call<'_>) -> Result<Vec<u8>> + Send + 'static,
    ) {
        let (cancelled, responder) = (self.responder.open(), self.responder);
        let (context, deadline, metadata) = (self.server.context.clone(), self.deadline, self.metadata);
        let answering = responder.clone();
        let caller = Caller::of(self.method, deadline, &cancelled);
        let taken = self.server.workers.offer(place, move || {
            let call = Call { context: &context, deadline, metadata: &metadata, cancelled: Some(&cancelled) };
            answering.finish(caller.while_working(|| caught(|| work(&call))));
        });
        if !taken {
            responder.finish(Err(Error::resource_exhausted("no thread can be started for the call")));
        }
    }

    /// Prepares for an answer that is put aside.
    pub(crate) fn park(&self) -> Result<Responder> {
        self.responder.open_parked(self.deadline)?;
        Ok(self.responder.clone())
    }

    /// Hands a parked call to `work` on a worker; `work` answers by itself.
    pub(crate) fn run_foreign(self, work: impl FnOnce(&Call<'_>) + Send + 'static) {
        let (context, deadline, metadata) = (self.server.context.clone(), self.deadline, self.metadata);
        self.server.workers.run(Place::Foreign, move || {
            let call = Call { context: &context, deadline, metadata: &metadata, cancelled: None };
            let _ = caught(|| {
                work(&call);
                Ok(())
            });
        });
    }

    /// Hands a parked call to `work`, which must not block.
    pub(crate) fn with_call(&self, work: impl FnOnce(&Call<'_>)) {
        let call = self.call(None);
        let _ = caught(|| {
            work(&call);
            Ok(())
        });
    }
}

/// A panic in a handler is the caller's error, not the end of the shim. Its place was logged by the hook.
fn caught<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        Err(Error::internal(format!("the shim panicked: {}", panic_message(&*panic))))
    })
}
