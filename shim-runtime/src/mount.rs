//! Mounts the root file system that containerd describes in Create (contract 11.1), and takes it down again.
//! Targets are resolved inside the bundle's `rootfs`; what was mounted before a failure is undone.

use std::ffi::OsString;
use std::fs::DirBuilder;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::api::Mount;
use crate::error::{Error, Result, WithContext};

/// Option words that are flags: the word, the flag, and whether the word clears it.
const FLAGS: &[(&str, MsFlags, bool)] = &[
    ("async", MsFlags::MS_SYNCHRONOUS, true),
    ("atime", MsFlags::MS_NOATIME, true),
    ("bind", MsFlags::MS_BIND, false),
    ("defaults", MsFlags::empty(), false),
    ("dev", MsFlags::MS_NODEV, true),
    ("diratime", MsFlags::MS_NODIRATIME, true),
    ("dirsync", MsFlags::MS_DIRSYNC, false),
    ("exec", MsFlags::MS_NOEXEC, true),
    ("mand", MsFlags::MS_MANDLOCK, false),
    ("noatime", MsFlags::MS_NOATIME, false),
    ("nodev", MsFlags::MS_NODEV, false),
    ("nodiratime", MsFlags::MS_NODIRATIME, false),
    ("noexec", MsFlags::MS_NOEXEC, false),
    ("nomand", MsFlags::MS_MANDLOCK, true),
    ("norelatime", MsFlags::MS_RELATIME, true),
    ("nostrictatime", MsFlags::MS_STRICTATIME, true),
    ("nosuid", MsFlags::MS_NOSUID, false),
    ("rbind", MsFlags::MS_BIND.union(MsFlags::MS_REC), false),
    ("relatime", MsFlags::MS_RELATIME, false),
    ("remount", MsFlags::MS_REMOUNT, false),
    ("ro", MsFlags::MS_RDONLY, false),
    ("rw", MsFlags::MS_RDONLY, true),
    ("strictatime", MsFlags::MS_STRICTATIME, false),
    ("suid", MsFlags::MS_NOSUID, true),
    ("sync", MsFlags::MS_SYNCHRONOUS, false),
];

/// Option words that change how a mount propagates; the kernel wants a call of its own for them.
const PROPAGATION: &[(&str, MsFlags)] = &[
    ("private", MsFlags::MS_PRIVATE),
    ("rprivate", MsFlags::MS_PRIVATE.union(MsFlags::MS_REC)),
    ("shared", MsFlags::MS_SHARED),
    ("rshared", MsFlags::MS_SHARED.union(MsFlags::MS_REC)),
    ("slave", MsFlags::MS_SLAVE),
    ("rslave", MsFlags::MS_SLAVE.union(MsFlags::MS_REC)),
    ("unbindable", MsFlags::MS_UNBINDABLE),
    ("runbindable", MsFlags::MS_UNBINDABLE.union(MsFlags::MS_REC)),
];

/// What a mount's option words come to.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    flags: MsFlags,
    propagation: Vec<MsFlags>,
    /// What the file system itself is to understand.
    data: String,
}

impl Options {
    fn parse(words: &[String]) -> Result<Self> {
        let mut options = Self { flags: MsFlags::empty(), propagation: Vec::new(), data: String::new() };
        let mut data = Vec::new();
        for word in words {
            if let Some((_, flag, clears)) = FLAGS.iter().find(|(known, ..)| known == word) {
                options.flags.set(*flag, !clears);
            } else if let Some((_, flag)) = PROPAGATION.iter().find(|(known, _)| known == word) {
                options.propagation.push(*flag);
            } else if word == "loop" || word.starts_with("X-containerd.") {
                return Err(Error::invalid_argument(format!("mount option `{word}` is not supported")));
            } else {
                data.push(word.as_str());
            }
        }
        options.data = data.join(",");
        Ok(options)
    }
}

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
    let target = resolve_inside(rootfs, Path::new(&wanted.target))?;
    let what = || format!("cannot mount {} `{}` on `{}`", wanted.type_, wanted.source, target.display());
    let options = Options::parse(&wanted.options).context(what)?;
    let data = Some(options.data.as_str()).filter(|data| !data.is_empty());
    let (source, none) = (Some(wanted.source.as_str()), None::<&str>);
    let kind = Some(wanted.type_.as_str());
    mount(source, &target, kind, options.flags, data).context(what)?;
    // The kernel ignores `ro` on a bind mount; it takes a second call (mount(2), MS_REMOUNT).
    let read_only_bind = MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    if options.flags.contains(read_only_bind) {
        mount(none, &target, none, options.flags | MsFlags::MS_REMOUNT, none).context(what)?;
    }
    for propagation in options.propagation {
        mount(none, &target, none, propagation, none).context(what)?;
    }
    Ok(())
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
    Ok(rootfs.join(inside))
}

/// Unmounts everything at and below `path`, the last mounted first. Nothing mounted there is fine.
pub(crate) fn unmount_all(path: &Path) -> Result<()> {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    for target in mounts_below(&path).context(|| "cannot read the list of mounts")? {
        match umount2(&target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // Somebody was quicker.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(errno) => return Err(errno).context(|| format!("cannot unmount `{}`", target.display())),
        }
    }
    Ok(())
}

/// The mount points at and below `path`, the last mounted first.
fn mounts_below(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    // Bytes: a mount of somebody else may have any name.
    let table = std::fs::read("/proc/self/mountinfo")?;
    let lines = table.split(|byte| *byte == b'\n');
    let points = lines.filter_map(|line| line.split(|byte| *byte == b' ').nth(4)).map(unescape);
    let mut below: Vec<_> = points.filter(|point| point.starts_with(path)).collect();
    below.reverse();
    Ok(below)
}

/// A path of `mountinfo`, where white space and backslashes are written as three octal digits.
pub(crate) fn unescape(field: &[u8]) -> PathBuf {
    let (mut bytes, mut rest) = (Vec::with_capacity(field.len()), field);
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = &after[3..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn option_words_become_flags_propagation_and_data() {
        let options = Options::parse(&words(&["rbind", "ro", "rprivate", "lowerdir=/a:/b", "rw"])).unwrap();
        assert_eq!(options.flags, MsFlags::MS_BIND | MsFlags::MS_REC);
        assert_eq!(options.propagation, [MsFlags::MS_PRIVATE | MsFlags::MS_REC]);
        assert_eq!(options.data, "lowerdir=/a:/b");
    }

    #[test]
    fn an_option_that_was_meant_for_somebody_else_is_refused_by_name() {
        let error = Options::parse(&words(&["X-containerd.mkdir=1"])).unwrap_err();
        assert_eq!(error.to_string(), "mount option `X-containerd.mkdir=1` is not supported");
    }

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

    #[test]
    fn escaped_mount_points_are_read_back() {
        assert_eq!(unescape(br"/a\040b\134c"), PathBuf::from(r"/a b\c"));
    }
}
