//! What a shim left behind: processes, sockets, mounts, cgroups and files of this run, found without root by
//! what names them. And the removing of it, which touches nothing that does not name this run.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::unistd::geteuid;
use sha2::{Digest, Sha256};

use super::bundle::Bundle;
use super::containerd::FakeContainerd;
use super::process::{self, Process};
use super::promise;
use super::watch::Watch;
use shim_runtime::testing::mounts_below;
use shim_runtime::{Pid, Signal};

/// How long processes may take to end after the last container is gone.
const END_LIMIT: Duration = Duration::from_secs(5);

/// What a bundle may hold (contract 2.3, 2.5, 4, 8, 9.2, 11.3), and `shim.json`, where this runtime keeps what
/// `delete` must know.
const BUNDLE_FILES: [&str; 16] = [
    "address",
    "bootstrap.json",
    "config.json",
    "criu-dump.log",
    "exitstatus.json",
    "init.pid",
    "log",
    "log.json",
    "options.json",
    "rootfs",
    "runtime",
    "s",
    "sandbox",
    "shim-binary-path",
    "shim.json",
    "work",
];

/// Reports everything that is left of a run whose containers are all gone.
pub(crate) fn check(ctrd: &FakeContainerd) {
    let watch = ctrd.watch();
    let end = Instant::now() + END_LIMIT;
    let outlives_all = |pid: &Pid| outlives(*pid, end.saturating_duration_since(Instant::now()));
    let left: Vec<_> = processes(ctrd.root(), watch).into_iter().filter(outlives_all).collect();
    if !left.is_empty() {
        let names: Vec<_> = left.into_iter().map(process::describe).collect();
        watch.report(promise::LEAK_PROCESS, names.join(", "), "no process");
    }
    report(watch, promise::LEAK_SOCKET, &sockets(ctrd));
    report(watch, promise::LEAK_MOUNT, &mounts(ctrd.root()));
    report(watch, promise::LEAK_CGROUP, &cgroups(ctrd.namespace()));
    let mut files = files(&ctrd.root().join("run"));
    files.extend(below(&ctrd.root().join("state").join(ctrd.namespace())));
    report(watch, promise::LEAK_FILE, &files);
}

/// Everything of a run that is there. Sockets in folders that all runs share are not looked for.
pub(crate) fn remains(ctrd: &FakeContainerd) -> BTreeSet<String> {
    let root = ctrd.root();
    let folders = ["state", "work", "engine"].map(|name| root.join(name).join(ctrd.namespace()));
    let mut paths = Vec::new();
    paths.extend(folders.iter().flat_map(|folder| below(folder)));
    paths.extend(["io", "s"].iter().flat_map(|name| below(&root.join(name))));
    paths.extend(files(&root.join("run")));
    paths.extend(mounts(root));
    paths.extend(cgroups(ctrd.namespace()));
    let processes = processes(root, ctrd.watch()).into_iter().map(process::describe);
    processes.chain(paths.iter().map(|path| format!("`{}`", path.display()))).collect()
}

/// Reports what is wrong with a bundle just before the daemon removes it.
pub(crate) fn check_bundle(ctrd: &FakeContainerd, bundle: &Bundle) {
    let known =
        |path: &PathBuf| path.file_name().is_some_and(|name| BUNDLE_FILES.iter().any(|known| name == *known));
    let unknown: Vec<_> = below(bundle.path()).into_iter().filter(|path| !known(path)).collect();
    report(ctrd.watch(), promise::LEAK_FILE, &unknown);
    report(ctrd.watch(), promise::LEAK_ROOTFS, &below(&bundle.path().join("rootfs")));
}

fn report(watch: &Watch, promise: &'static promise::Promise, left: &[PathBuf]) {
    if !left.is_empty() {
        let names: Vec<_> = left.iter().map(|path| format!("`{}`", path.display())).collect();
        watch.report(promise, names.join(", "), "nothing");
    }
}

fn below(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// What lies anywhere below and is no directory: the directories for sockets stay.
fn files(dir: &Path) -> Vec<PathBuf> {
    let (dirs, mut files): (Vec<_>, Vec<_>) =
        below(dir).into_iter().partition(|path| path.is_dir() && !path.is_symlink());
    files.extend(dirs.iter().flat_map(|dir| self::files(dir)));
    files
}

/// Whether a process is still there after that time.
pub(crate) fn outlives(pid: Pid, limit: Duration) -> bool {
    Process::open(pid).is_ok_and(|process| !process.ended_within(limit))
}

/// Processes that name the run, or that the shim told of.
fn processes(root: &Path, watch: &Watch) -> Vec<Pid> {
    let mut found: BTreeSet<_> = process::related_to(&root.to_string_lossy()).into_iter().collect();
    watch.with_processes(|all| {
        found.extend(all.iter().filter(|process| process.is_alive()).map(Process::pid));
    });
    // A container that is a thread has its shim's pid; a test may serve one itself.
    found.remove(&Pid::own());
    found.into_iter().collect()
}

/// Sockets, locks and whatever else bears the name of one of the run's sockets, and all of the own directory.
pub(crate) fn sockets(ctrd: &FakeContainerd) -> Vec<PathBuf> {
    let mut found: BTreeSet<_> = below(&ctrd.socket_dir()).into_iter().collect();
    found.extend(named(&names(ctrd.root(), ctrd.namespace(), &ctrd.groups())));
    found.extend(ctrd.addresses().keys().filter(|path| path.exists()).cloned());
    found.into_iter().collect()
}

/// The names of the sockets (contract 4).
fn names<'a>(root: &Path, namespace: &str, groups: impl IntoIterator<Item = &'a String>) -> Vec<String> {
    let address = root.join("c.sock");
    let name = |group: &String| {
        let hash = Sha256::digest(format!("{}/{namespace}/{group}", address.display()));
        hash.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
    };
    groups.into_iter().map(name).collect()
}

