//! Finds the place of a mount inside the root file system, from which no link leads out (contract 11.1).

use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};

/// `target` below `rootfs`, with every link on the way resolved as if `rootfs` were the root.
pub(super) fn resolve_inside(rootfs: &Path, target: &Path) -> Result<PathBuf> {
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
