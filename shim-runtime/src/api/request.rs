//! What `create` and `exec` are given: the request, and the means to carry it out.

use std::path::PathBuf;
use std::sync::Arc;

use protobuf::Message;

use super::context::decode_options;
use super::{Any, Context, CreateTaskRequest, Gated, Mount, Running};
use crate::bundle::{Bundle, ProcessSpec};
use crate::error::{Error, Result, WithContext};
use crate::mount;
use crate::nulls;
use crate::spawn::{Command, Output};
use crate::stdio::Stdio;

/// A container to be created.
///
/// What was begun through it is undone when [`Shim::create`](crate::Shim::create) fails: mounts are taken
/// down, a gated process ends.
pub struct Create {
    context: Context,
    bundle: Bundle,
    request: CreateTaskRequest,
    stdio: Option<Stdio>,
    pub(crate) init: Option<Arc<Running>>,
    mounted: bool,
}

impl Create {
    pub(crate) fn new(context: Context, request: CreateTaskRequest, stdio: Stdio) -> Self {
        let bundle = Bundle::new(&request.bundle);
        Self { context, bundle, request, stdio: Some(stdio), init: None, mounted: false }
    }

    /// The container's id, unique in the namespace.
    pub fn id(&self) -> &str {
        &self.request.id
    }

    /// The shim's process.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// The container's folder.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// Whether its stdio is a terminal.
    pub fn is_terminal(&self) -> bool {
        self.request.terminal
    }

    /// The options of this task, of whatever type.
    pub fn raw_options(&self) -> Option<&Any> {
        self.request.options.as_ref()
    }

    /// The options of this task, decoded.
    ///
    /// # Errors
    /// `InvalidArgument` when the bytes are no such message.
    pub fn options<M: Message>(&self) -> Result<Option<M>> {
        decode_options(self.raw_options())
    }

    /// The image that a checkpoint to be restored holds the differences to; empty for a whole one.
    pub fn parent_checkpoint(&self) -> &str {
        &self.request.parent_checkpoint
    }

    /// What containerd wants mounted as the root file system.
    pub fn mounts(&self) -> &[Mount] {
        &self.request.rootfs
    }

    /// Mounts the root file system on the bundle's `rootfs` and returns that path. It is unmounted when the
    /// container is deleted, or if its creation fails. Without mounts the folder is left as it is.
    ///
    /// # Errors
    /// Names the mount that failed; those before it were undone.
    pub fn mount_rootfs(&mut self) -> Result<PathBuf> {
        if self.mounted {
            return Ok(self.bundle.rootfs());
        }
        let rootfs = self.bundle.mount_all(&self.request.rootfs, self.context.supervisor().ok())?;
        self.mounted = !self.request.rootfs.is_empty();
        Ok(rootfs)
    }

    /// Takes the container's ends of its stdio. What is not taken here is given to
    /// [`Container::start`](crate::Container::start).
    ///
    /// # Errors
    /// `FailedPrecondition` when they were taken before.
    pub fn stdio(&mut self) -> Result<Stdio> {
        let taken =
            || Error::failed_precondition(format!("the stdio of `{}` was taken before", self.request.id));
        self.stdio.take().ok_or_else(taken)
    }

    /// Starts the init process, which gets ready in all but its program: that runs once [`Gated::open`] is
    /// called. This is how a task has a live pid from its creation on, which containerd and Docker build on.
    /// When it ends, its process group is killed.
    ///
    /// # Errors
    /// Names what cannot be done, a program that cannot be executed above all. `FailedPrecondition` the second time: a
    /// container has one init process; other processes are started with [`Context::spawn_gated`].
    pub fn spawn_gated(&mut self, command: Command) -> Result<Gated> {
        if self.init.is_some() {
            let message = format!(
                "`{}` has its init process already; start others by `Context::spawn_gated`",
                self.request.id
            );
            return Err(Error::failed_precondition(message));
        }
        let gated = self.context.spawn_gated(command)?;
        self.init = Some(gated.child().running.clone());
        Ok(gated)
    }

    /// Runs a runtime command to its end; see [`Context::run`].
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&mut self, command: &mut Command) -> Result<Output> {
        self.context.run(command)
    }

    /// It was created: nothing is undone any more. Returns the stdio that was not taken.
    pub(crate) fn finish(mut self) -> Stdio {
        self.init = None;
        self.mounted = false;
        self.stdio.take().unwrap_or_default()
    }
}

/// Undoes what was begun, unless it was finished.
impl Drop for Create {
    fn drop(&mut self) {
        if let Some(init) = self.init.take() {
            init.end();
        }
        if self.mounted
            && let Err(error) = mount::unmount_all(&self.bundle.rootfs())
        {
            log::warn!("cannot clean up after the failed creation of `{}`: {error}", self.request.id);
        }
    }
}

/// A process to be executed in a running container.
pub struct Exec {
    context: Context,
    container: String,
    id: String,
    terminal: bool,
    spec: Any,
}

impl Exec {
    pub(crate) fn new(context: Context, container: &str, id: &str, terminal: bool, spec: Any) -> Self {
        Self { context, container: container.to_owned(), id: id.to_owned(), terminal, spec }
    }

    /// The container's id.
    pub fn container_id(&self) -> &str {
        &self.container
    }

    /// The process's own id, unique in its container.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The shim's process.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Whether its stdio is a terminal; this, not the specification, decides.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// The `process` object that the client sent.
    ///
    /// # Errors
    /// `InvalidArgument` when it is not what the OCI runtime specification says.
    pub fn process(&self) -> Result<ProcessSpec> {
        nulls::from_slice(&self.spec.value)
            .map_err(Error::invalid_argument_from)
            .with_context(|| format!("cannot understand the process specification of `{}`", self.id))
    }

    /// The specification as it was sent, JSON in its value.
    pub fn raw_process(&self) -> &Any {
        &self.spec
    }
}
