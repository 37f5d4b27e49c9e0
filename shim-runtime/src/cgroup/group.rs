//! The cgroup of one container, remembered by its paths: a process that has ended tells no more where it was,
//! while others may live on there.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
#[cfg(feature = "oci")]
use std::sync::atomic::AtomicBool;

use super::oom::{Counter, OomWatch};
use super::{Files, Host, MAIN_CONTROLLERS, Membership, Message, UNIFIED, v1, v2};
use crate::error::{Error, Result, WithContext};
use crate::event_loop::Handle;
use crate::files;
use crate::messages::Any;
use crate::types::Pid;

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    host: Arc<Host>,
    /// Where it is, of the hierarchies in which it is not the shim's too.
    pub(super) own: Membership,
    is_version_1: bool,
    /// A list of its processes was cut short, and that was logged.
    #[cfg(feature = "oci")]
    pub(super) was_cut: Arc<AtomicBool>,
}

impl Group {
    /// The cgroup that a process is in.
    ///
    /// "Not found" if the process is gone, or has no cgroup of its own.
    pub(crate) fn of(pid: Pid) -> Result<Self> {
        Self::at(Host::here()?, pid)
    }

    pub(super) fn at(host: Arc<Host>, pid: Pid) -> Result<Self> {
        let theirs = host.membership(&pid.to_string()).map_err(|error| {
            // It may also go between the opening and the reading.
            if error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) {
                Error::not_found(format!("process {pid} is gone"))
            } else {
                Error::from(error).context(format!("cannot find the cgroup of process {pid}"))
            }
        })?;
        let ours = host.membership("self").with_context(|| "cannot find the cgroup of the shim")?;
        let own = theirs.apart_from(&ours);
        let is_version_1 = MAIN_CONTROLLERS.iter().any(|controller| theirs.path(controller).is_some());
        // Of a hybrid host the unified hierarchy holds no controllers, and nothing that the others do not.
        let has_own = own.0.iter().any(|place| !(is_version_1 && place.has(UNIFIED)));
        if !has_own {
            return Err(Error::not_found(format!("process {pid} has no cgroup of its own")));
        }
        Ok(Self {
            host,
            own,
            is_version_1,
            #[cfg(feature = "oci")]
            was_cut: Arc::default(),
        })
    }

    /// What was used in it. Which message that becomes the host decides (contract 6.1).
    ///
    /// "Not found" once it was removed.
    pub(crate) fn stats(&self) -> Result<Any> {
        let sizes = &self.host.page_sizes;
        if self.is_version_1 {
            let metrics = v1::metrics(
                |controller| self.open(controller),
                sizes,
                &self.host.root.join("proc/partitions"),
            );
            any("io.containerd.cgroups.v1.Metrics", metrics)
        } else {
            let metrics = self.open(UNIFIED).and_then(|mut files| v2::metrics(&mut files, sizes));
            any("io.containerd.cgroups.v2.Metrics", metrics)
        }
    }

    /// Calls back on the main thread whenever the kernel has killed something in it for want of memory.
    ///
    /// "Not found" where the kernel does not count that for this cgroup.
    pub(crate) fn watch_oom(&self, main: &Handle, on_oom: impl FnMut() + Send + 'static) -> Result<OomWatch> {
        let controller = if self.is_version_1 { "memory" } else { UNIFIED };
        let directory = self.directory(controller).ok_or_else(gone)?;
        let counter = if self.is_version_1 { Counter::v1(&directory) } else { Counter::v2(&directory) };
        OomWatch::start(main, counter?, on_oom)
    }

    /// Has every controller that the host has count and limit in this cgroup (contract 11.5), as far as that is
    /// not so already; nothing in version 1, where each hierarchy has its controllers everywhere.
    ///
    /// # Errors
    /// Of the ancestors, the one nearest to the cgroup that could not be changed. What can be done is done.
    pub(crate) fn enable_controllers(&self) -> Result<()> {
        let mounted = self.host.mounts.iter().find(|mount| mount.carries(UNIFIED));
        let (false, Some(mount), Some(directory)) = (self.is_version_1, mounted, self.directory(UNIFIED))
        else {
            return Ok(());
        };
        let mut ancestors: Vec<_> =
            directory.ancestors().skip(1).take_while(|above| above.starts_with(&mount.point)).collect();
        ancestors.reverse();
        let wanted = read(mount.point.join("cgroup.controllers"));
        ancestors.into_iter().map(|above| enable(&wanted, above)).fold(Ok(()), Result::and)
    }

    /// Of a hierarchy in which it is its own.
    pub(super) fn directory(&self, controller: &str) -> Option<PathBuf> {
        self.host.directories(controller, self.own.path(controller)?).find(|directory| directory.is_dir())
    }

    fn open(&self, controller: &str) -> Option<Files> {
        let mut directories = self.host.directories(controller, self.own.path(controller)?);
        directories.find_map(|directory| Files::open(&directory))
    }
}

