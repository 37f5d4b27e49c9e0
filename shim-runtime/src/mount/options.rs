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

const USERS: &str = "uidmap=";
const GROUPS: &str = "gidmap=";

/// See the module.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) flags: MsFlags,
    pub(super) propagation: Vec<MsFlags>,
    /// The source is a file that is to become a disk.
    pub(super) loop_device: Option<Loop>,
    pub(super) id_map: Option<IdMap>,
    /// What the file system itself is to understand.
    pub(super) data: Vec<String>,
}

/// How a file becomes a disk.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Loop {
    /// Past the page cache.
    pub(super) direct: bool,
}

/// Lines as a user namespace's map has them: first id inside, first id outside, how many.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct IdMap {
    pub(super) users: String,
    pub(super) groups: String,
}

impl Options {
    pub(super) fn parse(words: &[String]) -> Result<Self> {
        let mut options = Self {
            flags: MsFlags::empty(),
            propagation: Vec::new(),
            loop_device: None,
            id_map: None,
            data: Vec::new(),
        };
        let mut maps = IdMap::default();
        for word in words {
            if let Some((_, flag, clears)) = FLAGS.iter().find(|(known, ..)| known == word) {
                options.flags.set(*flag, !clears);
            } else if let Some((_, flag)) = PROPAGATION.iter().find(|(known, _)| known == word) {
                options.propagation.push(*flag);
            } else if word == "loop" {
                options.loop_device = Some(Loop { direct: false });
            } else if let Some(map) = word.strip_prefix(USERS) {
                maps.users = lines(map)?;
            } else if let Some(map) = word.strip_prefix(GROUPS) {
                maps.groups = lines(map)?;
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
        // One without the other is passed over, as by containerd.
        options.id_map = Some(maps).filter(|maps| !maps.users.is_empty() && !maps.groups.is_empty());
        Ok(options)
    }
}

/// Whether a word is for us alone, and for no file system.
pub(super) fn maps_ids(word: &str) -> bool {
    word.starts_with(USERS) || word.starts_with(GROUPS)
}

/// `0:1000:1,1:100000:65536`.
fn lines(map: &str) -> Result<String> {
    let line = |range: &str| {
        let numbers: Vec<_> = range.split(':').map(|number| number.parse::<u32>().ok()).collect();
        match numbers[..] {
            [Some(inside), Some(outside), Some(count)] => Some(format!("{inside} {outside} {count}\n")),
            _ => None,
        }
    };
    let broken = || Error::invalid_argument(format!("`{map}` is no list of ids like `0:100000:65536`"));
    map.split(',').map(line).collect::<Option<_>>().ok_or_else(broken)
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
        assert_eq!((options.loop_device, options.id_map), (None, None));
    }

    #[test]
    fn words_for_loop_devices_do_not_reach_the_file_system() {
        let options = parse(&["direct-io", "loop", "discard"]).unwrap();
        assert_eq!(options.loop_device, Some(Loop { direct: true }));
        assert_eq!(options.data, ["discard"]);
        assert_eq!(parse(&["loop"]).unwrap().loop_device, Some(Loop { direct: false }));
    }

    #[test]
    fn maps_of_ids_count_only_together_and_never_reach_the_file_system() {
        let options = parse(&["uidmap=0:1000:1,1:100000:65536", "gidmap=0:100000:65536"]).unwrap();
        let (users, groups) = ("0 1000 1\n1 100000 65536\n".to_owned(), "0 100000 65536\n".to_owned());
        assert_eq!(options.id_map, Some(IdMap { users, groups }));
        assert!(options.data.is_empty());
        let options = parse(&["uidmap=0:1000:1"]).unwrap();
        assert_eq!((options.id_map, options.data), (None, vec![]));
    }

    #[test]
    fn broken_maps_of_ids_are_refused() {
        for map in ["", "0", "0:1", "0:1:2:3", "0:1:2,", "a:b:c", "0:1:-1", "0:1:4294967296"] {
            let error = parse(&[&format!("gidmap={map}")]).unwrap_err().to_string();
            assert_eq!(error, format!("`{map}` is no list of ids like `0:100000:65536`"));
        }
    }

    #[test]
    fn an_option_that_was_meant_for_somebody_else_is_refused_by_name() {
        let error = parse(&["X-containerd.mkdir=1"]).unwrap_err();
        assert_eq!(error.to_string(), "mount option `X-containerd.mkdir=1` is not supported");
    }
}
