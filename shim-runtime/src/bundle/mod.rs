//! The bundle: the folder that containerd makes for a container (contract 2.3), its `config.json`, and what
//! the shim itself keeps there for a `delete` that may come after its death.

mod confine;

use std::collections::HashMap;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use containerd_shim_protos::api::Mount;
use nix::unistd::geteuid;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, WithContext};
use crate::files;
use crate::mount;
use crate::nulls;
use crate::spawn::{Command, Supervisor};
use crate::types::{Exit, Pid};

/// Where the record of a shim's own state lies in the bundle.
const RECORD_FILE: &str = "shim.json";
/// How long a `config.json` may be: much longer than any that containerd makes.
const CONFIG_LIMIT: u64 = 16 << 20;
/// The format of [`Record`]; a newer binary may meet an older one's file, and the reverse.
const RECORD_VERSION: u32 = 1;

/// A container's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    path: PathBuf,
}

impl Bundle {
    /// The bundle in this folder; nothing is read yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The folder, as containerd gave it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the root file system is to be mounted; where it is in the end `config.json` says.
    pub fn rootfs(&self) -> PathBuf {
        self.path.join("rootfs")
    }

    /// Reads `config.json`. As in Go, a null anywhere in it stands for the zero value.
    ///
    /// # Errors
    /// A sentence that names the file.
    pub fn spec(&self) -> Result<Spec> {
        self.read_config()
    }

    /// Reads the annotations of `config.json`, and minds nothing else in it, as long as it is JSON.
    ///
    /// # Errors
    /// A sentence that names the file.
    pub fn annotations(&self) -> Result<HashMap<String, String>> {
        #[derive(Default, Deserialize)]
        #[serde(default, expecting = "an object")]
        struct Labels {
            annotations: HashMap<String, String>,
        }
        self.read_config::<Labels>().map(|labels| labels.annotations)
    }

    fn read_config<T: DeserializeOwned>(&self) -> Result<T> {
        let path = self.path.join("config.json");
        let text =
            files::read(&path, CONFIG_LIMIT).with_context(|| format!("cannot read `{}`", path.display()))?;
        let parsed = nulls::from_slice(&text).map_err(Error::invalid_argument_from);
        parsed.with_context(|| format!("cannot understand `{}`", path.display()))
    }

    /// Mounts a root file system on [`rootfs`](Self::rootfs) and returns that path. The `delete` action
    /// unmounts it too. Without mounts the folder is left as it is.
    ///
    /// # Errors
    /// Names the mount that failed; those before it were undone. Mounts that need a process, which are those in
    /// user space and those with mapped ids, are made only by [`Create::mount_rootfs`](crate::Create::mount_rootfs).
    pub fn mount_rootfs(&self, mounts: &[Mount]) -> Result<PathBuf> {
        self.mount_all(mounts, None)
    }

    /// As [`mount_rootfs`](Self::mount_rootfs), by processes too if there is somebody to supervise them.
    pub(crate) fn mount_all(&self, mounts: &[Mount], supervisor: Option<&Supervisor>) -> Result<PathBuf> {
        let rootfs = self.rootfs();
        mount::mount_all(mounts, &rootfs, supervisor)?;
        Ok(rootfs)
    }

    /// Unmounts what is mounted at and below [`rootfs`](Self::rootfs); nothing mounted there is fine.
    ///
    /// # Errors
    /// Names what cannot be unmounted.
    pub fn unmount_rootfs(&self) -> Result<()> {
        mount::unmount_all(&self.rootfs())
    }

    /// Whether there is a `config.json`; a sandbox made without a container has none (contract 2.3).
    pub(crate) fn has_spec(&self) -> bool {
        self.path.join("config.json").exists()
    }

