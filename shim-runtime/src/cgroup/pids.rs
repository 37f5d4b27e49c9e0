//! Which processes are in a container's cgroup, as `ps` shows them.

use std::fs;
use std::path::PathBuf;

use super::UNIFIED;
use super::group::{Group, gone, read};
use crate::error::Result;
use crate::types::Pid;

/// Hierarchies whose cgroups are most likely the container's own, the best first.
const LISTING: [&str; 4] = ["pids", "memory", "name=systemd", UNIFIED];

impl Group {
    /// The processes in it and in the cgroups below, in ascending order.
    ///
    /// "Not found" once it was removed.
    pub(crate) fn pids(&self) -> Result<Vec<Pid>> {
        let lines = self.own.0.lines().filter_map(|line| line.split(':').nth(1)?.split(',').next());
        let directory = LISTING.into_iter().chain(lines).find_map(|controller| self.directory(controller));
        Ok(processes_below(directory.ok_or_else(gone)?))
    }
}

/// A list of what is left to do, not a recursion: how deep it goes the container decides.
fn processes_below(top: PathBuf) -> Vec<Pid> {
    let (mut left, mut pids) = (vec![top], Vec::new());
    while let Some(directory) = left.pop() {
        // Those of a threaded cgroup are listed further up; its own list cannot be read.
        let listed = read(directory.join("cgroup.procs"));
        pids.extend(listed.lines().filter_map(|line| Pid::new(line.parse().ok()?)));
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        left.extend(below.map(|entry| entry.path()));
    }
    // One that is moved meanwhile may be seen twice.
    pids.sort_unstable();
    pids.dedup();
    pids
}

#[cfg(test)]
mod tests {
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
}
