//! A bundle as the daemon makes it (contract 2.3): config.json, an empty `rootfs`, `work`, and the `log` FIFO,
//! opened before `start` and read as long as the bundle lives (contract 5.1).

use std::fs::{self, File, OpenOptions};
use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use containerd_shim_protos::api::Mount;
use containerd_shim_protos::shim::oci::Options;
use nix::sys::stat::Mode as Permissions;
use nix::unistd::mkfifo;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use serde_json::Value;

use super::containerd::FakeContainerd;
use super::failure::{Doing, Failure, Result};
use super::lock;
use super::process::wait_readable;
use super::spec::Spec;
use super::stdio::{Mode, Stdio};

/// The annotation by which Go's shim groups containers ([contract 4](shim_runtime::contract#s4)).
pub const GROUP: &str = "io.containerd.runc.v2.group";

/// Any time will do: whoever waits is woken by the other end.
const IDLE: Duration = Duration::from_hours(1);

/// How much of a shim's log is kept.
const LOG_LIMIT: usize = 1 << 20;

/// A bundle in the making.
#[derive(Clone)]
pub struct BundleBuilder {
    ctrd: FakeContainerd,
    id: String,
    spec: Spec,
    full: bool,
    busybox: Option<PathBuf>,
    config: Option<Value>,
    without_config: bool,
    mode: Mode,
    log: Option<String>,
    options: Option<Any>,
    mounts: Vec<Mount>,
}

/// A bundle; clones are the same one.
#[derive(Clone)]
pub struct Bundle(Arc<Inner>);

struct Inner {
    id: String,
    path: PathBuf,
    work: PathBuf,
    group: String,
    spec: Spec,
    options: Option<Any>,
    mounts: Vec<Mount>,
    stdio: Stdio,
    log: Log,
}

