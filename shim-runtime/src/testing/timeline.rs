//! What happened when: every call with its duration and outcome, every event as it arrived.
//! One glance at it must tell why a run failed, so each entry is one short line.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::lock;

/// The record of one run; clones share it.
#[derive(Clone)]
pub struct Timeline(Arc<Shared>);

struct Shared {
    began: Instant,
    entries: Mutex<Vec<Entry>>,
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
    index: usize,
    began: Instant,
}

impl Timeline {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Shared { began: Instant::now(), entries: Mutex::default() }))
    }

    pub(crate) fn call(&self, what: impl Into<String>) -> Running {
        let kind = Kind::Call { took: None, outcome: String::new() };
        let index = self.push(kind, what.into());
        Running { timeline: self.clone(), index, began: Instant::now() }
    }

    pub(crate) fn event(&self, what: impl Into<String>) {
        self.push(Kind::Event, what.into());
    }

    /// Adds a line of the user's own.
    pub fn note(&self, what: impl Into<String>) {
        self.push(Kind::Note, what.into());
    }

    /// All lines so far, in the order in which they began.
    pub fn entries(&self) -> Vec<Entry> {
        lock(&self.0.entries).clone()
    }

    fn push(&self, kind: Kind, what: String) -> usize {
        let mut entries = lock(&self.0.entries);
        entries.push(Entry { at: self.0.began.elapsed(), kind, what });
        entries.len() - 1
    }
}

impl Running {
    pub(crate) fn done(self, outcome: impl Into<String>) {
        let took = Some(self.began.elapsed());
        if let Some(entry) = lock(&self.timeline.0.entries).get_mut(self.index) {
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
}