    /// Writes a file whole or not at all.
    pub(crate) fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let (temporary, path) = (self.path.join(format!(".{name}.tmp")), self.path.join(name));
        let written = files::create(&temporary, 0o666)
            .and_then(|mut file| file.write_all(content))
            .and_then(|()| std::fs::rename(&temporary, path));
        if written.is_err() {
            let _ = std::fs::remove_file(&temporary);
        }
        written
    }

    /// The record of the shim's state; empty if there is none, or none that can be read.
    pub(crate) fn record(&self) -> Record {
        let read = files::read(&self.path.join(RECORD_FILE), files::SMALL);
        read.ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    /// Replaces the record.
    pub(crate) fn write_record(&self, record: &Record) -> Result<()> {
        let text = serde_json::to_vec(record).map_err(|error| Error::internal(error.to_string()))?;
        self.write(RECORD_FILE, &text)
            .with_context(|| format!("cannot write `{RECORD_FILE}` in `{}`", self.path.display()))
    }

    /// Removes what the shim wrote, and leaves what is containerd's.
    pub(crate) fn remove_record(&self) {
        match std::fs::remove_file(self.path.join(RECORD_FILE)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                log::warn!("cannot remove `{RECORD_FILE}` in `{}`: {error}", self.path.display());
            }
            _ => {}
        }
    }
}

/// What a bundle tells of its container after the shim's death.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    #[serde(default)]
    version: u32,
    /// The init process; absent for a thread or a remote container, by whose pid nothing may be killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) init: Option<InitRecord>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) exit: Option<ExitRecord>,
    /// Everything of the container was given up by its shim: there is nothing to do for a `delete`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) given_up: bool,
}

impl Default for Record {
    fn default() -> Self {
        Self { version: RECORD_VERSION, init: None, exit: None, given_up: false }
    }
}

impl Record {
    /// Of an init process that lives; nothing is known of its end.
    pub(crate) fn of(init: Option<InitRecord>) -> Self {
        Self { init, ..Self::default() }
    }
}

/// An init process, told from a later one with the same pid by when it started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InitRecord {
    pub(crate) pid: u32,
    /// In clock ticks since boot, as `/proc/PID/stat` has it.
    pub(crate) start_time: u64,
}

impl InitRecord {
    /// Of a living process, or one not yet reaped.
    pub(crate) fn of(pid: Pid) -> Option<Self> {
        Some(Self { pid: pid.get(), start_time: start_time(pid)? })
    }

    /// The process, if it is still the same one.
    pub(crate) fn living(&self) -> Option<Pid> {
        let pid = Pid::new(self.pid)?;
        (start_time(pid)? == self.start_time).then_some(pid)
    }
}

/// When the process started, in clock ticks since boot: field 22 of its `stat`.
fn start_time(pid: Pid) -> Option<u64> {
    let stat = files::kernel_text(format!("/proc/{pid}/stat")).ok()?;
    // The name in field 2 may contain anything, closing parentheses too.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// An exit, as it is kept in the bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExitRecord {
    status: u32,
    seconds: u64,
    nanos: u32,
}

impl From<Exit> for ExitRecord {
    fn from(exit: Exit) -> Self {
        let since = exit.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { status: exit.status, seconds: since.as_secs(), nanos: since.subsec_nanos() }
    }
}

impl From<ExitRecord> for Exit {
    fn from(record: ExitRecord) -> Self {
        let since =
            Duration::from_secs(record.seconds).saturating_add(Duration::from_nanos(record.nanos.into()));
        Self { status: record.status, at: UNIX_EPOCH.checked_add(since).unwrap_or(SystemTime::UNIX_EPOCH) }
    }
}

/// As much of `config.json`, the OCI runtime specification, as a shim usually wants. Unknown parts are left out.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, expecting = "an object")]
pub struct Spec {
    /// The container's init process.
    pub process: Option<ProcessSpec>,
    /// The root file system.
    pub root: Option<RootSpec>,
    /// Free-form labels, among them those that group containers.
    pub annotations: HashMap<String, String>,
    /// What only Linux has.
    pub linux: Option<LinuxSpec>,
}

impl Spec {
    /// Whether the container's processes are among others' in a pid namespace: it asks for none, or for one that
    /// is there already. In one of its own the kernel ends them all with their init.
    pub fn shares_pids(&self) -> bool {
        let namespaces = self.linux.iter().flat_map(|linux| &linux.namespaces);
        !namespaces
            .into_iter()
            .any(|namespace| namespace.kind == "pid" && namespace.path.as_os_str().is_empty())
    }
}

/// The `linux` object of [`Spec`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct LinuxSpec {
    /// The namespaces that the container does not share with whoever makes it.
    pub namespaces: Vec<NamespaceSpec>,
}

