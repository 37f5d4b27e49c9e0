//! Services by name, and one call on its way to one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use ttrpc::proto::KeyValue;

use super::{Server, Shared};
use crate::api::Call;
use crate::caller::{Caller, Cancellation};
use crate::error::{Error, Result};
use crate::peer::Kept;
use crate::peer::Responder;
use crate::sync::caught;
use crate::workers::{Authored, Need, Place};

impl Server {
    /// The service of that name, as soon as there are services.
    pub(crate) fn service(&self, name: &str) -> Result<Arc<dyn Service>> {
        let found = self.registry.get().and_then(|registry| registry.find(name));
        found.ok_or_else(|| Error::unimplemented(format!("service {name}")))
    }
}

/// What a call takes besides its own bytes while it is not answered; roughly.
const RECORD: usize = 512;

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
    /// [`Error::unimplemented`]. A call that still waits for a thread when its client goes away is dropped.
    ///
    /// # Errors
    /// `AlreadyExists` when the name is taken, as those of the task service are, in each of its versions: what answers
    /// its calls is the [`Task`](crate::Task).
    pub fn add<F>(&mut self, name: &str, handler: F) -> Result<()>
    where
        F: Fn(&Call<'_>, &str, &[u8]) -> Result<Vec<u8>> + Send + Sync + 'static,
    {
        if is_task_service(name) {
            let message = format!("the service `{name}` is the task service; answer its calls by a `Task`");
            return Err(Error::already_exists(message));
        }
        if self.0.contains_key(name) {
            return Err(Error::already_exists(format!("the service `{name}` is there already")));
        }
        self.insert(name, Arc::new(Custom(Arc::new(Authored::new(handler)))));
        Ok(())
    }
}

/// The task service's name in a version of the API, known or still to come.
fn is_task_service(name: &str) -> bool {
    let version = name.strip_prefix("containerd.task.v").and_then(|rest| rest.strip_suffix(".Task"));
    version.is_some_and(|version| version.bytes().all(|byte| byte.is_ascii_digit()))
}

/// A service of the author's own.
struct Custom<F: Send + 'static>(Arc<Authored<F>>);

impl<F> Service for Custom<F>
where
    F: Fn(&Call<'_>, &str, &[u8]) -> Result<Vec<u8>> + Send + Sync + 'static,
{
    fn handle(&self, incoming: Incoming<'_>) {
        let (method, handler) = (incoming.method.to_owned(), self.0.clone());
        incoming.offload(Place::Foreign, move |call, payload| (**handler)(call, &method, payload));
    }
}

/// Whether nobody but its caller needs a call to be done: it is dropped when that goes away before it was begun.
///
/// A client goes away when it ends, or when it has no more to do with the container. What it has asked for then may
/// be done or not, and to begin a container, or to change one, for nobody would only leave more behind. Kill, Delete
/// and Shutdown are done in any case: daemons send them last and hang up, some without waiting, and nobody would ask
/// again (contract 6.2).
fn is_for_its_caller_alone(method: &str) -> bool {
    !matches!(method, "Kill" | "Delete" | "Shutdown")
}

/// A call that has been read and not yet answered.
pub(crate) struct Incoming<'a> {
    pub(crate) server: &'a Shared,
    pub(crate) responder: Responder,
    pub(crate) method: &'a str,
    pub(crate) payload: Vec<u8>,
    pub(crate) deadline: Option<Instant>,
    pub(crate) metadata: Vec<KeyValue>,
}

impl Incoming<'_> {
    /// Whether its caller has put a mark of ours on it.
    pub(crate) fn has(&self, mark: &str) -> bool {
        self.metadata.iter().any(|pair| pair.key == mark)
    }

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
        self.answer(caught(|| work(&call)).flatten());
    }

    /// Answers from a worker, which is also handed the payload.
    ///
    /// Until then the call is kept as it came, because a message may take many times the room of its bytes.
    pub(crate) fn offload(
        self,
        place: Place,
        work: impl FnOnce(&Call<'_>, &[u8]) -> Result<Vec<u8>> + Send + 'static,
    ) {
        let kept = match self.keep(&place) {
            Ok(kept) => kept,
            Err(error) => return self.answer(Err(error)),
        };
        let (cancelled, responder) = (self.responder.open(), self.responder);
        let (context, deadline, metadata) = (self.server.context.clone(), self.deadline, self.metadata);
        let (answering, payload) = (responder.clone(), self.payload);
        let caller = Caller::of(self.method, deadline, &cancelled);
        let wanted_by = is_for_its_caller_alone(self.method).then(|| cancelled.clone());
        // What ends containers is done even where the system gives no thread any more.
        let need = if matches!(self.method, "Kill" | "Delete") { Need::Vital } else { Need::Refusable };
        let taken = self.server.workers.offer_while_wanted(place, need, wanted_by, move || {
            let _kept = kept;
            let call = Call { context: &context, deadline, metadata: &metadata, cancelled: Some(&cancelled) };
            answering.finish(caller.while_working(|| caught(|| work(&call, &payload)).flatten()));
        });
        if !taken {
            responder.finish(Err(Error::resource_exhausted("no thread can be started for the call")));
        }
    }

    /// Accounts for what is kept of the call until it is answered.
    fn keep(&self, place: &Place) -> Result<Kept> {
        let pairs =
            self.metadata.iter().map(|pair| size_of::<KeyValue>() + pair.key.len() + pair.value.len());
        let itself = RECORD + self.method.len() + self.payload.len();
        self.responder.keep(itself + place.size() + pairs.sum::<usize>())
    }

    /// Prepares for an answer that is put aside.
    pub(crate) fn park(&self) -> Result<Parked> {
        let kept = self.keep(&Place::Foreign)?;
        let cancelled = self.responder.open_parked(self.deadline)?;
        Ok(Parked { responder: self.responder.clone(), cancelled, kept })
    }

    /// Hands a parked call to `work` on a worker; `work` answers by itself.
    pub(crate) fn run_parked(
        self,
        place: Place,
        parked: Parked,
        work: impl FnOnce(&Call<'_>, &[u8], Responder) + Send + 'static,
    ) {
        let (context, deadline, metadata) = (self.server.context.clone(), self.deadline, self.metadata);
        let (Parked { responder, cancelled, kept }, payload) = (parked, self.payload);
        self.server.workers.run_while_wanted(place, cancelled, move || {
            let _kept = kept;
            let call = Call { context: &context, deadline, metadata: &metadata, cancelled: None };
            let _ = caught(|| work(&call, &payload, responder));
        });
    }

    /// Hands a parked call to `work`, which must not block.
    pub(crate) fn with_call(&self, work: impl FnOnce(&Call<'_>)) {
        let call = self.call(None);
        let _ = caught(|| work(&call));
    }
}

/// A call whose answer is put aside.
pub(crate) struct Parked {
    pub(crate) responder: Responder,
    cancelled: Arc<Cancellation>,
    kept: Kept,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[test]
    fn the_names_of_the_task_service_are_taken_and_others_once_they_are_added() {
        let mut registry = Registry::default();
        let mut add = |name| registry.add(name, |_, _, _| Ok(Vec::new()));
        for name in ["containerd.task.v2.Task", "containerd.task.v3.Task", "containerd.task.v4.Task"] {
            let error = add(name).unwrap_err();
            assert_eq!(error.code(), Code::AlreadyExists);
            assert!(error.to_string().contains("answer its calls by a `Task`"), "{error}");
        }
        add("example.v1.Service").unwrap();
        assert_eq!(add("example.v1.Service").unwrap_err().code(), Code::AlreadyExists);
    }
}