impl BundleBuilder {
    pub(crate) fn new(ctrd: &FakeContainerd, id: &str) -> Self {
        let env =
            ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(), ctrd.marker()];
        let own = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let spec = Spec {
            args: vec!["true".to_owned()],
            env: env.into(),
            cwd: "/".to_owned(),
            user: own,
            terminal: false,
            rootfs: None,
            annotations: Vec::new(),
            cgroup: ctrd.cgroup(id),
            linux: Value::Null,
        };
        Self {
            ctrd: ctrd.clone(),
            id: id.to_owned(),
            spec,
            full: false,
            busybox: None,
            config: None,
            without_config: false,
            mode: Mode::Null,
            log: None,
            options: None,
            mounts: Vec::new(),
        }
    }

    /// The command; `true` unless told.
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.spec.args = args.into_iter().map(Into::into).collect();
        self
    }

    /// Adds to the environment of the container.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.spec.env.push(format!("{name}={value}"));
        self
    }

    /// The working directory of the container.
    pub fn cwd(mut self, cwd: &str) -> Self {
        cwd.clone_into(&mut self.spec.cwd);
        self
    }

    /// User and group of the container; the own ones unless told, root with a full spec.
    pub fn user(mut self, uid: u32, gid: u32) -> Self {
        self.spec.user = (uid, gid);
        self
    }

    /// Adds an annotation.
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.spec.annotations.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Puts the container into a group that shares a shim.
    pub fn group(self, group: &str) -> Self {
        self.annotation(GROUP, group)
    }

    /// Gives it a terminal.
    pub fn terminal(mut self) -> Self {
        self.spec.terminal = true;
        self
    }

    /// The `linux` object of its specification, its namespaces above all; not of one for runc.
    pub fn linux(mut self, linux: Value) -> Self {
        self.spec.linux = linux;
        self
    }

    /// Writes a spec that an OCI runtime takes, and gives options unless others are given: the runtime then keeps
    /// its state in the stand-in's own folder.
    pub fn full_spec(mut self) -> Self {
        self.full = true;
        self.spec.user = (0, 0);
        self
    }

    /// Runs it in that root file system, which stays as it is.
    pub fn rootfs(mut self, rootfs: impl Into<PathBuf>) -> Self {
        self.spec.rootfs = Some(rootfs.into());
        self
    }

    /// Runs it in a root file system made from a static busybox.
    pub fn busybox(mut self, busybox: impl Into<PathBuf>) -> Self {
        self.busybox = Some(busybox.into());
        self
    }

    /// Takes this config.json instead of a made one; `args` and the rest are then not used.
    pub fn config(mut self, config: Value) -> Self {
        self.config = Some(config);
        self
    }

    /// Takes the config.json of a bundle of somebody else's, which stays as it is: a relative root is meant
    /// relative to it.
    pub fn config_of(self, bundle: &Path) -> Result<Self> {
        let path = bundle.join("config.json");
        let text = fs::read_to_string(&path).doing(|| format!("cannot read `{}`", path.display()))?;
        let mut config: Value =
            serde_json::from_str(&text).doing(|| format!("cannot read `{}`", path.display()))?;
        if let Some(root) = config["root"]["path"].as_str() {
            let absolute = bundle.canonicalize()?.join(root);
            config["root"]["path"] = absolute.to_string_lossy().into();
        }
        Ok(self.config(config))
    }

    /// The config.json that [`BundleBuilder::config`] or [`BundleBuilder::config_of`] gave, to be changed.
    pub fn config_mut(&mut self) -> Option<&mut Value> {
        self.config.as_mut()
    }

    /// Leaves config.json out, as for a sandbox of the shim sandboxer ([contract 8](shim_runtime::contract#s8)).
    pub fn without_config(mut self) -> Self {
        self.without_config = true;
        self
    }

    /// Keeps what the container writes.
    pub fn capture(mut self) -> Self {
        self.mode = Mode::Capture;
        self
    }

    /// Keeps what the container writes, once [`Stdio::attach`] is called.
    pub fn late(mut self) -> Self {
        self.mode = Mode::Late;
        self
    }

    /// Has what the container writes go where a URI says, as with `ctr run --log-uri`.
    pub fn log_uri(mut self, uri: &str) -> Self {
        self.log = Some(uri.to_owned());
        self
    }

    /// Passes what the container writes to the own stdout and stderr.
    pub fn inherit(mut self) -> Self {
        self.mode = Mode::Inherit;
        self
    }

    /// Options for `start` and Create; the type URL is the bare message name.
    pub fn options(mut self, type_url: &str, value: Vec<u8>) -> Self {
        self.options = Some(Any { type_url: type_url.to_owned(), value, ..Any::default() });
        self
    }

    /// Adds a mount of the root file system to Create.
    pub fn mount(mut self, kind: &str, source: &str, options: &[&str]) -> Self {
        self.mounts.push(Mount {
            type_: kind.to_owned(),
            source: source.to_owned(),
            options: options.iter().map(|&option| option.to_owned()).collect(),
            ..Mount::default()
        });
        self
    }

    /// Makes it.
    pub fn build(mut self) -> Result<Bundle> {
        // The daemon admits no such id; what a shim makes of one is seen by `FakeContainerd::launch`.
        if self.id.is_empty() || self.id.contains('/') || self.id.starts_with('.') {
            return Err(Failure::setup(format!("`{}` cannot be the id of a bundle", self.id)));
        }
        if let Some(busybox) = &self.busybox {
            self.spec.rootfs = Some(self.ctrd.busybox_rootfs(busybox)?);
        }
        let (path, work) = (self.ctrd.bundle_dir(&self.id), self.ctrd.work_dir(&self.id));
        let parent_of = |path: &Path| path.parent().map(Path::to_owned).unwrap_or_default();
        fs::create_dir_all(parent_of(&path))?;
        fs::create_dir_all(&work)?;
        make_dir(&path, 0o700)?;
        make_dir(&path.join("rootfs"), 0o711)?;
        symlink(&work, path.join("work"))?;
        let made = if self.full { self.spec.full() } else { self.spec.small() };
        let config = self.config.unwrap_or(made);
        let group = group_of(&config).unwrap_or(&self.id).to_owned();
        if !self.without_config {
            fs::write(path.join("config.json"), config.to_string())?;
        }
        let log = Log::open(&path.join("log"))?;
        let terminal = config["process"]["terminal"].as_bool().unwrap_or(false);
        let stdio = match &self.log {
            Some(uri) => Stdio::log(uri, terminal),
            None => Stdio::new(&self.ctrd.io_dir(&self.id), self.mode, terminal)?,
        };
        self.ctrd.remember(&group);
        let options = self.options.or_else(|| self.full.then(|| engine_options(&self.ctrd)));
        let (id, spec, mounts) = (self.id, self.spec, self.mounts);
        Ok(Bundle(Arc::new(Inner { id, path, work, group, spec, options, mounts, stdio, log })))
    }
}

