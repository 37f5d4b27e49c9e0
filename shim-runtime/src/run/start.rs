//! `start`: claims the group's socket, spawns the server behind it, and answers with its address; or answers
//! for the living server that has it (contract 2.4, 2.5, 4, 9.2). Undoes itself on failure.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use command_fds::{CommandFdExt, FdMapping};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::{AcceptConn, PeerCredentials};
use nix::unistd::getppid;
use serde::{Deserialize, Serialize};

use super::info::read_input;
use super::main_loop::outlive_signals;
use super::placement;
use crate::api::{Any, Context, Setup};
use crate::args::Args;
use crate::bootstrap::{self, Told};
use crate::bundle::Bundle;
use crate::crash;
use crate::entry::Entry;
use crate::entry::level::Level;
use crate::error::{Error, Result, WithContext};
use crate::socket::{self, Group, Socket};
use crate::sys;
use crate::types::Pid;

/// The server's descriptor for the listening socket, as in Go's shims.
const LISTENER: i32 = 3;
/// The server's descriptor for the talk with its `start`.
const HANDOFF: i32 = 4;
/// What a server says that is ready to serve; anything else is the reason why not.
pub(super) const READY: &[u8] = b"ready";

/// The file with the address that daemons before 2.0 read when they restart (contract 2.5).
const ADDRESS_FILE: &str = "address";

/// What a server is told by its `start`, before the input that `start` was given itself.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Handoff {
    pub(super) socket: PathBuf,
}

/// Returns the answer to print.
pub(super) fn start<S: Entry>(args: &Args) -> Result<Vec<u8>> {
    sys::close_all_on_exec().with_context(|| "cannot keep inherited descriptors from the shim's server")?;
    let input = read_input()?;
    outlive_signals(false)?;
    let told = Told::parse(&input, &args.id, &args.namespace)?;
    let bundle = Bundle::new(
        std::env::current_dir().with_context(|| "cannot find the bundle, the working directory")?,
    );
    let group = group_of::<S>(args, &told, &bundle)?;
    let dir = told.socket_dir.as_ref().map_or_else(socket::default_dir, PathBuf::from);
    let socket = Socket::of_group(&dir, &args.address, &args.namespace, &group)?;
    socket::prepare_dir(&dir)?;
    let preferred = bootstrap::version(told.form, S::CONFIG.task);
    let version = match socket.join(&args.id, preferred)? {
        Group::Lives(version) => {
            write_address(&bundle, &socket)?;
            version
        }
        Group::Begins(listener) => {
            crash::here("socket.bound");
            let undo = Undo { socket: &socket, bundle: &bundle, done: false };
            write_address(&bundle, &socket)?;
            spawn_server(args, &socket, listener, &input, told.options.as_ref())?;
            crash::here("server.ready");
            undo.keep();
            preferred
        }
    };
    bootstrap::answer(told.form, version, &socket.address())
}

/// The name under which containers share a shim: what the author says, else the id.
fn group_of<S: Entry>(args: &Args, told: &Told, bundle: &Bundle) -> Result<String> {
    let context = Context::new(setup(args, told.clone(), bundle.path().into()), None, None);
    let spec = bundle.has_spec().then_some(bundle);
    Ok(S::Level::group(&context, spec)?.unwrap_or_else(|| args.id.clone()))
}

/// What command line, input and environment say, together.
pub(super) fn setup(args: &Args, told: Told, bundle: PathBuf) -> Setup {
    let ttrpc_address = told.ttrpc_address.or_else(|| std::env::var("TTRPC_ADDRESS").ok());
    Setup {
        id: args.id.clone(),
        namespace: args.namespace.clone(),
        bundle,
        debug: args.debug || told.debug,
        options: told.options,
        grpc_address: args.address.clone(),
        ttrpc_address: ttrpc_address.unwrap_or_default(),
        containerd_version: told.containerd_version,
    }
}

fn write_address(bundle: &Bundle, socket: &Socket) -> Result<()> {
    let written = bundle.write(ADDRESS_FILE, socket.address().as_bytes());
    written.with_context(|| format!("cannot write `{ADDRESS_FILE}` into `{}`", bundle.path().display()))
}

/// Takes socket and address away again, unless all went well.
struct Undo<'a> {
    socket: &'a Socket,
    bundle: &'a Bundle,
    done: bool,
}

impl Undo<'_> {
    fn keep(mut self) {
        self.done = true;
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if !self.done {
            let _ = self.socket.abandon();
            let _ = std::fs::remove_file(self.bundle.path().join(ADDRESS_FILE));
        }
    }
}

