//! A shim like `host` but for two things: a polite request to end reaches programs as Ctrl-C does, and nobody
//! enters a running container. One is a call of the container, the other an RPC.

use shim_runtime::Code;
use shim_runtime::api::{Empty, ExecProcessRequest};
use shim_runtime::prelude::*;

/// Makes ready-made processes, each with the one change.
#[containerd_shim(runtime = "io.containerd.one-change.v1")]
struct OneChange;

impl Shim for OneChange {
    type Container = Interrupted;

    fn new(_: &Context) -> Result<Self> {
        Ok(Self)
    }

    fn create(&self, req: &mut Create) -> Result<Interrupted> {
        Ok(Interrupted(HostProcess::create(req)?))
    }

    fn task(managed: Managed<Self>) -> impl Task {
        Sealed(managed)
    }
}

/// A process for which SIGTERM becomes SIGINT: many interactive programs only tidy up at the latter.
struct Interrupted(HostProcess);

impl Container for Interrupted {
    /// Answers every call that is not written here.
    fn inner(&self) -> Option<&dyn Container> {
        Some(&self.0)
    }

    // The one method without a default, so it is passed on by hand.
    fn start(&self, io: Stdio) -> Result<Started> {
        self.0.start(io)
    }

    // What must hold on every path goes here: the runtime's own kills pass through it too.
    fn kill(&self, to: &Target<'_>, signal: Signal) -> Result<()> {
        let signal = if signal == Signal::TERM { Signal::INT } else { signal };
        self.0.kill(to, signal)
    }
}

/// The managed task, sealed: an exec is refused before anything is recorded of it. In the container's own
/// `exec` it would be too late for that: it is called by Start, when clients have been told of the exec.
struct Sealed(Managed<OneChange>);

impl Task for Sealed {
    /// Answers every RPC that is not written here.
    fn inner(&self) -> Option<&dyn Task> {
        Some(&self.0)
    }

    fn exec(&self, _: &Call<'_>, req: ExecProcessRequest) -> Result<Empty> {
        let message = format!("cannot enter container `{}`: it is sealed", req.id);
        Err(Error::new(Code::PermissionDenied, message))
    }
}
