//! The cgroup of a container: what it has used, which is the default answer to Stats, what runs in it, and what
//! the kernel killed in it for want of memory. This file finds it, on hosts of either version.

mod group;
mod message;
mod oom;
#[cfg(feature = "oci")]
mod pids;
mod v1;
mod v2;

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, OnceLock};

use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;

use crate::error::{Error, Result, WithContext};
use crate::mount::unescape;
use crate::types::Pid;

use message::{Message, NONE, Names, Values};

pub(crate) use group::Group;
#[allow(unused_imports)]
pub(crate) use oom::OomWatch;

/// Controllers whose presence in a version 1 hierarchy makes a host one of version 1.
const MAIN_CONTROLLERS: [&str; 4] = ["memory", "cpuacct", "cpu", "pids"];
/// How `/proc/PID/cgroup` names the controllers of the unified hierarchy.
const UNIFIED: &str = "";

/// Puts a process into a cgroup that exists: in every hierarchy of version 1 that has it, else in the unified
/// one (contract 9.2).
pub(crate) fn join(path: &str, pid: Pid) -> Result<()> {
    Host::at(Path::new("/"))?.join(path, pid)
}

/// What stays the same from one reading to the next.
#[derive(Debug)]
struct Host {
    /// `/`, or a tree that looks like it.
    root: PathBuf,
    mounts: Vec<Mount>,
    /// As the names of files have them: `2MB`.
    page_sizes: Vec<String>,
}

impl Host {
    fn at(root: &Path) -> Result<Self> {
        let table = std::fs::read(root.join("proc/self/mountinfo"))
            .with_context(|| "cannot read the list of mounts to find the cgroups")?;
        let mounts = table.split(|byte| *byte == b'\n').filter_map(|line| Mount::parse(root, line)).collect();
        Ok(Self { root: root.to_owned(), mounts, page_sizes: page_sizes(root) })
    }

    /// This machine.
    fn here() -> Result<Arc<Self>> {
        /// Kept, because the table of mounts has a line or more for every container of the host.
        static HERE: OnceLock<Arc<Host>> = OnceLock::new();
        if let Some(host) = HERE.get() {
            return Ok(host.clone());
        }
        let host = Arc::new(Self::at(Path::new("/"))?);
        Ok(HERE.get_or_init(|| host).clone())
    }

    fn join(&self, path: &str, pid: Pid) -> Result<()> {
        let cannot = || format!("cannot put process {pid} into cgroup `{path}`");
        let below = Path::new(path.trim_start_matches('/'));
        if below.components().any(|part| part == Component::ParentDir) {
            return Err(Error::invalid_argument("the path contains `..`")).with_context(cannot);
        }
        let hierarchies = |unified: bool| {
            let mounts = self.mounts.iter().filter(move |mount| mount.options.is_none() == unified);
            mounts.map(|mount| mount.point.join(below)).filter(|directory| directory.is_dir())
        };
        let mut directories: Vec<_> = hierarchies(false).collect();
        if directories.is_empty() {
            directories.extend(hierarchies(true));
        }
        if directories.is_empty() {
            return Err(Error::failed_precondition("no hierarchy has it")).with_context(cannot);
        }
        directories.iter().try_for_each(|directory| {
            std::fs::write(directory.join("cgroup.procs"), pid.to_string()).with_context(cannot)
        })
    }

    fn membership(&self, process: &str) -> io::Result<Membership> {
        let text = std::fs::read(self.root.join("proc").join(process).join("cgroup"))?;
        Ok(Membership::parse(&text))
    }

    /// Where a cgroup may be seen. The first mount that shows it is to be taken: one may be hidden under another,
    /// or show a part only.
    fn directories(&self, controller: &str, path: &Path) -> impl Iterator<Item = PathBuf> {
        let mounts = self.mounts.iter().filter(move |mount| mount.carries(controller));
        mounts.filter_map(move |mount| mount.directory(path))
    }
}

