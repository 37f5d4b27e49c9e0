//! A shim under test in the test's own process: its traits are called as a server would call them, on the
//! same loop, workers and mailboxes, and only the way in differs.

use std::marker::PhantomData;
use std::os::fd::IntoRawFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::bundle::{Bundle, BundleBuilder};
use super::client::{HangUp, Task, Transport};
use super::containerd::FakeContainerd;
use super::dialect::Dialect;
use super::events::Events;
use super::failure::{Broken, Doing, Failure, Result};
use super::stdio::{Mode, Stdio};
use super::timeline::Timeline;
use super::{leaks, lock, promise};
use crate::api::{Context, Setup};
use crate::entry::Entry;
use crate::event_loop::EventLoop;
use crate::level::Level;
use crate::publisher::Publisher;
use crate::server::{Connection, DirectClient, Server};
use crate::spawn::Supervisor;
use crate::types::Exit;
use crate::{Error, run};

/// How long a shim may take to end after Shutdown.
const END_LIMIT: Duration = Duration::from_secs(5);

/// A shim in the test's own process. Needs no root, no containerd and no binary; ends with all its processes
/// when it is dropped.
///
/// The shim is constructed for the first bundle that [`task`](Self::task) is asked for, as `start` does it, and
/// serves all further ones, as in a pod. What is called is what is called in a real shim, with two differences:
/// orphans do not come to a test's process, so processes that a runtime command leaves behind cannot be adopted
/// (test these with [`FakeContainerd`]), and what is logged goes to the test's own logger, if it has one.
///
/// ```
/// use std::time::Duration;
///
/// use shim_runtime::prelude::*;
/// use shim_runtime::testing::{self, Harness, Mode};
///
/// // `main = false` only because this example has a `main` of its own.
/// #[containerd_shim(runtime = "io.containerd.hello.v1", main = false)]
/// struct Hello;
///
/// impl Shim for Hello {
///     type Container = Process;
///
///     fn new(_: &Context) -> Result<Self> {
///         Ok(Self)
///     }
///
///     fn create(&self, req: &mut Create) -> Result<Process> {
///         Process::create(req)
///     }
/// }
///
/// const LIMIT: Duration = Duration::from_secs(10);
///
/// fn a_container_and_an_exec_run_and_their_exits_are_told() -> testing::Result<()> {
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
/// fn a_program_that_is_not_there_is_refused_by_name() -> testing::Result<()> {
///     let harness = Harness::<Hello>::new()?;
///     let bundle = harness.bundle("c1").args(["no-such-program"]).build()?;
///     let failure = harness.task(&bundle)?.create(&bundle).unwrap_err();
///     assert!(failure.to_string().contains("no-such-program"));
///     harness.assert_events(&[])?;
///     harness.check()
/// }
///
/// # fn main() -> testing::Result<()> {
/// #     a_container_and_an_exec_run_and_their_exits_are_told()?;
/// #     a_program_that_is_not_there_is_refused_by_name()
/// # }
/// ```
pub struct Harness<S> {
    served: Mutex<Option<Served>>,
    main: MainThread,
    on_wire: bool,
    ctrd: FakeContainerd,
    shim: PhantomData<fn() -> S>,
}

impl<S: Entry> Harness<S> {
    /// A harness that calls the shim directly, without a socket; events are there when a call returns.
    pub fn new() -> Result<Self> {
        let ctrd = FakeContainerd::builder(Dialect::PARAMS).build_without_socket()?;
        Self::make(ctrd, false)
    }

    /// A harness that speaks TTRPC with the shim through a pair of sockets, and takes its events over TTRPC.
    pub fn wire() -> Result<Self> {
        Self::make(FakeContainerd::new(Dialect::PARAMS)?, true)
    }

    fn make(ctrd: FakeContainerd, on_wire: bool) -> Result<Self> {
        let main = MainThread::spawn()?;
        Ok(Self { served: Mutex::default(), main, on_wire, ctrd, shim: PhantomData })
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
        let mut served = lock(&self.served);
        let served = match &mut *served {
            Some(served) => served,
            none => none.insert(self.serve(bundle)?),
        };
        served.bundles.push(bundle.clone());
        Ok(served.task.container(bundle.id()))
    }

    fn serve(&self, bundle: &Bundle) -> Result<Served> {
        let running = self.ctrd.timeline().call(format!("new {}", bundle.id()));
        let made = self.construct(bundle);
        running.done(made.as_ref().map_or_else(ToString::to_string, |_| String::new()));
        made.map_err(|failure| failure.with(self.ctrd.timeline()))
    }

