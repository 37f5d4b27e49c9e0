//! How the stand-in starts a shim (contract 2): what it runs, how it takes the answer, and what it holds
//! against the shim by then.

use std::ffi::OsString;
use std::fs;
use std::os::fd::IntoRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_shim_protos::types::introspection::RuntimeInfo;
use nix::unistd::geteuid;
use protobuf::Message;
use ttrpc::proto::KeyValue;

use super::bootstrap::{Answer, Told};
use super::bundle::Bundle;
use super::client::Task;
use super::containerd::FakeContainerd;
use super::dialect::Dialect;
use super::failure::{Doing, Failure, Result};
use super::launch::{Launch, Output, printable};
use super::process::Process;
use super::shim::{DELETE_LIMIT, Shim, Started};
use super::{leaks, process, promise};
use shim_runtime::Pid;

/// `start` has no deadline but its client's; this is one that a person would lose patience at.
const START_LIMIT: Duration = Duration::from_secs(30);

/// How long what a failed `start` has killed may take to end.
const FAILED_LIMIT: Duration = Duration::from_secs(2);

/// What a restarted daemon gives a shim to answer (contract 2.7).
const ADOPTION_LIMIT: Duration = Duration::from_secs(5);

/// How long `-info` may take.
const INFO_LIMIT: Duration = Duration::from_secs(10);

impl FakeContainerd {
    /// What the daemon would run for an action, `start` or `delete`, in a bundle: to be run as it is, or after
    /// a change ([contract 2.1](shim_runtime::contract#s2-1) to [2.4](shim_runtime::contract#s2-4)).
    pub fn launch(&self, binary: impl Into<PathBuf>, bundle: &Bundle, action: &str) -> Launch {
        let program: PathBuf = binary.into();
        // It runs in the bundle, so a relative path would lead elsewhere.
        let program = std::path::absolute(&program).unwrap_or(program);
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
        if self.config().debug && (starts || self.dialect().debugs_delete()) {
            args.push("-debug".into());
        }
        args.push(action.into());
        let base_name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let stdin = if starts { self.told(bundle).stdin(self.dialect(), &base_name) } else { Vec::new() };
        let limit = if starts { START_LIMIT } else { DELETE_LIMIT };
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
            debug: self.config().debug,
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
        env.extend(self.config().env.iter().cloned());
        (env, daemons.map(OsString::from).into())
    }

    /// Runs `start` in the bundle, takes its answer as the daemon does and connects. A shim that is named without
    /// a folder is looked for in `PATH`. When `start` fails the bundle is removed, as a daemon does it
    /// ([contract 2.5](shim_runtime::contract#s2-5)); run [`FakeContainerd::launch`] by hand to look at what is in it then.
    pub fn start(&self, binary: impl AsRef<Path>, bundle: &Bundle) -> Result<Shim> {
        let shim = self.start_in(binary.as_ref(), bundle);
        if shim.is_err() {
            let _ = bundle.remove();
        }
        shim
    }

    fn start_in(&self, binary: &Path, bundle: &Bundle) -> Result<Shim> {
        let binary = find(binary)?;
        if self.dialect() >= Dialect::V2_3 && self.is_new(&binary) {
            self.ask_info(&binary)?;
        }
        let before = process::related_to(&self.path_text(""));
        let running = self.timeline().call(format!("start {}", bundle.id()));
        let output = self.launch(&binary, bundle, "start").run()?;
        let answer = self.judge_start(&output, &before);
        running.done(match &answer {
            Ok(answer) => format!("{} v{}", answer.address, answer.version),
            Err(_) => output.to_string(),
        });
        self.take(binary, bundle, answer.map_err(|failure| failure.with(self.timeline()))?, output.took)
    }

