//! Answers that are given later: a [`Reply`] to one call, and [`Waiters`], which hold many until one event.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use protobuf::Message;

use super::budget::Kept;
use super::connection::Peer;
#[cfg(feature = "testing")]
use super::direct::DirectCall;
use crate::caller::Cancellation;
use crate::error::{Error, Result};
use crate::reaper::lock;

/// Who is to be answered: the one place that tells the ways apart by which a call can come.
#[derive(Clone)]
pub(crate) enum Responder {
    /// A stream of a connection.
    Stream(Arc<Peer>, u32),
    /// A caller in this process.
    #[cfg(feature = "testing")]
    Direct(Arc<DirectCall>),
}

impl Responder {
    /// Answers a call that was never noted as open.
    pub(crate) fn answer(&self, result: Result<Vec<u8>>) {
        match self {
            Self::Stream(peer, stream) => peer.answer(*stream, result),
            #[cfg(feature = "testing")]
            Self::Direct(call) => call.finish(result),
        }
    }

    /// Keeps so many bytes for the caller until it is answered, if that is within the limits.
    pub(crate) fn keep(&self, bytes: usize) -> Result<Option<Kept>> {
        match self {
            Self::Stream(peer, _) => peer.keep(bytes).map(Some),
            #[cfg(feature = "testing")]
            Self::Direct(_) => Ok(None),
        }
    }

    /// Notes a call that will be answered later; the flag tells when its caller is gone.
    pub(crate) fn open(&self) -> Arc<Cancellation> {
        match self {
            Self::Stream(peer, stream) => peer.open(*stream),
            #[cfg(feature = "testing")]
            Self::Direct(call) => call.cancelled(),
        }
    }

    /// Notes a call whose answer will be put aside, for at most until `deadline`; the flag tells when its caller is
    /// gone.
    pub(crate) fn open_parked(&self, deadline: Option<Instant>) -> Result<Arc<Cancellation>> {
        match self {
            Self::Stream(peer, stream) => peer.open_parked(*stream, deadline),
            // Its caller keeps the deadline.
            #[cfg(feature = "testing")]
            Self::Direct(call) => Ok(call.cancelled()),
        }
    }

    /// Answers an open call, unless that was done or its caller is gone.
    pub(crate) fn finish(&self, result: Result<Vec<u8>>) {
        match self {
            Self::Stream(peer, stream) => peer.finish(*stream, result),
            #[cfg(feature = "testing")]
            Self::Direct(call) => call.finish(result),
        }
    }

    /// Answers from now on wait for each other, until [`uncork`](Self::uncork).
    pub(crate) fn cork(&self) {
        match self {
            Self::Stream(peer, _) => peer.cork(),
            #[cfg(feature = "testing")]
            Self::Direct(_) => {}
        }
    }

    /// Lets the answers leave that waited, in one write.
    pub(crate) fn uncork(&self) {
        match self {
            Self::Stream(peer, _) => peer.uncork(),
            #[cfg(feature = "testing")]
            Self::Direct(_) => {}
        }
    }

    /// Whether an open call still waits for its answer.
    fn is_expected(&self) -> bool {
        match self {
            Self::Stream(peer, stream) => peer.expects(*stream),
            #[cfg(feature = "testing")]
            Self::Direct(call) => call.is_open(),
        }
    }

    /// Has `dropped` called when nobody waits for a parked answer any more, at once if that is so already.
    fn when_dropped(&self, dropped: impl FnOnce() + Send + 'static) {
        match self {
            Self::Stream(peer, stream) => peer.when_dropped(*stream, dropped),
            #[cfg(feature = "testing")]
            Self::Direct(call) => call.when_dropped(dropped),
        }
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
