//! What is there while only the first container runs: nothing that was not there at first, and no more memory.

use std::collections::BTreeSet;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use shim_testing::{FakeContainerd, Result, Shim, Usage};

use crate::cost::Footprint;

/// How long what is not needed any more may take to go.
const LIMIT: Duration = Duration::from_secs(15);
/// How much more private memory there may be than after the first tenth, in KiB. A heap levels off only after some
/// hundred containers: this runtime remembers 256 deletions, each of which may keep a page from being given back.
/// More containers make it no more, so that in a long soak this is less for each than the smallest allocation.
const GROWTH: f64 = 1024.0;
/// And what part of the first: a heap that is collected moves by a part of its size.
const GROWTH_PART: f64 = 0.25;

/// What was there at first.
pub(super) struct Rest<'a> {
    ctrd: &'a FakeContainerd,
    anchor: &'a Shim,
    usage: Usage,
    remains: BTreeSet<String>,
}

/// The long-lived shim at one moment of rest.
#[derive(Clone)]
pub(super) struct Moment {
    what: &'static str,
    done: u64,
    took: Duration,
    footprint: Footprint,
}

impl<'a> Rest<'a> {
    pub(super) fn new(ctrd: &'a FakeContainerd, anchor: &'a Shim) -> Result<Self> {
        Ok(Self { ctrd, anchor, usage: anchor.usage()?, remains: ctrd.remains() })
    }

    /// Looks for what was left, and what the long-lived shim still holds of it.
    pub(super) fn look(&self) -> Result<Vec<String>> {
        self.anchor.expect_descriptors(&self.usage)?;
        self.anchor.expect_threads(&self.usage)?;
        let server = self.anchor.server()?.pid();
        let left = gone_in_time(|| {
            let mut left: Vec<_> = self.ctrd.remains().difference(&self.remains).cloned().collect();
            left.extend(zombies(server).into_iter().map(|pid| format!("zombie {pid} of the shim")));
            left
        });
        Ok(left.into_iter().map(|left| format!("{left} is left although its container is gone")).collect())
    }

    pub(super) fn moment(&self, what: &'static str, done: u64, took: Duration) -> Result<Moment> {
        Ok(Moment { what, done, took, footprint: Footprint::of(self.anchor.server()?.pid())? })
    }
}

/// What is still found when its time is over. Nothing tells when the last of it goes.
fn gone_in_time(look: impl Fn() -> Vec<String>) -> Vec<String> {
    let end = Instant::now() + LIMIT;
    loop {
        let left = look();
        if left.is_empty() || Instant::now() > end {
            return left;
        }
        thread::park_timeout(Duration::from_millis(20));
    }
}

/// The children of a process that have ended and that it has not looked after.
fn zombies(pid: shim_runtime::Pid) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let children = tasks.filter_map(|task| shim_testing::kernel_text(task.path().join("children")).ok());
    let pids: Vec<_> =
        children.flat_map(|text| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect();
    pids.into_iter().filter(|pid| is_zombie(pid)).collect()
}

fn is_zombie(pid: &str) -> bool {
    let stat = shim_testing::kernel_text(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
}

impl Moment {
    /// The sentence about memory that was not there at the first moment of the same kind.
    pub(super) fn growth_since(&self, first: &Self) -> Option<String> {
        let (then, now) = (first.footprint.private_dirty, self.footprint.private_dirty);
        (now > then + GROWTH + GROWTH_PART * then).then(|| {
            format!(
                "the shim grew from {then} KiB of private memory after {} {} to {now} KiB after {}",
                first.done, self.what, self.done
            )
        })
    }

    /// Its line of the table.
    pub(super) fn row(&self) -> Vec<String> {
        let Footprint { rss, private_dirty, descriptors, threads, .. } = self.footprint;
        let figures = [rss, private_dirty, descriptors, threads].map(|figure| format!("{figure:.0}"));
        let took = format!("{:.1}", self.took.as_secs_f64());
        [self.what.to_owned(), self.done.to_string(), took].into_iter().chain(figures).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_may_move_but_not_grow() {
        let moment = |done, private_dirty| {
            let footprint = Footprint { rss: 0.0, pss: 0.0, private_dirty, threads: 2.0, descriptors: 20.0 };
            Moment { what: "containers", done, took: Duration::ZERO, footprint }
        };
        let first = moment(30, 800.0);
        assert_eq!(moment(300, 2000.0).growth_since(&first), None);
        assert_eq!(
            moment(300, 2400.0).growth_since(&first).as_deref(),
            Some("the shim grew from 800 KiB of private memory after 30 containers to 2400 KiB after 300")
        );
    }
}
