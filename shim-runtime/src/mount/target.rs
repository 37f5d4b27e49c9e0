//! The place of a mount inside the root file system, from which no link leads out (contract 11.1).
//!
//! A name that was resolved leads elsewhere as soon as somebody puts a link into its way, and whoever shares a folder
//! with the container can. So the place is opened, in one call that takes every link as if the root file system were
//! all there is, and the kernel is told of it by the descriptor. Kernels before 5.6 have no such call, and some
//! sandboxes forbid it: there the name has to do.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;

use super::table;
use crate::error::{Code, Error, Result, WithContext};

/// How often a place is looked for again when something on the way was moved meanwhile.
const TRIES: usize = 100;

/// Opens a path as if the folder were the root.
type Opener = fn(&OwnedFd, &Path) -> nix::Result<OwnedFd>;

/// See the module.
pub(super) struct Target<'a> {
    rootfs: &'a Path,
    wanted: &'a Path,
    open: Opener,
    held: Option<OwnedFd>,
    name: PathBuf,
}

impl<'a> Target<'a> {
    /// `wanted` below `rootfs`.
    ///
    /// # Errors
    /// When there is no such place, or too many links lead to it.
    pub(super) fn find(rootfs: &'a Path, wanted: &'a Path) -> Result<Self> {
        Self::find_by(open_in_root, rootfs, wanted)
    }

    pub(super) fn find_by(open: Opener, rootfs: &'a Path, wanted: &'a Path) -> Result<Self> {
        let found = |held, name| Ok(Self { rootfs, wanted, open, held, name });
        // The bundle's own folder, into which nobody but root can put anything.
        if wanted.components().all(|part| matches!(part, Component::RootDir | Component::CurDir)) {
            return found(None, rootfs.to_owned());
        }
        let root = open_folder(rootfs)?;
        match open(&root, wanted) {
            Ok(held) => {
                let name = std::fs::read_link(link_to(&held))?;
                found(Some(held), name)
            }
            Err(Errno::ENOSYS | Errno::EPERM) => found(None, resolve_inside(rootfs, wanted)?),
            Err(errno) => {
                Err(errno).with_context(|| format!("`{}` in the root file system", wanted.display()))
            }
        }
    }

    /// What the place is called at the moment, for people and for programs that mount by themselves.
    pub(super) fn name(&self) -> &Path {
        &self.name
    }

    /// What the kernel is told: the place itself, whatever its name leads to by now.
    pub(super) fn path(&self) -> PathBuf {
        self.held.as_ref().map_or_else(|| self.name.clone(), link_to)
    }

    /// The same place once something is mounted on it: what is held stays below that.
    ///
    /// # Errors
    /// `Aborted` when its name leads elsewhere by now.
    pub(super) fn mounted(&self) -> Result<Self> {
        let mounted = Self::find_by(self.open, self.rootfs, self.wanted)?;
        if let (Some(below), Some(above)) = (&self.held, &mounted.held)
            && !table::is_mounted_on(above, below)?
        {
            let message = format!("`{}` was moved while it was mounted on", self.name.display());
            return Err(Error::new(Code::Aborted, message));
        }
        Ok(mounted)
    }
}

/// A path that leads to what a descriptor holds.
pub(super) fn link_to(held: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", held.as_raw_fd()).into()
}

/// Opens a folder for looking into it; whatever file system it is on is not asked.
pub(super) fn open_folder(path: &Path) -> nix::Result<OwnedFd> {
    open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

/// Opens a path with every link on the way taken as if `root` were the root.
pub(super) fn open_in_root(root: &OwnedFd, path: &Path) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let mut opened = Err(Errno::EAGAIN);
    for _ in 0..TRIES {
        opened = openat2(root, path, how);
        // Something was moved just then, and the kernel cannot tell whether the way leads out.
        if !matches!(opened, Err(Errno::EAGAIN)) {
            break;
        }
    }
    opened
}

/// `target` below `rootfs`, with every link on the way resolved as if `rootfs` were the root.
fn resolve_inside(rootfs: &Path, target: &Path) -> Result<PathBuf> {
    let mut inside = PathBuf::new();
    let mut left: Vec<_> = target.components().rev().map(|part| part.as_os_str().to_owned()).collect();
    // As many links as the kernel follows.
    let mut links = 40;
    while let Some(part) = left.pop() {
        match Path::new(&part).components().next() {
            Some(Component::Normal(name)) => match std::fs::read_link(rootfs.join(&inside).join(name)) {
                Ok(_) if links == 0 => {
                    return Err(Error::invalid_argument(format!("too many links in `{}`", target.display())));
                }
                Ok(link) => {
                    links -= 1;
                    left.extend(link.components().rev().map(|part| part.as_os_str().to_owned()));
                }
                Err(_) => inside.push(name),
            },
            Some(Component::RootDir) => inside.clear(),
            Some(Component::ParentDir) => {
                inside.pop();
            }
            _ => {}
        }
    }
    // Joined to nothing, a path would get a slash at its end.
    Ok(if inside.as_os_str().is_empty() { rootfs.to_owned() } else { rootfs.join(inside) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_cannot_leave_the_rootfs_through_links_or_dots() {
        let root = std::env::temp_dir().join(format!("shim-mount-{}", std::process::id()));
        std::fs::create_dir_all(root.join("in")).unwrap();
        for (link, to) in [("up", "../../.."), ("abs", "/in/x"), ("loop", "loop")] {
            std::os::unix::fs::symlink(to, root.join(link)).unwrap();
        }
        let resolved =
            |target: &str| resolve_inside(&root, Path::new(target)).map(|path| path.display().to_string());
        let inside = |path: &str| root.join(path).display().to_string();
        assert_eq!(resolved("/up/etc").unwrap(), inside("etc"));
        assert_eq!(resolved("abs").unwrap(), inside("in/x"));
        assert_eq!(resolved("../../../in").unwrap(), inside("in"));
        assert!(resolved("loop").is_err());
        std::fs::remove_dir_all(&root).unwrap();
    }
}
