//! Calls from within this process, for tests: on the loop, in the mailboxes and parked like those of a
//! connection, but without one.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use ttrpc::Request;

use super::Shared;
use super::reply::Responder;
use super::service::Incoming;
use crate::caller::Cancellation;
use crate::error::{Error, Result};
use crate::event_loop::Handle;
use crate::reaper::lock;

/// The calling side.
pub(crate) struct DirectClient {
    server: Shared,
    main: Handle,
    /// The calls under way; `None` after the hang-up.
    calls: Mutex<Option<Vec<Weak<DirectCall>>>>,
}

impl DirectClient {
    pub(crate) fn new(server: Shared, main: Handle) -> Self {
        Self { server, main, calls: Mutex::new(Some(Vec::new())) }
    }

    /// Makes a call and waits for the answer, at most until its time is over.
    pub(crate) fn call(&self, request: Request) -> Result<Vec<u8>> {
        let gone = || Error::unavailable("the shim has ended");
        let limit = u64::try_from(request.timeout_nano).ok().filter(|nanos| *nanos > 0);
        let limit = limit.map(Duration::from_nanos);
        let (sender, answer) = mpsc::channel();
        let call =
            Arc::new(DirectCall(Mutex::new(State { sender: Some(sender), dropped: None }), Arc::default()));
        let watched = Arc::downgrade(&call);
        {
            let mut calls = lock(&self.calls);
            let calls = calls.as_mut().ok_or_else(gone)?;
            calls.retain(|call| call.strong_count() > 0);
            calls.push(watched.clone());
        }
        let (server, deadline) = (self.server.clone(), limit.map(|limit| Instant::now() + limit));
        // Whatever loses the call, the loop's end above all, loses the sender with it.
        self.main.post(move |_| take(&server, call, request, deadline));
        let Some(limit) = limit else { return answer.recv().unwrap_or_else(|_| Err(gone())) };
        answer.recv_timeout(limit).unwrap_or_else(|error| match error {
            RecvTimeoutError::Disconnected => Err(gone()),
            RecvTimeoutError::Timeout => {
                if let Some(call) = watched.upgrade() {
                    call.cancel();
                }
                Err(Error::deadline_exceeded("no answer in time"))
            }
        })
    }

    /// Ends all calls, as the end of a connection does.
    pub(crate) fn hang_up(&self) {
        let calls = lock(&self.calls).take();
        for call in calls.into_iter().flatten().filter_map(|call| call.upgrade()) {
            call.cancel();
        }
        self.server.workers.drop_unwanted();
    }
}

fn take(server: &Shared, call: Arc<DirectCall>, request: Request, deadline: Option<Instant>) {
    let responder = Responder::Direct(call);
    match server.service(&request.service) {
        Err(error) => responder.answer(Err(error)),
        Ok(service) => service.handle(Incoming {
            server,
            responder,
            method: &request.method,
            payload: request.payload,
            deadline,
            metadata: request.metadata,
        }),
    }
}

/// One call, until it is answered or given up.
pub(crate) struct DirectCall(Mutex<State>, Arc<Cancellation>);

struct State {
    /// Taken with the answer.
    sender: Option<Sender<Result<Vec<u8>>>>,
    /// Takes the parked answer out of where it waits.
    dropped: Option<Box<dyn FnOnce() + Send>>,
}

impl DirectCall {
    pub(super) fn finish(&self, result: Result<Vec<u8>>) {
        let sender = lock(&self.0).sender.take();
        if let Some(sender) = sender {
            let _ = sender.send(result);
        }
    }

    pub(super) fn cancelled(&self) -> Arc<Cancellation> {
        self.1.clone()
    }

    pub(super) fn is_open(&self) -> bool {
        lock(&self.0).sender.is_some()
    }

    pub(super) fn when_dropped(&self, dropped: impl FnOnce() + Send + 'static) {
        {
            let mut state = lock(&self.0);
            if state.sender.is_some() {
                state.dropped = Some(Box::new(dropped));
                return;
            }
        }
        dropped();
    }

    fn cancel(&self) {
        let State { sender, dropped } =
            std::mem::replace(&mut *lock(&self.0), State { sender: None, dropped: None });
        self.1.cancel();
        drop(sender);
        if let Some(dropped) = dropped {
            dropped();
        }
    }
}
