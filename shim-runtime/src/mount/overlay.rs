//! The layers of an overlay. The kernel takes a page of options and no more, which many layers exceed: their
//! names are then told from the folder that they have in common (contract 11.1).

use std::path::{Path, PathBuf};
use std::thread;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::chdir;

use crate::error::{Error, Result, WithContext};

/// How much of the page is left free, as containerd has it.
const MARGIN: usize = 512;

/// The option that lists the layers, and the layers' names, in which colons and backslashes may be escaped.
pub(super) fn layers(data: &[String]) -> Option<(usize, Vec<&str>)> {
    let (index, list) =
        data.iter().enumerate().find_map(|(index, word)| Some((index, word.strip_prefix("lowerdir=")?)))?;
    let (mut names, mut start, mut escaped) = (Vec::new(), 0, false);
    for (at, byte) in list.bytes().enumerate() {
        if byte == b':' && !escaped {
            names.push(&list[start..at]);
            start = at + 1;
        }
        escaped = byte == b'\\' && !escaped;
    }
    names.push(&list[start..]);
    Some((index, names))
}

/// A layer's name as a path.
pub(super) fn unescaped(name: &str) -> PathBuf {
    let mut path = String::with_capacity(name.len());
    let mut letters = name.chars();
    while let Some(letter) = letters.next() {
        path.push(if letter == '\\' { letters.next().unwrap_or(letter) } else { letter });
    }
    path.into()
}

/// If the options are too long for a page, makes the layers' names relative to the returned folder.
pub(super) fn shorten(data: &mut [String], page: usize) -> Option<PathBuf> {
    let length = data.iter().map(|word| word.len() + 1).sum::<usize>().saturating_sub(1);
    if length < page.saturating_sub(MARGIN) {
        return None;
    }
    let (index, names) = layers(data).filter(|(_, names)| names.iter().all(|name| name.starts_with('/')))?;
    let mut folder = Path::new(names.first()?).parent()?;
    for name in &names {
        let parent = Path::new(name).parent()?;
        while !parent.starts_with(folder) {
            folder = folder.parent()?;
        }
    }
    let relative = |name: &&str| Some(Path::new(name).strip_prefix(folder).ok()?.to_str()?.to_owned());
    let list = names.iter().map(relative).collect::<Option<Vec<_>>>()?.join(":");
    let folder = unescaped(folder.to_str()?);
    data[index] = format!("lowerdir={list}");
    Some(folder)
}

/// Does something with `folder` as the working directory. That is the whole process's, so a thread of its own
/// is taken, which leaves what the others share.
pub(super) fn inside(folder: &Path, work: impl FnOnce() -> nix::Result<()> + Send) -> Result<()> {
    let there = || {
        unshare(CloneFlags::CLONE_FS).with_context(|| "cannot have a working directory of its own")?;
        chdir(folder).with_context(|| format!("cannot change into `{}`", folder.display()))?;
        Ok(work()?)
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("mount".to_owned()).spawn_scoped(scope, there);
        let thread = thread.with_context(|| "cannot start the thread that mounts")?;
        thread.join().unwrap_or_else(|_| Err(Error::internal("the thread that mounts has panicked")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shortened(list: &str) -> (Option<PathBuf>, String) {
        let mut data = vec!["index=off".to_owned(), format!("lowerdir={list}")];
        let folder = shorten(&mut data, 0);
        assert_eq!(data[0], "index=off");
        (folder, data[1].strip_prefix("lowerdir=").unwrap().to_owned())
    }

    #[test]
    fn options_that_fit_into_a_page_with_a_margin_are_left_as_they_are() {
        let mut data = vec!["lowerdir=/a/b/c:/a/b/d".to_owned(), "upperdir=/u".to_owned()];
        let length = data.join(",").len();
        assert_eq!(shorten(&mut data, length + MARGIN + 1), None);
        assert_eq!(data[0], "lowerdir=/a/b/c:/a/b/d");
        assert_eq!(shorten(&mut data, length + MARGIN), Some("/a/b".into()));
        assert_eq!(data[0], "lowerdir=c:d");
    }

    #[test]
    fn layers_are_named_from_the_folder_that_they_have_in_common() {
        let is = |list, folder: &str, names: &str| {
            assert_eq!(shortened(list), (Some(folder.into()), names.to_owned()), "{list}");
        };
        is("/s/1/fs:/s/12/fs:/s/3/fs", "/s", "1/fs:12/fs:3/fs");
        is("/s/1:/s/1/deeper", "/s", "1:1/deeper");
        is("/a:/b/c", "/", "a:b/c");
        is("/only/one", "/only", "one");
        is(r"/s\:x/1\:2:/s\:x/3\\:/s\:x/4", "/s:x", r"1\:2:3\\:4");
    }

    #[test]
    fn layers_that_have_no_folder_in_common_keep_their_names() {
        for list in ["", "/a:b", "a:/b", "/a::/b", "/"] {
            assert_eq!(shortened(list), (None, list.to_owned()), "{list}");
        }
        assert_eq!(shorten(&mut ["upperdir=/u".to_owned()], 0), None);
    }

    #[test]
    fn the_working_directory_of_others_stays() {
        let before = std::env::current_dir().unwrap();
        let mut seen = PathBuf::new();
        inside(Path::new("/proc"), || {
            seen = nix::unistd::getcwd()?;
            Ok(())
        })
        .unwrap();
        assert_eq!((seen, std::env::current_dir().unwrap()), ("/proc".into(), before));
        let error = inside(Path::new("/no-such-folder"), || Ok(())).unwrap_err();
        assert!(error.to_string().starts_with("cannot change into `/no-such-folder`: "), "{error}");
    }
}
