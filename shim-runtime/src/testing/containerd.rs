//! The stand-in itself: its directories, its events service, and what it does to start a shim
//! (contract 2). Everything of one run lies below one short directory, by which leaks are found.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use nix::unistd::geteuid;
use tempfile::TempDir;
use ttrpc::proto::KeyValue;

use super::bootstrap::{Answer, Form, Told};
use super::bundle::{Bundle, BundleBuilder};
use super::client::Task;
use super::dialect::Dialect;
use super::events::Events;
use super::failure::{Broken, Doing, Failure, Result};
use super::launch::{Launch, Output, printable};
use super::process::Process;
use super::shim::{Shim, Started};
use super::stdio::{Mode, Stdio};
use super::timeline::Timeline;
use super::watch::Watch;
use super::{leaks, lock, process, promise, spec};
use crate::Pid;

/// `start` has no deadline but its client's; this is one that a person would lose patience at.
const START_LIMIT: Duration = Duration::from_secs(30);

/// How long what a failed `start` has killed may take to end.
const FAILED_LIMIT: Duration = Duration::from_secs(2);

/// How long events may take to arrive after what they tell of.
const EVENT_LIMIT: Duration = Duration::from_secs(5);

/// A stand-in for containerd; clones are the same one. The last one to go kills and removes what is left.
#[derive(Clone)]
pub struct FakeContainerd(Arc<Inner>);

struct Inner {
    root: TempDir,
    config: Config,
    timeline: Timeline,
    watch: Watch,
    events: Events,
    groups: Mutex<BTreeSet<String>>,
    addresses: Mutex<HashMap<PathBuf, usize>>,
    clients: Mutex<usize>,
}

#[derive(Clone)]
struct Config {
    dialect: Dialect,
    namespace: String,
    debug: bool,
    env: Vec<(OsString, OsString)>,
    task_version: Option<u32>,
}

/// A stand-in in the making.
pub struct Builder(Config);

impl Builder {
    /// The namespace; one of its own unless told.
    pub fn namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.0.namespace);
        self
    }

    /// Asks shims for debug logs.
    pub fn debug(mut self) -> Self {
        self.0.debug = true;
        self
    }

    /// Adds to the environment of `start` and `delete`.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.0.env.push((name.into(), value.into()));
        self
    }

    /// Calls the task service of that version, whatever the answer of `start` says.
    pub fn task_version(mut self, version: u32) -> Self {
        self.0.task_version = Some(version);
        self
    }

    /// Makes the directories and serves events.
    pub fn build(mut self) -> Result<FakeContainerd> {
        // Socket paths are limited to 106 bytes and socket directories to 42 (contract 4), so TMPDIR is not asked.
        let root = tempfile::Builder::new()
            .prefix("ctrd-")
            .tempdir_in("/tmp")
            .doing(|| "cannot make a directory in `/tmp`")?;
        if self.0.namespace.is_empty() {
            let name = root.path().file_name().unwrap_or_default().to_string_lossy();
            self.0.namespace = name.replace("ctrd-", "test-");
        }
        for name in ["s", "run"] {
            fs::DirBuilder::new().mode(0o700).create(root.path().join(name))?;
        }
        // What shims are told is the daemon's executable; they may run it to publish, none needs to (contract 7).
        let binary = root.path().join("containerd");
        fs::write(&binary, "#!/bin/sh\nexit 1\n")?;
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o755))?;
        let timeline = Timeline::new();
        let watch = Watch::new(timeline.clone());
        let socket = root.path().join("c.sock.ttrpc");
        let events = Events::serve(socket, &self.0.namespace, timeline.clone(), watch.clone())?;
        let (groups, addresses, clients) = (Mutex::default(), Mutex::default(), Mutex::default());
        let config = self.0;
        Ok(FakeContainerd(Arc::new(Inner {
            root,
            config,
            timeline,
            watch,
            events,
            groups,
            addresses,
            clients,
        })))
    }
}

impl FakeContainerd {
    /// A stand-in that speaks like that generation.
    pub fn new(dialect: Dialect) -> Result<Self> {
        Self::builder(dialect).build()
    }

    /// A stand-in with more to say.
    pub fn builder(dialect: Dialect) -> Builder {
        let (namespace, debug, env, task_version) = (String::new(), false, Vec::new(), None);
        Builder(Config { dialect, namespace, debug, env, task_version })
    }