    /// Runs `-info` as the daemon does before Create (contract 3): alone, in the daemon's own directory and
    /// environment. It goes on without an answer, and so does this.
    fn ask_info(&self, binary: &Path) -> Result<()> {
        let running = self.timeline().call("-info");
        let launch = Launch {
            program: binary.to_owned(),
            args: vec!["-info".into()],
            env: vec![("SHIM_TESTING_ROOT".into(), self.root().into())],
            env_remove: self.environment().1,
            cwd: std::env::current_dir()?,
            stdin: Vec::new(),
            one_pipe: false,
            limit: INFO_LIMIT,
        };
        let output = launch.run()?;
        let name = RuntimeInfo::parse_from_bytes(&output.stdout).map(|info| info.name).unwrap_or_default();
        if output.success() && !name.is_empty() {
            running.done(name);
        } else {
            running.done(output.to_string());
            self.watch().report(
                promise::INFO_ANSWER,
                output.to_string(),
                "0 and a `RuntimeInfo` with a name",
            );
        }
        Ok(())
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

    /// Serves a further container by a running shim of version 3, without `start`
    /// ([contract 0.3](shim_runtime::contract#s0-3)).
    pub fn attach(&self, shim: &Shim, bundle: &Bundle) -> Result<Shim> {
        self.connect(shim.binary().to_owned(), bundle, shim.answer().clone(), Duration::ZERO)
    }

    /// Takes a bundle's shim over as a daemon does that has restarted: by what the bundle says, with Connect
    /// within 5 s and, from 1.7 on, Pids ([contract 9.1](shim_runtime::contract#s9-1)).
    pub fn adopt(&self, binary: impl Into<PathBuf>, bundle: &Bundle) -> Result<Shim> {
        let answer = self.read_answer(bundle)?;
        let shim = self.connect(binary.into(), bundle, answer, Duration::ZERO)?;
        shim.task().within(ADOPTION_LIMIT).connect()?;
        if self.dialect() >= Dialect::V1_7 {
            shim.task().within(ADOPTION_LIMIT).pids()?;
        }
        Ok(shim)
    }

    /// What the bundle says of its shim: `bootstrap.json` from 2.0 on, else `address`, which means version 2.
    fn read_answer(&self, bundle: &Bundle) -> Result<Answer> {
        let json = bundle.path().join("bootstrap.json");
        if self.dialect().writes_bootstrap_json() && json.exists() {
            let bytes = fs::read(&json).doing(|| format!("cannot read `{}`", json.display()))?;
            return Answer::parse(self.dialect(), &bytes).map_err(Failure::setup);
        }
        let path = bundle.path().join("address");
        let bytes = fs::read(&path).doing(|| format!("cannot read `{}`", path.display()))?;
        Answer::parse(Dialect::V1_6, &bytes).map_err(Failure::setup)
    }

    fn judge_start(&self, output: &Output, before: &[Pid]) -> Result<Answer> {
        if output.kept_open {
            let seen = "the pipe still open 2 s after `start` ended";
            self.watch().report(promise::START_CLOSES_OUTPUT, seen, "its end; the daemon reads until then");
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
            self.watch().report(promise::START_FAILURE_CLEAN, all.join(", "), "nothing left");
        }
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
        self.addresses().entry(path.clone()).or_default().insert(bundle.id().to_owned());
        let servers =
            process::listeners(&path).into_iter().filter_map(|pid| Process::open(pid).ok()).collect();
        let version = self.config().task_version.unwrap_or(answer.version);
        let connection = ttrpc::Client::new(stream.try_clone()?.into_raw_fd());
        let client = connection.doing(|| "cannot make a client")?;
        let task = self.task(client, version, bundle.id());
        Ok(Shim::new(self.clone(), bundle.clone(), Started { binary, answer, took, servers }, task, stream))
    }

    /// The task service behind a connection, aimed at a container.
    pub(crate) fn task(&self, client: ttrpc::Client, version: u32, id: &str) -> Task {
        Task {
            client,
            version,
            metadata: self.metadata(),
            timeline: self.timeline().clone(),
            watch: self.watch().clone(),
            events: self.events().clone(),
            id: id.to_owned(),
            exec_id: String::new(),
            limit: None,
        }
    }

    fn metadata(&self) -> Vec<KeyValue> {
        if !self.dialect().sends_metadata() {
            return Vec::new();
        }
        let (key, value) = ("containerd-namespace-ttrpc".to_owned(), self.namespace().to_owned());
        vec![KeyValue { key, value, ..KeyValue::default() }]
    }

    fn judge_socket(&self, path: &Path) {
        let report = |seen: String, expected| self.watch().report(promise::SOCKET_PRIVATE, seen, expected);
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
            self.watch().report(promise::SOCKET_DIR, format!("`{}`", path.display()), expected);
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
            Ok(text) => self.watch().report(
                promise::START_ADDRESS_FILE,
                format!("`{}`", text.escape_debug()),
                format!("`{}`", answer.address),
            ),
            Err(error) => self.watch().report(
                promise::START_ADDRESS_FILE,
                error.to_string(),
                format!("`{}`", answer.address),
            ),
        }
        Ok(())
    }
}
/// The binary's full path: a bare name stands for the first such file in `PATH`, as for containerd.
fn find(binary: &Path) -> Result<PathBuf> {
    let is_bare = !binary.as_os_str().as_encoded_bytes().contains(&b'/');
    let path = is_bare.then(|| std::env::var_os("PATH")).flatten().unwrap_or_default();
    let in_path = std::env::split_paths(&path).map(|dir| dir.join(binary)).find(|file| file.is_file());
    fs::canonicalize(in_path.as_deref().unwrap_or(binary))
        .doing(|| format!("cannot find the shim `{}`", binary.display()))
}
