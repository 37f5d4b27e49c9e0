//! What containers must not leave behind: processes, bundles, mounts, cgroups and sockets.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::Signal;
use sha2::{Digest, Sha256};

use crate::daemon::Daemon;
use crate::image::hex;
use crate::process::{LIMIT, belonging_to, within_limit};

const SOCKETS: &str = "/run/containerd/s";
/// Where containerd's shims let the OCI runtime keep its state, unless they are told of another place.
pub(crate) const ENGINE_STATE: &str = "/run/containerd/runc";
const CGROUPS: &str = "/sys/fs/cgroup";

/// Waits until nothing is left; panics with a list when the limit is over.
pub(crate) fn none(daemon: &Daemon) {
    let mut left = Vec::new();
    let clean = within_limit(|| {
        left = find(daemon);
        left.is_empty().then_some(())
    });
    assert!(clean.is_some(), "left behind after {} s: {left:#?}", LIMIT.as_secs());
}

fn find(daemon: &Daemon) -> Vec<String> {
    let processes = belonging_to(daemon.root())
        .into_iter()
        .filter(|process| process.pid != daemon.pid())
        .map(|process| format!("process {}: {}", process.pid, process.command()));
    let bundles = entries(&daemon.bundles());
    let mounts = mounts(daemon);
    let engine = entries(&daemon.engine_state);
    let cgroups = cgroups(&daemon.cgroup).into_iter().flat_map(|parent| folders(&parent));
    let sockets = daemon.ids().into_iter().flat_map(|id| socket_files(daemon, &id));
    let files = bundles.into_iter().chain(mounts).chain(engine).chain(cgroups).chain(sockets);
    processes.chain(files.map(|path| path.display().to_string())).collect()
}

/// Where a shim listens for a container that is in no group (contract of containerd's own shims: the
/// hash of daemon socket, namespace and id). The folder is shared with every other daemon of the
/// machine, so sockets that merely appear there say nothing.
pub(crate) fn socket(daemon: &Daemon, id: &str) -> PathBuf {
    let group = daemon.address().join(&daemon.namespace).join(id);
    Path::new(SOCKETS).join(hex(&Sha256::digest(group.to_string_lossy().as_bytes())))
}

/// The socket and what lies beside it under the same name, such as a lock.
fn socket_files(daemon: &Daemon, id: &str) -> Vec<PathBuf> {
    let socket = socket(daemon, id);
    entries(Path::new(SOCKETS))
        .into_iter()
        .filter(|path| path.to_string_lossy().starts_with(&*socket.to_string_lossy()))
        .collect()
}

/// The mount points in the daemon's folder, the innermost first.
fn mounts(daemon: &Daemon) -> Vec<PathBuf> {
    let root = daemon.root();
    // The daemon's own, while it lives: it may have a namespace of its own.
    let own = shim_testing::kernel_text(format!("/proc/{}/mountinfo", daemon.pid()));
    let own = own.ok().filter(|table| !table.is_empty());
    let table =
        own.or_else(|| shim_testing::kernel_text("/proc/self/mountinfo").ok()).expect("read the mount table");
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut below: Vec<_> = points.filter(|point| point.starts_with(root)).collect();
    below.reverse();
    below
}

/// Removes what a failed test has left outside the temporary folder, and unmounts what is in it. Runtimes
/// leave a cgroup and a folder for the namespace, which all its containers share; they are no leak.
pub(crate) fn clean(daemon: &Daemon) {
    for process in belonging_to(daemon.root()) {
        process.signal(Signal::KILL);
        process.ended("a process that a failed test left behind");
    }
    for mount in mounts(daemon) {
        let _ = unmount(mount, UnmountFlags::DETACH);
    }
    for file in daemon.ids().iter().flat_map(|id| socket_files(daemon, id)) {
        let _ = fs::remove_file(file);
    }
    remove_cgroups(&daemon.cgroup);
    let _ = fs::remove_dir(&daemon.engine_state);
}

fn remove_cgroups(name: &str) {
    for parent in cgroups(name) {
        for child in folders(&parent) {
            let _ = fs::remove_dir(child);
        }
        let _ = fs::remove_dir(parent);
    }
}

/// The groups of a name: one in each hierarchy of cgroup v1, or the one of v2.
fn cgroups(name: &str) -> Vec<PathBuf> {
    let hierarchies = folders(Path::new(CGROUPS)).into_iter().chain([PathBuf::from(CGROUPS)]);
    hierarchies.map(|hierarchy| hierarchy.join(name)).filter(|group| group.is_dir()).collect()
}

fn folders(parent: &Path) -> Vec<PathBuf> {
    entries(parent).into_iter().filter(|path| path.is_dir() && !path.is_symlink()).collect()
}

/// What is in a folder; nothing when there is no such folder.
fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect()
}
