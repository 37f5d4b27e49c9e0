//! `delete`: after every container, and after a shim's death (contract 2.6). The daemon has given the container
//! up by the time it runs, so whatever is left of the container is ended and taken away, also while its shim lives;
//! the rest of a living group stays as it is. It tells the exit that the shim had seen.

use std::io::{ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use nix::unistd::getpgid;
use protobuf::Message;
use serde::Deserialize;

use super::main_loop::{outlive_signals, run_supervised};
use super::start;
use crate::api::{Context, DeleteResponse};
use crate::args::Args;
use crate::bootstrap::Told;
use crate::bundle::{Bundle, InitRecord, Record};
use crate::caller::Caller;
use crate::entry::Entry;
use crate::entry::level::Level;
use crate::error::{Error, Result, WithContext};
use crate::files;
use crate::mount;
use crate::nulls;
use crate::socket::Socket;
use crate::sys;
use crate::types::{Exit, Signal};
use crate::wait::ready_within;

/// How long the whole action may take. containerd kills it after 5 s.
const BUDGET: Duration = Duration::from_millis(4500);
/// How long a living shim may take to give its container up. One that is slower does it when it can, and what can
/// be done without it is done here.
const SHIM_LIMIT: Duration = Duration::from_millis(1500);
/// How long a killed init may take to go before author code is asked to give the container up: one that was frozen
/// dies only once author code has thawed it.
const THAW_LIMIT: Duration = Duration::from_millis(300);
/// How long a killed init may take to go after that.
const DEATH_LIMIT: Duration = Duration::from_secs(2);
/// How often a killed init is looked at that cannot be watched.
const GLANCE: Duration = Duration::from_millis(10);
/// By when, counted from the beginning, commands of author code are killed; a little later it is left alone. The rest
/// is for what follows it.
const AUTHOR_LIMIT: Duration = Duration::from_millis(4200);
const AUTHOR_GRACE: Duration = Duration::from_millis(150);

/// Returns the answer to print.
pub(super) fn delete<S: Entry>(args: &Args) -> Result<Vec<u8>> {
    let begin = Instant::now();
    outlive_signals(false)?;
    let cwd = std::env::current_dir().with_context(|| "cannot find the bundle, the working directory");
    let bundle = Bundle::new(args.bundle.clone().map_or(cwd, Ok)?);
    if let Err(error) = part_with_shim(&bundle, &args.id) {
        // The container matters more than the socket: containerd logs this, and the rest is still done.
        let _ = writeln!(std::io::stderr(), "{error}");
    }
    let record = bundle.record();
    let told = if record.given_up { None } else { give_up::<S>(args, &bundle, &record, begin)? };
    let known = record.exit.map(Exit::from).or(told);
    // Killed, as far as anybody can tell; what Go's shim always says.
    let exit = known.unwrap_or_else(|| Exit::now(128 + Signal::KILL.number() as u32));
    let answer = DeleteResponse {
        pid: record.init.map_or_else(|| pid_of_another_shim(&bundle), |init| init.pid),
        exit_status: exit.status,
        exited_at: Some(exit.timestamp()).into(),
        ..DeleteResponse::default()
    };
    answer.write_to_bytes().map_err(|error| Error::internal(error.to_string()))
}

/// The pid in the file that runtimes write for shims of their own: after an upgrade this binary may meet the
/// bundle of a shim that kept no record (contract 11.3). For telling only; nothing is killed by it.
fn pid_of_another_shim(bundle: &Bundle) -> u32 {
    let text = files::read(&bundle.path().join("init.pid"), files::SMALL).unwrap_or_default();
    String::from_utf8_lossy(&text).trim().parse().unwrap_or_default()
}

/// Has the shim that the bundle names give the container up, if the shim lives and has not done so; removes the
/// socket of one that is dead.
fn part_with_shim(bundle: &Bundle, id: &str) -> Result<()> {
    let Some(socket) = socket_of(bundle) else { return Ok(()) };
    let is_done = bundle.record().given_up;
    if is_done { socket.remove_if_dead() } else { socket.give_up(id, SHIM_LIMIT) }.map(drop)
}

/// The socket of the bundle's shim. One of Go's under containerd 2 leaves no file that names it, but the daemon does
/// (contract 2.5).
fn socket_of(bundle: &Bundle) -> Option<Socket> {
    #[derive(Deserialize)]
    struct Bootstrap {
        address: String,
    }
    let read = |name| files::read(&bundle.path().join(name), files::SMALL).ok();
    let written = read("address").and_then(|text| String::from_utf8(text).ok());
    let told = || nulls::from_slice::<Bootstrap>(&read("bootstrap.json")?).ok();
    let address = written.or_else(|| told().map(|told| told.address));
    Socket::from_address(&address?)
}

/// Ends and takes away what is left of the container. Returns the exit, if the author's code knows it. A step that
/// fails keeps no other from being tried.
fn give_up<S: Entry>(args: &Args, bundle: &Bundle, record: &Record, begin: Instant) -> Result<Option<Exit>> {
    let end = begin + BUDGET;
    let init = record.init.as_ref().filter(|_| record.exit.is_none());
    let dying = init.and_then(kill);
    wait_for_death(dying.as_ref(), end, THAW_LIMIT);
    let told = cleanup::<S>(args, bundle.path().to_owned(), begin + AUTHOR_LIMIT);
    wait_for_death(dying.as_ref(), end, DEATH_LIMIT);
    let unmounted = mount::unmount_all(&bundle.rootfs());
    match (told, unmounted) {
        (Err(first), Err(second)) => Err(Error::other(format!("{first}; {second}"))),
        (told, unmounted) => unmounted.and(told),
    }
}

/// A killed init, whose end is still to come.
enum Dying<'a> {
    /// Its end makes this readable.
    Watched(OwnedFd),
    /// It has to be looked at: the kernel is older than 5.3.
    Unwatched(&'a InitRecord),
}

/// Kills an init that nobody looks after any more, and never a process that merely has its pid.
fn kill(init: &InitRecord) -> Option<Dying<'_>> {
    let pid = init.living()?;
    let dying = match sys::watch_process(pid) {
        Ok(process) => Dying::Watched(process),
        Err(error) if error.kind() == ErrorKind::Unsupported => Dying::Unwatched(init),
        Err(_) => return None,
    };
    // The descriptor is surely of it, since it is the same process before and after that was opened. Without one,
    // the moment from here to the signal is too short for its pid to be given to another.
    if init.living() != Some(pid) {
        return None;
    }
    let leads =
        getpgid(Some(nix::unistd::Pid::from_raw(pid.raw()))).is_ok_and(|group| group.as_raw() == pid.raw());
    let _ = if leads { sys::kill_group(pid, Signal::KILL) } else { sys::kill(pid, Signal::KILL) };
    Some(dying)
}

/// Waits for the end of a process, for at most `limit` and not beyond `end`.
fn wait_for_death(dying: Option<&Dying<'_>>, end: Instant, limit: Duration) {
    let limit = limit.min(end.saturating_duration_since(Instant::now()));
    match dying {
        Some(Dying::Watched(process)) => drop(ready_within(process, PollFlags::POLLIN, limit)),
        Some(Dying::Unwatched(init)) => {
            let end = Instant::now() + limit;
            while init.living().is_some() && Instant::now() < end {
                std::thread::sleep(GLANCE);
            }
        }
        None => {}
    }
}

/// The author's part. Commands that it runs are killed at `end`, and it is left alone when it goes on after that.
fn cleanup<S: Entry>(args: &Args, bundle: PathBuf, end: Instant) -> Result<Option<Exit>> {
    let told = Told::parse(&[], &args.id, &args.namespace)?;
    let setup = start::setup(args, told, bundle);
    let caller = Caller { deadline: Some(end), cancellation: None };
    let cleanup =
        move |supervisor| caller.while_working(|| S::Level::cleanup(&Context::new(setup, supervisor, None)));
    run_supervised(&S::CONFIG, end + AUTHOR_GRACE, cleanup)
}