/// An element of `linux.namespaces`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NamespaceSpec {
    /// Such as `pid` or `network`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The namespace to join; empty for a new one.
    pub path: PathBuf,
}

/// The `root` object of [`Spec`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct RootSpec {
    /// Absolute, or relative to the bundle.
    pub path: PathBuf,
    /// Whether the container may not write to it.
    pub readonly: bool,
}

/// The `process` object of [`Spec`], and what an Exec request carries.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ProcessSpec {
    /// Whether the process wants a terminal.
    pub terminal: bool,
    /// The terminal's size at first.
    pub console_size: Option<ConsoleSize>,
    /// Under whose ids it runs.
    pub user: UserSpec,
    /// The program and its arguments.
    pub args: Vec<String>,
    /// `KEY=value` each.
    pub env: Vec<String>,
    /// The working directory, inside the root file system.
    pub cwd: PathBuf,
    /// Whether exec can never give it more privileges.
    pub no_new_privileges: bool,
    /// What it may do as root, or in place of it; without the object all that the shim may do.
    pub capabilities: Option<CapabilitiesSpec>,
    /// What it may use of the system's resources. Those that are not named stay as the shim has them.
    pub rlimits: Vec<RlimitSpec>,
    /// How readily the kernel kills it for want of memory, from -1000 to 1000; without one as readily as the shim.
    pub oom_score_adj: Option<i32>,
    /// The profile that `AppArmor` confines it to.
    pub apparmor_profile: String,
    /// The label that `SELinux` gives it.
    pub selinux_label: String,
}

/// The `capabilities` object of [`ProcessSpec`]: names such as `CAP_KILL`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct CapabilitiesSpec {
    /// The most that it, and whatever it executes, can ever have.
    pub bounding: Vec<String>,
    /// Those that it uses.
    pub effective: Vec<String>,
    /// Those that a program may pass on.
    pub inheritable: Vec<String>,
    /// Those that it may use.
    pub permitted: Vec<String>,
    /// Those that a program has which nobody gave any.
    pub ambient: Vec<String>,
}

/// An element of `rlimits` of [`ProcessSpec`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct RlimitSpec {
    /// Such as `RLIMIT_NOFILE`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What counts.
    pub soft: u64,
    /// Up to where the process itself may raise that.
    pub hard: u64,
}

impl ProcessSpec {
    /// The command that it describes, ready but for stdio and root: program, arguments, environment, working
    /// directory, limits, out-of-memory score, labels, and as root the user and the capabilities. What is not in this
    /// struct is not applied: `ioPriority`, `scheduler` and `execCPUAffinity`.
    ///
    /// # Errors
    /// `InvalidArgument` without a program and for a limit that there is not; `FailedPrecondition` for a label of a
    /// security module that the host does not have. What the kernel does not allow is an error of the command's start.
    pub fn command(&self) -> Result<Command> {
        let Some((program, args)) = self.args.split_first() else {
            return Err(Error::invalid_argument("the process specification has no `args`"));
        };
        let mut command = Command::new(program);
        command.args(args).env_clear().no_new_privileges(self.no_new_privileges);
        command.confine(confine::of(self)?);
        for variable in &self.env {
            let (key, value) = variable.split_once('=').unwrap_or((variable, ""));
            command.env(key, value);
        }
        if geteuid().is_root() {
            let user = &self.user;
            command.uid(user.uid).gid(user.gid).groups(user.additional_gids.iter().copied());
        }
        if let Some(mask) = self.user.umask {
            command.umask(mask);
        }
        // Outside of a root the specification's folder need not exist; the host's root always does.
        let cwd = if self.cwd.as_os_str().is_empty() { Path::new("/") } else { self.cwd.as_path() };
        command.current_dir(cwd);
        Ok(command)
    }
}

/// The `consoleSize` object of [`ProcessSpec`], in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ConsoleSize {
    /// Lines.
    pub height: u32,
    /// Columns.
    pub width: u32,
}

