//! Which processes are in a container's cgroup, as `ps` shows them.
//!
//! The cgroups below its own are the container's to make: how many, how deep, and under which names. So the walk
//! through them is bounded, needs no stack and only one open directory, and goes by single names, because the path of
//! a cgroup may be longer than the kernel takes.

use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::dir::{Dir, Type};
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;

use super::group::{Group, gone};
use super::{Place, UNIFIED};
use crate::error::Result;
use crate::types::Pid;

/// Hierarchies whose cgroups are most likely the container's own, the best first.
const LISTING: [&str; 4] = ["pids", "memory", "name=systemd", UNIFIED];

/// How far a walk goes.
#[derive(Clone, Copy)]
struct Limits {
    groups: usize,
    pids: usize,
    time: Duration,
}

/// Far beyond what a container with a service manager and containers of its own has.
const LIMITS: Limits = Limits { groups: 8192, pids: 1 << 17, time: Duration::from_secs(1) };

impl Group {
    /// The processes in it and in the cgroups below, in ascending order. Of a container that has more of either
    /// than anybody needs, those that were found until then.
    ///
    /// "Not found" once it was removed.
    pub(crate) fn pids(&self) -> Result<Vec<Pid>> {
        let others = self.own.0.iter().map(Place::controller);
        let directory = LISTING.into_iter().chain(others).find_map(|controller| self.directory(controller));
        let directory = directory.ok_or_else(gone)?;
        let walk = Walk::through(&directory, LIMITS);
        if walk.is_cut && !self.was_cut.swap(true, Ordering::Relaxed) {
            let place = directory.display();
            log::warn!(
                "not all processes below cgroup `{place}` are listed: there are too many groups or processes"
            );
        }
        Ok(walk.sorted())
    }
}

/// A walk through the cgroups below one.
struct Walk {
    pids: Vec<Pid>,
    /// What is left of the limits.
    left: Limits,
    until: Instant,
    /// Something was left out.
    is_cut: bool,
}

impl Walk {
    fn through(top: &Path, limits: Limits) -> Self {
        let until = Instant::now() + limits.time;
        let mut walk = Self { pids: Vec::new(), left: limits, until, is_cut: false };
        if let Ok(top) = open(top, DIRECTORY, Mode::empty()) {
            walk.below(top);
        }
        walk
    }

    fn below(&mut self, top: OwnedFd) {
        let mut here = top;
        // The groups that are still to be looked into, of each level from the top down to here.
        let mut levels = vec![self.look(&here)];
        while let Some(level) = levels.last_mut() {
            if let Some(name) = level.pop() {
                // It may have been removed.
                let Ok(below) = openat(&here, &*name, DIRECTORY, Mode::empty()) else { continue };
                here = below;
                levels.push(self.look(&here));
                continue;
            }
            levels.pop();
            if levels.iter().all(Vec::is_empty) {
                return;
            }
            let Ok(above) = openat(&here, c"..", DIRECTORY, Mode::empty()) else { break };
            here = above;
        }
        self.is_cut = true;
    }

    /// Takes the processes of one group; returns the names of those below it.
    fn look(&mut self, group: &OwnedFd) -> Vec<CString> {
        if Instant::now() >= self.until {
            self.is_cut = true;
            return Vec::new();
        }
        self.take_pids(group);
        let Ok(mut entries) = Dir::openat(group, c".", DIRECTORY, Mode::empty()) else { return Vec::new() };
        let directories = entries.iter().flatten().filter(|entry| entry.file_type() == Some(Type::Directory));
        let names = directories.map(|entry| entry.file_name().to_owned());
        let mut names = names.filter(|name| !matches!(name.as_bytes(), b"." | b".."));
        let below: Vec<_> = names.by_ref().take(self.left.groups).collect();
        self.is_cut |= names.next().is_some();
        self.left.groups -= below.len();
        below
    }

