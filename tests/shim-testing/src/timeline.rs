//! What happened when: every call with its duration and outcome, every event as it arrived.
//! One glance at it must tell why a run failed, so each entry is one short line.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::lock;

/// How many lines are kept: what led to a failure is near the end.
const KEPT: usize = 20_000;

/// The record of one run, its last 20,000 lines; clones share it.
#[derive(Clone)]
pub struct Timeline(Arc<Shared>);

struct Shared {
    began: Instant,
    lines: Mutex<Lines>,
}

#[derive(Default)]
struct Lines {
    entries: VecDeque<Entry>,
    /// How many were before them.
    dropped: usize,
}

/// What an [`Entry`] is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A call or a command, from its beginning; `took` is `None` while it runs.
    Call {
        /// How long it took.
        took: Option<Duration>,
        /// What came of it.
        outcome: String,
    },
    /// An event that arrived.
    Event,
    /// Something else worth knowing: a signal sent, the events service stopped, a promise broken.
    Note,
}

/// One line of the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When, since the beginning of the run.
    pub at: Duration,
    /// What kind of line.
    pub kind: Kind,
    /// What is said, for example `Start c1` or `exit c1 3`.
    pub what: String,
}

/// A call that was noted and runs; ends with [`Running::done`].
pub(crate) struct Running {
    timeline: Timeline,
    number: usize,
    began: Instant,
}

impl Timeline {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Shared { began: Instant::now(), lines: Mutex::default() }))
    }

    pub(crate) fn call(&self, what: impl Into<String>) -> Running {
        let kind = Kind::Call { took: None, outcome: String::new() };
        let number = self.push(kind, what.into());
        Running { timeline: self.clone(), number, began: Instant::now() }
    }

    pub(crate) fn event(&self, what: impl Into<String>) {
        self.push(Kind::Event, what.into());
    }

    /// Adds a line of the user's own.
    pub fn note(&self, what: impl Into<String>) {
        self.push(Kind::Note, what.into());
    }

    /// The lines so far, in the order in which they began.
    pub fn entries(&self) -> Vec<Entry> {
        lock(&self.0.lines).entries.iter().cloned().collect()
    }

    fn push(&self, kind: Kind, what: String) -> usize {
        let mut lines = lock(&self.0.lines);
        if lines.entries.len() == KEPT {
            lines.entries.pop_front();
            lines.dropped += 1;
        }
        lines.entries.push_back(Entry { at: self.0.began.elapsed(), kind, what });
        lines.dropped + lines.entries.len() - 1
    }
}

impl Running {
    pub(crate) fn done(self, outcome: impl Into<String>) {
        let took = Some(self.began.elapsed());
        let mut lines = lock(&self.timeline.0.lines);
        let index = self.number.checked_sub(lines.dropped);
        if let Some(entry) = index.and_then(|index| lines.entries.get_mut(index)) {
            entry.kind = Kind::Call { took, outcome: outcome.into() };
        }
    }
}

/// Milliseconds with a tenth: the resolution at which a person reads a timeline.
fn milliseconds(duration: Duration) -> String {
    format!("{:.1}", duration.as_secs_f64() * 1e3)
}

impl fmt::Debug for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:>10} {:>9}", "ms", "took")?;
        let entries = self.entries();
        let is_call = |entry: &&Entry| matches!(entry.kind, Kind::Call { .. });
        let width = entries.iter().filter(is_call).map(|entry| entry.what.chars().count()).max().unwrap_or(0);
        for entry in entries {
            let (at, what) = (milliseconds(entry.at), entry.what);
            let line = match entry.kind {
                Kind::Call { took: Some(took), outcome } => {
                    format!("{at:>10} {:>9}  {what:<width$}  {outcome}", milliseconds(took))
                }
                Kind::Call { took: None, .. } => {
                    format!("{at:>10} {:>9}  {what:<width$}  (no answer)", "...")
                }
                Kind::Event => format!("{at:>10} {:>9}  > {what}", ""),
                Kind::Note => format!("{at:>10} {:>9}  # {what}", ""),
            };
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_without_an_answer_is_told_from_one_with() {
        let timeline = Timeline::new();
        timeline.call("Create c1").done("pid 7");
        let _running = timeline.call("Wait c1");
        timeline.event("create c1 7");
        let text = timeline.to_string();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[1].ends_with("Create c1  pid 7"), "{text}");
        assert!(lines[2].ends_with("Wait c1    (no answer)"), "{text}");
        assert!(lines[3].ends_with("> create c1 7"), "{text}");
    }

    #[test]
    fn the_oldest_lines_go_and_a_call_finds_its_own() {
        let timeline = Timeline::new();
        let (lost, kept) = (timeline.call("Wait c1"), timeline.call("Wait c2"));
        (1..KEPT).for_each(|n| timeline.note(n.to_string()));
        lost.done("status 1");
        kept.done("status 2");
        let entries = timeline.entries();
        assert_eq!(entries.len(), KEPT);
        let Kind::Call { outcome, .. } = &entries[0].kind else { panic!("{:?}", entries[0]) };
        assert_eq!((entries[0].what.as_str(), outcome.as_str()), ("Wait c2", "status 2"));
    }
}