/// The `user` object of [`ProcessSpec`]: numbers only, names are for the client to look up.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct UserSpec {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// File mode creation mask.
    pub umask: Option<u32>,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutation::{Mutations, rounds};

    #[test]
    fn a_process_is_itself_only_while_pid_and_start_time_match() {
        let record = InitRecord::of(Pid::own()).unwrap();
        assert_eq!(record.living(), Some(Pid::own()));
        let other = InitRecord { start_time: record.start_time + 1, ..record };
        assert_eq!(other.living(), None);
    }

    /// As Go's threads, and programs whose name the kernel has cut in the middle of a letter.
    #[test]
    fn a_process_may_have_any_name() {
        for name in [b"\xff\xfe".as_slice(), "\u{44f}".repeat(9).as_bytes(), b") Z 1 (\n"] {
            let name = std::ffi::CString::new(name).unwrap();
            let living = std::thread::spawn(move || {
                nix::sys::prctl::set_name(&name).unwrap();
                let thread = Pid::new(nix::unistd::gettid().as_raw().cast_unsigned()).unwrap();
                InitRecord::of(thread).map(|record| record.living() == Some(thread))
            });
            assert_eq!(living.join().unwrap(), Some(true));
        }
    }

    #[test]
    fn an_exit_comes_back_from_its_record_to_the_nanosecond() {
        let exit = Exit { status: 137, at: UNIX_EPOCH + Duration::new(5, 7) };
        assert_eq!(Exit::from(ExitRecord::from(exit)), exit);
    }

    #[test]
    fn a_record_of_a_newer_release_is_read_for_what_is_known() {
        let record: Record = serde_json::from_str(r#"{"version":9,"exit":null,"more":{}}"#).unwrap();
        assert_eq!(record.exit, None);
    }

    #[test]
    fn a_null_in_place_of_any_field_at_any_depth_is_its_zero_value() {
        let texts = nulls::tests::texts_with_a_null::<Spec>();
        for known in [
            r#"{"process":{"user":null}}"#,
            r#"{"process":{"noNewPrivileges":null}}"#,
            r#"{"process":{"args":[null]}}"#,
            r#"{"root":{"readonly":null}}"#,
            r#"{"annotations":{"any":null}}"#,
            r#"{"linux":{"namespaces":[{"type":null}]}}"#,
        ] {
            assert!(texts.iter().any(|text| text == known), "{known} is not among {texts:#?}");
        }
        for text in texts {
            let parsed = nulls::from_slice::<Spec>(text.as_bytes());
            assert!(parsed.is_ok(), "{text}: {}", parsed.unwrap_err());
        }
    }

    #[test]
    fn pids_are_shared_unless_a_new_namespace_is_asked_for() {
        let shares = |linux: &str| {
            let text = format!(r#"{{"linux":{linux}}}"#);
            nulls::from_slice::<Spec>(text.as_bytes()).unwrap().shares_pids()
        };
        for shared in [
            "null",
            "{}",
            r#"{"namespaces":null}"#,
            r#"{"namespaces":[{"type":"mount"}]}"#,
            r#"{"namespaces":[{"type":"pid","path":"/proc/1/ns/pid"}]}"#,
        ] {
            assert!(shares(shared), "{shared}");
        }
        for own in [
            r#"{"namespaces":[{"type":"mount"},{"type":"pid"}]}"#,
            r#"{"namespaces":[{"type":"pid","path":""}]}"#,
        ] {
            assert!(!shares(own), "{own}");
        }
    }

    #[test]
    fn broken_specifications_and_records_do_not_panic() {
        let spec = br#"{"process":{"args":["sh","-c","x"],"cwd":"/","user":{"uid":1,"additionalGids":[2]},
            "consoleSize":{"height":25,"width":80}},"root":{"path":"rootfs"},"annotations":{"a":"b"},
            "linux":{"namespaces":[{"type":"pid","path":"/p"}]}}"#;
        let record = br#"{"init":{"pid":7,"start_time":9},"exit":{"status":1,"seconds":2,"nanos":3}}"#;
        let mut mutations = Mutations::seeded(4);
        for _ in 0..rounds(20_000) {
            let _ = nulls::from_slice::<Spec>(&mutations.change(spec));
            if let Ok(Record { exit: Some(exit), .. }) = serde_json::from_slice(&mutations.change(record)) {
                let _ = Exit::from(exit);
            }
        }
    }
}
