//! Calls that are asked for again while they are under way: whoever asks later gets the answer of the first, and
//! at the same time, for the first one's caller may go on to end the shim (contract 6.5, 11).

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::error::{Error, Result};
use crate::peer::Responder;
use crate::sync::lock;

type Followers = Arc<Mutex<Vec<Responder>>>;

/// The calls of one method that are under way, by what they are about.
#[derive(Clone, Default)]
pub(crate) struct Underway(Arc<Mutex<HashMap<String, Followers>>>);

impl Underway {
    /// Begins a call. `None` if the same one is under way, whose answer is then the answer to this one.
    pub(crate) fn begin(&self, key: &str, responder: &Responder) -> Option<First> {
        let mut calls = lock(&self.0);
        if let Some(followers) = calls.get(key) {
            responder.open();
            lock(followers).push(responder.clone());
            return None;
        }
        let followers = Followers::default();
        calls.insert(key.to_owned(), followers.clone());
        Some(First { calls: self.clone(), key: key.to_owned(), followers, responder: responder.clone() })
    }

    /// What is asked for from now on is about something else of the same name.
    pub(crate) fn forget(&self, key: &str) {
        lock(&self.0).remove(key);
    }
}

/// The first of several calls for the same thing.
pub(crate) struct First {
    calls: Underway,
    key: String,
    followers: Followers,
    responder: Responder,
}

impl First {
    /// Answers all who asked.
    pub(crate) fn answer(&self, result: &Result<Vec<u8>>) {
        let mut asked = self.end();
        asked.push(self.responder.clone());
        // In one write, for whoever is answered first may be quicker than the next line.
        asked.iter().for_each(Responder::cork);
        for responder in &asked {
            responder.finish(copy(result));
        }
        asked.iter().for_each(Responder::uncork);
    }

    fn end(&self) -> Vec<Responder> {
        let mut calls = lock(&self.calls.0);
        if calls.get(&self.key).is_some_and(|known| Arc::ptr_eq(known, &self.followers)) {
            calls.remove(&self.key);
        }
        std::mem::take(&mut lock(&self.followers))
    }
}

fn copy(result: &Result<Vec<u8>>) -> Result<Vec<u8>> {
    match result {
        Ok(payload) => Ok(payload.clone()),
        Err(error) => Err(Error::internal(error.to_string()).with_code(error.code())),
    }
}

/// A call that panicked, or found no thread, leaves nobody without an answer.
impl Drop for First {
    fn drop(&mut self) {
        for follower in self.end() {
            follower.finish(Err(Error::internal("the call that this one waited for came to no end")));
        }
    }
}
