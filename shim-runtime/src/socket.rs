//! The shim's socket (contract 4): its name, the directory it lies in, and who may bind or unlink it.
//! Every step that could race with another `start` or a server's end happens under a lock on the directory.

use std::fmt::Write;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{Mode, umask};
use nix::unistd::geteuid;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result, WithContext};
use crate::reaper::lock;
use crate::wire::{CallError, Client};

/// The longest path of a Unix socket: the kernel's 108 bytes with a NUL, and one less, as Go has it.
const PATH_LIMIT: usize = 106;

/// What names a shim's address as a path.
pub(crate) const SCHEME: &str = "unix://";

/// Marks the question of a `start` that found a living shim: it is about to be used, so it must not leave.
pub(crate) const PROBE_KEY: &str = "shim-runtime-probe";
/// Marks the question of a `delete` whether there is a living shim, which is no reason for it to stay.
pub(crate) const LOOK_KEY: &str = "shim-runtime-look";

/// How long a living shim may take to answer a probe.
const PROBE_LIMIT: Duration = Duration::from_secs(10);
/// How long `delete` waits to learn whether a shim lives; containerd gives the whole action 5 s.
const LOOK_LIMIT: Duration = Duration::from_secs(1);
/// How often a shim may hang up before that is taken for a state that does not pass.
const HANG_UPS: u32 = 10;

/// A socket's place.
#[derive(Clone, Debug)]
pub(crate) struct Socket {
    path: PathBuf,
    /// Its directory, for the next lock; see [`Socket::keep_directory`].
    kept: Arc<Mutex<Option<File>>>,
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
        Ok(Self { path, kept: Arc::default() })
    }

    /// The socket that an address names; `None` for an address that is no path.
    pub(crate) fn from_address(address: &str) -> Option<Self> {
        let path = address.trim().strip_prefix(SCHEME)?;
        Path::new(path).is_absolute().then(|| Self { path: path.into(), kept: Arc::default() })
    }

    /// What containerd dials.
    pub(crate) fn address(&self) -> String {
        format!("{SCHEME}{}", self.path.display())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn dir(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    /// Finds the living shim of a group, or takes its socket for a new one. A shim that is ending hangs up, and
    /// soon does not listen any more.
    pub(crate) fn join(&self, id: &str, preferred: u8) -> Result<Group> {
        for _ in 0..HANG_UPS {
            match self.claim()? {
                Claim::Bound(listener) => return Ok(Group::Begins(listener)),
                Claim::Taken(stream) => {
                    if let Some(version) = ask_version(stream, id, preferred)? {
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
        let _lock = self.lock()?;
        // Twice is enough: whatever stood in the way the first time was removed under the lock.
        for _ in 0..2 {
            match self.bind() {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                bound => return bound.map(Claim::Bound).context(|| self.cannot("bind")),
            }
            match UnixStream::connect(&self.path) {
                Ok(stream) => return Ok(Claim::Taken(stream)),
                Err(error) if is_dead(&error) => self.unlink()?,
                Err(error) => return Err(error).context(|| self.cannot("connect to")),
            }
        }
        Err(Error::other(self.cannot("bind")))
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

    fn unlink(&self) -> Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).context(|| self.cannot("remove"))
            }
            _ => Ok(()),
        }
    }

    /// Removes the socket for good, unless `stay`, asked under the lock, says that somebody needs it.
    /// Returns whether it was removed.
    pub(crate) fn retire(&self, stay: impl FnOnce() -> bool) -> Result<bool> {
        let held = self.lock()?;
        if stay() {
            // There will be another end.
            *lock(&self.kept) = held.unlock().ok();
            return Ok(false);
        }
        self.unlink().map(|()| true)
    }

    /// Removes the socket if nobody serves it; returns whether somebody does. A shim that was killed may still
    /// listen when containerd knows of its end already: it takes connections, and hangs up.
    pub(crate) fn remove_if_dead(&self) -> Result<bool> {
        if !self.path.exists() {
            return Ok(false);
        }
        for _ in 0..HANG_UPS {
            let mut connected = None;
            let removed = self.retire(|| match UnixStream::connect(&self.path) {
                Err(error) => !is_dead(&error),
                Ok(stream) => {
                    connected = Some(stream);
                    true
                }
            })?;
            if !connected.is_some_and(hangs_up) {
                return Ok(!removed);
            }
        }
        Ok(true)
    }

    /// Opens the directory now: at the end of a long life there may be no descriptor to be had, and without the
    /// lock the socket could not be taken away.
    pub(crate) fn keep_directory(&self) -> Result<()> {
        *lock(&self.kept) = Some(self.open_directory()?);
        Ok(())
    }

    fn open_directory(&self) -> Result<File> {
        let dir = self.dir();
        let options = File::options().read(true).custom_flags(libc::O_DIRECTORY).open(dir);
        options.context(|| format!("cannot open socket directory `{}`", dir.display()))
    }

    /// Held from looking at the socket to acting on what was seen. A lock on the directory itself leaves no
    /// file behind, and no step under it waits for another process.
    fn lock(&self) -> Result<Flock<File>> {
        let kept = lock(&self.kept).take();
        let file = kept.map_or_else(|| self.open_directory(), Ok)?;
        Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, errno)| Error::from(errno).context(self.cannot("lock the directory of")))
    }
}

