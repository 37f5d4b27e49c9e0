//! The server: a long life on the main thread's loop, from `start` until the shim is shut down (contract 9.2).

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::assembly;
use super::main_loop::{on_signal, outlive_signals, supervising};
use super::start::{self, READY};
use super::stderr;
use crate::api::Setup;
use crate::args::Args;
use crate::bootstrap::Told;
use crate::entry::{Config, Entry};
use crate::error::{Error, Result, WithContext};
use crate::event_loop::EventLoop;
use crate::logger;
use crate::publisher::Publisher;
use crate::server::{Listener, Server};
use crate::socket::{Claim, Socket};
use crate::spawn::Supervisor;
use crate::sync::lock;
use crate::types::Signal;

/// How long the end waits for calls that are being answered, that which asked for it above all.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// How long the end waits for containerd to take the last events.
const FLUSH_LIMIT: Duration = Duration::from_secs(3);

/// What the server begins with.
struct Beginning {
    listener: UnixListener,
    socket: Socket,
    told: Told,
}

/// Who started the server, and is told once whether it serves; nobody when it was started by hand.
#[derive(Clone, Default)]
struct Starter(Arc<Mutex<Option<UnixStream>>>);

impl Starter {
    fn is_there(&self) -> bool {
        lock(&self.0).is_some()
    }

    fn say_ready(&self) -> std::io::Result<()> {
        let Some(mut stream) = lock(&self.0).take() else { return Ok(()) };
        stream.write_all(READY)?;
        // The end of the talk is what `start` waits for, whoever else has the descriptor.
        stream.shutdown(Shutdown::Both)
    }

    fn say_why_not(&self, error: &Error) {
        if let Some(mut stream) = lock(&self.0).take() {
            let _ = write!(stream, "{error}");
        }
    }
}

/// Serves until the end. A failure to begin is told to `start`.
pub(super) fn serve<S: Entry>(args: &Args) -> Result<()> {
    outlive_signals(args.handoff.is_none())?;
    let starter = args.handoff.map(start::take_handoff).transpose()?;
    let begun = begin(args, starter.as_ref());
    let starter = Starter(Arc::new(Mutex::new(starter)));
    begun
        .and_then(|beginning| serve_from::<S>(args, beginning, &starter))
        .inspect_err(|error| starter.say_why_not(error))
}

fn begin(args: &Args, starter: Option<&UnixStream>) -> Result<Beginning> {
    if let Some(starter) = starter {
        let listener = start::take_listener()?;
        let (handoff, input) = start::receive_handoff(starter)?;
        let told = Told::parse(&input, &args.id, &args.namespace)?;
        let socket = Socket::at(handoff.socket)?.marked_as_own();
        return Ok(Beginning { listener, socket, told });
    }
    let Some(path) = &args.socket else {
        let message = "nobody passed a socket on: say `start`, or `-socket PATH` to serve in the foreground";
        return Err(Error::invalid_argument(message));
    };
    let socket = Socket::at(std::path::absolute(path)?)?;
    match socket.claim()? {
        Claim::Bound(listener) => {
            let told = Told::parse(&[], &args.id, &args.namespace)?;
            Ok(Beginning { listener, socket, told })
        }
        Claim::Taken(_) => {
            let path = socket.path().display();
            Err(Error::already_exists(format!("a shim listens on `{path}` already")))
        }
    }
}

fn serve_from<S: Entry>(args: &Args, beginning: Beginning, starter: &Starter) -> Result<()> {
    let Beginning { listener, socket, told } = beginning;
    let bundle = std::env::current_dir().with_context(|| "cannot find the bundle, the working directory")?;
    let setup = start::setup(args, told, bundle);
    if setup.ttrpc_address.is_empty() {
        let message =
            "events have nowhere to go: neither `TTRPC_ADDRESS` nor the input names containerd's socket";
        return Err(Error::invalid_argument(message));
    }
    let in_foreground = !starter.is_there();
    let publisher = Publisher::new(&setup.ttrpc_address, &setup.namespace);
    let (mut events, supervisor) = supervising(&S::CONFIG)?;
    open_log(&S::CONFIG, &setup, in_foreground, &mut events)?;
    let server = assembly::assemble(setup, events.handle(), supervisor.clone(), publisher);
    handle_signals(&S::CONFIG, &server, supervisor, &socket, &mut events)?;
    let failure = open_when_ready::<S>(&server, listener, socket.clone(), starter.clone(), &events);
    let ran = events.run();
    let (workers, publisher) = (server.workers.clone(), server.publisher.clone());
    if workers.finish(ANSWER_LIMIT) {
        // What the author has made goes now, and its destructors are waited for as well.
        drop(events);
        drop(server);
        workers.finish(ANSWER_LIMIT);
    }
    let left = publisher.flush(FLUSH_LIMIT);
    if left > 0 {
        log::error!("{left} events were left behind: containerd did not take them");
    }
    let failed = lock(&failure).take();
    ran.and(failed.map_or(Ok(()), Err))
}

