//! Mounts the root file system that containerd describes in Create (contract 11.1), and takes it down again.
//! Targets are resolved inside the bundle's `rootfs`; what was mounted before a failure is undone.

mod loop_device;
mod options;
mod overlay;
mod table;
mod target;

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::api::Mount;
use crate::error::{Error, Result, WithContext};
use crate::sys;

use options::Options;
pub(crate) use table::unescape;

/// Mounts the list in order onto `rootfs`. Nothing is done for an empty list: the root may be no mount at all.
pub(crate) fn mount_all(mounts: &[Mount], rootfs: &Path) -> Result<()> {
    if mounts.is_empty() {
        return Ok(());
    }
    match DirBuilder::new().mode(0o711).create(rootfs) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(error).context(|| format!("cannot make `{}`", rootfs.display()));
        }
        _ => {}
    }
    mounts.iter().try_for_each(|each| mount_one(each, rootfs)).inspect_err(|_| {
        if let Err(error) = unmount_all(rootfs) {
            log::warn!("{error}");
        }
    })
}

fn mount_one(wanted: &Mount, rootfs: &Path) -> Result<()> {
    let target = target::resolve_inside(rootfs, Path::new(&wanted.target))?;
    let mounted = Options::parse(&wanted.options).and_then(|options| mount_plain(wanted, options, &target));
    let what = || format!("cannot mount {} `{}` on `{}`", wanted.type_, wanted.source, target.display());
    mounted.context(what)
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
            // Somebody was quicker.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(errno) => return Err(errno).context(|| format!("cannot unmount `{}`", target.display())),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
