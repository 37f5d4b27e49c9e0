//! FIFOs at which the fixture waits, so that a test can do something meanwhile.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;

/// How long the fixture may take to come.
const LIMIT: Duration = Duration::from_mins(1);

/// A FIFO at which the fixture waits.
pub struct Gate(PathBuf);

impl Gate {
    /// Makes it in a folder.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new(folder: &Path, name: &str) -> Self {
        let path = folder.join(format!("gate-{name}"));
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).expect("make a FIFO");
        Self(path)
    }

    /// Its path, as the fixture is told of it.
    ///
    /// # Panics
    /// When the path is not UTF-8.
    pub fn path(&self) -> &str {
        self.0.to_str().expect("a path of ours")
    }

    /// Waits until the fixture is there; it goes on when the returned end is dropped.
    ///
    /// # Panics
    /// When the fixture does not come within a minute.
    pub fn reached(&self) -> File {
        let open = || OpenOptions::new().write(true).custom_flags(nix::libc::O_NONBLOCK).open(&self.0);
        let end = Instant::now() + LIMIT;
        loop {
            // Without a reader it cannot be opened.
            if let Ok(opened) = open() {
                return opened;
            }
            assert!(Instant::now() < end, "the shim never came to {}", self.0.display());
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }
}
