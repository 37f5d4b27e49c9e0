//! The shim's socket (contract 4): its name, the directory it lies in, and who may bind or unlink it.
//!
//! A dead shim's socket is replaced, or removed, under a lock: of two that do so at once, the second would take away
//! what the first has just made. A living shim's socket needs no lock. Nobody but the shim itself takes it away, and
//! who has connected to a shim that is about to leave is hung up on and tries again.

mod lock;

use std::fmt::Write;
use std::fs::DirBuilder;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use containerd_shim_protos::api::{ConnectRequest, DeleteRequest, WaitRequest};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt};
use nix::sys::stat::{Mode, umask};
use nix::sys::time::TimeVal;
use nix::unistd::geteuid;
use protobuf::Message;
use sha2::{Digest, Sha256};

use self::lock::Lock;
use crate::crash;
use crate::error::{Error, Result, WithContext};
use crate::sync::lock;
use crate::wire::{CallError, Client};

/// The longest path of a Unix socket: the kernel's 108 bytes with a NUL, and one less, as Go has it.
const PATH_LIMIT: usize = 106;

/// What names a shim's address as a path.
pub(crate) const SCHEME: &str = "unix://";

/// Marks the question of a `start` that found a living shim: it is about to be used, so it must not leave.
pub(crate) const PROBE_KEY: &str = "shim-runtime-probe";
/// Marks the question of a `delete` whether there is a living shim, which is no reason for it to stay.
pub(crate) const LOOK_KEY: &str = "shim-runtime-look";

/// Marks the Delete of a `delete` action: containerd has given the container up, so the shim ends it first if it
/// runs (contract 2.6). Shims that do not know this refuse to delete what runs.
pub(crate) const GIVE_UP_KEY: &str = "shim-runtime-give-up";

/// How long a living shim may take to accept a probe, and then to answer it.
const PROBE_LIMIT: Duration = Duration::from_secs(10);
/// How long `delete` waits to learn whether a shim lives; containerd gives the whole action 5 s.
const LOOK_LIMIT: Duration = Duration::from_secs(1);
/// How long connecting may take where only the state of the socket is asked for: no longer than the kernel needs.
const AT_ONCE: Duration = Duration::from_millis(1);
/// How often a shim may hang up before that is taken for a state that does not pass.
const HANG_UPS: u32 = 10;

/// A socket's place.
#[derive(Clone, Debug)]
pub(crate) struct Socket {
    path: PathBuf,
    /// Device and inode of what this process has bound there, or serves. At the same path there may be another
    /// shim's by now.
    own: Arc<Mutex<Option<(u64, u64)>>>,
}

/// What [`Socket::join`] found.
pub(crate) enum Group {
    /// A shim that lives and serves this version of the task API.
    Lives(u8),
    /// Nobody; here is the socket to serve.
    Begins(UnixListener),
}

/// What [`Socket::claim`] found.
pub(crate) enum Claim {
    /// It is ours.
    Bound(UnixListener),
    /// A living shim has it; here is a connection, which keeps that shim from leaving.
    Taken(UnixStream),
}

impl Socket {
    /// The socket of a group of containers, where every shim and daemon expects it.
    pub(crate) fn of_group(dir: &Path, grpc_address: &str, namespace: &str, group: &str) -> Result<Self> {
        let name = clean_join([grpc_address, namespace, group]);
        let hash = Sha256::digest(name.as_bytes());
        let mut name = String::with_capacity(2 * hash.len());
        for byte in hash {
            // Writing to a string cannot fail.
            let _ = write!(name, "{byte:02x}");
        }
        Self::at(dir.join(name))
    }

    /// A socket at a path of the user's choice.
    pub(crate) fn at(path: PathBuf) -> Result<Self> {
        let length = path.as_os_str().len();
        if length > PATH_LIMIT {
            let path = path.display();
            let message =
                format!("socket path `{path}` is {length} bytes long; at most {PATH_LIMIT} are possible");
            return Err(Error::invalid_argument(message));
        }
        Ok(Self { path, own: Arc::default() })
    }

    /// The socket that an address names; `None` for an address that is no path.
    pub(crate) fn from_address(address: &str) -> Option<Self> {
        let path = address.trim().strip_prefix(SCHEME)?;
        Path::new(path).is_absolute().then(|| Self { path: path.into(), own: Arc::default() })
    }

