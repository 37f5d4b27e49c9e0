//! A containerd daemon of a test's own: root, state, sockets and log in a temporary folder, without
//! the network and whatever else could touch the system's own daemon.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::thread;

use integration::workspace;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::process::{Process, until};
use crate::shim::{self, Example};
use crate::{image, leaks};

/// The plugins that reach outside the temporary folder. A release ignores those that it does not know.
const DISABLED_PLUGINS: [&str; 7] = [
    "io.containerd.internal.v1.opt",
    "io.containerd.nri.v1.nri",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
];

/// A line of containerd releases, unpacked by `tests/deps`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Release {
    V1_6,
    V1_7,
    /// 2.1 or later.
    V2,
}

impl Release {
    pub(crate) fn line(self) -> &'static str {
        match self {
            Self::V1_6 => "1.6",
            Self::V1_7 => "1.7",
            Self::V2 => "2",
        }
    }

    /// Where the release has its programs.
    pub(crate) fn binary(self, name: &str) -> PathBuf {
        workspace::containerd(self.line(), name)
    }

    fn config_version(self) -> u8 {
        match self {
            Self::V1_6 | Self::V1_7 => 2,
            Self::V2 => 3,
        }
    }
}

/// What a daemon does besides containerd's own.
pub(crate) struct Setup {
    /// Further plugins that are not to run.
    pub(crate) disabled: &'static [&'static str],
    /// The rest of the configuration, made for a release and the daemon's folder.
    pub(crate) config: fn(Release, &Path) -> String,
    /// Where containers live; without it in a namespace named like the daemon's folder.
    pub(crate) namespace: Option<&'static str>,
    /// Where the OCI runtime keeps its state, if not in the folder that all daemons share.
    pub(crate) engine_state: Option<&'static str>,
}

/// Only what `ctr` needs.
pub(crate) const PLAIN: Setup = Setup {
    disabled: &["io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri"],
    config: |_, _| String::new(),
    namespace: None,
    engine_state: None,
};

/// A daemon that runs.
pub(crate) struct Daemon {
    pub(crate) release: Release,
    pub(crate) namespace: String,
    /// The cgroup around the containers' own.
    pub(crate) cgroup: String,
    /// The folders in which the OCI runtime keeps the state of containers.
    pub(crate) engine_state: PathBuf,
    /// The binary of the shim under test.
    pub(crate) shim: String,
    /// What `ctr run` is told of it.
    pub(crate) runtime: Vec<String>,
    /// Where `ctr` puts the FIFOs of containers.
    pub(crate) fifos: String,
    ids: Mutex<Vec<String>>,
    example: Example,
    child: Child,
    folder: TempDir,
}

impl Daemon {
    /// Starts a daemon for `ctr` and gives it the image; containers will be run by the example's shim.
    pub(crate) fn start(release: Release, example: Example) -> Self {
        Self::start_with(release, example, &PLAIN)
    }

    /// Starts a daemon as `setup` says.
    pub(crate) fn start_with(release: Release, example: Example, setup: &Setup) -> Self {
        let shim = shim::binary(release, example);
        // Not below TMPDIR: the path of a socket must stay short.
        let folder = tempfile::Builder::new().prefix("shim-").tempdir_in("/tmp").expect("make a folder");
        let root = folder.path();
        fs::write(root.join("config.toml"), config(release, root, setup)).expect("write the configuration");
        let name = root.file_name().expect("the folder has a name").to_string_lossy().into_owned();
        let namespace = setup.namespace.map_or_else(|| name.clone(), str::to_owned);
        let engine_state =
            setup.engine_state.map_or_else(|| leaks::ENGINE_STATE.into(), |below| root.join(below));
        let mut daemon = Self {
            release,
            engine_state: engine_state.join(&namespace),
            namespace,
            cgroup: name,
            child: spawn(release, root, example, &shim),
            example,
            runtime: shim::runtime(example, &shim),
            shim: shim.to_string_lossy().into_owned(),
            fifos: root.join("fifos").to_string_lossy().into_owned(),
            ids: Mutex::default(),
            folder,
        };
        daemon.wait_until_ready();
        let archive = daemon.root().join("image.tar");
        fs::write(&archive, image::archive(&mark(daemon.root()))).expect("write the image");
        daemon.ctr_ok(&["images", "import", "--no-unpack", &archive.to_string_lossy()]);
        daemon
    }

