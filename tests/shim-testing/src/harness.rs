//! A shim under test in the test's own process, served over a pair of sockets as a real one is.

use std::marker::PhantomData;
use std::os::fd::IntoRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::Duration;

use shim_runtime::testing::{InProcess, Served, Told};
use shim_runtime::{Entry, Error, Exit};

use super::bundle::{Bundle, BundleBuilder};
use super::client::{HangUp, Task};
use super::containerd::FakeContainerd;
use super::dialect::Dialect;
use super::events::Events;
use super::failure::{Broken, Doing, Failure, Result};
use super::stdio::{Mode, Stdio};
use super::timeline::Timeline;
use super::{leaks, lock, promise};

/// How long a shim may take to end after Shutdown.
const END_LIMIT: Duration = Duration::from_secs(5);

/// A shim in the test's own process. Needs no root, no containerd and no binary; ends with all its processes
/// when it is dropped.
///
/// The shim is constructed for the first bundle that [`task`](Self::task) is asked for, as `start` does it, and
/// serves all further ones, as in a pod. Calls are TTRPC over a pair of sockets and reach the server of a real shim;
/// events come over TTRPC too. Two things differ from a real shim: orphans do not come to a test's process, so
/// processes that a runtime command leaves behind cannot be adopted (test these with [`FakeContainerd`]), and what is
/// logged goes to the test's own logger, if it has one.
///
/// ```
/// use std::time::Duration;
///
/// use shim_runtime::prelude::*;
/// use shim_testing::{Harness, Mode};
///
/// // `main = false` only because this example has a `main` of its own.
/// #[containerd_shim(runtime = "io.containerd.hello.v1", main = false)]
/// struct Hello;
///
/// impl Shim for Hello {
///     type Container = HostProcess;
///
///     fn new(_: &Context) -> Result<Self> {
///         Ok(Self)
///     }
///
///     fn create(&self, req: &mut Create) -> Result<HostProcess> {
///         HostProcess::create(req)
///     }
/// }
///
/// const LIMIT: Duration = Duration::from_secs(10);
///
/// fn a_container_and_an_exec_run_and_their_exits_are_told() -> shim_testing::Result<()> {
///     let harness = Harness::<Hello>::new()?;
///     let bundle = harness.bundle("c1").args(["sh", "-c", "cat; exit 3"]).capture().build()?;
///     let task = harness.task(&bundle)?;
///     task.create(&bundle)?;
///     let exit = task.wait();
///     task.start()?;
///
///     let exec = task.exec("e1");
///     exec.add(&bundle, &["true"], &harness.stdio("e1", Mode::Null, false)?)?;
///     let exec_exit = exec.wait();
///     exec.start()?;
///     assert_eq!(exec_exit.answer(LIMIT)?.exit_status, 0);
///     exec.delete()?;
///
///     bundle.stdio().write("hi\n");
///     bundle.stdio().close_stdin();
///     task.close_io()?;
///     assert_eq!(exit.answer(LIMIT)?.exit_status, 3);
///     task.delete()?;
///     assert_eq!(bundle.stdio().finish(LIMIT)?.stdout, b"hi\n");
///     harness.assert_events(&[
///         "create c1",
///         "start c1",
///         "exec-added c1/e1",
///         "exec-started c1/e1",
///         "exit c1/e1 0",
///         "exit c1 3",
///         "delete c1 3",
///     ])?;
///     harness.check()
/// }
///
/// fn a_program_that_is_not_there_is_refused_by_name() -> shim_testing::Result<()> {
///     let harness = Harness::<Hello>::new()?;
///     let bundle = harness.bundle("c1").args(["no-such-program"]).build()?;
///     let failure = harness.task(&bundle)?.create(&bundle).unwrap_err();
///     assert!(failure.to_string().contains("no-such-program"));
///     harness.assert_events(&[])?;
///     harness.check()
/// }
///
/// # fn main() -> shim_testing::Result<()> {
/// #     a_container_and_an_exec_run_and_their_exits_are_told()?;
/// #     a_program_that_is_not_there_is_refused_by_name()
/// # }
/// ```
pub struct Harness<S> {
    constructed: Mutex<Option<Constructed>>,
    shim: InProcess,
    ctrd: FakeContainerd,
    kind: PhantomData<fn() -> S>,
}

impl<S: Entry> Harness<S> {
    /// A harness whose shim is not constructed yet.
    pub fn new() -> Result<Self> {
        let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
        let shim = InProcess::new().map_err(|error| Failure::setup(error.to_string()))?;
        Ok(Self { constructed: Mutex::default(), shim, ctrd, kind: PhantomData })
    }

    /// A bundle for a container.
    pub fn bundle(&self, id: &str) -> BundleBuilder {
        self.ctrd.bundle(id)
    }

