//! On whose behalf a thread works. A runtime command is killed when the call that it serves is given up
//! (contract 11.2), so that one that hangs does not outlive those who wait for it.

use std::cell::RefCell;
use std::sync::{Arc, Mutex};
#[cfg(feature = "oci")]
use std::time::Duration;
use std::time::Instant;

use crate::sync::lock;

/// Told once: whoever made the call does not wait for its answer any more.
#[derive(Default)]
pub(crate) struct Cancellation(Mutex<State>);

#[derive(Default)]
struct State {
    is_cancelled: bool,
    callback: Option<Box<dyn FnOnce() + Send>>,
}

impl Cancellation {
    pub(crate) fn cancel(&self) {
        let callback = {
            let mut state = lock(&self.0);
            state.is_cancelled = true;
            state.callback.take()
        };
        if let Some(callback) = callback {
            callback();
        }
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        lock(&self.0).is_cancelled
    }

    /// Calls back when it is told, at once if that was so before. The callback runs on whatever thread tells it,
    /// the main thread above all, so it must not block.
    pub(crate) fn on_cancel(&self, callback: impl FnOnce() + Send + 'static) {
        {
            let mut state = lock(&self.0);
            if !state.is_cancelled {
                state.callback = Some(Box::new(callback));
                return;
            }
        }
        callback();
    }

    /// Forgets the callback.
    pub(crate) fn forget(&self) {
        let callback = lock(&self.0).callback.take();
        drop(callback);
    }
}

/// Who waits for what a thread does, and for how long.
#[derive(Clone, Default)]
pub(crate) struct Caller {
    pub(crate) deadline: Option<Instant>,
    pub(crate) cancellation: Option<Arc<Cancellation>>,
}

thread_local! {
    static CALLER: RefCell<Caller> = RefCell::default();
}

impl Caller {
    /// The caller of an RPC, as far as it can call it off. What moves a container on is finished for a client
    /// that went away, and a deletion for anybody: asked again, it tells its result (contract 6.6, 6.5).
    pub(crate) fn of(method: &str, deadline: Option<Instant>, cancellation: &Arc<Cancellation>) -> Self {
        match method {
            "Delete" => Self::default(),
            "Create" | "Start" => Self { deadline, cancellation: None },
            _ => Self { deadline, cancellation: Some(cancellation.clone()) },
        }
    }

    /// Whoever the calling thread works for at present; by default nobody, who waits for ever.
    pub(crate) fn current() -> Self {
        CALLER.with_borrow(Clone::clone)
    }

    /// Does something on this one's behalf.
    pub(crate) fn while_working<T>(self, work: impl FnOnce() -> T) -> T {
        /// Brings the former caller back, after a panic too.
        struct Former(Option<Caller>);
        impl Drop for Former {
            fn drop(&mut self) {
                CALLER.set(self.0.take().unwrap_or_default());
            }
        }
        let _former = Former(Some(CALLER.replace(self)));
        work()
    }
}

/// Undoes something, whatever has become of the caller, in a limited time.
#[cfg(feature = "oci")]
pub(crate) fn while_undoing<T>(limit: Duration, work: impl FnOnce() -> T) -> T {
    Caller { deadline: Some(Instant::now() + limit), cancellation: None }.while_working(work)
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn a_deletion_cannot_be_called_off_and_a_start_only_by_its_deadline() {
        let (deadline, gone) = (Some(Instant::now()), Arc::default());
        let of = |method| Caller::of(method, deadline, &gone);
        assert!(of("Delete").deadline.is_none() && of("Delete").cancellation.is_none());
        assert!(of("Start").deadline.is_some() && of("Start").cancellation.is_none());
        assert!(of("Pause").deadline.is_some() && of("Pause").cancellation.is_some());
    }

    #[test]
    fn the_former_caller_is_back_after_a_panic() {
        let caller = Caller { deadline: Some(Instant::now()), cancellation: None };
        let panicked = catch_unwind(AssertUnwindSafe(|| caller.while_working(|| panic!("on purpose"))));
        assert!(panicked.is_err());
        assert!(Caller::current().deadline.is_none());
    }

    #[test]
    fn a_cancellation_that_was_told_calls_back_at_once() {
        let cancellation = Cancellation::default();
        let (tx, rx) = std::sync::mpsc::channel();
        let late = tx.clone();
        cancellation.on_cancel(move || tx.send("forgotten").unwrap());
        cancellation.forget();
        cancellation.cancel();
        cancellation.on_cancel(move || late.send("late").unwrap());
        assert_eq!(rx.iter().collect::<Vec<_>>(), ["late"]);
    }
}
