//! What a shim's process holds: compared before its first container and after its last one, it tells a leak that
//! a short life would hide.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use super::failure::Result;
use super::promise;
use super::shim::Shim;
use shim_runtime::Pid;

/// How long what is not needed any more may take to go; a worker without work ends after some seconds.
const LIMIT: Duration = Duration::from_secs(15);
/// How much more than before there may be: with the first event comes a connection to containerd, and a thread.
const PUBLISHER: usize = 1;

/// The descriptors and threads of a shim at some time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// How many descriptors lead to each thing; pipes are one thing, and so are sockets.
    descriptors: BTreeMap<String, usize>,
    threads: usize,
}

impl Usage {
    fn of(pid: Pid) -> Self {
        let mut descriptors = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            // One that was closed meanwhile.
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            let target = target.to_string_lossy().into_owned();
            let kind =
                target.split_once(":[").filter(|(kind, _)| !kind.contains('/') && *kind != "anon_inode");
            *descriptors.entry(kind.map_or(target.as_str(), |(kind, _)| kind).to_owned()).or_default() += 1;
        }
        let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().count();
        Self { descriptors, threads }
    }

    /// The descriptors that were not there before.
    fn descriptors_since(&self, before: &Self) -> Vec<String> {
        let more = self.descriptors.iter().filter_map(|(kind, count)| {
            let known = before.descriptors.get(kind).copied().unwrap_or_default();
            let known = known + if kind == "socket" { PUBLISHER } else { 0 };
            count.checked_sub(known).filter(|more| *more > 0).map(|more| format!("{more} of `{kind}`"))
        });
        more.collect()
    }
}

impl Shim {
    /// What the server's process holds now.
    pub fn usage(&self) -> Result<Usage> {
        // An answer proves that our own connection is among it.
        self.task().connect()?;
        Ok(Usage::of(self.server()?.pid()))
    }

    /// Waits until the server holds no more descriptors than before, and reports those that are left. Whoever
    /// connects more often than before has to have hung up.
    pub fn expect_descriptors(&self, before: &Usage) -> Result<()> {
        let left = self.wait_until_empty(|usage| usage.descriptors_since(before))?;
        if !left.is_empty() {
            self.watch().report(promise::LEAK_DESCRIPTOR, left.join(", "), "no more than before");
        }
        Ok(())
    }

    /// Waits until the server has no more threads than before, and reports how many are left.
    pub fn expect_threads(&self, before: &Usage) -> Result<()> {
        let known = before.threads + PUBLISHER;
        let left = self.wait_until_empty(|usage| (known..usage.threads).collect())?;
        if !left.is_empty() {
            let seen = format!("{} threads more than before", left.len());
            self.watch().report(promise::LEAK_THREAD, seen, "no more than before");
        }
        Ok(())
    }

    fn wait_until_empty<T>(&self, look: impl Fn(Usage) -> Vec<T>) -> Result<Vec<T>> {
        let end = Instant::now() + LIMIT;
        loop {
            let left = look(Usage::of(self.server()?.pid()));
            if left.is_empty() || Instant::now() > end {
                return Ok(left);
            }
            // Nothing tells when a process closes a descriptor.
            thread::park_timeout(Duration::from_millis(5));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_opened_since_is_named_and_one_connection_is_not() {
        let before = Usage::of(Pid::own());
        let _pipe = std::io::pipe().unwrap();
        let _file = fs::File::open("/proc/self/status").unwrap();
        let now = Usage::of(Pid::own());
        // Other tests of this process open and close at the same time.
        let more = now.descriptors_since(&before).join(", ");
        assert!(more.contains("of `pipe`") && more.contains("/status`"), "{more}");
        let one = |sockets| Usage { descriptors: [("socket".to_owned(), sockets)].into(), threads: 1 };
        assert_eq!(one(2).descriptors_since(&one(1)), [""; 0]);
        assert_eq!(one(4).descriptors_since(&one(1)), ["2 of `socket`"]);
    }
}