/// Spawns this program again, without an action, and waits until it serves. A server that cannot is waited
/// for, and its reason is the error.
fn spawn_server(
    args: &Args,
    socket: &Socket,
    listener: UnixListener,
    input: &[u8],
    options: Option<&Any>,
) -> Result<()> {
    let (ours, theirs) =
        UnixStream::pair().with_context(|| "cannot make the sockets to talk to the shim's server")?;
    placement::schedule_cores()?;
    let mut server =
        command(args, listener, theirs)?.spawn().with_context(|| "cannot start the shim's server")?;
    crash::here("server.spawned");
    let placed = Pid::new(server.id()).map_or(Ok(()), |pid| placement::place(pid, options));
    let reason = match placed.and_then(|()| talk(ours, socket, input)) {
        Ok(said) if said == READY => return Ok(()),
        Ok(said) => String::from_utf8_lossy(&said).into_owned(),
        Err(error) => error.to_string(),
    };
    Err(Error::other(end_server(&mut server, reason)))
}

fn command(args: &Args, listener: UnixListener, handoff: UnixStream) -> Result<Command> {
    let mut command = Command::new(program());
    command.args(["-namespace", &args.namespace, "-id", &args.id, "-address", &args.address]);
    if args.debug {
        command.arg("-debug");
    }
    command.arg("-handoff").arg(HANDOFF.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    let mappings = [(OwnedFd::from(listener), LISTENER), (handoff.into(), HANDOFF)];
    let mappings = mappings.map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd });
    command.fd_mappings(mappings.into()).map_err(|error| Error::internal(error.to_string()))?;
    occupy_low_numbers()?;
    Ok(command)
}

/// This very program, by a path that names it in `ps`, as long as that path leads to it.
fn program() -> PathBuf {
    let link = PathBuf::from("/proc/self/exe");
    std::fs::read_link(&link).ok().filter(|path| path.exists()).unwrap_or(link)
}

/// `std` reports a failed exec through a pipe that it opens on the lowest free numbers. If these were numbers
/// that a descriptor is mapped to, the report would be lost and a missing program look like success.
fn occupy_low_numbers() -> Result<()> {
    loop {
        let null = File::open("/dev/null").with_context(|| "cannot open /dev/null")?;
        if null.as_raw_fd() > HANDOFF {
            return Ok(());
        }
        // Held for the rest of this short life.
        std::mem::forget(null);
    }
}

/// Tells the server what it needs, and hears whether it serves.
fn talk(mut server: UnixStream, socket: &Socket, input: &[u8]) -> Result<Vec<u8>> {
    let handoff = Handoff { socket: socket.path().into() };
    let mut message = serde_json::to_vec(&handoff).map_err(|error| Error::internal(error.to_string()))?;
    message.push(b'\n');
    message.extend_from_slice(input);
    let mut said = Vec::new();
    let mut talk = || -> io::Result<()> {
        server.write_all(&message)?;
        server.shutdown(Shutdown::Write)?;
        server.read_to_end(&mut said).map(drop)
    };
    talk().with_context(|| "cannot talk to the shim's server")?;
    Ok(said)
}

/// Sees a failed server to its end, and says why it failed.
fn end_server(server: &mut Child, reason: String) -> String {
    if reason.is_empty() {
        // It is gone or about to be: the connection closes with the process.
        let status = server.wait();
        let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        return format!("the shim's server ended before it could serve: {status}");
    }
    let _ = server.kill();
    let _ = server.wait();
    reason
}

/// The server's end of the talk with its `start`. The flag can be given by hand too, with the number of any
/// descriptor, so it is taken only if it is one end of a pair of sockets that the parent process has made.
pub(super) fn take_handoff(number: i32) -> Result<UnixStream> {
    let is_parents = |fd: BorrowedFd<'_>| {
        getsockopt(&fd, PeerCredentials).is_ok_and(|peer| peer.pid() == getppid().as_raw())
    };
    let taken = if number == HANDOFF { sys::take_inherited_if(HANDOFF, is_parents) } else { None };
    taken.map(UnixStream::from).ok_or_else(|| {
        Error::invalid_argument(format!(
            "`-handoff {number}` is what `start` says to its server, and descriptor {number} is not from one; say `start`"
        ))
    })
}

/// The socket that `start` has bound, and that the server listens on.
pub(super) fn take_listener() -> Result<UnixListener> {
    let listens = |fd: BorrowedFd<'_>| getsockopt(&fd, AcceptConn).unwrap_or(false);
    let taken = sys::take_inherited_if(LISTENER, listens).map(UnixListener::from);
    taken.ok_or_else(|| Error::invalid_argument("the listening socket was not passed on; say `start`"))
}

/// The server's side of [`talk`]: what it is told. It answers by writing to the same stream.
pub(super) fn receive_handoff(mut starter: &UnixStream) -> Result<(Handoff, Vec<u8>)> {
    let mut message = Vec::new();
    starter.read_to_end(&mut message).with_context(|| "cannot read what `start` hands over")?;
    let end = message.iter().position(|byte| *byte == b'\n').unwrap_or(message.len());
    let handoff = serde_json::from_slice(&message[..end]).map_err(Error::invalid_argument_from);
    let handoff = handoff.with_context(|| "cannot understand what `start` hands over")?;
    Ok((handoff, message.get(end + 1..).unwrap_or_default().to_vec()))
}
