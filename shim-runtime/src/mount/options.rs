//! What the option words of a mount come to: flags, propagation, what is done around the mount, and data.

use nix::mount::MsFlags;

use crate::error::{Error, Result};

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

/// See the module.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) flags: MsFlags,
    pub(super) propagation: Vec<MsFlags>,
    /// The source is a file that is to become a disk.
    pub(super) loop_device: Option<Loop>,
    /// What the file system itself is to understand.
    pub(super) data: Vec<String>,
}

/// How a file becomes a disk.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Loop {
    /// Past the page cache.
    pub(super) direct: bool,
}

impl Options {
    pub(super) fn parse(words: &[String]) -> Result<Self> {
        let mut options =
            Self { flags: MsFlags::empty(), propagation: Vec::new(), loop_device: None, data: Vec::new() };
        for word in words {
            if let Some((_, flag, clears)) = FLAGS.iter().find(|(known, ..)| known == word) {
                options.flags.set(*flag, !clears);
            } else if let Some((_, flag)) = PROPAGATION.iter().find(|(known, _)| known == word) {
                options.propagation.push(*flag);
            } else if word == "loop" {
                options.loop_device = Some(Loop { direct: false });
            } else if word.starts_with("X-containerd.") {
                return Err(Error::invalid_argument(format!("mount option `{word}` is not supported")));
            } else {
                options.data.push(word.clone());
            }
        }
        if let Some(device) = &mut options.loop_device {
            let count = options.data.len();
            options.data.retain(|word| word != "direct-io");
            device.direct = options.data.len() < count;
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Options> {
        Options::parse(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn option_words_become_flags_propagation_and_data() {
        let options = parse(&["rbind", "ro", "rprivate", "lowerdir=/a:/b", "direct-io", "rw"]).unwrap();
        assert_eq!(options.flags, MsFlags::MS_BIND | MsFlags::MS_REC);
        assert_eq!(options.propagation, [MsFlags::MS_PRIVATE | MsFlags::MS_REC]);
        assert_eq!(options.data, ["lowerdir=/a:/b", "direct-io"]);
        assert_eq!(options.loop_device, None);
    }

    #[test]
    fn words_for_loop_devices_do_not_reach_the_file_system() {
        let options = parse(&["direct-io", "loop", "discard"]).unwrap();
        assert_eq!(options.loop_device, Some(Loop { direct: true }));
        assert_eq!(options.data, ["discard"]);
        assert_eq!(parse(&["loop"]).unwrap().loop_device, Some(Loop { direct: false }));
    }

    #[test]
    fn an_option_that_was_meant_for_somebody_else_is_refused_by_name() {
        let error = parse(&["X-containerd.mkdir=1"]).unwrap_err();
        assert_eq!(error.to_string(), "mount option `X-containerd.mkdir=1` is not supported");
    }
}