    /// What it speaks like.
    pub fn dialect(&self) -> Dialect {
        self.0.config.dialect
    }

    /// The namespace of everything it starts.
    pub fn namespace(&self) -> &str {
        &self.0.config.namespace
    }

    /// The directory of this run.
    pub fn root(&self) -> &Path {
        self.0.root.path()
    }

    /// The record of what happened.
    pub fn timeline(&self) -> &Timeline {
        &self.0.timeline
    }

    /// The events service.
    pub fn events(&self) -> &Events {
        &self.0.events
    }

    /// The promises that were broken so far, the binding ones first.
    pub fn broken(&self) -> Vec<Broken> {
        self.0.watch.broken()
    }

    pub(crate) fn watch(&self) -> &Watch {
        &self.0.watch
    }

    /// A bundle for a container.
    pub fn bundle(&self, id: &str) -> BundleBuilder {
        BundleBuilder::new(self, id)
    }

    /// Streams for an exec.
    pub fn stdio(&self, name: &str, mode: Mode, terminal: bool) -> Result<Stdio> {
        Stdio::new(&self.io_dir(name), mode, terminal)
    }

    pub(crate) fn bundle_dir(&self, id: &str) -> PathBuf {
        self.root().join("state").join(self.namespace()).join(id)
    }

    pub(crate) fn work_dir(&self, id: &str) -> PathBuf {
        self.root().join("work").join(self.namespace()).join(id)
    }

    /// One directory for each set of streams, as clients make them.
    pub(crate) fn io_dir(&self, name: &str) -> PathBuf {
        let mut clients = lock(&self.0.clients);
        *clients += 1;
        self.root().join("io").join(format!("{name}-{clients}"))
    }

    /// A cgroup name that nobody else has.
    pub(crate) fn cgroup(&self, id: &str) -> String {
        format!("{}-{id}", self.namespace())
    }

    /// What everything that belongs to this run has in its environment.
    pub(crate) fn marker(&self) -> String {
        format!("SHIM_TESTING_ROOT={}", self.root().display())
    }

    pub(crate) fn remember(&self, group: &str) {
        lock(&self.0.groups).insert(group.to_owned());
    }

    pub(crate) fn groups(&self) -> Vec<String> {
        lock(&self.0.groups).iter().cloned().collect()
    }

