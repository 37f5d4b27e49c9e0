//! The stand-in itself: its directories, its events service, its verdict.
//! Everything of one run lies below one short directory, by which leaks are found.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tempfile::TempDir;

use super::bundle::BundleBuilder;
use super::client::Task;
use super::dialect::Dialect;
use super::events::Events;
use super::failure::{Broken, Doing, Failure, Result};
use super::stdio::{Mode, Stdio};
use super::timeline::Timeline;
use super::watch::Watch;
use super::{leaks, lock, promise, spec};

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
    informed: Mutex<BTreeSet<PathBuf>>,
    addresses: Mutex<HashMap<PathBuf, BTreeSet<String>>>,
    making_rootfs: Mutex<()>,
    clients: Mutex<usize>,
}

/// What was said when it was made.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) dialect: Dialect,
    pub(crate) namespace: String,
    pub(crate) debug: bool,
    pub(crate) env: Vec<(OsString, OsString)>,
    pub(crate) task_version: Option<u32>,
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
        // Not below TMPDIR: socket paths are limited to 106 bytes, socket directories to 42 (contract 4).
        // Containers may run as another user, who must come through it.
        let root = tempfile::Builder::new()
            .prefix("ctrd-")
            .permissions(fs::Permissions::from_mode(0o711))
            .tempdir_in("/tmp")
            .doing(|| "cannot make a directory in `/tmp`")?;
        if self.0.namespace.is_empty() {
            let name = root.path().file_name().unwrap_or_default().to_string_lossy();
            self.0.namespace = name.replace("ctrd-", "test-");
        }
        for name in ["s", "run"] {
            fs::DirBuilder::new().mode(0o700).create(root.path().join(name))?;
        }
        // What shims are told is the daemon's executable; none needs to run it to publish (contract 7).
        let binary = root.path().join("containerd");
        fs::write(&binary, "#!/bin/sh\nexit 1\n")?;
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o755))?;
        let timeline = Timeline::new();
        let watch = Watch::new(timeline.clone());
        let socket = root.path().join("c.sock.ttrpc");
        let events = Events::new(socket, &self.0.namespace, timeline.clone(), watch.clone());
        events.listen()?;
        let (groups, informed) = (Mutex::default(), Mutex::default());
        let (addresses, clients) = (Mutex::default(), Mutex::default());
        let config = self.0;
        Ok(FakeContainerd(Arc::new(Inner {
            root,
            config,
            timeline,
            watch,
            events,
            groups,
            informed,
            addresses,
            making_rootfs: Mutex::default(),
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

    pub(crate) fn config(&self) -> &Config {
        &self.0.config
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

    /// Whether this is the first time to ask that binary for its `-info`.
    pub(crate) fn is_new(&self, binary: &Path) -> bool {
        lock(&self.0.informed).insert(binary.to_owned())
    }

    pub(crate) fn groups(&self) -> Vec<String> {
        lock(&self.0.groups).iter().cloned().collect()
    }

    /// Which containers each socket serves.
    pub(crate) fn addresses(&self) -> MutexGuard<'_, HashMap<PathBuf, BTreeSet<String>>> {
        lock(&self.0.addresses)
    }

    pub(crate) fn grpc_address(&self) -> String {
        self.path_text("c.sock")
    }

    pub(crate) fn socket_dir(&self) -> PathBuf {
        self.root().join("s")
    }

    /// A path below the root, as flags and messages carry it.
    pub(crate) fn path_text(&self, name: &str) -> String {
        self.root().join(name).to_string_lossy().into_owned()
    }

    /// The root file system of that busybox, made once and shared by the bundles.
    pub(crate) fn busybox_rootfs(&self, busybox: &Path) -> Result<PathBuf> {
        let rootfs = self.root().join("busybox");
        // Whoever comes meanwhile must not find half of it.
        let _made_once = lock(&self.0.making_rootfs);
        if !rootfs.exists() {
            spec::busybox_rootfs(busybox, &rootfs)?;
        }
        Ok(rootfs)
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

    /// Waits until every event has come that the calls so far owe, and reports those that do not.
    pub fn settle(&self) {
        self.settle_those(|_, _| true);
    }

    /// As [`FakeContainerd::settle`], for the processes of which `whose` tells by container and exec.
    pub(crate) fn settle_those(&self, whose: impl Fn(&str, &str) -> bool) {
        let owed = || self.0.watch.owed(&whose);
        let settled = self.events().wait_until(EVENT_LIMIT, |_| owed().is_empty().then_some(()));
        if settled.is_none() {
            for (promise, event) in owed() {
                self.0.watch.report(
                    promise,
                    format!("no event `{event}` within {EVENT_LIMIT:?}"),
                    "that event",
                );
            }
        }
    }

    /// Forgets a process that was deleted, or a container with its execs, once all its events have come: whoever
    /// runs very many needs its memory and descriptors. Broken promises are kept.
    pub fn forget(&self, task: &Task) {
        let whose = |container: &str, exec: &str| task.is_for(container, exec);
        self.settle_those(whose);
        self.events().forget(whose);
        self.0.watch.forget(whose);
    }

    /// Everything of this run that is there now, by names for a person: processes, sockets, mounts, cgroups, and
    /// the folders of containers, of their streams and of an OCI runtime's state.
    pub fn remains(&self) -> BTreeSet<String> {
        leaks::remains(self)
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

    /// Kills and removes what is left of this run with all its files, and nothing else; the stand-in is of no
    /// use after it. Done in any case when the last clone is dropped, which `exit` would prevent.
    pub fn clean_up(&self) {
        self.events().stop();
        leaks::clean_up(self);
        let _ = fs::remove_dir_all(self.root());
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.events.stop();
        leaks::clean_up_root(self.root.path(), &self.watch, &self.config.namespace, &lock(&self.groups));
    }
}
