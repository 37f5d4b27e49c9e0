//! A sixth life, for tests: a shim that lives in the test's own process. A thread of its own has the main thread's
//! part, because the main thread of a test belongs to the test runner. The crate `shim-testing` builds its harness on
//! this; nothing else should.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::assembly::{assemble, construct};
use super::main_loop::reaping;
use crate::api::{Any, Context, Setup};
use crate::entry::Entry;
use crate::entry::level::Level;
use crate::error::{Error, Result, WithContext};
use crate::event_loop::EventLoop;
use crate::publisher::Publisher;
use crate::server::{Connection, Server};
use crate::spawn::Supervisor;
use crate::sync::lock;
use crate::types::Exit;

/// What containerd tells a shim at its start.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// The container's id.
    pub id: String,
    /// containerd's namespace.
    pub namespace: String,
    /// The container's bundle.
    pub bundle: PathBuf,
    /// The runtime's options, if there are any.
    pub options: Option<Any>,
    /// containerd's gRPC socket.
    pub grpc_address: String,
    /// containerd's TTRPC socket, to which events are published.
    pub ttrpc_address: String,
    /// containerd's version, as far as the daemon tells it.
    pub containerd_version: Option<String>,
}

impl From<Told> for Setup {
    fn from(told: Told) -> Self {
        let Told { id, namespace, bundle, options, grpc_address, ttrpc_address, containerd_version } = told;
        Self { id, namespace, bundle, debug: false, options, grpc_address, ttrpc_address, containerd_version }
    }
}

/// The thread that has the main thread's part: it forks, reaps and serves. Dropped, it ends, and with it all
/// processes that it has started.
pub struct InProcess {
    supervisor: Supervisor,
    /// Hangs up when the thread ends.
    end: Mutex<Receiver<()>>,
    thread: Option<JoinHandle<()>>,
}

impl InProcess {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the thread cannot be started, or its event loop cannot be made.
    pub fn new() -> Result<Self> {
        let (ending, end) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        let live = move || {
            let _ending = ending;
            let made = reaping().map(|(mut events, supervisor)| {
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
        let thread = thread::Builder::new()
            .name("shim-main".to_owned())
            .spawn(live)
            .with_context(|| "cannot start the thread of a shim")?;
        let told = told.recv().map_err(|error| Error::internal(error.to_string()))?;
        let supervisor = told.with_context(|| "cannot run an event loop")?;
        Ok(Self { supervisor, end: Mutex::new(end), thread: Some(thread) })
    }

    /// Constructs the shim as its server does, and serves it to whoever has the other end of `connection`.
    ///
    /// # Errors
    /// The constructor's own.
    pub fn serve<S: Entry>(&self, told: Told, connection: UnixStream) -> Result<Served> {
        let main = self.supervisor.main().clone();
        let publisher = Publisher::new(&told.ttrpc_address, &told.namespace);
        let server = assemble(told.into(), main.clone(), self.supervisor_of::<S>(), publisher);
        construct::<S>(&server)?;
        server.lifetime.begin(|| true);
        let shared = server.clone();
        main.post(move |events| {
            // A connection that cannot be served is closed, which the client notices.
            let _ = Connection::serve(connection, &shared, events);
        });
        Ok(Served(server))
    }

    /// Calls the shim's `cleanup`, as the `delete` action does after a container's end or the shim's death.
    ///
    /// # Errors
    /// The shim's own.
    pub fn cleanup<S: Entry>(&self, told: Told) -> Result<Option<Exit>> {
        S::Level::cleanup(&Context::new(told.into(), self.supervisor_of::<S>(), None))
    }

    /// The supervisor, unless the shim does without the runtime's reaper.
    fn supervisor_of<S: Entry>(&self) -> Option<Supervisor> {
        S::CONFIG.reaper.then(|| self.supervisor.clone())
    }

    /// Whether the thread ends within the limit, as it does after Shutdown.
    pub fn ends_within(&self, limit: Duration) -> bool {
        lock(&self.end).recv_timeout(limit) == Err(RecvTimeoutError::Disconnected)
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        self.supervisor.main().post(EventLoop::stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A shim that was constructed. Dropped, it takes no jobs and sends no events any more.
pub struct Served(Arc<Server>);

impl Served {
    /// What keeps it from ending, in words.
    pub fn holds(&self) -> String {
        self.0.lifetime.to_string()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.0.workers.close();
        self.0.publisher.close();
    }
}
