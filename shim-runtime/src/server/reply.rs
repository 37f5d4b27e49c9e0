//! Answers that are given later: a [`Reply`] to one call, and [`Waiters`], which hold many until one event.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex};

use protobuf::Message;

use super::connection::Peer;
use crate::error::{Error, Result};
use crate::reaper::lock;

/// The right to answer one call, once.
pub(crate) struct Responder {
    peer: Arc<Peer>,
    stream: u32,
}

impl Responder {
    pub(crate) fn new(peer: Arc<Peer>, stream: u32) -> Self {
        Self { peer, stream }
    }

    pub(crate) fn answer(&self, result: Result<Vec<u8>>) {
        self.peer.finish(self.stream, result);
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
            responder.answer(result.and_then(|response| encode(&response)));
        }
    }

    /// Whether the caller has gone away.
    pub fn is_cancelled(&self) -> bool {
        self.responder.as_ref().is_none_or(|responder| !responder.peer.expects(responder.stream))
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        if let Some(responder) = self.responder.take() {
            responder.answer(Err(Error::internal("the shim dropped the call without an answer")));
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
        let Some(Responder { peer, stream }) = &reply.responder else { return };
        let (peer, stream) = (peer.clone(), *stream);
        let key = {
            let mut parked = lock(&self.0);
            parked.next += 1;
            let key = parked.next;
            parked.replies.insert(key, reply);
            key
        };
        let parked = Arc::downgrade(&self.0);
        peer.when_dropped(stream, move || {
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