    /// Streams for an exec.
    pub fn stdio(&self, name: &str, mode: Mode, terminal: bool) -> Result<Stdio> {
        self.ctrd.stdio(name, mode, terminal)
    }

    /// The task service of the shim, aimed at a bundle's container. The first bundle has the shim constructed.
    ///
    /// # Errors
    /// The constructor's own.
    pub fn task(&self, bundle: &Bundle) -> Result<Task> {
        let mut constructed = lock(&self.constructed);
        let constructed = match &mut *constructed {
            Some(constructed) => constructed,
            none => none.insert(self.construct(bundle)?),
        };
        constructed.bundles.push(bundle.clone());
        Ok(constructed.task.container(bundle.id()))
    }

    fn construct(&self, bundle: &Bundle) -> Result<Constructed> {
        let (ours, theirs) = UnixStream::pair()?;
        let running = self.ctrd.timeline().call(format!("new {}", bundle.id()));
        let served = self.shim.serve::<S>(self.told(bundle), theirs);
        running.done(served.as_ref().map_or_else(ToString::to_string, |_| String::new()));
        let failed = |error: Error| Failure::call("new", error.code(), error.to_string());
        let served = served.map_err(|error| failed(error).with(self.ctrd.timeline()))?;
        let client = ttrpc::Client::new(ours.try_clone()?.into_raw_fd()).doing(|| "cannot make a client")?;
        let version = S::CONFIG.task.iter().max().copied().unwrap_or(3);
        let task = self.ctrd.task(client, version.into(), bundle.id());
        Ok(Constructed { served, task, connection: HangUp(ours), bundles: Vec::new() })
    }

    /// What containerd 2.3 tells a shim at its start.
    fn told(&self, bundle: &Bundle) -> Told {
        Told {
            id: bundle.id().to_owned(),
            namespace: self.ctrd.namespace().to_owned(),
            bundle: bundle.path().to_owned(),
            options: bundle.options().cloned(),
            grpc_address: self.ctrd.grpc_address(),
            ttrpc_address: self.ctrd.events().path().to_string_lossy().into_owned(),
            containerd_version: Some(self.ctrd.dialect().version().to_owned()),
        }
    }

    /// Calls the shim's `cleanup` for a bundle, as the `delete` action does after a container's end or the
    /// shim's death.
    ///
    /// # Errors
    /// The shim's own.
    pub fn cleanup(&self, bundle: &Bundle) -> Result<Option<Exit>> {
        let running = self.ctrd.timeline().call(format!("cleanup {}", bundle.id()));
        let result = self.shim.cleanup::<S>(self.told(bundle));
        running.done(match &result {
            Ok(Some(exit)) => format!("status {}", exit.status),
            Ok(None) => String::new(),
            Err(error) => error.to_string(),
        });
        let failed = |error: Error| Failure::call("cleanup", error.code(), error.to_string());
        result.map_err(|error| failed(error).with(self.ctrd.timeline()))
    }

    /// The record of what happened.
    pub fn timeline(&self) -> &Timeline {
        self.ctrd.timeline()
    }

    /// The events that the shim has published.
    pub fn events(&self) -> &Events {
        self.ctrd.events()
    }

    /// Waits until these events, by their short forms, have come in this order; others may come between.
    pub fn assert_order(&self, expected: &[&str]) -> Result<()> {
        self.ctrd.assert_order(expected)
    }

    /// Waits until exactly these events, by their short forms, have come in this order.
    pub fn assert_events(&self, expected: &[&str]) -> Result<()> {
        self.ctrd.assert_events(expected)
    }

    /// The promises that were broken so far, the binding ones first.
    pub fn broken(&self) -> Vec<Broken> {
        self.ctrd.broken()
    }

    /// The end of a test: all events have come, nothing of the containers is left, the shim ends when it is
    /// asked to, and no binding promise was broken.
    pub fn check(self) -> Result<()> {
        self.ctrd.settle();
        let constructed = lock(&self.constructed).take();
        for bundle in constructed.iter().flat_map(|constructed| &constructed.bundles) {
            leaks::check_bundle(&self.ctrd, bundle);
            // A bundle that cannot be removed was reported just now.
            let _ = bundle.remove();
        }
        self.ctrd.check_leaks()?;
        if let Some(constructed) = &constructed {
            constructed.task.shutdown()?;
            if !self.shim.ends_within(END_LIMIT) {
                let seen = format!("it holds {} after {END_LIMIT:?}", constructed.served.holds());
                return Err(self.ctrd.broken_now(promise::SHUTDOWN_ENDS, seen, "its end"));
            }
        }
        self.ctrd.verdict()
    }
}

/// A shim that was constructed, and its one client.
struct Constructed {
    served: Served,
    task: Task,
    connection: HangUp,
    bundles: Vec<Bundle>,
}

impl Drop for Constructed {
    /// Hangs up whatever threads still use the connection.
    fn drop(&mut self) {
        self.connection.now();
    }
}
