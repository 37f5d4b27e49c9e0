//! The lock of one socket: a file beside it, which is there only while somebody holds the lock. Each socket has its
//! own, so that a process that is stopped while it holds one is in the way of its own group alone.

use std::fs::{File, TryLockError};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Error, Result, WithContext};

/// How long another process may hold the lock, whose every step under it is a short one.
const LIMIT: Duration = Duration::from_secs(2);
/// How often it is tried meanwhile: a lock with a time limit is not waited for in the kernel.
const PAUSE: Duration = Duration::from_millis(5);

/// Held until it is dropped.
pub(super) struct Lock {
    path: PathBuf,
    /// Holds the kernel's lock, which goes with the process at the latest. The file is then left to the next one.
    _file: File,
}

impl Lock {
    /// Takes the lock of the socket at that path.
    pub(super) fn take(socket: &Path) -> Result<Self> {
        let mut path = socket.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(lock) = Self::try_take(&path)? {
                return Ok(lock);
            }
            if Instant::now() >= deadline {
                let path = path.display();
                return Err(Error::unavailable(format!(
                    "another process has held the lock `{path}` for {LIMIT:?}; it may be stopped"
                )));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// `None` while somebody else holds it, or has just taken the file away.
    fn try_take(path: &Path) -> Result<Option<Self>> {
        let cannot = |what| move || format!("cannot {what} `{}`", path.display());
        let options =
            File::options().write(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path);
        let file = options.with_context(cannot("open the lock"))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error).with_context(cannot("lock")),
            Ok(()) => {}
        }
        let ours = file.metadata().with_context(cannot("look at the lock"))?;
        let there = std::fs::symlink_metadata(path);
        let is_there = there.is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino()));
        Ok(is_there.then(|| Self { path: path.to_owned(), _file: file }))
    }
}

impl Drop for Lock {
    /// The file goes first: who opens it later opens another one, and who has opened it already sees that it is
    /// not there any more.
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_holds_the_lock_and_nothing_is_left_of_it() {
        let dir = std::env::temp_dir().join(format!("shim-lock-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let (socket, holders) = (dir.join("s"), std::sync::atomic::AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let _lock = Lock::take(&socket).unwrap();
                        assert_eq!(holders.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                        holders.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
        std::fs::remove_dir(&dir).unwrap();
    }

    #[test]
    fn a_lock_that_is_held_for_long_is_an_error_that_names_it() {
        let dir = std::env::temp_dir().join(format!("shim-held-lock-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let held = Lock::take(&dir.join("s")).unwrap();
        let error = Lock::take(&dir.join("s")).err().unwrap().to_string();
        assert!(error.contains("/s.lock` for 2s"), "{error}");
        drop(held);
        std::fs::remove_dir(&dir).unwrap();
    }
}