    fn take_pids(&mut self, group: &OwnedFd) {
        /// The digits of the largest pid and the end of its line.
        const LINE: usize = 8;
        // The processes of a threaded group are listed further up; its own list cannot be read.
        let Ok(file) = openat(group, c"cgroup.procs", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        else {
            return;
        };
        let mut list = Vec::new();
        // What was read before an error counts.
        let _ = File::from(file).take((LINE * (self.left.pids + 1)) as u64).read_to_end(&mut list);
        let lines = list.split(|byte| *byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok());
        let mut pids = lines.filter_map(|line| Pid::new(line.parse().ok()?));
        let before = self.pids.len();
        self.pids.extend(pids.by_ref().take(self.left.pids));
        self.is_cut |= pids.next().is_some();
        self.left.pids -= self.pids.len() - before;
    }

    fn sorted(mut self) -> Vec<Pid> {
        // One that is moved meanwhile may be seen twice.
        self.pids.sort_unstable();
        self.pids.dedup();
        self.pids
    }
}

const DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC).union(OFlag::O_NOFOLLOW);

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::sys::stat::mkdirat;

    use super::super::tests::{Tree, group};
    use super::*;
    use crate::error::Code;

    const V1_MOUNTS: &str = "\
        33 31 0:30 / /cg/cpu rw shared:9 - cgroup cgroup rw,cpu\n\
        35 31 0:32 / /cg/memory rw shared:11 - cgroup cgroup rw,memory\n\
        39 31 0:36 / /cg/pids rw - cgroup cgroup rw,pids\n\
        40 31 0:37 / /cg/systemd rw - cgroup cgroup rw,xattr,name=systemd\n";
    const V2_MOUNT: &str = "30 23 0:26 / /cg rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    fn numbers(pids: &[Pid]) -> Vec<u32> {
        pids.iter().map(|pid| pid.get()).collect()
    }

    #[test]
    fn processes_are_listed_as_long_as_there_is_a_cgroup() {
        let tree = Tree::new(&[
            ("proc/self/mountinfo", V2_MOUNT),
            ("proc/self/cgroup", "0::/shim\n"),
            ("proc/7/cgroup", "0::/pod/ctr\n"),
            ("cg/pod/ctr/cgroup.procs", "9\n8\n"),
        ]);
        let found = group(&tree, 7).unwrap();
        fs::remove_dir_all(tree.root().join("proc/7")).unwrap();
        assert_eq!(numbers(&found.pids().unwrap()), [8, 9]);
        fs::remove_dir_all(tree.root().join("cg/pod")).unwrap();
        assert_eq!(found.pids().unwrap_err().code(), Code::NotFound);
    }

    #[test]
    fn processes_of_cgroups_below_are_the_containers_too() {
        let tree = Tree::new(&[
            ("proc/self/mountinfo", V2_MOUNT),
            ("proc/self/cgroup", "0::/shim\n"),
            ("proc/7/cgroup", "0::/ctr/init\n"),
            ("proc/8/cgroup", "0::/ctr\n"),
            ("cg/ctr/cgroup.procs", ""),
            ("cg/ctr/init/cgroup.procs", "7\n"),
            ("cg/ctr/work/cgroup.procs", "12\n0\n"),
            ("cg/ctr/work/deep/cgroup.procs", "7\n11\n"),
            ("cg/other/cgroup.procs", "90\n"),
        ]);
        assert_eq!(numbers(&group(&tree, 8).unwrap().pids().unwrap()), [7, 11, 12]);
    }

    #[test]
    fn version_1_lists_processes_of_a_hierarchy_in_which_the_container_is_apart() {
        let tree = Tree::new(&[
            ("proc/self/mountinfo", V1_MOUNTS),
            ("proc/self/cgroup", "4:cpu:/\n3:pids:/shim\n2:memory:/shim\n1:name=systemd:/shim\n"),
            ("proc/7/cgroup", "4:cpu:/ctr\n3:pids:/shim\n2:memory:/ctr\n1:name=systemd:/shim\n"),
            ("proc/8/cgroup", "4:cpu:/ctr\n3:pids:/\n2:memory:/shim\n1:name=systemd:/shim\n"),
            ("cg/pids/shim/cgroup.procs", "1\n2\n"),
            ("cg/memory/ctr/cgroup.procs", "7\n"),
            ("cg/cpu/ctr/cgroup.procs", "7\n8\n"),
        ]);
        assert_eq!(numbers(&group(&tree, 7).unwrap().pids().unwrap()), [7]);
        assert_eq!(numbers(&group(&tree, 8).unwrap().pids().unwrap()), [7, 8]);
    }

    const PATIENT: Limits = Limits { groups: 100, pids: 100, time: Duration::from_mins(10) };

    /// What a walk finds, and whether it says that there is more.
    fn found(top: &Path, limits: Limits) -> (Vec<u32>, bool) {
        let walk = Walk::through(top, limits);
        let is_cut = walk.is_cut;
        (numbers(&walk.sorted()), is_cut)
    }

    #[test]
    fn a_process_is_listed_whose_cgroup_has_a_path_that_is_longer_than_the_kernel_takes() {
        let tree = Tree::new(&[("cg/cgroup.procs", "1\n"), ("cg/beside/cgroup.procs", "2\n")]);
        let mut here = open(&tree.root().join("cg"), DIRECTORY, Mode::empty()).unwrap();
        let name = "x".repeat(250);
        for _ in 0..20 {
            mkdirat(&here, &*name, Mode::S_IRWXU).unwrap();
            here = openat(&here, &*name, DIRECTORY, Mode::empty()).unwrap();
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT;
        let list = openat(&here, c"cgroup.procs", flags, Mode::S_IRWXU).unwrap();
        std::io::Write::write_all(&mut File::from(list), b"3\n").unwrap();
        assert_eq!(found(&tree.root().join("cg"), PATIENT), (vec![1, 2, 3], false));
    }

    #[test]
    fn a_walk_ends_at_each_of_its_limits_and_says_so() {
        let names: Vec<_> = (0..60).map(|n| format!("cg/{}/{}/cgroup.procs", n % 10, n / 10)).collect();
        let lists: Vec<_> = (1..=60).map(|n| format!("{n}\n")).collect();
        let files: Vec<_> = names.iter().zip(&lists).map(|(name, list)| (&**name, &**list)).collect();
        let tree = Tree::new(&files);
        let top = tree.root().join("cg");
        assert_eq!(found(&top, PATIENT), ((1..=60).collect(), false));
        assert_eq!(found(&top, Limits { groups: 70, pids: 60, ..PATIENT }), ((1..=60).collect(), false));
        for (limits, count) in [
            (Limits { groups: 69, ..PATIENT }, 59),
            (Limits { groups: 9, ..PATIENT }, 0),
            (Limits { pids: 59, ..PATIENT }, 59),
            (Limits { time: Duration::ZERO, ..PATIENT }, 0),
        ] {
            let (pids, is_cut) = found(&top, limits);
            assert_eq!((pids.len(), is_cut), (count, true));
        }
    }

    #[test]
    fn a_long_list_of_processes_is_read_no_further_than_its_limit() {
        let list = "7\n".repeat(200_000);
        let tree = Tree::new(&[("cg/cgroup.procs", &list)]);
        let (pids, is_cut) = found(&tree.root().join("cg"), Limits { pids: 1000, ..PATIENT });
        assert_eq!((pids, is_cut), (vec![7], true));
    }

    #[test]
    fn a_hostile_tree_is_reported_once() {
        let tree = Tree::new(&[
            ("proc/self/mountinfo", V2_MOUNT),
            ("proc/self/cgroup", "0::/shim\n"),
            ("proc/8/cgroup", "0::/pod/ctr\n"),
            ("cg/pod/ctr/cgroup.procs", "8\n"),
        ]);
        for n in 0..=LIMITS.groups {
            fs::create_dir(tree.root().join(format!("cg/pod/ctr/{n}"))).unwrap();
        }
        let hostile = group(&tree, 8).unwrap();
        assert!(!hostile.was_cut.load(Ordering::Relaxed));
        assert_eq!(numbers(&hostile.pids().unwrap()), [8]);
        assert!(hostile.clone().was_cut.load(Ordering::Relaxed), "whoever asks next does not say it again");
    }
}
