//! The main thread's loop, as the lives that supervise processes share it: SIGCHLD leads to the reaper, other
//! signals to what they mean.

use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;

use crate::entry::Config;
use crate::error::{Error, Result, WithContext};
use crate::event_loop::{EventLoop, Next, Ready, Source, Token};
use crate::reaper::Reaper;
use crate::spawn::Supervisor;
use crate::sys;
use crate::types::Signal;

/// A loop that reaps, and the supervisor that forks on it; no supervisor without a reaper.
pub(super) fn supervising(config: &Config) -> Result<(EventLoop, Option<Supervisor>)> {
    sys::use_one_arena();
    sys::ignore_signal(Signal::PIPE);
    let mut events = EventLoop::new()?;
    if !config.reaper {
        return Ok((events, None));
    }
    if config.subreaper {
        nix::sys::prctl::set_child_subreaper(true).context(|| "cannot become a subreaper")?;
    }
    let reaper = Reaper::default();
    let supervisor = Supervisor::new(events.handle(), reaper.clone());
    on_signal(libc::SIGCHLD, &mut events, move |_| reaper.collect())?;
    Ok((events, Some(supervisor)))
}

/// Has `action` called on the loop when a signal has arrived.
pub(super) fn on_signal(
    signal: i32,
    events: &mut EventLoop,
    action: impl FnMut(&mut EventLoop) + 'static,
) -> Result<()> {
    let (arrivals, write) = UnixStream::pair()?;
    arrivals.set_nonblocking(true)?;
    signal_hook::low_level::pipe::register(signal, write)
        .context(|| format!("cannot handle signal {signal}"))?;
    events.add(|token, events| {
        events.watch(&arrivals, token, Ready::EPOLLIN)?;
        Ok(Box::new(Arrivals { arrivals, action: Box::new(action) }))
    })?;
    Ok(())
}

/// Does `work` on a thread of its own while the main thread supervises; what it returns is returned.
pub(super) fn run_supervised<T: Send + 'static>(
    config: &Config,
    work: impl FnOnce(Option<Supervisor>) -> Result<T> + Send + 'static,
) -> Result<T> {
    let (mut events, supervisor) = supervising(config)?;
    let main = events.handle();
    let worker = std::thread::spawn(move || {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(supervisor)));
        main.post(EventLoop::stop);
        result
    });
    events.run()?;
    match worker.join() {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) | Err(panic) => {
            Err(Error::internal(format!("the shim panicked: {}", crate::logger::panic_message(&*panic))))
        }
    }
}

struct Arrivals {
    arrivals: UnixStream,
    action: Box<dyn FnMut(&mut EventLoop)>,
}

impl Source for Arrivals {
    fn ready(&mut self, _: Token, _: Ready, events: &mut EventLoop) -> Next {
        let mut bytes = [0; 64];
        // Emptied first: a signal that comes during the action is another arrival.
        while match (&self.arrivals).read(&mut bytes) {
            Ok(count) => count == bytes.len(),
            Err(error) => error.kind() == ErrorKind::Interrupted,
        } {}
        (self.action)(events);
        Next::Keep
    }

    fn close(&mut self, events: &mut EventLoop) {
        events.unwatch(&self.arrivals);
    }
}