/// What begins with one of the names, in every directory where sockets may lie.
fn named(names: &[String]) -> Vec<PathBuf> {
    let uid = geteuid().as_raw();
    let directories = [
        "/run/containerd/s".to_owned(),
        format!("/run/{uid}/containerd/s"),
        format!("/tmp/containerd-s-{uid}"),
    ];
    let is_ours = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        names.iter().any(|ours| name.starts_with(ours.as_str()))
    };
    directories.iter().flat_map(|dir| below(Path::new(dir))).filter(is_ours).collect()
}

/// Mount points below the run's directory, the deepest last.
fn mounts(root: &Path) -> Vec<PathBuf> {
    let mut below = mounts_below(root).unwrap_or_default();
    below.reverse();
    below
}

/// Cgroups with the run's name, in every hierarchy.
fn cgroups(namespace: &str) -> Vec<PathBuf> {
    let top = Path::new("/sys/fs/cgroup");
    let is_ours = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("{namespace}-")))
    };
    std::iter::once(top.to_owned()).chain(below(top)).flat_map(|dir| below(&dir)).filter(is_ours).collect()
}

/// Kills and removes what is left of a run.
pub(crate) fn clean_up(ctrd: &FakeContainerd) {
    let groups = ctrd.groups().into_iter().collect();
    for path in sockets(ctrd) {
        let _ = fs::remove_file(path);
    }
    clean_up_root(ctrd.root(), ctrd.watch(), ctrd.namespace(), &groups);
}

pub(crate) fn clean_up_root(root: &Path, watch: &Watch, namespace: &str, groups: &BTreeSet<String>) {
    kill(root, watch);
    for point in mounts(root).iter().rev() {
        let _ = umount2(point, MntFlags::MNT_DETACH);
    }
    for path in named(&names(root, namespace, groups)) {
        let _ = fs::remove_file(path);
    }
    for cgroup in cgroups(namespace) {
        let _ = fs::remove_dir(cgroup);
    }
    // runc's own state, below a directory with the name of the run's namespace. Only a namespace that was made
    // for this run is nobody else's.
    if namespace.starts_with("test-") {
        let _ = fs::remove_dir_all(Path::new("/run/containerd/runc").join(namespace));
    }
}

/// Ends what is left. A shim that is killed may leave children, which a second look finds.
fn kill(root: &Path, watch: &Watch) {
    let end = Instant::now() + END_LIMIT;
    loop {
        let left: Vec<_> =
            processes(root, watch).into_iter().filter_map(|pid| Process::open(pid).ok()).collect();
        if left.is_empty() || Instant::now() > end {
            return;
        }
        for process in &left {
            let _ = process.signal(Signal::KILL);
        }
        for process in &left {
            process.ended_within(Duration::from_secs(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::Dialect;
    use super::*;

    #[test]
    fn the_name_of_a_socket_is_the_one_that_the_go_shim_computes() {
        let names = names(Path::new("/run/containerd"), "default", &["c1".to_owned()]);
        // printf %s /run/containerd/c.sock/default/c1 | sha256sum
        assert_eq!(names, ["06fc31e1540d0bb979ccb21c9274f2adc928a2873ed8b9e4a172aeef2576630f"]);
    }

    #[test]
    fn what_is_left_is_reported_and_then_removed() {
        let ctrd = FakeContainerd::new(Dialect::PARAMS).unwrap();
        assert!(ctrd.check_leaks().is_ok());
        let mut child = Command::new("sleep").arg("60").current_dir(ctrd.root()).spawn().unwrap();
        fs::write(ctrd.socket_dir().join("lock"), "").unwrap();
        fs::write(ctrd.root().join("run/file"), "").unwrap();
        let failure = ctrd.check_leaks().unwrap_err();
        let names: Vec<_> = failure.promises().iter().map(|broken| broken.promise.name).collect();
        assert_eq!(names, ["leak.process", "leak.socket"], "{failure:?}");
        assert!(ctrd.broken().iter().any(|broken| broken.promise.name == "leak.file"));
        ctrd.clean_up();
        assert!(child.try_wait().unwrap().is_some());
        assert!(!ctrd.socket_dir().join("lock").exists());
    }
}
