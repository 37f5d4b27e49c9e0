//! What a process costs, as `/proc` tells it.

use std::fs::{self, File};
use std::path::Path;

use shim_runtime::Pid;
use shim_testing::{Failure, Result};

/// Memory in KiB, threads and descriptors at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Footprint {
    pub(crate) rss: f64,
    pub(crate) pss: f64,
    pub(crate) private_dirty: f64,
    pub(crate) threads: f64,
    pub(crate) descriptors: f64,
}

impl Footprint {
    pub(crate) fn of(pid: Pid) -> Result<Self> {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        Ok(Self {
            rss: value(pid, "smaps_rollup", "Rss:")?,
            pss: value(pid, "smaps_rollup", "Pss:")?,
            private_dirty: value(pid, "smaps_rollup", "Private_Dirty:")?,
            threads: value(pid, "status", "Threads:")?,
            descriptors: u32::try_from(descriptors).map_or(f64::INFINITY, f64::from),
        })
    }
}

/// What a process has done since it began; two of these tell what it did between.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Activity {
    /// How often a thread was put onto a processor.
    pub(crate) wakeups: f64,
    /// Processor time in milliseconds.
    pub(crate) cpu: f64,
}

impl Activity {
    /// Of the threads that live now.
    pub(crate) fn of(pid: Pid) -> Result<Self> {
        let mut sum = Self { wakeups: 0.0, cpu: 0.0 };
        for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
            // Time on a processor in ns, time waiting for one, times put onto one. A thread may end meanwhile.
            let text = shim_testing::kernel_text(task.path().join("schedstat")).unwrap_or_default();
            let mut fields = text.split_ascii_whitespace().map(|field| field.parse().unwrap_or(0.0));
            sum.cpu += fields.next().unwrap_or(0.0) / 1e6;
            sum.wakeups += fields.nth(1).unwrap_or(0.0);
        }
        Ok(sum)
    }

    /// What was done since `before`; what threads had done that have ended is not known.
    pub(crate) fn since(self, before: Self) -> Self {
        Self { wakeups: (self.wakeups - before.wakeups).max(0.0), cpu: (self.cpu - before.cpu).max(0.0) }
    }
}

/// Writes a program to its disk: pages of a file that was just built are private and dirty until then.
pub(crate) fn sync(program: &Path) -> Result<()> {
    let synced = File::open(program).and_then(|file| file.sync_all());
    synced.map_err(|error| Failure::setup(format!("cannot open `{}`: {error}", program.display())))
}

/// A figure from a file below `/proc/PID`.
fn value(pid: Pid, file: &str, name: &str) -> Result<f64> {
    let path = format!("/proc/{pid}/{file}");
    let text = shim_testing::kernel_text(&path)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_whitespace().next()).and_then(|number| number.parse().ok());
    number.ok_or_else(|| Failure::setup(format!("no `{name}` in `{path}`")))
}