    pub(crate) fn root(&self) -> &Path {
        self.folder.path()
    }

    /// What the daemon and its shims have logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.root().join("log")).unwrap_or_default()
    }

    /// The path of the daemon's socket.
    pub(crate) fn address(&self) -> PathBuf {
        self.root().join("c.sock")
    }

    /// The folder with the bundles of running containers.
    pub(crate) fn bundles(&self) -> PathBuf {
        self.root().join("state/io.containerd.runtime.v2.task").join(&self.namespace)
    }

    /// Remembers the id of a container, to look for its remains at the end.
    pub(crate) fn remember(&self, id: &str) {
        self.ids.lock().expect("no thread panicked with the lock").push(id.to_owned());
    }

    /// The ids of all containers so far.
    pub(crate) fn ids(&self) -> Vec<String> {
        self.ids.lock().expect("no thread panicked with the lock").clone()
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Ends the daemon as a crash would.
    pub(crate) fn crash(&mut self) {
        self.end(Signal::KILL);
    }

    /// Starts the daemon again after [`Daemon::crash`].
    pub(crate) fn restart(&mut self) {
        self.child = spawn(self.release, self.root(), self.example, Path::new(&self.shim));
        self.wait_until_ready();
    }

    /// Ends the test: nothing may be left, neither while the daemon runs nor after its end.
    pub(crate) fn finish(mut self) {
        leaks::none(&self);
        self.end(Signal::TERM);
        leaks::none(&self);
    }

    fn wait_until_ready(&mut self) {
        let address = self.address();
        until("containerd's socket", || {
            let ended = self.child.try_wait().expect("look after containerd");
            assert!(ended.is_none(), "containerd ended at its start: {ended:?}");
            UnixStream::connect(&address).ok()
        });
    }

    fn end(&mut self, signal: Signal) {
        // Not reaped yet, so the pid is still the daemon's.
        if let Some(daemon) = Process::open(self.pid()) {
            daemon.signal(signal);
            daemon.ended("containerd");
        }
        self.child.wait().expect("reap containerd");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        leaks::clean(self);
        if thread::panicking() {
            println!("containerd's log:\n{}", self.log());
        }
    }
}

fn config(release: Release, root: &Path, setup: &Setup) -> String {
    let version = release.config_version();
    let disabled = [&DISABLED_PLUGINS, setup.disabled].concat();
    let rest = (setup.config)(release, root);
    let root = root.display();
    format!(
        "version = {version}\n\
         root = '{root}/root'\n\
         state = '{root}/state'\n\
         disabled_plugins = {disabled:?}\n\
         [grpc]\n\
         address = '{root}/c.sock'\n\
         [debug]\n\
         level = 'debug'\n\
         {rest}"
    )
}

/// An environment entry of the image, by which everything that the daemon brings about is found again.
fn mark(root: &Path) -> String {
    format!("SHIM_TEST_ROOT={}", root.display())
}

/// Starts containerd, for which the shim under test comes first where it looks up its shims.
fn spawn(release: Release, root: &Path, example: Example, shim: &Path) -> Child {
    let folders = shim.parent().map(Path::to_owned).into_iter();
    let path = env::join_paths(folders.chain(env::split_paths(&env::var_os("PATH").unwrap_or_default())));
    let log = OpenOptions::new().create(true).append(true).open(root.join("log")).expect("open the log");
    let mut command = match example {
        Example::Crun => {
            // crun does not work where version 2 has controllers beside version 1, and asks the mounts for that.
            let script = "umount /sys/fs/cgroup/unified 2>/dev/null; exec \"$0\" \"$@\"";
            let mut command = Command::new("unshare");
            command.args(["--mount", "--propagation", "private", "sh", "-c", script]);
            command.arg(release.binary("containerd"));
            command
        }
        _ => Command::new(release.binary("containerd")),
    };
    command
        .arg("--config")
        .arg(root.join("config.toml"))
        .env("PATH", path.expect("no folder has a colon in its name"))
        .env("SHIM_TEST_ROOT", root)
        .stdin(Stdio::null())
        .stdout(File::try_clone(&log).expect("share the log"))
        .stderr(log)
        .spawn()
        .expect("start containerd")
}
