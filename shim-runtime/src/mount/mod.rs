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

use crate::api::Mount;
use crate::error::{Error, Result, WithContext};
use crate::spawn::Supervisor;
use crate::sys;

use options::{Options, maps_ids};
pub(crate) use table::unescape;

/// Mounts the list in order onto `rootfs`. Nothing is done for an empty list: the root may be no mount at all.
/// Helper programs and maps of ids need a supervisor.
pub(crate) fn mount_all(mounts: &[Mount], rootfs: &Path, supervisor: Option<&Supervisor>) -> Result<()> {
    if mounts.is_empty() {
        return Ok(());
    }
    match DirBuilder::new().mode(0o711).create(rootfs) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(error).context(|| format!("cannot make `{}`", rootfs.display()));
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
    let target = target::resolve_inside(rootfs, Path::new(&wanted.target))?;
    let mounted = Options::parse(&wanted.options).and_then(|options| {
        let map = options.id_map.as_ref();
        let ids = map.map(|map| id_map::user_namespace(map, supervisor)).transpose()?;
        match (helper::of(&wanted.type_), ids) {
            (Some(helper), ids) => {
                let words = wanted.options.iter().filter(|word| !maps_ids(word));
                helper.mount(&wanted.source, &target, words, supervisor)?;
                ids.map_or(Ok(()), |ids| id_map::cover(&target, &ids))
            }
            (None, Some(ids)) if wanted.type_ == "overlay" => {
                mount_mapped_overlay(wanted, options, &target, &ids)
            }
            (None, ids) => {
                mount_plain(wanted, options, &target)?;
                ids.map_or(Ok(()), |ids| id_map::cover(&target, &ids))
            }
        }
    });
    let what = || format!("cannot mount {} `{}` on `{}`", wanted.type_, wanted.source, target.display());
    mounted.context(what)
}

/// An overlay takes the ids of its layers as it finds them: those are mapped, and only while it is mounted need
/// they be seen anywhere.
fn mount_mapped_overlay(wanted: &Mount, mut options: Options, target: &Path, ids: &OwnedFd) -> Result<()> {
    let _layers = id_map::Layers::map(&mut options.data, ids)?;
    mount_plain(wanted, options, target)
}

fn mount_plain(wanted: &Mount, mut options: Options, target: &Path) -> Result<()> {
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
    let make = || mount(Some(source), target, Some(wanted.type_.as_str()), options.flags, data);
    match folder {
        Some(folder) => overlay::inside(&folder, make)?,
        None => make()?,
    }
    let change = |flags| mount(None::<&str>, target, None::<&str>, flags, None::<&str>);
    // The kernel ignores `ro` on a bind mount; it takes a second call (mount(2), MS_REMOUNT).
    if read_only && options.flags.contains(MsFlags::MS_BIND) {
        change(options.flags | MsFlags::MS_REMOUNT)?;
    }
    options.propagation.into_iter().try_for_each(change)?;
    Ok(())
}

/// Unmounts everything at and below `path`, the last mounted first. Nothing mounted there is fine.
pub(crate) fn unmount_all(path: &Path) -> Result<()> {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    for target in table::mounts_below(&path).context(|| "cannot read the list of mounts")? {
        match umount2(&target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // Somebody was quicker; or the path is too long, deep in another mount, which takes this one along.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT | Errno::ENAMETOOLONG) => {}
            Err(errno) => return Err(errno).context(|| format!("cannot unmount `{}`", target.display())),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