    /// What containerd dials.
    pub(crate) fn address(&self) -> String {
        format!("{SCHEME}{}", self.path.display())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Marks what is at the path as this process's own, which listens there.
    pub(crate) fn marked_as_own(self) -> Self {
        *lock(&self.own) = self.identity();
        self
    }

    fn identity(&self) -> Option<(u64, u64)> {
        std::fs::symlink_metadata(&self.path).ok().map(|found| (found.dev(), found.ino()))
    }

    /// Finds the living shim of a group, or takes its socket for a new one. A shim that is ending hangs up, and
    /// soon does not listen any more.
    pub(crate) fn join(&self, id: &str, preferred: u8) -> Result<Group> {
        for _ in 0..HANG_UPS {
            match self.claim()? {
                Claim::Bound(listener) => return Ok(Group::Begins(listener)),
                Claim::Taken(stream) => {
                    if let Some(version) = self.ask_version(stream, id, preferred)? {
                        return Ok(Group::Lives(version));
                    }
                }
            }
        }
        Err(Error::unavailable(self.cannot("learn who has")))
    }

    /// Binds and listens, or connects to the living shim that does. A socket that nobody listens on is
    /// replaced at once.
    pub(crate) fn claim(&self) -> Result<Claim> {
        if let Some(stream) = self.connect_to_living(PROBE_LIMIT)? {
            return Ok(Claim::Taken(stream));
        }
        let _lock = self.lock()?;
        crash::here("socket.locked");
        // Twice is enough: whatever stood in the way the first time was removed under the lock.
        for _ in 0..2 {
            match self.bind() {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(error).with_context(|| self.cannot("bind")),
                Ok(listener) => {
                    self.clone().marked_as_own();
                    return Ok(Claim::Bound(listener));
                }
            }
            match self.connect_to_living(AT_ONCE)? {
                Some(stream) => return Ok(Claim::Taken(stream)),
                None => self.unlink()?,
            }
        }
        Err(Error::other(self.cannot("bind")))
    }

    /// Connects to the shim that listens there; `None` when nobody does.
    fn connect_to_living(&self, limit: Duration) -> Result<Option<UnixStream>> {
        match self.connect(limit) {
            Ok(stream) => Ok(Some(stream)),
            Err(error) if is_dead(&error) => Ok(None),
            Err(error) if is_out_of_time(&error) => Err(self.is_mute(limit)),
            Err(error) => Err(error).with_context(|| self.cannot("connect to")),
        }
    }

    /// Connects within a time limit: where nobody accepts connections, and as many wait as can, it would never end.
    fn connect(&self, limit: Duration) -> io::Result<UnixStream> {
        let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        let time = TimeVal::new(limit.as_secs().try_into().unwrap_or(i64::MAX), limit.subsec_micros().into());
        setsockopt(&socket, sockopt::SendTimeout, &time)?;
        let address = UnixAddr::new(&self.path)?;
        // A call with a time limit is not resumed by the kernel after a signal.
        while let Err(errno) = connect(socket.as_raw_fd(), &address) {
            if errno != Errno::EINTR {
                return Err(errno.into());
            }
        }
        let stream = UnixStream::from(socket);
        stream.set_write_timeout(None)?;
        Ok(stream)
    }

    fn is_mute(&self, limit: Duration) -> Error {
        let path = self.path.display();
        Error::deadline_exceeded(format!(
            "the shim at socket `{path}` does not answer within {limit:?}; it may be stopped, or hang"
        ))
    }

    fn bind(&self) -> io::Result<UnixListener> {
        // The mode is right from the first moment on; no other thread exists that could notice the mask.
        let before = umask(Mode::from_bits_truncate(0o177));
        let bound = UnixListener::bind(&self.path);
        umask(before);
        bound
    }

    fn cannot(&self, what: &str) -> String {
        format!("cannot {what} socket `{}`", self.path.display())
    }

    /// Removes the socket; what else may stand in its place belongs to somebody else.
    fn unlink(&self) -> Result<()> {
        let removed = match std::fs::symlink_metadata(&self.path) {
            Ok(found) if found.file_type().is_socket() => std::fs::remove_file(&self.path),
            Ok(_) => Err(io::Error::other("it is not a socket")),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| self.cannot("remove"))
            }
            _ => Ok(()),
        }
    }

    /// Removes the socket that this process serves, unless `stay` says that somebody needs it. Returns whether it
    /// was removed. Needs neither a lock nor a descriptor, of which there may be none left at the end.
    pub(crate) fn retire(&self, stay: impl FnOnce() -> bool) -> Result<bool> {
        if stay() {
            return Ok(false);
        }
        let own = *lock(&self.own);
        if own.is_some() && own == self.identity() {
            self.unlink()?;
        }
        Ok(true)
    }

    /// Removes the socket that this process has bound, once nobody listens on it any more: it may be replaced at
    /// any moment, so that takes the lock.
    pub(crate) fn abandon(&self) -> Result<()> {
        let _lock = self.lock()?;
        self.retire(|| false).map(drop)
    }

    /// Removes the socket if nobody serves it; returns whether somebody does.
    pub(crate) fn remove_if_dead(&self) -> Result<bool> {
        self.speak(|client| {
            let question = ("containerd.task.v2.Task", "Connect");
            client.call(question, Vec::new(), &[(LOOK_KEY, "1")], LOOK_LIMIT).map(drop)
        })
    }

    /// Has the shim that serves the socket give a container up, for at most `limit`. One that does not answer in
    /// time, because it is stopped for example, finds the call when it goes on. Removes the socket if nobody serves
    /// it; returns whether somebody does.
    pub(crate) fn give_up(&self, id: &str, limit: Duration) -> Result<bool> {
        let end = Instant::now() + limit;
        self.speak(|client| give_up(client, id, end))
    }

    /// Lets `say` speak with the shim that serves the socket, if there is one. A shim that was killed may still
    /// listen when containerd knows of its end already: it takes connections, and hangs up. Silence is no sign of
    /// that: a living shim may be very busy, or stopped.
    fn speak(&self, say: impl Fn(&mut Client) -> Result<(), CallError>) -> Result<bool> {
        if !self.path.exists() {
            return Ok(false);
        }
        for _ in 0..HANG_UPS {
            match self.connect(AT_ONCE) {
                Ok(stream) => {
                    let said = say(&mut Client::new(stream));
                    if !matches!(said, Err(CallError::Transport(error)) if is_hang_up(&error)) {
                        return Ok(true);
                    }
                }
                Err(error) if is_dead(&error) => {
                    let _lock = self.lock()?;
                    // Another shim may have been started meanwhile.
                    if self.connect(AT_ONCE).is_err_and(|error| is_dead(&error)) {
                        return self.unlink().map(|()| false);
                    }
                }
                Err(_) => return Ok(true),
            }
        }
        Ok(true)
    }

    fn lock(&self) -> Result<Lock> {
        Lock::take(&self.path).with_context(|| self.cannot("lock"))
    }

    /// Asks a living shim which task API it serves: the version to announce for it. It may be any shim, also one
    /// of an older release, and `Connect` never has an effect (contract 4, bug #10888). `None` when it hangs up, for
    /// it is ending.
    fn ask_version(&self, stream: UnixStream, id: &str, preferred: u8) -> Result<Option<u8>> {
        let payload = ConnectRequest { id: id.to_owned(), ..Default::default() }.write_to_bytes();
        let payload = payload.map_err(Error::invalid_argument_from)?;
        let mut client = Client::new(stream);
        for version in [preferred, if preferred == 3 { 2 } else { 3 }] {
            let service = format!("containerd.task.v{version}.Task");
            match client.call((&service, "Connect"), payload.clone(), &[(PROBE_KEY, "1")], PROBE_LIMIT) {
                Err(CallError::Transport(error)) if is_hang_up(&error) => return Ok(None),
                Err(CallError::Transport(error)) if is_out_of_time(&error) => {
                    return Err(self.is_mute(PROBE_LIMIT));
                }
                Err(CallError::Transport(error)) => {
                    return Err(error).with_context(|| self.cannot("ask the shim at"));
                }
                // Not found, or not supported under this name; any other status comes from the service itself.
                Err(CallError::Status { code: 3 | 12, .. }) => {}
                Ok(_) | Err(CallError::Status { .. }) => return Ok(Some(version)),
            }
        }
        let path = self.path.display();
        let message = format!("the shim at socket `{path}` serves no task API that is known");
        Err(Error::failed_precondition(message))
    }
}