fn engine_options(ctrd: &FakeContainerd) -> Any {
    let root = ctrd.root().join("engine").to_string_lossy().into_owned();
    let value = Options { root, ..Options::default() }.write_to_bytes().unwrap_or_default();
    Any { type_url: "containerd.runc.v1.Options".to_owned(), value, ..Any::default() }
}

/// The group by the Go shim's rule; other shims may have other labels.
fn group_of(config: &Value) -> Option<&str> {
    [GROUP, "io.kubernetes.cri.sandbox-id"].iter().find_map(|label| config["annotations"][*label].as_str())
}

fn make_dir(path: &Path, mode: u32) -> Result<()> {
    fs::DirBuilder::new().mode(mode).create(path).doing(|| format!("cannot make `{}`", path.display()))
}

impl Bundle {
    /// The container's id.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The group whose shim serves it: by annotation, else its id.
    pub fn group(&self) -> &str {
        &self.0.group
    }

    /// The client's end of the init's streams.
    pub fn stdio(&self) -> &Stdio {
        &self.0.stdio
    }

    /// What the shim logged so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&lock(&self.0.log.text)).into_owned()
    }

    /// The options for `start` and Create.
    pub(crate) fn options(&self) -> Option<&Any> {
        self.0.options.as_ref()
    }

    pub(crate) fn mounts(&self) -> &[Mount] {
        &self.0.mounts
    }

    /// The container's own process spec with another command, for an exec.
    pub(crate) fn exec_spec(&self, args: &[&str], terminal: bool) -> Vec<u8> {
        let args = args.iter().map(|&arg| arg.to_owned()).collect();
        Spec { args, terminal, ..self.0.spec.clone() }.exec()
    }

    /// Removes it as the daemon does after `delete` ([contract 2.6](shim_runtime::contract#s2-6)), but for mounts, which
    /// are a leak by then. The error names a `rootfs` that is not empty.
    pub fn remove(&self) -> Result<()> {
        let rootfs = self.0.path.join("rootfs");
        match fs::remove_dir(&rootfs) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Failure::setup(format!("cannot remove `{}`: {error}", rootfs.display())));
            }
            _ => {}
        }
        let hidden = self.0.path.with_file_name(format!(".{}", self.0.id));
        fs::rename(&self.0.path, &hidden).doing(|| format!("cannot rename `{}`", self.0.path.display()))?;
        fs::remove_dir_all(&hidden).doing(|| format!("cannot remove `{}`", hidden.display()))?;
        fs::remove_dir_all(&self.0.work).doing(|| format!("cannot remove `{}`", self.0.work.display()))
    }
}

/// The `log` FIFO and the thread that reads it.
struct Log {
    text: Arc<Mutex<Vec<u8>>>,
    /// Its end tells the reader to stop.
    _stop: PipeWriter,
}

impl Log {
    fn open(path: &Path) -> Result<Self> {
        mkfifo(path, Permissions::S_IRWXU).doing(|| format!("cannot make the FIFO `{}`", path.display()))?;
        // Both ends, so that the shim's open never waits and its end is not ours.
        let fifo = OpenOptions::new().read(true).write(true).open(path)?;
        let (stopped, stop) = io::pipe()?;
        let text = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&text);
        thread::spawn(move || read_log(fifo, &stopped, &sink));
        Ok(Self { text, _stop: stop })
    }
}

fn read_log(mut fifo: File, stopped: &PipeReader, sink: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 4096];
    loop {
        let ready = wait_readable(&[fifo.as_fd(), stopped.as_fd()], IDLE);
        match ready.as_deref() {
            Ok([true, _]) => {
                let Ok(count) = fifo.read(&mut buffer) else { return };
                let mut text = lock(sink);
                if text.len() < LOG_LIMIT {
                    text.extend_from_slice(&buffer[..count]);
                }
            }
            Ok([_, false]) => {}
            _ => return,
        }
    }
}
