//! A containerd daemon with everything of its own in a temporary folder, for runs by `ctr`. It ends with all that it
//! has brought about.

use std::env;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use shim_runtime::{Pid, Signal};
use shim_testing::{Failure, Launch, Output, Process, Result, related_to, spec};
use tempfile::TempDir;

/// How long the daemon may take to serve, a `ctr` command to end, and either to go.
const LIMIT: Duration = Duration::from_mins(1);
/// Where the releases before 2.3 have their shims put sockets.
const SOCKETS: &str = "/run/containerd/s";
/// Plugins that reach outside the folder, or that `ctr` does not need. A release ignores those it does not know.
const DISABLED_PLUGINS: [&str; 10] = [
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
    "io.containerd.grpc.v1.cri",
    "io.containerd.internal.v1.opt",
    "io.containerd.nri.v1.nri",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
];
/// Starts a program without the second hierarchy that some systems mount beside cgroup v1: `crun` asks the mounts
/// which version there is, and does not run where both are.
const WITHOUT_UNIFIED: &str = "umount /sys/fs/cgroup/unified 2>/dev/null; exec \"$0\" \"$@\"";

/// See the module.
pub(super) struct Daemon {
    ctr: PathBuf,
    child: Child,
    folder: TempDir,
}

impl Daemon {
    /// Starts the containerd of that folder, for which `runc` is `engine`, and which has busybox for containers.
    pub(super) fn start(programs: &Path, engine: &Path, busybox: &Path) -> Result<Self> {
        // Not below TMPDIR: the path of a socket must stay short.
        let folder = tempfile::Builder::new().prefix("bench-").tempdir_in("/tmp")?;
        let root = folder.path();
        spec::busybox_rootfs(busybox, &root.join("rootfs"))?;
        fs::create_dir(root.join("bin"))?;
        symlink(engine, root.join("bin/runc"))?;
        fs::write(root.join("config.toml"), config(root))?;
        let child = spawn(&programs.join("containerd"), root)?;
        let mut daemon = Self { ctr: programs.join("ctr"), child, folder };
        daemon.wait_until_ready()?;
        Ok(daemon)
    }

    /// The root file system of its containers.
    pub(super) fn rootfs(&self) -> String {
        self.path("rootfs")
    }

    /// Where `ctr` is to put FIFOs.
    pub(super) fn fifos(&self) -> String {
        self.path("fifos")
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_string_lossy().into_owned()
    }

    /// The name of the folder is the namespace of the containers, and so of their cgroups.
    fn namespace(&self) -> String {
        self.folder.path().file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Runs `ctr`, which must succeed.
    pub(super) fn ctr(&self, args: &[&str]) -> Result<Output> {
        let env = [("CONTAINERD_ADDRESS", self.path("c.sock")), ("CONTAINERD_NAMESPACE", self.namespace())];
        let output = Launch {
            program: self.ctr.clone(),
            args: args.iter().map(Into::into).collect(),
            env: env.map(|(name, value)| (name.into(), value.into())).into(),
            env_remove: Vec::new(),
            cwd: self.folder.path().to_owned(),
            stdin: Vec::new(),
            one_pipe: false,
            limit: LIMIT,
        }
        .run()?;
        if output.success() {
            return Ok(output);
        }
        Err(Failure::setup(format!("`ctr {}`: {output}", args.first().unwrap_or(&""))))
    }

    /// Removes the socket of a container whose shim has failed, from the folder that all daemons share.
    pub(super) fn remove_socket(&self, id: &str) {
        let hash = Sha256::digest(format!("{}/{}/{id}", self.path("c.sock"), self.namespace()));
        let name = hash.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
        let _ = fs::remove_file(Path::new(SOCKETS).join(name));
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let (end, address) = (Instant::now() + LIMIT, self.path("c.sock"));
        while UnixStream::connect(&address).is_err() {
            if self.child.try_wait()?.is_some() || Instant::now() > end {
                let log = fs::read_to_string(self.path("log")).unwrap_or_default();
                let last = log.lines().next_back().unwrap_or_default();
                return Err(Failure::setup(format!("containerd does not serve: {last}")));
            }
            // Nothing tells when it does.
            thread::park_timeout(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Asks the daemon to end, and ends what is left of its containers.
    fn end(&mut self) {
        // Not reaped yet, so the pid is still the daemon's.
        let daemon = Pid::new(self.child.id()).and_then(|pid| Process::open(pid).ok());
        let ended = daemon.is_some_and(|daemon| {
            let asked = daemon.signal(Signal::TERM);
            asked.is_ok() && daemon.ended_within(LIMIT)
        });
        if !ended {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
        let left = related_to(&self.folder.path().to_string_lossy());
        for process in left.iter().filter_map(|pid| Process::open(*pid).ok()) {
            let _ = process.signal(Signal::KILL);
            process.ended_within(LIMIT);
        }
    }

    /// Removes the folders that engines keep for a namespace: its cgroups, and its state.
    fn remove_traces(&self) {
        let (top, namespace) = (Path::new("/sys/fs/cgroup"), self.namespace());
        let folders =
            |dir: &Path| entries(dir).filter(|path| path.is_dir() && !path.is_symlink()).collect::<Vec<_>>();
        for group in
            folders(top).iter().map(|hierarchy| hierarchy.join(&namespace)).chain([top.join(&namespace)])
        {
            for container in folders(&group) {
                let _ = fs::remove_dir(container);
            }
            let _ = fs::remove_dir(group);
        }
        let _ = fs::remove_dir_all(Path::new("/run/containerd/runc").join(&namespace));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
        self.remove_traces();
    }
}

/// What is in a folder; nothing when there is no such folder.
fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// In the form that every release understands.
fn config(root: &Path) -> String {
    let root = root.display();
    format!(
        "version = 2\n\
         root = '{root}/root'\n\
         state = '{root}/state'\n\
         disabled_plugins = {DISABLED_PLUGINS:?}\n\
         [grpc]\n\
         address = '{root}/c.sock'\n"
    )
}

/// Starts containerd, which finds its engine before all others.
fn spawn(containerd: &Path, root: &Path) -> Result<Child> {
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths([root.join("bin")].into_iter().chain(env::split_paths(&path)));
    let log = File::create(root.join("log"))?;
    let child = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", WITHOUT_UNIFIED])
        .arg(containerd)
        .arg("--config")
        .arg(root.join("config.toml"))
        .env("PATH", path.map_err(|error| Failure::setup(error.to_string()))?)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn();
    child.map_err(|error| Failure::setup(format!("cannot run `{}`: {error}", containerd.display())))
}
