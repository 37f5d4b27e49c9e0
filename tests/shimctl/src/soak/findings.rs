//! What a soak has found wrong, in the order in which it was.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use shim_testing::promise::Level;
use shim_testing::{Broken, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// After how many findings there is nothing new to be learnt.
const ENOUGH: usize = 20;

/// See the module.
#[derive(Default)]
pub(super) struct Findings {
    all: Mutex<Vec<String>>,
    interrupted: Arc<AtomicBool>,
}

impl Findings {
    /// Lets a signal end the soak in order, and a second SIGINT at once; `timeout` sends SIGTERM twice.
    pub(super) fn heed_signals(&self) -> Result<()> {
        flag::register_conditional_shutdown(SIGINT, 1, Arc::clone(&self.interrupted))?;
        for signal in [SIGINT, SIGTERM] {
            flag::register(signal, Arc::clone(&self.interrupted))?;
        }
        Ok(())
    }

    /// Whether to go no further.
    pub(super) fn are_enough(&self) -> bool {
        self.interrupted.load(Relaxed) || self.lock().len() >= ENOUGH
    }

    pub(super) fn add(&self, finding: String) {
        self.lock().push(finding);
    }

    pub(super) fn add_all(&self, findings: impl IntoIterator<Item = String>) {
        self.lock().extend(findings);
    }

    /// Adds each binding promise that was broken, once; what a shim only should do is told and no more.
    pub(super) fn add_broken(&self, broken: &[Broken]) {
        let mut promises = BTreeMap::new();
        for broken in broken {
            promises.entry(broken.promise.name).or_insert_with(Vec::new).push(broken);
        }
        for (_, broken) in promises {
            let finding = format!("broken promise, {} times: {}", broken.len(), broken[0]);
            match broken[0].promise.level {
                Level::Must => self.add(finding),
                Level::Should => eprintln!("shimctl: {finding}"),
            }
        }
    }

    /// Prints them, and tells whether there were any.
    pub(super) fn report(self) -> ExitCode {
        if self.interrupted.load(Relaxed) {
            self.add("the soak was interrupted".to_owned());
        }
        let all = self.lock();
        for finding in &*all {
            eprintln!("shimctl: {finding}");
        }
        if all.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