fn open_log(config: &Config, setup: &Setup, in_foreground: bool, events: &mut EventLoop) -> Result<()> {
    if in_foreground {
        return if config.logger { logger::init_on_stderr(config.runtime, setup.debug) } else { Ok(()) };
    }
    let log = logger::open(&setup.bundle.join("log"))?;
    if config.logger {
        logger::init(log, config.runtime, setup.debug)?;
        logger::log_panics();
        stderr::forward(events)?;
    } else {
        stderr::copy(log)?;
    }
    // The bundle goes with its container, which a group may outlive (contract 9.2).
    std::env::set_current_dir("/").with_context(|| "cannot change into `/`")
}

/// Runs the author's constructor on a thread of its own, which stays, then opens for business and says so. What goes wrong
/// is left in the returned place, and ends the loop.
fn open_when_ready<S: Entry>(
    server: &Arc<Server>,
    listener: UnixListener,
    socket: Socket,
    starter: Starter,
    events: &EventLoop,
) -> Arc<Mutex<Option<Error>>> {
    let failure = Arc::new(Mutex::new(None));
    let (failed, server, main) = (failure.clone(), server.clone(), events.handle());
    let construct = move || {
        let workers = server.workers.clone();
        let constructed = assembly::construct::<S>(&server);
        main.post(move |events| {
            let opened = constructed.and_then(|()| open(&server, listener, socket, &starter, events));
            if let Err(error) = opened {
                *lock(&failed) = Some(error);
                events.stop();
            }
        });
        // It is needed no more, and kept back for the day on which there is no other thread to be had.
        workers.stand_by();
    };
    let spawned = std::thread::Builder::new().name("constructor".to_owned()).spawn(construct);
    if let Err(error) = spawned {
        *lock(&failure) = Some(Error::from(error).context("cannot start the thread of the constructor"));
        events.handle().post(EventLoop::stop);
    }
    failure
}

fn open(
    server: &Arc<Server>,
    listener: UnixListener,
    socket: Socket,
    starter: &Starter,
    events: &mut EventLoop,
) -> Result<()> {
    // A second descriptor of the same socket, to see from outside of the loop whether somebody waits.
    let backlog = listener.try_clone().with_context(|| "cannot duplicate the listening socket")?;
    Listener::listen(listener, server.clone(), events)?;
    log::info!("serving on {}", socket.address());
    if starter.is_there() {
        if let Err(error) = starter.say_ready() {
            // Nobody will tell containerd of this server.
            socket.retire(|| false)?;
            return Err(error).with_context(|| "the `start` of this server is gone");
        }
        server.lifetime.expect(events);
    }
    server.lifetime.begin(move || leave(&socket, &backlog));
    Ok(())
}

/// Takes the socket away, unless somebody has connected whom the loop has not seen yet.
fn leave(socket: &Socket, backlog: &UnixListener) -> bool {
    socket.retire(|| Listener::has_backlog(backlog)).unwrap_or_else(|error| {
        log::error!("{error}");
        true
    })
}

fn handle_signals(
    config: &Config,
    server: &Arc<Server>,
    supervisor: Option<Supervisor>,
    socket: &Socket,
    events: &mut EventLoop,
) -> Result<()> {
    let ends = |signal: Signal| config.shutdown_on.contains(&signal);
    // A shim that ignores SIGTERM holds up the machine's shutdown (contract 9.2), so it always ends by it.
    let term = [Signal::TERM].into_iter().filter(|signal| !ends(*signal));
    for signal in config.shutdown_on.iter().copied().chain(term) {
        let socket = socket.clone();
        on_signal(signal.number(), events, move |events| {
            log::info!("ending on {signal}");
            if let Err(error) = socket.retire(|| false) {
                log::error!("{error}");
            }
            events.stop();
        })?;
    }
    let server = server.clone();
    on_signal(libc::SIGUSR1, events, move |_| report(&server, supervisor.as_ref()))
}

/// What the shim holds, for whoever asks by SIGUSR1.
fn report(server: &Server, supervisor: Option<&Supervisor>) {
    let (threads, waiting) = server.workers.load();
    log::info!(
        "holds {}; {} child processes, {threads} workers, {waiting} calls waiting for one, {} bytes kept for clients, \
         {} events unsent",
        server.lifetime,
        supervisor.map_or(0, |supervisor| supervisor.reaper.len()),
        server.budget.kept(),
        server.publisher.len(),
    );
}
