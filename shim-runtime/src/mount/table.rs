//! The table of mounts, as the kernel tells it.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::target::link_to;

/// The mount points at and below `path`, the last mounted first.
pub(crate) fn mounts_below(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    // Bytes: a mount of somebody else may have any name.
    let table = std::fs::read("/proc/thread-self/mountinfo")?;
    let lines = table.split(|byte| *byte == b'\n');
    let points = lines.filter_map(|line| line.split(|byte| *byte == b' ').nth(4)).map(unescape);
    let mut below: Vec<_> = points.filter(|point| point.starts_with(path)).collect();
    below.reverse();
    Ok(below)
}

/// Whether what one descriptor holds is the root of a mount that lies right on what another one holds.
pub(super) fn is_mounted_on(above: &OwnedFd, below: &OwnedFd) -> std::io::Result<bool> {
    let (mount, parent) = (mount_of(above)?, mount_of(below)?);
    let at = std::fs::read_link(link_to(below))?;
    let table = std::fs::read("/proc/thread-self/mountinfo")?;
    Ok(table.split(|byte| *byte == b'\n').any(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        fields.next() == Some(mount.as_bytes())
            && fields.next() == Some(parent.as_bytes())
            && fields.nth(2).map(unescape).as_deref() == Some(&at)
    }))
}

/// The number of the mount that a descriptor leads into, as the table writes it.
fn mount_of(held: &OwnedFd) -> std::io::Result<String> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", held.as_raw_fd()))?;
    let number = text.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    Ok(number.unwrap_or_default().trim().to_owned())
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

    #[test]
    fn escaped_mount_points_are_read_back() {
        assert_eq!(unescape(br"/a\040b\134c"), PathBuf::from(r"/a b\c"));
    }
}