/// Whether an error of connecting means that nobody will ever answer there.
fn is_dead(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
}

/// Asks for the end of a container and waits for it. The first Delete is what counts: the shim goes on from there
/// by itself.
fn give_up(client: &mut Client, id: &str, end: Instant) -> Result<(), CallError> {
    const FAILED_PRECONDITION: i32 = 9;
    const UNIMPLEMENTED: i32 = 12;
    let delete = DeleteRequest { id: id.to_owned(), ..Default::default() }.write_to_bytes();
    let wait = WaitRequest { id: id.to_owned(), ..Default::default() }.write_to_bytes();
    // Ids are plain text, which can always be written.
    let (delete, wait) = (delete.unwrap_or_default(), wait.unwrap_or_default());
    let mut done = Ok(());
    for version in [2, 3] {
        let service = format!("containerd.task.v{version}.Task");
        let mut call = |method: &str, payload: &[u8], marks: &[(&str, &str)]| {
            // A limit of zero would be none.
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            client.call((&service, method), payload.to_owned(), marks, left).map(drop)
        };
        let marks = [(GIVE_UP_KEY, "1"), (LOOK_KEY, "1")];
        done = match call("Delete", &delete, &marks) {
            Err(CallError::Status { code: UNIMPLEMENTED, .. }) => continue,
            Err(CallError::Status { code: FAILED_PRECONDITION, .. }) => {
                call("Wait", &wait, &[]).and_then(|()| call("Delete", &delete, &marks))
            }
            answer => answer,
        };
        break;
    }
    done
}