/// Whether an error of connecting means that nobody will ever answer there.
fn is_dead(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
}

/// Whether who listens hangs up instead of answering. Silence is none: a living shim may be very busy.
fn hangs_up(stream: UnixStream) -> bool {
    let question = ("containerd.task.v2.Task", "Connect");
    let answer = Client::new(stream).call(question, Vec::new(), &[(LOOK_KEY, "1")], LOOK_LIMIT);
    matches!(answer, Err(CallError::Transport(error)) if is_hang_up(&error))
}

fn is_hang_up(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// Asks a living shim which task API it serves: the version to announce for it. It may be any shim, also one
/// of an older release, and `Connect` never has an effect (contract 4, bug #10888). `None` when it hangs up, for
/// it is ending.
fn ask_version(stream: UnixStream, id: &str, preferred: u8) -> Result<Option<u8>> {
    use protobuf::Message;
    let payload = crate::api::ConnectRequest { id: id.to_owned(), ..Default::default() }.write_to_bytes();
    let payload = payload.map_err(Error::invalid_argument_from)?;
    let mut client = Client::new(stream);
    for version in [preferred, if preferred == 3 { 2 } else { 3 }] {
        let service = format!("containerd.task.v{version}.Task");
        match client.call((&service, "Connect"), payload.clone(), &[(PROBE_KEY, "1")], PROBE_LIMIT) {
            Err(CallError::Transport(error)) if is_hang_up(&error) => return Ok(None),
            Err(CallError::Transport(error)) => {
                return Err(error).context(|| "the shim that has the group's socket does not answer");
            }
            // Not found, or not supported under this name; any other status comes from the service itself.
            Err(CallError::Status { code: 3 | 12, .. }) => {}
            Ok(_) | Err(CallError::Status { .. }) => return Ok(Some(version)),
        }
    }
    Err(Error::failed_precondition("the shim that has the group's socket serves no task API that is known"))
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
        return Err(Error::invalid_argument("it is not an absolute path")).context(name);
    }
    if let Some(parent) = dir.parent() {
        // Parents may be shared with others, `/run/containerd` above all, so these can be passed through.
        DirBuilder::new().recursive(true).mode(0o711).create(parent).context(name)?;
    }
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error).context(name),
        _ => {}
    }
    let meta = std::fs::symlink_metadata(dir).context(name)?;
    let wrong = if !meta.is_dir() {
        "it is not a directory"
    } else if meta.uid() != geteuid().as_raw() {
        "it belongs to another user"
    } else if meta.mode() & 0o022 != 0 {
        "others may write to it"
    } else {
        return Ok(());
    };
    Err(Error::failed_precondition(wrong)).context(name)
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