    /// How many bundles each socket serves.
    pub(crate) fn addresses(&self) -> MutexGuard<'_, HashMap<PathBuf, usize>> {
        lock(&self.0.addresses)
    }

    pub(crate) fn grpc_address(&self) -> String {
        self.path_text("c.sock")
    }

    pub(crate) fn socket_dir(&self) -> PathBuf {
        self.root().join("s")
    }

    fn path_text(&self, name: &str) -> String {
        self.root().join(name).to_string_lossy().into_owned()
    }

    /// The root file system of that busybox, made once and shared by the bundles.
    pub(crate) fn busybox_rootfs(&self, busybox: &Path) -> Result<PathBuf> {
        let rootfs = self.root().join("busybox");
        if !rootfs.exists() {
            spec::busybox_rootfs(busybox, &rootfs)?;
        }
        Ok(rootfs)
    }

    /// What the daemon would run for an action, `start` or `delete`, in a bundle: to be run as it is, or after
    /// a change (contract 2.1 to 2.4).
    pub fn launch(&self, binary: impl Into<PathBuf>, bundle: &Bundle, action: &str) -> Launch {
        let program: PathBuf = binary.into();
        let starts = action == "start";
        let mut args: Vec<OsString> = Vec::new();
        let mut flag = |name: &str, value: &str| args.extend([name.into(), value.into()]);
        flag("-namespace", self.namespace());
        flag("-address", &self.grpc_address());
        flag("-publish-binary", &self.path_text("containerd"));
        flag("-id", bundle.id());
        if !starts {
            args.extend(["-bundle".into(), bundle.path().into()]);
        }
        if self.0.config.debug && (starts || self.dialect().debugs_delete()) {
            args.push("-debug".into());
        }
        args.push(action.into());
        let base_name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let stdin = if starts { self.told(bundle).stdin(self.dialect(), &base_name) } else { Vec::new() };
        let limit = if starts { START_LIMIT } else { super::shim::DELETE_LIMIT };
        let (env, env_remove) = self.environment();
        Launch {
            program,
            args,
            env,
            env_remove,
            cwd: bundle.path().to_owned(),
            stdin,
            one_pipe: starts,
            limit,
        }
    }

    fn told(&self, bundle: &Bundle) -> Told {
        Told {
            id: bundle.id().to_owned(),
            namespace: self.namespace().to_owned(),
            debug: self.0.config.debug,
            ttrpc: self.path_text("c.sock.ttrpc"),
            grpc: self.grpc_address(),
            binary: self.path_text("containerd"),
            socket_dir: self.path_text("s"),
            options: bundle.options().cloned(),
        }
    }

    /// What is added to the environment, and what is taken from it: the own one may come from a real daemon.
    fn environment(&self) -> (Vec<(OsString, OsString)>, Vec<OsString>) {
        let daemons =
            ["GRPC_ADDRESS", "MAX_SHIM_VERSION", "NAMESPACE", "NOTIFY_SOCKET", "SCHED_CORE", "TTRPC_ADDRESS"];
        let ttrpc = self.path_text("c.sock.ttrpc");
        let dialect = self.dialect().environment(&self.grpc_address(), &ttrpc, self.namespace());
        let mut env: Vec<(OsString, OsString)> =
            dialect.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        if !geteuid().is_root() {
            // Where legacy sockets go without root (contract 4).
            env.push(("XDG_RUNTIME_DIR".into(), self.root().join("run").into()));
        }
        env.push(("SHIM_TESTING_ROOT".into(), self.root().into()));
        env.extend(self.0.config.env.iter().cloned());
        (env, daemons.map(OsString::from).into())
    }

    /// Runs `start` in the bundle, takes its answer as the daemon does and connects. When that fails the bundle
    /// is removed (contract 2.5); run [`FakeContainerd::launch`] by hand to look at what is in it then.
    pub fn start(&self, binary: impl AsRef<Path>, bundle: &Bundle) -> Result<Shim> {
        let shim = self.start_in(binary.as_ref(), bundle);
        if shim.is_err() {
            let _ = bundle.remove();
        }
        shim
    }

    fn start_in(&self, binary: &Path, bundle: &Bundle) -> Result<Shim> {
        let binary =
            fs::canonicalize(binary).doing(|| format!("cannot find the shim `{}`", binary.display()))?;
        let before = process::related_to(&self.path_text(""));
        let running = self.0.timeline.call(format!("start {}", bundle.id()));
        let output = self.launch(&binary, bundle, "start").run()?;
        let answer = self.judge_start(&output, &before);
        running.done(match &answer {
            Ok(answer) => format!("{} v{}", answer.address, answer.version),
            Err(_) => output.to_string(),
        });
        self.take(binary, bundle, answer.map_err(|failure| failure.with(&self.0.timeline))?, output.took)
    }

    /// Takes the answer of a `start` that was run by hand, from [`FakeContainerd::launch`], and connects.
    pub fn take_start(&self, binary: impl Into<PathBuf>, bundle: &Bundle, output: &Output) -> Result<Shim> {
        let answer = self.judge_start(output, &process::related_to(&self.path_text("")))?;
        self.take(binary.into(), bundle, answer, output.took)
    }

    fn take(&self, binary: PathBuf, bundle: &Bundle, answer: Answer, took: Duration) -> Result<Shim> {
        let shim = self.connect(binary, bundle, answer, took)?;
        self.write_down(&shim, bundle)?;
        Ok(shim)
    }

    /// Serves a further container by a running shim of version 3, without `start` (contract 0.3).
    pub fn attach(&self, shim: &Shim, bundle: &Bundle) -> Result<Shim> {
        self.connect(shim.binary().to_owned(), bundle, shim.answer().clone(), Duration::ZERO)
    }

    fn judge_start(&self, output: &Output, before: &[Pid]) -> Result<Answer> {
        if output.kept_open {
            let seen = "the pipe still open 2 s after `start` ended";
            self.0.watch.report(promise::START_CLOSES_OUTPUT, seen, "its end; the daemon reads until then");
        }
        if output.status.is_none() {
            return Err(self.broken_now(promise::START_EXITS, output.to_string(), "an end within 30 s"));
        }
        if !output.success() {
            self.judge_failed_start(before);
            return Err(Failure::setup(format!("`start` failed with {output}")));
        }
        Answer::parse(self.dialect(), &output.stdout).map_err(|reason| {
            let text = output.text();
            let seen = format!("{reason}; all of the output: `{}`", printable(&text));
            // One line that would do alone means noise around it.
            let is_answer = |line: &str| Answer::parse(self.dialect(), line.as_bytes()).is_ok();
            if text.lines().count() > 1 && text.lines().any(is_answer) {
                return self.broken_now(promise::START_SILENT, seen, "the answer and nothing else");
            }
            let expected = format!("an answer that containerd {} takes", self.dialect());
            self.broken_now(promise::START_ANSWER_FORM, seen, expected)
        })
    }

    /// Nobody calls `delete` after a `start` that failed (contract 2.5).
    fn judge_failed_start(&self, before: &[Pid]) {
        let left = process::related_to(&self.path_text("")).into_iter().filter(|pid| !before.contains(pid));
        // A server that was killed may take its time to end.
        let left: Vec<_> =
            left.filter(|pid| leaks::outlives(*pid, FAILED_LIMIT)).map(process::describe).collect();
        let sockets = if self.addresses().is_empty() { leaks::sockets(self) } else { Vec::new() };
        let all: Vec<_> =
            left.into_iter().chain(sockets.iter().map(|path| format!("`{}`", path.display()))).collect();
        if !all.is_empty() {
            self.0.watch.report(promise::START_FAILURE_CLEAN, all.join(", "), "nothing left");
        }
    }

    pub(crate) fn broken_now(
        &self,
        promise: &'static promise::Promise,
        seen: impl Into<String>,
        expected: impl Into<String>,
    ) -> Failure {
        let broken = Broken { promise, seen: seen.into(), expected: expected.into() };
        self.0.watch.report(promise, broken.seen.clone(), broken.expected.clone());
        Failure::broken(vec![broken]).with(&self.0.timeline)
    }

    fn connect(&self, binary: PathBuf, bundle: &Bundle, answer: Answer, took: Duration) -> Result<Shim> {
        let path = answer.path().map_err(Failure::setup)?;
        self.judge_socket(&path);
        // Once, at once, without a retry (contract 2.5).
        let stream = UnixStream::connect(&path).map_err(|error| {
            self.broken_now(
                promise::START_LISTENING,
                format!("`{}`: {error}", path.display()),
                "a socket that listens",
            )
        })?;
        *self.addresses().entry(path.clone()).or_default() += 1;
        let servers =
            process::listeners(&path).into_iter().filter_map(|pid| Process::open(pid).ok()).collect();
        let version = self.0.config.task_version.unwrap_or(answer.version);
        let connection = ttrpc::Client::new(std::os::fd::IntoRawFd::into_raw_fd(stream.try_clone()?));
        let task = Task {
            client: connection.doing(|| "cannot make a client")?,
            version,
            metadata: self.metadata(),
            timeline: self.0.timeline.clone(),
            watch: self.0.watch.clone(),
            id: bundle.id().to_owned(),
            exec_id: String::new(),
            limit: None,
        };
        Ok(Shim::new(self.clone(), bundle.clone(), Started { binary, answer, took, servers }, task, stream))
    }

    fn metadata(&self) -> Vec<KeyValue> {
        if !self.dialect().sends_metadata() {
            return Vec::new();
        }
        let (key, value) = ("containerd-namespace-ttrpc".to_owned(), self.namespace().to_owned());
        vec![KeyValue { key, value, ..KeyValue::default() }]
    }

    fn judge_socket(&self, path: &Path) {
        let report = |seen: String, expected| self.0.watch.report(promise::SOCKET_PRIVATE, seen, expected);
        if path.as_os_str().len() > 106 {
            report(format!("{} bytes in `{}`", path.as_os_str().len(), path.display()), "at most 106");
        }
        if let Ok(metadata) = fs::metadata(path) {
            // Who may write to a socket may connect to it.
            let mode = metadata.permissions().mode() & 0o777;
            if mode & 0o022 != 0 {
                report(format!("mode {mode:o} of `{}`", path.display()), "600");
            }
        }
        if self.dialect() >= Dialect::V2_3 && path.parent() != Some(&self.socket_dir()) {
            let expected = format!("`{}`", self.socket_dir().display());
            self.0.watch.report(promise::SOCKET_DIR, format!("`{}`", path.display()), expected);
        }
    }

    /// What the daemon writes into the bundle, and what old daemons leave to the shim (contract 2.5).
    fn write_down(&self, shim: &Shim, bundle: &Bundle) -> Result<()> {
        let answer = shim.answer();
        fs::write(bundle.path().join("shim-binary-path"), shim.binary().as_os_str().as_encoded_bytes())?;
        if self.dialect().writes_bootstrap_json() {
            let Answer { version, address, protocol, .. } = answer;
            let json = serde_json::json!({ "version": version, "address": address, "protocol": protocol });
            fs::write(bundle.path().join("bootstrap.json"), json.to_string())?;
        }
        let file = fs::read_to_string(bundle.path().join("address"));
        let must = self.dialect() < Dialect::V2_0;
        match file {
            Ok(text) if text == answer.address => {}
            Err(_) if !must => {}
            Ok(text) => self.0.watch.report(
                promise::START_ADDRESS_FILE,
                format!("`{}`", text.escape_debug()),
                format!("`{}`", answer.address),
            ),
            Err(error) => self.0.watch.report(
                promise::START_ADDRESS_FILE,
                error.to_string(),
                format!("`{}`", answer.address),
            ),
        }
        debug_assert!(self.dialect() >= Dialect::V2_3 || answer.form != Form::Protobuf);
        Ok(())
    }

    /// Waits until every event has come that the calls so far owe, and reports those that do not.
    pub fn settle(&self) {
        let settled = self.events().wait_until(EVENT_LIMIT, |_| self.0.watch.owed().is_empty().then_some(()));
        if settled.is_none() {
            for (promise, event) in self.0.watch.owed() {
                self.0.watch.report(
                    promise,
                    format!("no event `{event}` within {EVENT_LIMIT:?}"),
                    "that event",
                );
            }
        }
    }

    /// Waits until these events, by their short forms, have come in this order; others may come between.
    pub fn assert_order(&self, expected: &[&str]) -> Result<()> {
        let all_came = |events: &[super::Event]| {
            let mut events = events.iter();
            expected.iter().all(|pattern| events.any(|event| event.matches(pattern))).then_some(())
        };
        self.events().wait_until(EVENT_LIMIT, all_came).ok_or_else(|| self.other_events(expected))
    }

    /// Waits until exactly these events, by their short forms, have come in this order.
    pub fn assert_events(&self, expected: &[&str]) -> Result<()> {
        let enough = |events: &[super::Event]| (events.len() >= expected.len()).then_some(());
        let _ = self.events().wait_until(EVENT_LIMIT, enough);
        let events = self.events().all();
        let same = events.len() == expected.len();
        if same && events.iter().zip(expected).all(|(event, pattern)| event.matches(pattern)) {
            return Ok(());
        }
        Err(self.other_events(expected))
    }

    fn other_events(&self, expected: &[&str]) -> Failure {
        let events: Vec<_> = self.events().all().iter().map(ToString::to_string).collect();
        let message = format!("events were [{}]; expected [{}]", events.join(", "), expected.join(", "));
        Failure::setup(message).with(&self.0.timeline)
    }

    /// Looks for what was left, after the last shim has ended, and reports it.
    pub fn check_leaks(&self) -> Result<()> {
        leaks::check(self);
        self.verdict()
    }

    /// Fails when a binding promise was broken so far.
    pub fn verdict(&self) -> Result<()> {
        let broken = self.0.watch.broken_musts();
        if broken.is_empty() { Ok(()) } else { Err(Failure::broken(broken).with(&self.0.timeline)) }
    }

    /// The end of a run: all events have come, nothing is left, no binding promise was broken.
    pub fn check(&self) -> Result<()> {
        self.settle();
        self.check_leaks()
    }

    /// Kills and removes what is left of this run, and nothing else. Done at the end in any case.
    pub fn clean_up(&self) {
        leaks::clean_up(self);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.events.stop();
        leaks::clean_up_root(self.root.path(), &self.watch, &self.config.namespace, &lock(&self.groups));
    }
}
