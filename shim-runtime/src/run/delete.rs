//! `delete`: after every container, and after a shim's death (contract 2.6). Quick, repeatable, and no harm to
//! a group that lives; it tells the exit that the dead shim had seen.

use std::io::ErrorKind;
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
use crate::entry::Entry;
use crate::error::{Error, Result, WithContext};
use crate::level::Level;
use crate::mount;
use crate::nulls;
use crate::socket::Socket;
use crate::sys;
use crate::types::{Exit, Signal};
use crate::wait::ready_within;

/// How long a killed init may take to go: before author code is asked to give the container up,
/// and after that. containerd gives the whole action 5 s.
const THAW_LIMIT: Duration = Duration::from_millis(300);
const DEATH_LIMIT: Duration = Duration::from_secs(2);
/// How often a killed init is looked at that cannot be watched.
const GLANCE: Duration = Duration::from_millis(10);

/// Returns the answer to print.
pub(super) fn delete<S: Entry>(args: &Args) -> Result<Vec<u8>> {
    outlive_signals(false)?;
    let cwd = std::env::current_dir().context(|| "cannot find the bundle, the working directory");
    let bundle = Bundle::new(args.bundle.clone().map_or(cwd, Ok)?);
    let record = bundle.record();
    // A shim that lives has given its container up itself, or still runs it.
    let is_done = group_lives(&bundle)? || record.given_up;
    let told = if is_done { None } else { give_up::<S>(args, &bundle, &record)? };
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
    let text = std::fs::read_to_string(bundle.path().join("init.pid")).unwrap_or_default();
    text.trim().parse().unwrap_or_default()
}

/// Whether the shim that the bundle names still serves its group. If not, its socket is removed.
fn group_lives(bundle: &Bundle) -> Result<bool> {
    let remove_if_dead = |address: &str| Socket::from_address(address).map(|socket| socket.remove_if_dead());
    if let Ok(address) = std::fs::read_to_string(bundle.path().join("address")) {
        return remove_if_dead(&address).unwrap_or(Ok(false));
    }
    // One of Go's under containerd 2, which has `delete` do its part although the group lives.
    address_for_daemon(bundle).and_then(|address| remove_if_dead(&address)).transpose()?;
    Ok(false)
}

/// Where the daemon's own file says that the shim is (contract 2.5).
fn address_for_daemon(bundle: &Bundle) -> Option<String> {
    #[derive(Deserialize)]
    struct Bootstrap {
        address: String,
    }
    let text = std::fs::read(bundle.path().join("bootstrap.json")).ok()?;
    nulls::from_slice::<Bootstrap>(&text).ok().map(|told| told.address)
}

/// Ends and takes away what a dead shim left of its container. Returns the exit, if the author's code knows it.
fn give_up<S: Entry>(args: &Args, bundle: &Bundle, record: &Record) -> Result<Option<Exit>> {
    let init = record.init.as_ref().filter(|_| record.exit.is_none());
    let dying = init.and_then(kill);
    // One that was frozen dies only once author code has thawed it.
    wait_for_death(dying.as_ref(), THAW_LIMIT);
    let told = cleanup::<S>(args, bundle.path().to_owned())?;
    wait_for_death(dying.as_ref(), DEATH_LIMIT);
    mount::unmount_all(&bundle.rootfs())?;
    Ok(told)
}

/// A killed init, whose end is still to come.
enum Dying<'a> {
    /// Its end makes this readable.
    Watched(OwnedFd),
    /// It has to be looked at: the kernel is older than 5.3.
    Unwatched(&'a InitRecord),
}

/// Kills an init whose shim is gone, and never a process that merely has its pid.
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

fn wait_for_death(dying: Option<&Dying<'_>>, limit: Duration) {
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

/// The author's part.
fn cleanup<S: Entry>(args: &Args, bundle: PathBuf) -> Result<Option<Exit>> {
    let told = Told::parse(&[], &args.id, &args.namespace)?;
    let setup = start::setup(args, told, bundle);
    let cleanup = move |supervisor| S::Level::cleanup(&Context::new(setup, supervisor, None));
    run_supervised(&S::CONFIG, cleanup)
}
