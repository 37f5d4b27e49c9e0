//! Mounts the root file system that containerd describes in Create (contract 11.1), and takes it down again.
//! Targets are resolved inside the bundle's `rootfs`; what was mounted before a failure is undone.

mod helper;
mod id_map;
mod loop_device;
mod options;
mod overlay;
mod table;
mod target;

use std::fs::DirBuilder;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::error::{Error, Result, WithContext};
use crate::messages::Mount;
use crate::spawn::Supervisor;
use crate::sys;

use options::{Options, maps_ids};
pub(crate) use table::{mounts_below, unescape};
use target::Target;

/// How often it is tried to unmount what somebody moves meanwhile.
const TRIES: usize = 10;

/// Mounts the list in order onto `rootfs`. Nothing is done for an empty list: the root may be no mount at all.
/// Helper programs and maps of ids need a supervisor.
pub(crate) fn mount_all(mounts: &[Mount], rootfs: &Path, supervisor: Option<&Supervisor>) -> Result<()> {
    if mounts.is_empty() {
        return Ok(());
    }
    match DirBuilder::new().mode(0o711).create(rootfs) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("cannot make `{}`", rootfs.display()));
        }
        _ => {}
    }
    mounts.iter().try_for_each(|each| mount_one(each, rootfs, supervisor)).inspect_err(|_| {
        if let Err(error) = unmount_all(rootfs) {
            log::warn!("{error}");
        }
    })
}

fn mount_one(wanted: &Mount, rootfs: &Path, supervisor: Option<&Supervisor>) -> Result<()> {
    let target = Target::find(rootfs, Path::new(&wanted.target))?;
    let mounted = Options::parse(&wanted.options).and_then(|options| {
        let map = options.id_map.as_ref();
        let ids = map.map(|map| id_map::user_namespace(map, supervisor)).transpose()?;
        match (helper::of(&wanted.type_), ids) {
            (Some(helper), ids) => {
                let words = wanted.options.iter().filter(|word| !maps_ids(word));
                helper.mount(&wanted.source, target.name(), words, supervisor)?;
                ids.map_or(Ok(()), |ids| id_map::cover(&target.mounted()?.path(), &ids))
            }
            (None, Some(ids)) if wanted.type_ == "overlay" => {
                mount_mapped_overlay(wanted, options, &target, &ids)
            }
            (None, ids) => {
                mount_plain(wanted, options, &target)?;
                ids.map_or(Ok(()), |ids| id_map::cover(&target.mounted()?.path(), &ids))
            }
        }
    });
    let what =
        || format!("cannot mount {} `{}` on `{}`", wanted.type_, wanted.source, target.name().display());
    mounted.with_context(what)
}

/// An overlay takes the ids of its layers as it finds them: those are mapped, and only while it is mounted need
/// they be seen anywhere.
fn mount_mapped_overlay(
    wanted: &Mount,
    mut options: Options,
    target: &Target<'_>,
    ids: &OwnedFd,
) -> Result<()> {
    let _layers = id_map::Layers::map(&mut options.data, ids)?;
    mount_plain(wanted, options, target)
}

fn mount_plain(wanted: &Mount, mut options: Options, target: &Target<'_>) -> Result<()> {
    let read_only = options.flags.contains(MsFlags::MS_RDONLY);
    let wanted_device = options.loop_device.as_ref();
    let device =
        wanted_device.map(|how| loop_device::attach(&wanted.source, read_only, how.direct)).transpose()?;
    let source = device.as_ref().map_or(wanted.source.as_str(), |device| &device.path);
    let (limit, overlay) = (sys::page_size(), wanted.type_ == "overlay");
    let folder = if overlay { overlay::shorten(&mut options.data, limit) } else { None };
    let data = options.data.join(",");
    if data.len() >= limit {
        return Err(Error::invalid_argument(format!(
            "its options have {} bytes, a page is the limit",
            data.len()
        )));
    }
    let data = Some(data.as_str()).filter(|data| !data.is_empty());
    let at = target.path();
    let make = || mount(Some(source), &at, Some(wanted.type_.as_str()), options.flags, data);
    match folder {
        Some(folder) => overlay::inside(&folder, make)?,
        None => make()?,
    }
    // The kernel ignores `ro` on a bind mount; it takes a second call (mount(2), MS_REMOUNT).
    let again = read_only && options.flags.contains(MsFlags::MS_BIND);
    let remount = again.then_some(options.flags | MsFlags::MS_REMOUNT);
    let changes: Vec<_> = remount.into_iter().chain(options.propagation).collect();
    if !changes.is_empty() {
        let mounted = target.mounted()?;
        let at = mounted.path();
        let change = |flags| mount(None::<&str>, &at, None::<&str>, flags, None::<&str>);
        changes.into_iter().try_for_each(change)?;
    }
    Ok(())
}

/// Unmounts everything at and below `path`, the last mounted first. Nothing mounted there is fine.
pub(crate) fn unmount_all(path: &Path) -> Result<()> {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    for _ in 0..TRIES {
        let mut is_sure = true;
        for target in mounts_below(&path).with_context(|| "cannot read the list of mounts")? {
            match unmount(&path, &target) {
                // Where the path is too long, deep in another mount, that one takes this one along.
                Ok(()) | Err(Errno::ENAMETOOLONG) => {}
                // Somebody was quicker, or has moved what is on the way.
                Err(Errno::EINVAL | Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EAGAIN) => {
                    is_sure = false;
                }
                Err(errno) => {
                    return Err(errno).with_context(|| format!("cannot unmount `{}`", target.display()));
                }
            }
        }
        if is_sure {
            return Ok(());
        }
    }
    // It is not ours to unmount, as in a user namespace, or is moved again and again.
    log::warn!("something stays mounted below `{}`", path.display());
    Ok(())
}

/// Unmounts what is mounted last on `target`, a place below `path`, from which no link leads out.
fn unmount(path: &Path, target: &Path) -> nix::Result<()> {
    let by_name = || umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    let Ok(below) = target.strip_prefix(path) else { return by_name() };
    if below.as_os_str().is_empty() {
        return by_name();
    }
    match target::open_folder(path).and_then(|root| target::open_in_root(&root, below)) {
        Ok(held) => umount2(&target::link_to(&held), MntFlags::MNT_DETACH),
        Err(Errno::ENOSYS | Errno::EPERM) => by_name(),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests;
