//! The process that author code runs in: what it was told at its start, and what it can ask of the runtime.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use protobuf::Message;

use super::{Any, Child, Event, Gated, Running};
use crate::bundle::Bundle;
use crate::caller::Caller;
use crate::error::{Error, Result, WithContext};
use crate::lifetime::Lifetime;
use crate::publisher::Publisher;
use crate::reaper::Group;
use crate::spawn::{Command, Output, Supervisor};
use crate::stdio::{Owner, Stdio, StdioNames, Streams};
use crate::workers::Workers;

/// The shim's process: one shim serves one container or one group of them.
///
/// Cheap to clone; every clone is the same process.
#[derive(Clone)]
pub struct Context(Arc<Inner>);

struct Inner {
    setup: Setup,
    bundle: Bundle,
    supervisor: Option<Supervisor>,
    serving: Option<Serving>,
}

/// What only the server has.
pub(crate) struct Serving {
    pub(crate) lifetime: Lifetime,
    pub(crate) publisher: Publisher,
    pub(crate) workers: Workers,
}

/// What a life of the process starts from; see `run`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Setup {
    pub(crate) id: String,
    pub(crate) namespace: String,
    pub(crate) bundle: std::path::PathBuf,
    pub(crate) debug: bool,
    pub(crate) options: Option<Any>,
    pub(crate) grpc_address: String,
    pub(crate) ttrpc_address: String,
    pub(crate) containerd_version: Option<String>,
}

impl Context {
    pub(crate) fn new(setup: Setup, supervisor: Option<Supervisor>, serving: Option<Serving>) -> Self {
        let bundle = Bundle::new(setup.bundle.clone());
        Self(Arc::new(Inner { setup, bundle, supervisor, serving }))
    }

    /// The container that the shim was started for; the first of its group.
    pub fn id(&self) -> &str {
        &self.0.setup.id
    }

    /// containerd's namespace, such as `default` or `k8s.io`.
    pub fn namespace(&self) -> &str {
        &self.0.setup.namespace
    }

    /// The bundle of the container that the shim was started for. In a group it may be removed before the
    /// shim ends.
    pub fn bundle(&self) -> &Bundle {
        &self.0.bundle
    }

    /// Whether debug messages are wanted.
    pub fn debug(&self) -> bool {
        self.0.setup.debug
    }

    /// containerd's gRPC socket, as a path.
    pub fn containerd_address(&self) -> &Path {
        Path::new(&self.0.setup.grpc_address)
    }

    /// containerd's version, which only 2.3 and later tell.
    pub fn containerd_version(&self) -> Option<&str> {
        self.0.setup.containerd_version.as_deref()
    }

    /// The runtime's options that were given at start, of whatever type: those of the task, else those of its
    /// container ([contract 2.4](crate::contract#s2-4)).
    pub fn raw_options(&self) -> Option<&Any> {
        self.0.setup.options.as_ref()
    }

    /// The runtime's options that were given at start, decoded.
    ///
    /// # Errors
    /// `InvalidArgument` when the bytes are no such message.
    pub fn options<M: Message>(&self) -> Result<Option<M>> {
        decode_options(self.raw_options())
    }

    /// Runs a runtime command to its end and collects its output, as far as that was not given elsewhere. It
    /// ends with the shim, and is killed when the RPC that it serves is given up: at its deadline, and when its
    /// client goes away. Create and Start are finished for a client that went away, Delete in any case. Blocks
    /// the calling thread only.
    ///
    /// # Errors
    /// When it cannot be started, as with `reaper = false`; `DeadlineExceeded` or `Cancelled` when it was killed.
    /// An exit status other than 0 is not an error here.
    pub fn run(&self, command: &mut Command) -> Result<Output> {
        self.supervisor()?.run(command, &Caller::current())
    }

    /// Ends the shim in order: answers leave, events are flushed, the socket goes. Containers are not touched.
    pub fn shutdown(&self) {
        if let Some(serving) = &self.0.serving {
            serving.lifetime.leave();
        }
    }

    /// Starts a process that gets ready in all but its program: that runs once [`Gated::open`] is called. So a
    /// task has a live pid from its creation on, which containerd and Docker build on. When it ends, its process
    /// group is killed. For a [`Task`](super::Task) of yours; a [`Shim`](crate::Shim) has
    /// [`Create::spawn_gated`](super::Create::spawn_gated).
    ///
    /// # Errors
    /// Names what cannot be done, a program that cannot be executed above all.
    pub fn spawn_gated(&self, mut command: Command) -> Result<Gated> {
        let supervisor = self.supervisor()?;
        let (child, gate) = supervisor.spawn_gated(&mut command, Group::Kill)?;
        Ok(Gated::new(Child::new(self, Running::group_leader(child, supervisor))?, gate))
    }

    /// Opens the stdio that a request names, without waiting for anybody, and copies between containerd's side
    /// and the returned ends, which are for the process. For a [`Task`](super::Task) of yours; containers of a
    /// [`Shim`](crate::Shim) are given theirs. `id` is the container's, or the exec's, as logging programs are
    /// told. A terminal is served once [`Streams::begin`] is called.
    ///
    /// # Errors
    /// Names the stream that cannot be opened.
    pub fn open_stdio(&self, id: &str, names: impl Into<StdioNames>) -> Result<(Streams, Stdio)> {
        let only = || Error::failed_precondition("stdio is opened only while the shim serves");
        let serving = self.0.serving.as_ref().ok_or_else(only)?;
        let owner = Owner { id, namespace: self.namespace() };
        Streams::open(&names.into(), owner, self.supervisor()?, &serving.lifetime)
    }

    /// Tells containerd of an event. Events arrive in the order of these calls, however long containerd is
    /// away; queue one before the call that it belongs to is answered. Outside of the server nothing is sent.
    ///
    /// ```
    /// # use shim_runtime::{Context, Pid, api::TaskStart};
    /// # fn started(cx: &Context, pid: Pid) {
    /// cx.publish(&TaskStart { container_id: "c1".into(), pid: pid.get(), ..TaskStart::default() });
    /// # }
    /// ```
    pub fn publish<E: Event>(&self, event: &E) {
        if let Some(serving) = &self.0.serving {
            serving.publisher.publish(E::TOPIC, E::TYPE, event);
        }
    }

    pub(crate) fn workers(&self) -> Workers {
        self.0.serving.as_ref().map_or_else(Workers::default, |serving| serving.workers.clone())
    }

    pub(crate) fn supervisor(&self) -> Result<&Supervisor> {
        let message =
            "processes are started only while the shim serves or deletes, and not with `reaper = false`";
        self.0.supervisor.as_ref().ok_or_else(|| Error::failed_precondition(message))
    }
}

/// Decodes options by their value alone: their type's name has many spellings.
pub(crate) fn decode_options<M: Message>(options: Option<&Any>) -> Result<Option<M>> {
    let Some(any) = options else { return Ok(None) };
    let decoded = M::parse_from_bytes(&any.value).map_err(Error::invalid_argument_from);
    decoded.map(Some).with_context(|| format!("cannot understand the options of type `{}`", any.type_url))
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Context").field(&self.0.setup).finish()
    }
}