/// Where a process is in each hierarchy: the content of `/proc/PID/cgroup`. A cgroup may have any name, and a process
/// may make one below its own.
#[derive(Clone, Debug)]
struct Membership(Vec<Place>);

/// A line of it: the hierarchy's controllers, and the cgroup.
#[derive(Clone, Debug)]
struct Place {
    controllers: String,
    path: PathBuf,
}

impl Place {
    fn has(&self, controller: &str) -> bool {
        self.controllers.split(',').any(|name| name == controller)
    }

    /// One of them stands for all.
    fn controller(&self) -> &str {
        self.controllers.split(',').next().unwrap_or_default()
    }
}

impl Membership {
    fn parse(text: &[u8]) -> Self {
        let place = |line: &[u8]| {
            let mut fields = line.splitn(3, |byte| *byte == b':').skip(1);
            let controllers = String::from_utf8_lossy(fields.next()?).into_owned();
            Some(Place { controllers, path: OsStr::from_bytes(fields.next()?).into() })
        };
        Self(text.split(|byte| *byte == b'\n').filter_map(place).collect())
    }

    fn path(&self, controller: &str) -> Option<&Path> {
        self.0.iter().find(|place| place.has(controller)).map(|place| place.path.as_path())
    }

    /// The places that tell of this process and not of others.
    ///
    /// The root is nobody's own: it stands for the whole host, and in version 1 for a process that has ended.
    fn apart_from(&self, ours: &Self) -> Self {
        let apart = |place: &&Place| {
            place.path != Path::new("/") && ours.path(place.controller()) != Some(&place.path)
        };
        Self(self.0.iter().filter(apart).cloned().collect())
    }
}

/// A mount of a cgroup hierarchy.
#[derive(Debug)]
struct Mount {
    /// In version 1, the controllers are among the words; `None` for the unified hierarchy.
    options: Option<String>,
    /// The cgroup that is seen at `point`; not `/` where a container was given its own part only.
    root: PathBuf,
    point: PathBuf,
}

impl Mount {
    /// One line of `mountinfo`, if it is of a cgroup hierarchy.
    fn parse(root: &Path, line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ');
        let mut place = fields.by_ref().take_while(|field| *field != b"-").skip(3).map(unescape);
        let (group, point) = (place.next()?, place.next()?);
        place.for_each(drop);
        let options = match fields.next()? {
            b"cgroup" => Some(String::from_utf8_lossy(fields.nth(1)?).into_owned()),
            b"cgroup2" => None,
            _ => return None,
        };
        Some(Self { options, root: group, point: root.join(point.strip_prefix("/").ok()?) })
    }

    fn carries(&self, controller: &str) -> bool {
        match &self.options {
            Some(options) => options.split(',').any(|word| word == controller),
            None => controller == UNIFIED,
        }
    }

    /// The directory of a cgroup, unless it lies outside of what is mounted here.
    fn directory(&self, path: &Path) -> Option<PathBuf> {
        let below = path.strip_prefix(&self.root).ok()?;
        // Seen from within a cgroup namespace, what is outside starts with `/..`.
        let inside = !below.components().any(|part| part == Component::ParentDir);
        inside.then(|| self.point.join(below))
    }
}

/// The sizes of huge pages that the kernel knows, as the hugetlb controller writes them.
fn page_sizes(root: &Path) -> Vec<String> {
    let kilobytes =
        |name: &OsStr| name.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok();
    let known = std::fs::read_dir(root.join("sys/kernel/mm/hugepages")).into_iter().flatten().flatten();
    let mut sizes: Vec<u64> = known.filter_map(|entry| kilobytes(&entry.file_name())).collect();
    sizes.sort_unstable();
    let name = |size: &u64| match size {
        ..0x400 => format!("{size}KB"),
        0x400..0x10_0000 => format!("{}MB", size >> 10),
        _ => format!("{}GB", size >> 20),
    };
    sizes.iter().map(name).collect()
}