fn is_hang_up(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// Whether an error is that of a socket whose time limit has passed.
fn is_out_of_time(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// The default directory of sockets (contract 4): `/run/containerd/s` for root; else the first of the usual
/// places that is ours or can be made.
pub(crate) fn default_dir() -> PathBuf {
    let system = PathBuf::from("/run/containerd/s");
    let uid = geteuid();
    if uid.is_root() || std::fs::metadata(&system).is_ok_and(|meta| meta.uid() == uid.as_raw()) {
        return system;
    }
    if let Some(runtime) = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| Path::new(dir).is_absolute()) {
        return Path::new(&runtime).join("containerd/s");
    }
    let run = PathBuf::from(format!("/run/{uid}"));
    if std::fs::metadata(&run).is_ok_and(|meta| meta.uid() == uid.as_raw()) {
        return run.join("containerd/s");
    }
    format!("/tmp/containerd-s-{uid}").into()
}

/// Makes the directory if it is missing, 0700. One that is there is used as it is, if it is ours and nobody
/// else can write to it (Go made some 0600).
pub(crate) fn prepare_dir(dir: &Path) -> Result<()> {
    let name = || format!("cannot use socket directory `{}`", dir.display());
    if !dir.is_absolute() {
        return Err(Error::invalid_argument("it is not an absolute path")).with_context(name);
    }
    if let Some(parent) = dir.parent() {
        // Parents may be shared with others, `/run/containerd` above all, so these can be passed through.
        DirBuilder::new().recursive(true).mode(0o711).create(parent).with_context(name)?;
    }
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error).with_context(name),
        _ => {}
    }
    let meta = std::fs::symlink_metadata(dir).with_context(name)?;
    let wrong = if !meta.is_dir() {
        "it is not a directory"
    } else if meta.uid() != geteuid().as_raw() {
        "it belongs to another user"
    } else if meta.mode() & 0o022 != 0 {
        "others may write to it"
    } else {
        return Ok(());
    };
    Err(Error::failed_precondition(wrong)).with_context(name)
}