pub(super) fn gone() -> Error {
    Error::not_found("the cgroup is gone")
}

fn any(type_url: &str, metrics: Option<Message>) -> Result<Any> {
    let metrics = metrics.ok_or_else(|| Error::not_found("the cgroup is gone, or has no controllers"))?;
    Ok(Any { type_url: type_url.to_owned(), value: metrics.into_bytes(), ..Any::default() })
}

/// What cannot be read counts as empty: a cgroup may be removed at any time.
pub(super) fn read(file: PathBuf) -> String {
    files::kernel_text(file).unwrap_or_default()
}

/// Enables controllers for the children of a cgroup, as far as it has them.
fn enable(wanted: &str, directory: &Path) -> Result<()> {
    let (has, enabled) =
        (read(directory.join("cgroup.controllers")), read(directory.join("cgroup.subtree_control")));
    let is_in = |list: &str, name: &str| list.split_ascii_whitespace().any(|known| known == name);
    let missing = wanted.split_ascii_whitespace().filter(|name| is_in(&has, name) && !is_in(&enabled, name));
    let words: Vec<_> = missing.map(|name| format!("+{name}")).collect();
    if words.is_empty() {
        return Ok(());
    }
    let file = directory.join("cgroup.subtree_control");
    fs::write(&file, words.join(" "))
        .with_context(|| format!("cannot enable controllers in `{}`", file.display()))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Tree, group};
    use super::*;
    use crate::error::Code;

    const V2_MOUNT: &str = "30 23 0:26 / /cg rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn a_cgroup_is_known_after_the_process_that_it_was_found_by() {
        let tree = Tree::new(&[
            ("proc/self/mountinfo", V2_MOUNT),
            ("proc/self/cgroup", "0::/shim\n"),
            ("proc/7/cgroup", "0::/pod/ctr\n"),
            ("cg/pod/ctr/pids.current", "4\n"),
        ]);
        let found = group(&tree, 7).unwrap();
        fs::remove_dir_all(tree.root().join("proc/7")).unwrap();
        assert!(found.stats().is_ok());
        assert_eq!(group(&tree, 7).unwrap_err().to_string(), "process 7 is gone");
        fs::remove_dir_all(tree.root().join("cg/pod")).unwrap();
        assert_eq!(found.stats().unwrap_err().code(), Code::NotFound);
    }

    #[test]
    fn controllers_of_the_root_are_enabled_down_to_the_parent_where_they_are_missing() {
        let tree = Tree::new(&[
            ("proc/self/mountinfo", V2_MOUNT),
            ("proc/self/cgroup", "0::/shim\n"),
            ("proc/7/cgroup", "0::/pod/inner/ctr\n"),
            ("cg/cgroup.controllers", "cpuset cpu io memory pids\n"),
            ("cg/cgroup.subtree_control", "cpu memory pids io cpuset\n"),
            ("cg/pod/cgroup.controllers", "cpu memory pids misc\n"),
            ("cg/pod/cgroup.subtree_control", "memory\n"),
            ("cg/pod/inner/cgroup.controllers", "memory\n"),
            ("cg/pod/inner/cgroup.subtree_control", ""),
            ("cg/pod/inner/ctr/cgroup.controllers", "memory\n"),
            ("cg/pod/inner/ctr/cgroup.subtree_control", ""),
        ]);
        group(&tree, 7).unwrap().enable_controllers().unwrap();
        let written = |of: &str| read(tree.root().join("cg").join(of).join("cgroup.subtree_control"));
        assert_eq!(written(""), "cpu memory pids io cpuset\n", "nothing was missing");
        assert_eq!(written("pod"), "+cpu +pids");
        assert_eq!(written("pod/inner"), "+memory");
        assert_eq!(written("pod/inner/ctr"), "", "the container's own is its business");
    }

    #[test]
    fn an_ancestor_that_refuses_does_not_keep_the_others_from_being_changed() {
        let tree = Tree::new(&[
            ("proc/self/mountinfo", V2_MOUNT),
            ("proc/self/cgroup", "0::/shim\n"),
            ("proc/7/cgroup", "0::/pod/ctr\n"),
            ("cg/cgroup.controllers", "memory\n"),
            ("cg/cgroup.subtree_control/is-a-folder", ""),
            ("cg/pod/cgroup.controllers", "memory\n"),
            ("cg/pod/ctr/cgroup.controllers", ""),
        ]);
        let error = group(&tree, 7).unwrap().enable_controllers().unwrap_err().to_string();
        assert!(error.starts_with("cannot enable controllers in `"), "{error}");
        assert_eq!(read(tree.root().join("cg/pod/cgroup.subtree_control")), "+memory");
    }
}
