//! Shows files under other owners (contract 11.1): a second mount of the same files, whose ids the kernel takes
//! through the map of a user namespace.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};
use nix::unistd::mkdtemp;

use super::options::IdMap;
use super::overlay;
use crate::error::{Error, Result, WithContext};
use crate::reaper::Group;
use crate::spawn::{Command, Supervisor};
use crate::sys;

/// A user namespace with this map. It is made by a child, which ends at once: its program never runs.
pub(super) fn user_namespace(map: &IdMap, supervisor: Option<&Supervisor>) -> Result<OwnedFd> {
    let supervisor = supervisor.ok_or_else(|| Error::failed_precondition("ids cannot be mapped here"))?;
    let mut command = Command::new("/proc/self/exe");
    command.new_user_namespace();
    let (child, _gate) = supervisor.spawn_gated(&mut command, Group::Keep)?;
    let of_child = |file: &str| format!("/proc/{}/{file}", child.pid);
    for (file, lines) in [("uid_map", &map.users), ("gid_map", &map.groups)] {
        fs::write(of_child(file), lines)
            .with_context(|| format!("cannot write the {file} of a user namespace"))?;
    }
    Ok(File::open(of_child("ns/user")).with_context(|| "cannot open a user namespace")?.into())
}

/// Mounts the files at `target` once more over them, mapped.
pub(super) fn cover(target: &Path, ids: &OwnedFd) -> Result<()> {
    show(target, target, ids, false)
}

fn show(files: &Path, at: &Path, ids: &OwnedFd, read_only: bool) -> Result<()> {
    let mapped = sys::clone_mount(files).and_then(|clone| {
        sys::map_ids(&clone, ids, read_only)?;
        sys::attach_mount(&clone, at)
    });
    mapped.with_context(|| format!("cannot map the ids of `{}`", files.display()))
}

/// Mapped layers for an overlay, which has its own hold on them once it is mounted. Unmounted when dropped.
#[derive(Debug)]
pub(super) struct Layers {
    folder: PathBuf,
    mounted: Vec<PathBuf>,
}

impl Layers {
    /// Mounts the layers that the options name, and has the options name those mounts.
    pub(super) fn map(data: &mut [String], ids: &OwnedFd) -> Result<Self> {
        let none = || Error::invalid_argument("an overlay without `lowerdir` has nothing to map");
        let (index, names) = overlay::layers(data).ok_or_else(none)?;
        let folder = mkdtemp(&std::env::temp_dir().join("shim-layers-XXXXXX"))
            .with_context(|| "cannot make a folder for mapped layers")?;
        let mut layers = Self { folder, mounted: Vec::new() };
        for (number, name) in names.into_iter().enumerate() {
            let at = layers.folder.join(number.to_string());
            fs::create_dir(&at).with_context(|| format!("cannot make `{}`", at.display()))?;
            layers.mounted.push(at.clone());
            // Whoever finds one after our death, and clears it away, must not clear away the layer.
            show(&overlay::unescaped(name), &at, ids, true)?;
        }
        let list: Vec<_> = layers.mounted.iter().map(|path| path.display().to_string()).collect();
        data[index] = format!("lowerdir={}", list.join(":"));
        Ok(layers)
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        for path in &self.mounted {
            let _ = umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
            // Never what is in it: it may still be a layer.
            let _ = fs::remove_dir(path);
        }
        let _ = fs::remove_dir(&self.folder);
    }
}
