//! Strangers who got the pid of somebody who is dead.

use std::process::{Child, Command};

use nix::unistd::geteuid;

/// A process that must not be killed.
pub(super) struct Stranger(Child);

impl Stranger {
    /// One with that pid, where it can be had; with `SHIM_TESTS=all` it must.
    pub(super) fn with(pid: u32) -> Option<Self> {
        let last_pid = std::path::Path::new("/proc/sys/kernel/ns_last_pid");
        if !geteuid().is_root() || !last_pid.exists() {
            let needed = std::env::var_os("SHIM_TESTS").is_some_and(|tests| tests == "all");
            assert!(!needed, "root and `{}` are needed", last_pid.display());
            println!("left out: a process of a dead one's pid needs root and `{}`", last_pid.display());
            return None;
        }
        loop {
            // The next process gets the pid, unless another one of this machine is quicker.
            std::fs::write(last_pid, (pid - 1).to_string()).unwrap();
            let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
            if child.id() == pid {
                return Some(Self(child));
            }
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub(super) fn lives(mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
