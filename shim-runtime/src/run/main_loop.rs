//! The main thread's loop, as the lives that supervise processes share it: SIGCHLD leads to the reaper, other
//! signals to what they mean.

use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::Instant;

use signal_hook::SigId;

use crate::entry::Config;
use crate::error::{Error, Result, WithContext};
use crate::event_loop::{EventLoop, Next, Ready, Source, Token};
use crate::reaper::Reaper;
use crate::spawn::Supervisor;
use crate::sync::caught;
use crate::sys;

/// Makes the process one that supervises, with the loop and the supervisor that do it; no supervisor without a
/// reaper.
pub(super) fn supervising(config: &Config) -> Result<(EventLoop, Option<Supervisor>)> {
    sys::use_one_arena();
    sys::give_back_large_blocks();
    if !config.reaper {
        return Ok((EventLoop::new()?, None));
    }
    if config.subreaper {
        nix::sys::prctl::set_child_subreaper(true).with_context(|| "cannot become a subreaper")?;
    }
    let (events, supervisor) = reaping()?;
    Ok((events, Some(supervisor)))
}

/// A loop that reaps the children of the thread that will run it, and the supervisor that forks on it.
pub(crate) fn reaping() -> Result<(EventLoop, Supervisor)> {
    let mut events = EventLoop::new()?;
    let reaper = Reaper::default();
    let supervisor = Supervisor::new(events.handle(), reaper.clone());
    on_signal(libc::SIGCHLD, &mut events, move |_| reaper.collect())?;
    Ok((events, supervisor))
}

/// Has `action` called on the loop when a signal has arrived.
pub(super) fn on_signal(
    signal: i32,
    events: &mut EventLoop,
    action: impl FnMut(&mut EventLoop) + 'static,
) -> Result<()> {
    let handle = || -> std::io::Result<_> {
        let (arrivals, write) = UnixStream::pair()?;
        arrivals.set_nonblocking(true)?;
        Ok((arrivals, signal_hook::low_level::pipe::register(signal, write)?))
    };
    let (arrivals, registered) = handle().with_context(|| format!("cannot handle signal {signal}"))?;
    let arrivals = Arrivals { socket: arrivals, registered, action: Box::new(action) };
    events.add(|token, events| {
        events.watch(&arrivals.socket, token, Ready::EPOLLIN)?;
        Ok(Box::new(arrivals))
    })?;
    Ok(())
}

/// Lets every signal pass by that is not handled otherwise, the deadly ones too, as Go's shims do: a life cut short
/// leaves half of its work behind, and a server's end costs its containers (contract 9.2). `stops` is for a server
/// that a user runs in a terminal, who can still stop it there.
pub(super) fn outlive_signals(stops: bool) -> Result<()> {
    sys::outlive_signals(stops).with_context(|| "cannot let signals pass by")
}

/// Does `work` on a thread of its own while the main thread supervises; what it returns is returned. Work that goes
/// on at `end` is left alone, and `DeadlineExceeded` is the error.
pub(super) fn run_supervised<T: Send + 'static>(
    config: &Config,
    end: Instant,
    work: impl FnOnce(Option<Supervisor>) -> Result<T> + Send + 'static,
) -> Result<T> {
    let (mut events, supervisor) = supervising(config)?;
    let main = events.handle();
    let (done, result) = mpsc::channel();
    let work = move || {
        let _ = done.send(caught(|| work(supervisor)).flatten());
        main.post(EventLoop::stop);
    };
    let worker = std::thread::Builder::new().name("work".to_owned()).spawn(work);
    worker.with_context(|| "cannot start a thread")?;
    events.after(end.saturating_duration_since(Instant::now()), EventLoop::stop);
    events.run()?;
    result
        .try_recv()
        .unwrap_or_else(|_| Err(Error::deadline_exceeded("the runtime's own clean-up takes too long")))
}

struct Arrivals {
    socket: UnixStream,
    registered: SigId,
    action: Box<dyn FnMut(&mut EventLoop)>,
}

impl Drop for Arrivals {
    /// A process may have one loop after another.
    fn drop(&mut self) {
        signal_hook::low_level::unregister(self.registered);
    }
}

impl Source for Arrivals {
    fn ready(&mut self, _: Token, _: Ready, events: &mut EventLoop) -> Next {
        let mut bytes = [0; 64];
        // Emptied first: a signal that comes during the action is another arrival.
        while match (&self.socket).read(&mut bytes) {
            Ok(count) => count == bytes.len(),
            Err(error) => error.kind() == ErrorKind::Interrupted,
        } {}
        (self.action)(events);
        Next::Keep
    }

    fn close(&mut self, events: &mut EventLoop) {
        events.unwatch(&self.socket);
    }
}
