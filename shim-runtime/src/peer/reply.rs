//! Answers that are given later: a [`Reply`] to one call, and [`Waiters`], which hold many until one event.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use protobuf::Message;

use super::Peer;
use super::budget::Kept;
use crate::caller::Cancellation;
use crate::error::{Error, Result};
use crate::sync::lock;

/// Answers one call: the stream of a connection on which it came.
#[derive(Clone)]
pub(crate) struct Responder {
    peer: Arc<Peer>,
    stream: u32,
}

impl Responder {
    pub(crate) fn new(peer: Arc<Peer>, stream: u32) -> Self {
        Self { peer, stream }
    }

    /// Answers a call that was never noted as open.
    pub(crate) fn answer(&self, result: Result<Vec<u8>>) {
        self.peer.answer(self.stream, result);
    }

    /// Keeps so many bytes for the caller until it is answered, if that is within the limits.
    pub(crate) fn keep(&self, bytes: usize) -> Result<Kept> {
        self.peer.keep(bytes)
    }

    /// Notes a call that will be answered later; the flag tells when its caller is gone.
    pub(crate) fn open(&self) -> Arc<Cancellation> {
        self.peer.open(self.stream)
    }

    /// Notes a call whose answer will be put aside, for at most until `deadline`; the flag tells when its caller is
    /// gone.
    pub(crate) fn open_parked(&self, deadline: Option<Instant>) -> Result<Arc<Cancellation>> {
        self.peer.open_parked(self.stream, deadline)
    }

    /// Answers an open call, unless that was done or its caller is gone.
    pub(crate) fn finish(&self, result: Result<Vec<u8>>) {
        self.peer.finish(self.stream, result);
    }

    /// Holds back answers from now on, until [`uncork`](Self::uncork).
    pub(crate) fn cork(&self) {
        self.peer.cork();
    }

    /// Lets the answers that were held back leave in one write.
    pub(crate) fn uncork(&self) {
        self.peer.uncork();
    }

    /// Whether an open call still waits for its answer.
    fn is_expected(&self) -> bool {
        self.peer.expects(self.stream)
    }

    /// Has `dropped` called when nobody waits for a parked answer any more, at once if that is so already.
    fn when_dropped(&self, dropped: impl FnOnce() + Send + 'static) {
        self.peer.when_dropped(self.stream, dropped);
    }
}

/// The answer to one call, to be sent whenever it is known. Dropped unsent, the caller gets an `Internal`
/// error; when the caller goes away first, sending does nothing.
pub struct Reply<T> {
    responder: Option<Responder>,
    kind: PhantomData<fn(T)>,
}

impl<T: Message> Reply<T> {
    pub(crate) fn new(responder: Responder) -> Self {
        Self { responder: Some(responder), kind: PhantomData }
    }

    /// Answers.
    pub fn send(mut self, result: Result<T>) {
        if let Some(responder) = self.responder.take() {
            responder.finish(result.and_then(|response| encode(&response)));
        }
    }

    /// Whether the caller has gone away.
    pub fn is_cancelled(&self) -> bool {
        self.responder.as_ref().is_none_or(|responder| !responder.is_expected())
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        if let Some(responder) = self.responder.take() {
            responder.finish(Err(Error::internal("the shim dropped the call without an answer")));
        }
    }
}

pub(crate) fn encode(message: &impl Message) -> Result<Vec<u8>> {
    message.write_to_bytes().map_err(|error| Error::internal(error.to_string()))
}

/// Calls that wait for the same thing. One that is cancelled, or whose caller goes away, is dropped from here
/// at once, so the cost is that of the calls that still wait.
pub struct Waiters<T>(Arc<Mutex<Parked<T>>>);

struct Parked<T> {
    replies: HashMap<u64, Reply<T>>,
    next: u64,
}

impl<T> Default for Waiters<T> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Parked { replies: HashMap::new(), next: 0 })))
    }
}

impl<T: Message> Waiters<T> {
    /// Puts a call aside until [`answer`](Self::answer).
    pub fn park(&self, reply: Reply<T>) {
        let Some(responder) = reply.responder.clone() else { return };
        let key = {
            let mut parked = lock(&self.0);
            parked.next += 1;
            let key = parked.next;
            parked.replies.insert(key, reply);
            key
        };
        let parked = Arc::downgrade(&self.0);
        responder.when_dropped(move || {
            if let Some(parked) = parked.upgrade() {
                let dropped = lock(&parked).replies.remove(&key);
                drop(dropped);
            }
        });
    }

    /// Answers all that wait.
    pub fn answer(&self, response: &T) {
        let replies = std::mem::take(&mut lock(&self.0).replies);
        for reply in replies.into_values() {
            reply.send(Ok(response.clone()));
        }
    }

    /// How many calls wait.
    pub fn len(&self) -> usize {
        lock(&self.0).replies.len()
    }

    /// Whether no call waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