/// The directory of one cgroup. Its files are read one after the other into the same buffer.
///
/// What cannot be read is taken for missing: kernels differ in their files, some fail only when read
/// (`*.pressure` without accounting), and all do once the cgroup is removed.
#[derive(Debug)]
struct Files {
    directory: OwnedFd,
    buffer: Vec<u8>,
}

impl Files {
    fn open(directory: &Path) -> Option<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = open(directory, flags, Mode::empty()).ok()?;
        Some(Self { directory, buffer: Vec::with_capacity(4096) })
    }

    fn text(&mut self, name: &str) -> Option<Cow<'_, str>> {
        /// Far more than any of these files has.
        const LIMIT: u64 = 1 << 20;
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let file = File::from(openat(&self.directory, name, flags, Mode::empty()).ok()?);
        self.buffer.clear();
        // `take` saves the two calls by which a file is asked for its size, which here is always 0.
        file.take(LIMIT).read_to_end(&mut self.buffer).ok()?;
        // Names of devices may be no text, which must not cost all else that the file has.
        Some(String::from_utf8_lossy(&self.buffer))
    }

    /// The content of a file that is one number.
    fn number(&mut self, name: &str) -> Option<u64> {
        number(self.text(name)?.trim_ascii_end())
    }

    /// The numbers of a file whose lines are a name and a number each, those of one field together.
    fn values(&mut self, name: &str, names: Names) -> Option<Values> {
        let mut values = NONE;
        for (key, value) in self.text(name)?.lines().filter_map(|line| line.split_once(' ')) {
            let known = names.iter().find(|(name, _)| *name == key);
            if let (Some((_, field)), Some(value)) = (known, number(value)) {
                let sum = &mut values[usize::from(*field)];
                *sum = sum.saturating_add(value);
            }
        }
        Some(values)
    }

    /// What is used of rdma devices, and what may be.
    fn rdma(&mut self) -> Option<Message> {
        let mut stat = Message::default();
        self.text("rdma.current")?.lines().for_each(|line| stat.message(1, rdma_entry(line)));
        self.text("rdma.max").unwrap_or_default().lines().for_each(|line| stat.message(2, rdma_entry(line)));
        Some(stat)
    }
}

/// A device, its handles and its objects, whose numbers have 32 bits in the message.
fn rdma_entry(line: &str) -> Option<Message> {
    let (device, counts) = line.split_once(' ')?;
    let count = |key| counts.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    let count = |key| count(key).and_then(number).map(|count| count.min(u32::MAX.into()));
    let mut entry = Message::of(&[0, 0, count("hca_handle")?, count("hca_object")?]);
    entry.bytes(1, device.as_bytes());
    Some(entry)
}

/// A number as the kernel writes it; `max` stands for "no limit".
fn number(text: &str) -> Option<u64> {
    if text == "max" { Some(u64::MAX) } else { text.parse().ok() }
}