    fn construct(&self, bundle: &Bundle) -> Result<Served> {
        let main = self.main.supervisor.main().clone();
        let server = run::assemble(self.setup(bundle), main.clone(), self.supervisor(), self.publisher());
        run::construct::<S>(&server)
            .map_err(|error| Failure::call("new", error.code(), error.to_string()))?;
        server.lifetime.begin(|| true);
        let (transport, way_in) = if self.on_wire {
            let (ours, theirs) = UnixStream::pair()?;
            let shared = server.clone();
            main.post(move |events| {
                // A connection that cannot be served is closed, which the client tells.
                let _ = Connection::serve(theirs, &shared, events);
            });
            let client = ttrpc::Client::new(ours.try_clone()?.into_raw_fd());
            (Transport::Wire(client.doing(|| "cannot make a client")?), WayIn::Wire(HangUp(ours)))
        } else {
            let client = Arc::new(DirectClient::new(server.clone(), main));
            (Transport::Direct(client.clone()), WayIn::Direct(client))
        };
        let version = S::CONFIG.task.iter().max().copied().unwrap_or(3);
        let task = self.ctrd.task(transport, version.into(), bundle.id());
        Ok(Served { server, task, way_in, bundles: Vec::new() })
    }

    /// The supervisor, unless the shim does without the runtime's reaper.
    fn supervisor(&self) -> Option<Supervisor> {
        S::CONFIG.reaper.then(|| self.main.supervisor.clone())
    }

    /// What containerd 2.3 tells a shim at its start.
    fn setup(&self, bundle: &Bundle) -> Setup {
        Setup {
            id: bundle.id().to_owned(),
            namespace: self.ctrd.namespace().to_owned(),
            bundle: bundle.path().to_owned(),
            debug: false,
            options: bundle.options().cloned(),
            grpc_address: self.ctrd.grpc_address(),
            ttrpc_address: self.ctrd.events().path().to_string_lossy().into_owned(),
            containerd_version: Some(self.ctrd.dialect().version().to_owned()),
        }
    }

    fn publisher(&self) -> Publisher {
        let (events, namespace) = (self.ctrd.events().clone(), self.ctrd.namespace());
        if self.on_wire {
            return Publisher::new(&events.path().to_string_lossy(), namespace);
        }
        Publisher::to_sink(namespace, move |envelope| events.record(envelope))
    }

    /// Calls the shim's `cleanup` for a bundle, as the `delete` action does after a container's end or the
    /// shim's death.
    ///
    /// # Errors
    /// The shim's own.
    pub fn cleanup(&self, bundle: &Bundle) -> Result<Option<Exit>> {
        let running = self.ctrd.timeline().call(format!("cleanup {}", bundle.id()));
        let context = Context::new(self.setup(bundle), self.supervisor(), None);
        let result = S::Level::cleanup(&context);
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
        let served = lock(&self.served).take();
        for bundle in served.iter().flat_map(|served| &served.bundles) {
            leaks::check_bundle(&self.ctrd, bundle);
            // A bundle that cannot be removed was reported just now.
            let _ = bundle.remove();
        }
        self.ctrd.check_leaks()?;
        if let Some(served) = &served {
            served.task.shutdown()?;
            if !self.main.ends_within(END_LIMIT) {
                let seen = format!("it holds {} after {END_LIMIT:?}", served.server.lifetime);
                return Err(self.ctrd.broken_now(promise::SHUTDOWN_ENDS, seen, "its end"));
            }
        }
        self.ctrd.verdict()
    }
}

/// A shim that was constructed. Dropped, it has no clients, takes no jobs and sends no events any more.
struct Served {
    server: Arc<Server>,
    task: Task,
    way_in: WayIn,
    bundles: Vec<Bundle>,
}

/// What has to be closed, whatever threads still use it.
enum WayIn {
    Wire(HangUp),
    Direct(Arc<DirectClient>),
}

impl Drop for Served {
    fn drop(&mut self) {
        match &self.way_in {
            WayIn::Wire(connection) => connection.now(),
            WayIn::Direct(client) => client.hang_up(),
        }
        self.server.workers.close();
        self.server.publisher.close();
    }
}

/// The thread that has the main thread's part: it forks, reaps and serves. In a test the main thread itself
/// belongs to the test runner.
struct MainThread {
    supervisor: Supervisor,
    /// Hangs up when the thread ends.
    end: Mutex<Receiver<()>>,
    thread: Option<JoinHandle<()>>,
}

impl MainThread {
    fn spawn() -> Result<Self> {
        let (ending, end) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        let live = move || {
            let _ending = ending;
            let made = run::reaping().map(|(mut events, supervisor)| {
                let reaper = supervisor.reaper.clone();
                let _ = tell.send(Ok(supervisor));
                let ran = events.run();
                reaper.end_all();
                ran
            });
            if let Err(error) | Ok(Err(error)) = made {
                let _ = tell.send(Err(error));
            }
        };
        let thread = thread::Builder::new().name("shim-main".to_owned()).spawn(live)?;
        let supervisor = told.recv().map_err(|error| Failure::setup(error.to_string()))?;
        let supervisor = supervisor.doing(|| "cannot run an event loop")?;
        Ok(Self { supervisor, end: Mutex::new(end), thread: Some(thread) })
    }

    fn ends_within(&self, limit: Duration) -> bool {
        lock(&self.end).recv_timeout(limit) == Err(RecvTimeoutError::Disconnected)
    }
}

impl Drop for MainThread {
    fn drop(&mut self) {
        self.supervisor.main().post(EventLoop::stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
