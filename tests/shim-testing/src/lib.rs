//! Tests of shims without containerd, at two distances and in one vocabulary:
//!
//! | | calls | for |
//! |---|---|---|
//! | [`Harness`] | the annotated struct, in the test's process, through TTRPC | unit tests: milliseconds, a debugger, mocks |
//! | [`FakeContainerd`] | any shim's binary, from `start` to `delete` | the whole, in every dialect of containerd |
//!
//! Neither needs root, containerd or runc, unless the shim does. Both make a [`Bundle`], call a [`Task`],
//! record [`Events`] that are compared by their short forms (`exit c1 3`, `exec-started c1/e1`), and watch the
//! promises in [`promise`] while they drive; a broken one is reported by name. Everything that happens is in
//! the [`Timeline`], which a [`Failure`] shows when a test unwraps it.
//!
//! A test of a shim's struct, with an exec and a refused container, is on [`Harness`]. The smallest:
//!
//! ```
//! # use shim_runtime::prelude::*;
//! # #[containerd_shim(runtime = "io.containerd.hello.v1", main = false)]
//! # struct Hello;
//! # impl Shim for Hello {
//! #     type Container = HostProcess;
//! #     fn new(_: &Context) -> Result<Self> { Ok(Self) }
//! #     fn create(&self, req: &mut Create) -> Result<HostProcess> { HostProcess::create(req) }
//! # }
//! # use std::time::Duration;
//! use shim_testing::Harness;
//!
//! # fn main() -> shim_testing::Result<()> {
//! let harness = Harness::<Hello>::new()?;
//! let bundle = harness.bundle("c1").args(["sh", "-c", "exit 3"]).build()?;
//! let task = harness.task(&bundle)?;
//! assert_eq!(task.run(&bundle)?.answer(Duration::from_secs(10))?.exit_status, 3);
//! task.remove()?;
//! harness.assert_events(&["create c1", "start c1", "exit c1 3", "delete c1 3"])?;
//! harness.check()
//! # }
//! ```
//!
//! The same for a binary, call by call. It is driven in the dialect of any containerd from 1.6 on: `start` is
//! run and its answer read as that daemon does, the `delete` action follows, and what is left is looked for.
//!
//! ```no_run
//! # use std::time::Duration;
//! # use shim_testing::{Dialect, FakeContainerd, Result};
//! # fn example() -> Result<()> {
//! let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
//! let bundle = ctrd.bundle("c1").args(["sh", "-c", "echo hi; exit 3"]).capture().build()?;
//! let mut shim = ctrd.start("/path/to/containerd-shim-host-v1", &bundle)?;
//! let task = shim.task();
//! task.create(&bundle)?;
//! let exit = task.wait();
//! task.start()?;
//! assert_eq!(exit.answer(Duration::from_secs(5))?.exit_status, 3);
//! task.delete()?;
//! assert_eq!(bundle.stdio().finish(Duration::from_secs(5))?.stdout, b"hi\n");
//! shim.end()?;
//! ctrd.assert_order(&["create c1", "start c1", "exit c1 3", "delete c1"])?;
//! ctrd.check()
//! # }
//! ```

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use protobuf::well_known_types::timestamp::Timestamp;

pub mod bootstrap;
mod bundle;
mod client;
mod containerd;
mod dialect;
pub mod events;
mod failure;
mod frames;
mod harness;
mod launch;
mod leaks;
mod process;
pub mod promise;
mod sequence;
mod shim;
pub mod spec;
mod start;
mod stdio;
pub mod timeline;
mod usage;
mod watch;

pub use bundle::{Bundle, BundleBuilder, GROUP};
pub use client::{Task, Waiting};
pub use containerd::{Builder, FakeContainerd};
pub use dialect::Dialect;
pub use events::{Event, Events};
pub use failure::{Broken, Cause, Failure, Result};
pub use frames::{Frame, RawConnection};
pub use harness::Harness;
pub use launch::{Launch, Output};
pub use process::{Process, kernel_text, listeners, related_to};
pub use shim::Shim;
#[doc(hidden)]
pub use shim_runtime::testing::{CRASH_AT, FAIL_AT, KERNEL_LACKS, STOP_AT, STOP_COMMANDS};
pub use shim_runtime::testing::{Mutations, rounds};
pub use stdio::{Captured, Mode, Stdio};
pub use timeline::Timeline;
pub use usage::Usage;

/// The messages of the task service, as the shims' answers carry them.
pub use containerd_shim_protos::api;

/// A lock whose holder panicked still guards sound data here: every change is one push or one store.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The time of a timestamp; `None` for the unset one and for years before 1970, which Go sends for "never".
fn system_time(stamp: &Timestamp) -> Option<SystemTime> {
    let seconds = u64::try_from(stamp.seconds).ok()?;
    let since = Duration::new(seconds, u32::try_from(stamp.nanos).ok()?);
    (!since.is_zero()).then(|| SystemTime::UNIX_EPOCH + since)
}

/// The time of the day in UTC: enough to compare two times of one run.
fn clock(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs();
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{hour:02}:{minute:02}:{second:02}.{:09}", since.subsec_nanos())
}