/// The two numbers of a block device: `8:16`.
fn device(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use containerd_shim_protos::{cgroups, cgroups_v2};
    use nix::sys::wait::{Id, WaitPidFlag, waitid};
    use protobuf::Message as _;

    use super::*;
    use crate::error::Code;
    use crate::messages::Any;

    /// A directory of files, removed in the end.
    pub(super) struct Tree(PathBuf);

    impl Tree {
        pub(super) fn new(files: &[(&str, &str)]) -> Self {
            use std::sync::atomic::{AtomicU32, Ordering};
            static COUNT: AtomicU32 = AtomicU32::new(0);
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let root = std::env::temp_dir().join(format!("shim-cgroup-{}-{count}", std::process::id()));
            std::fs::create_dir_all(&root).unwrap();
            for (path, content) in files {
                let path = root.join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, content).unwrap();
            }
            Self(root)
        }

        pub(super) fn root(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    pub(super) fn group(tree: &Tree, pid: u32) -> Result<Group> {
        Group::at(Arc::new(Host::at(tree.root())?), Pid::new(pid).unwrap())
    }

    fn stats_here(pid: Option<Pid>) -> Result<Any> {
        Group::of(pid.unwrap())?.stats()
    }

    fn stats(tree: &Tree, pid: u32) -> Result<Any> {
        group(tree, pid)?.stats()
    }

    fn pids_v1(any: &Any) -> u64 {
        assert_eq!(any.type_url, "io.containerd.cgroups.v1.Metrics");
        cgroups::metrics::Metrics::parse_from_bytes(&any.value).unwrap().pids.current
    }

    fn pids_v2(any: &Any) -> u64 {
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        cgroups_v2::metrics::Metrics::parse_from_bytes(&any.value).unwrap().pids.current
    }

    const V1_MOUNTS: &str = "\
        30 23 0:26 / /run rw,nosuid shared:5 - tmpfs tmpfs rw,mode=755\n\
        33 31 0:30 / /cg/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
        35 31 0:32 / /cg/memory rw shared:11 - cgroup cgroup rw,memory\n\
        39 31 0:36 / /cg/pids rw - cgroup cgroup rw,pids\n\
        40 31 0:37 / /cg/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
        41 31 0:38 / /cg/unified rw - cgroup2 cgroup2 rw,nsdelegate\n";
    const V2_MOUNT: &str = "30 23 0:26 / /cg rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn a_hybrid_host_is_one_of_version_1_and_its_controllers_may_share_a_mount() {
        let tree = Tree::new(&[
            ("proc/self/mountinfo", V1_MOUNTS),
            (
                "proc/self/cgroup",
                "9:pids:/shim\n8:memory:/shim\n3:cpu,cpuacct:/shim\n1:name=systemd:/shim\n0::/shim\n",
            ),
            (
                "proc/7/cgroup",
                "9:pids:/ctr\n8:memory:/ctr\n3:cpu,cpuacct:/ctr\n1:name=systemd:/ctr\n0::/ctr\n",
            ),
            ("cg/pids/ctr/pids.current", "4\n"),
            ("cg/cpu,cpuacct/ctr/cpuacct.usage", "5\n"),
            ("cg/cpu,cpuacct/ctr/cpu.stat", "nr_periods 6\n"),
            ("cg/memory/ctr/memory.usage_in_bytes", "7\n"),
            ("cg/unified/ctr/cpu.stat", "usage_usec 900\n"),
        ]);
        let any = stats(&tree, 7).unwrap();
        assert_eq!(pids_v1(&any), 4);
        let metrics = cgroups::metrics::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!(metrics.cpu.usage.total, 5);
        assert_eq!(metrics.cpu.throttling.periods, 6);
        assert_eq!(metrics.memory.usage.usage, 7);
    }

    #[test]
    fn a_named_hierarchy_beside_the_unified_one_does_not_make_a_host_one_of_version_1() {
        let tree = Tree::new(&[
            ("proc/self/mountinfo", V2_MOUNT),
            ("proc/self/cgroup", "1:name=systemd:/\n0::/shim\n"),
            ("proc/7/cgroup", "1:name=systemd:/\n0::/pod/ctr\n"),
            ("cg/pod/ctr/pids.current", "4\n"),
        ]);
        assert_eq!(pids_v2(&stats(&tree, 7).unwrap()), 4);
    }

    #[test]
    fn what_is_the_shims_own_is_not_the_containers() {
        let tree = Tree::new(&[
            ("proc/self/mountinfo", V1_MOUNTS),
            ("proc/self/cgroup", "9:pids:/shim\n8:memory:/shim\n0::/shim\n"),
            ("proc/7/cgroup", "9:pids:/shim\n8:memory:/shim\n0::/ctr\n"),
            ("proc/8/cgroup", "9:pids:/ctr\n8:memory:/shim\n0::/shim\n"),
            ("cg/pids/shim/pids.current", "4\n"),
            ("cg/pids/ctr/pids.current", "1\n"),
            ("cg/memory/shim/memory.usage_in_bytes", "7\n"),
        ]);
        let error = stats(&tree, 7).unwrap_err();
        assert_eq!(error.code(), Code::NotFound);
        assert_eq!(error.to_string(), "process 7 has no cgroup of its own");
        let any = stats(&tree, 8).unwrap();
        assert_eq!(pids_v1(&any), 1);
        assert!(cgroups::metrics::Metrics::parse_from_bytes(&any.value).unwrap().memory.is_none());
    }

    #[test]
    fn the_shims_own_unified_cgroup_and_the_root_are_not_the_containers() {
        let tree = Tree::new(&[
            ("proc/self/mountinfo", V2_MOUNT),
            ("proc/self/cgroup", "0::/shim\n"),
            ("proc/7/cgroup", "0::/shim\n"),
            ("proc/8/cgroup", "0::/\n"),
            ("cg/cpu.stat", "usage_usec 900\n"),
            ("cg/shim/cpu.stat", "usage_usec 900\n"),
        ]);
        assert_eq!(stats(&tree, 7).unwrap_err().code(), Code::NotFound);
        assert_eq!(stats(&tree, 8).unwrap_err().code(), Code::NotFound);
    }

    #[test]
    fn a_removed_cgroup_is_not_found() {
        let tree = Tree::new(&[
            ("proc/self/mountinfo", V2_MOUNT),
            ("proc/self/cgroup", "0::/shim\n"),
            ("proc/7/cgroup", "0::/ctr (deleted)\n"),
        ]);
        assert_eq!(stats(&tree, 7).unwrap_err().code(), Code::NotFound);
    }

    #[test]
    fn a_mount_of_a_part_of_the_hierarchy_shows_only_what_is_below() {
        let mounts = "\
            30 23 0:26 /other /elsewhere rw - cgroup2 cgroup2 rw\n\
            31 23 0:26 /a\\134x2d\\040b /cg rw - cgroup2 cgroup2 rw\n";
        let tree = Tree::new(&[
            ("proc/self/mountinfo", mounts),
            ("proc/self/cgroup", "0::/a\\x2d b/shim\n"),
            ("proc/7/cgroup", "0::/a\\x2d b/ctr\n"),
            ("proc/8/cgroup", "0::/a\\x2d b/../ctr\n"),
            ("cg/ctr/pids.current", "4\n"),
            ("ctr/pids.current", "900\n"),
        ]);
        assert_eq!(pids_v2(&stats(&tree, 7).unwrap()), 4);
        assert_eq!(stats(&tree, 8).unwrap_err().code(), Code::NotFound);
    }

    #[test]
    fn cgroups_and_mounts_may_have_any_name() {
        let tree = Tree::new(&[
            ("proc/self/cgroup", "0::/shim\n"),
            ("proc/7/cgroup", ""),
            ("cg/ctr/pids.current", "4\n"),
        ]);
        let name = |path: &str| tree.root().join(OsStr::from_bytes(&[path.as_bytes(), b"\xff\xfe"].concat()));
        std::fs::rename(tree.root().join("cg/ctr"), name("cg/ctr")).unwrap();
        std::fs::rename(tree.root().join("cg"), name("cg")).unwrap();
        let mounts =
            b"29 23 0:20 / /\xfd rw - tmpfs tmpfs rw\n30 23 0:26 / /cg\xff\xfe rw - cgroup2 cgroup2 rw\n";
        std::fs::write(tree.root().join("proc/self/mountinfo"), mounts).unwrap();
        std::fs::write(tree.root().join("proc/7/cgroup"), b"0::/ctr\xff\xfe\n").unwrap();
        assert_eq!(pids_v2(&stats(&tree, 7).unwrap()), 4);
    }

    #[test]
    fn a_mount_that_is_hidden_under_another_is_passed_over() {
        let mounts = format!("29 23 0:26 / /hidden rw - cgroup2 cgroup2 rw\n{V2_MOUNT}");
        let tree = Tree::new(&[
            ("proc/self/mountinfo", &mounts),
            ("proc/self/cgroup", "0::/shim\n"),
            ("proc/7/cgroup", "0::/ctr\n"),
            ("cg/ctr/pids.current", "4\n"),
        ]);
        assert_eq!(pids_v2(&stats(&tree, 7).unwrap()), 4);
    }

    #[test]
    fn sizes_of_huge_pages_are_written_as_the_controller_writes_them() {
        let folder = |size| format!("sys/kernel/mm/hugepages/hugepages-{size}kB/nr_hugepages");
        let folders = [1_048_576, 64, 2048].map(folder);
        let tree = Tree::new(&folders.each_ref().map(|path| (path.as_str(), "0\n")));
        assert_eq!(page_sizes(tree.root()), ["64KB", "2MB", "1GB"]);
    }

    #[test]
    fn the_shim_itself_and_a_process_that_is_gone_are_not_found() {
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        for pid in [Pid::new(child.id()), Some(Pid::own())] {
            assert_eq!(stats_here(pid).unwrap_err().code(), Code::NotFound);
        }
    }

    /// A process in a cgroup of its own, in each hierarchy that is read; both are removed in the end.
    struct Contained {
        child: Child,
        groups: Vec<PathBuf>,
    }

    impl Contained {
        fn start() -> Self {
            let child = Command::new("sleep").arg("60").spawn().unwrap();
            let pid = child.id().to_string();
            let mut contained = Self { child, groups: vec![] };
            let read = |mount: &Mount| {
                let mut controllers = MAIN_CONTROLLERS.iter().chain(&["blkio", UNIFIED]);
                controllers.any(|controller| mount.carries(controller))
            };
            for mount in Host::at(Path::new("/")).unwrap().mounts.into_iter().filter(read) {
                let group = mount.point.join(format!("shim-cgroup-test-{pid}"));
                if std::fs::create_dir(&group).is_ok() {
                    contained.groups.push(group.clone());
                    std::fs::write(group.join("cgroup.procs"), &pid).unwrap();
                }
            }
            contained
        }
    }

    impl Drop for Contained {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
            for group in &self.groups {
                let removed = std::fs::remove_dir(group);
                assert!(removed.is_ok() || std::thread::panicking(), "cannot remove {group:?}: {removed:?}");
            }
        }
    }

    #[test]
    fn a_process_in_a_cgroup_of_its_own_is_measured_on_this_machine() {
        let mut contained = Contained::start();
        if contained.groups.is_empty() {
            let all = std::env::var("SHIM_TESTS").is_ok_and(|tests| tests == "all");
            assert!(!all, "a cgroup cannot be made here; it needs root");
            eprintln!("skipped: a cgroup cannot be made here; it needs root");
            return;
        }
        let pid = Pid::new(contained.child.id());
        let any = stats_here(pid).unwrap();
        if any.type_url != "io.containerd.cgroups.v1.Metrics" {
            let metrics = cgroups_v2::metrics::Metrics::parse_from_bytes(&any.value).unwrap();
            assert!(metrics.cpu.is_some(), "{metrics}");
            return;
        }
        assert_eq!(pids_v1(&any), 1);
        let metrics = cgroups::metrics::Metrics::parse_from_bytes(&any.value).unwrap();
        assert!(metrics.memory.usage.limit > 0, "{metrics}");
        assert!(metrics.memory_oom_control.is_some(), "{metrics}");
        assert!(!metrics.cpu.usage.per_cpu.is_empty(), "{metrics}");
        // A process that has ended is taken to the root of every hierarchy of version 1.
        contained.child.kill().unwrap();
        let ended = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        waitid(Id::Pid(nix::unistd::Pid::from_raw(pid.unwrap().raw())), ended).unwrap();
        assert_eq!(stats_here(pid).unwrap_err().code(), Code::NotFound);
    }
}
