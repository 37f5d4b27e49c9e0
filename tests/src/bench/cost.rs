//! What a process costs, as `/proc` tells it.

use std::fs;

use shim_runtime::Pid;
use shim_runtime::testing::{Failure, Result};

/// Memory in KiB, threads and descriptors at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Footprint {
    pub(super) rss: f64,
    pub(super) pss: f64,
    pub(super) private_dirty: f64,
    pub(super) threads: f64,
    pub(super) descriptors: f64,
}

impl Footprint {
    pub(super) fn of(pid: Pid) -> Result<Self> {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        Ok(Self {
            rss: value(pid, "smaps_rollup", "Rss:")?,
            pss: value(pid, "smaps_rollup", "Pss:")?,
            private_dirty: value(pid, "smaps_rollup", "Private_Dirty:")?,
            threads: value(pid, "status", "Threads:")?,
            descriptors: descriptors as f64,
        })
    }
}

/// What a process has done since it began; two of these tell what it did between.
#[derive(Clone, Copy, Debug)]
pub(super) struct Activity {
    /// How often a thread was put onto a processor.
    pub(super) wakeups: f64,
    /// Processor time in milliseconds.
    pub(super) cpu: f64,
}

impl Activity {
    /// Of the threads that live now.
    pub(super) fn of(pid: Pid) -> Result<Self> {
        let mut sum = Self { wakeups: 0.0, cpu: 0.0 };
        for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
            // Time on a processor in ns, time waiting for one, times put onto one. A thread may end meanwhile.
            let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            let mut fields = text.split_ascii_whitespace().map(|field| field.parse().unwrap_or(0.0));
            sum.cpu += fields.next().unwrap_or(0.0) / 1e6;
            sum.wakeups += fields.nth(1).unwrap_or(0.0);
        }
        Ok(sum)
    }

    /// What was done since `before`; what threads had done that have ended is not known.
    pub(super) fn since(self, before: Self) -> Self {
        Self { wakeups: (self.wakeups - before.wakeups).max(0.0), cpu: (self.cpu - before.cpu).max(0.0) }
    }
}

/// A figure from a file below `/proc/PID`.
fn value(pid: Pid, file: &str, name: &str) -> Result<f64> {
    let path = format!("/proc/{pid}/{file}");
    let text = fs::read_to_string(&path)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_whitespace().next()).and_then(|number| number.parse().ok());
    number.ok_or_else(|| Failure::setup(format!("no `{name}` in `{path}`")))
}