/// Go's `filepath.Join` of an absolute path: empty parts left out, `.` and `..` resolved, slashes folded.
fn clean_join<const N: usize>(parts: [&str; N]) -> String {
    let joined = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/");
    let absolute = joined.starts_with('/');
    let mut kept: Vec<&str> = Vec::new();
    for component in Path::new(&joined).components() {
        match component {
            Component::Normal(part) => kept.extend(part.to_str()),
            Component::ParentDir if kept.last().is_some_and(|last| *last != "..") => {
                kept.pop();
            }
            Component::ParentDir if !absolute => kept.push(".."),
            _ => {}
        }
    }
    format!("{}{}", if absolute { "/" } else { "" }, kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_name_is_the_hash_of_the_cleaned_path() {
        assert_eq!(
            clean_join(["/run/containerd//c.sock", "default", "c1"]),
            "/run/containerd/c.sock/default/c1"
        );
        assert_eq!(clean_join(["/run/../a", ".", "g"]), "/a/g");
        let socket = Socket::of_group(
            Path::new("/run/containerd/s"),
            "/run/containerd/containerd.sock",
            "default",
            "c1",
        );
        // sha256 of "/run/containerd/containerd.sock/default/c1"
        let name = socket.unwrap().path.file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(name.len(), 64);
        assert_eq!(&name[..16], "d25aa4ef11a84e95");
    }

    #[test]
    fn a_path_above_the_limit_is_refused_by_name_and_length() {
        let error = Socket::at(format!("/{}", "d".repeat(106)).into()).unwrap_err().to_string();
        assert!(error.ends_with("is 107 bytes long; at most 106 are possible"), "{error}");
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
        let dir = std::env::temp_dir().join(format!("shim-socket-{}", std::process::id()));
        prepare_dir(&dir).unwrap();
        let socket = Socket::at(dir.join("s")).unwrap();
        drop(UnixListener::bind(socket.path()).unwrap());
        let Claim::Bound(_listener) = socket.claim().unwrap() else {
            panic!("a dead socket was taken for a living one")
        };
        let mode = std::fs::metadata(socket.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(socket.claim().unwrap(), Claim::Taken(_)));
        assert!(socket.remove_if_dead().unwrap());
        assert!(socket.retire(|| false).unwrap());
        std::fs::remove_dir(&dir).unwrap();
    }

    #[test]
    fn what_is_no_socket_is_never_removed() {
        let dir = std::env::temp_dir().join(format!("shim-no-socket-{}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&dir).unwrap();
        let socket = Socket::at(dir.join("s")).unwrap();
        std::fs::write(socket.path(), "kept").unwrap();
        let refusals =
            [socket.claim().err(), socket.remove_if_dead().err(), socket.give_up("c1", LOOK_LIMIT).err()];
        for refusal in refusals {
            let said = refusal.unwrap().to_string();
            assert!(said.ends_with("s`: it is not a socket"), "{said}");
        }
        assert_eq!(std::fs::read(socket.path()).unwrap(), b"kept");
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_stopped_shim_that_takes_nobody_any_more_is_alive_and_holds_up_nobody() {
        let dir = std::env::temp_dir().join(format!("shim-full-{}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&dir).unwrap();
        let socket = Socket::at(dir.join("s")).unwrap();
        let Claim::Bound(_listener) = socket.claim().unwrap() else { panic!("somebody listens") };
        let mut waiting = Vec::new();
        while let Ok(stream) = socket.connect(AT_ONCE) {
            waiting.push(stream);
        }
        assert!(socket.remove_if_dead().unwrap());
        assert!(socket.give_up("c1", LOOK_LIMIT).unwrap());
        drop(waiting);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_killed_shim_that_still_listens_is_dead_and_one_that_is_silent_is_not() {
        let dir = std::env::temp_dir().join(format!("shim-dying-{}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&dir).unwrap();
        let socket = Socket::at(dir.join("s")).unwrap();
        let Claim::Bound(listener) = socket.claim().unwrap() else { panic!("somebody listens") };
        std::thread::scope(|scope| {
            // As the kernel does with the connections of a process that it ends, sooner or later.
            let dying = scope.spawn(|| drop((listener.accept().unwrap(), listener)));
            assert!(!socket.remove_if_dead().unwrap());
            dying.join().unwrap();
        });
        assert!(!socket.path().exists());
        let Claim::Bound(_silent) = socket.claim().unwrap() else { panic!("somebody listens") };
        assert!(socket.remove_if_dead().unwrap());
        assert!(socket.retire(|| false).unwrap());
        std::fs::remove_dir(&dir).unwrap();
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        let dir = std::env::temp_dir().join(format!("shim-open-dir-{}", std::process::id()));
        DirBuilder::new().create(&dir).unwrap();
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o777)).unwrap();
        let error = prepare_dir(&dir).unwrap_err().to_string();
        std::fs::remove_dir(&dir).unwrap();
        assert!(error.ends_with("others may write to it"), "{error}");
    }
}
