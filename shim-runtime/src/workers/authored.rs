//! Values of the author's. Their destructors are author code as well, which may block and start processes, so they
//! never run on the loop's thread, wherever the last reference to such a value is given up.

use std::cell::RefCell;
use std::ops::Deref;

use super::{Place, Workers};

thread_local! {
    /// The workers beside the loop that the calling thread runs; none on any other thread.
    static BESIDE_THIS_LOOP: RefCell<Option<Workers>> = const { RefCell::new(None) };
}

/// Has the author's destructors that would run on the calling thread, which is the loop's, run on these workers.
pub(crate) fn keep_destructors_off_this_thread(workers: &Workers) {
    BESIDE_THIS_LOOP.set(Some(workers.clone()));
}

/// A value of the author's; see the module. Where there is no thread for its destructor that waits for one.
pub(crate) struct Authored<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> Authored<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Some(value))
    }

    /// The value itself, to be used up; for a thread on which author code may run.
    pub(crate) fn into_inner(mut self) -> Option<T> {
        self.0.take()
    }
}

impl<T: Send + 'static> Deref for Authored<T> {
    type Target = T;

    fn deref(&self) -> &T {
        match &self.0 {
            Some(value) => value,
            None => unreachable!("the value is taken by the drop alone"),
        }
    }
}

impl<T: Send + 'static> Drop for Authored<T> {
    fn drop(&mut self) {
        let Some(value) = self.0.take().filter(|_| std::mem::needs_drop::<T>()) else { return };
        // On a thread that ends there is nothing to ask any more, and a loop's thread has its loop until then.
        match BESIDE_THIS_LOOP.try_with(|workers| workers.borrow().clone()) {
            Ok(Some(workers)) => workers.run(Place::Foreign, move || drop(value)),
            _ => drop(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};
    use std::thread;

    use super::*;
    use crate::caller::Caller;
    use crate::error::Code;
    use crate::event_loop::EventLoop;
    use crate::reaper::Group;
    use crate::run;
    use crate::spawn::{Command, Supervisor};

    /// Runs a command when it goes, which a loop's thread would wait for in vain.
    struct Runs(Supervisor, Sender<(Option<String>, u32)>);

    impl Drop for Runs {
        fn drop(&mut self) {
            let ran = self.0.run(&mut Command::new("true"), &Caller::default());
            let name = thread::current().name().map(str::to_owned);
            let _ = self.1.send((name, ran.map_or(255, |output| output.exit.status)));
        }
    }

    /// A loop on a thread of its own, until `on_loop` has been done there.
    fn with_loop(
        on_loop: impl FnOnce(&mut EventLoop, &Supervisor) + Send + 'static,
    ) -> thread::JoinHandle<()> {
        thread::Builder::new()
            .name("loop".into())
            .spawn(|| {
                let (mut events, supervisor) = run::reaping().unwrap();
                let workers = Workers::new(events.handle());
                events.handle().post(move |events| {
                    keep_destructors_off_this_thread(&workers);
                    on_loop(events, &supervisor);
                });
                events.run().unwrap();
            })
            .unwrap()
    }

    #[test]
    fn a_destructor_that_would_run_on_the_loop_runs_on_a_worker_and_can_start_processes() {
        let (tell, told) = channel();
        let (pass_on, seen) = channel();
        let looping = with_loop(move |events, supervisor| {
            let main = events.handle();
            drop(Authored::new(Runs(supervisor.clone(), tell)));
            // The loop goes on until the command has come to its end.
            thread::spawn(move || {
                let _ = pass_on.send(told.recv());
                main.post(EventLoop::stop);
            });
        });
        looping.join().unwrap();
        assert_eq!(seen.recv().unwrap(), Ok((Some("worker".to_owned()), 0)));
    }

    #[test]
    fn a_destructor_on_another_thread_runs_there() {
        struct Tells(Sender<thread::ThreadId>);
        impl Drop for Tells {
            fn drop(&mut self) {
                let _ = self.0.send(thread::current().id());
            }
        }
        let (tell, told) = channel();
        drop(Authored::new(Tells(tell)));
        assert_eq!(told.recv(), Ok(thread::current().id()));
    }

    #[test]
    fn a_process_started_on_the_loop_is_an_error_in_a_sentence() {
        let (tell, told) = channel();
        let looping = with_loop(move |events, supervisor| {
            let spawned = supervisor.spawn(&mut Command::new("true"), Group::Kill);
            let ran = supervisor.run(&mut Command::new("true"), &Caller::default());
            let errors = [spawned.map(drop), ran.map(drop)].map(|result| result.unwrap_err());
            let _ = tell.send(errors.map(|error| (error.code(), error.to_string())));
            events.stop();
        });
        looping.join().unwrap();
        for (code, words) in told.recv().unwrap() {
            assert_eq!(code, Code::FailedPrecondition);
            assert!(words.contains("start it on a thread of its own"), "{words}");
        }
    }
}
