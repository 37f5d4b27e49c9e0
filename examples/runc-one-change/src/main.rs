//! The shim of [runc](../../runc) but for two changes: a polite request to end reaches programs as Ctrl-C does,
//! and nobody writes a container's memory to a disk. One is a call of the container, the other an RPC.

use std::path::Path;

use shim_runtime::api::{Any, CheckpointTaskRequest, Empty};
use shim_runtime::prelude::*;
use shim_runtime::{Code, Engine, Info, Oci};

const RUNC: Engine = Engine::new("runc");

/// Makes containers of the OCI runtime, each with the one change.
#[containerd_shim(runtime = "io.containerd.runc-one-change.v1")]
struct RuncOneChange;

impl Shim for RuncOneChange {
    type Container = Interrupted;

    fn new(_: &Context) -> Result<Self> {
        Ok(Self)
    }

    fn create(&self, req: &mut Create) -> Result<Interrupted> {
        Oci::create(req, RUNC).map(Interrupted)
    }

    fn restore(&self, req: &mut Create, image: &Path) -> Result<Interrupted> {
        Oci::restore(req, image, RUNC).map(Interrupted)
    }

    fn cleanup(cx: &Context) -> Result<Option<Exit>> {
        Oci::cleanup(cx, RUNC)
    }

    fn info(options: Option<&Any>) -> Result<Info> {
        Oci::info(options, RUNC)
    }

    fn task(managed: Managed<Self>) -> impl Task {
        Secret(managed)
    }
}

/// A container for which SIGTERM becomes SIGINT.
struct Interrupted(Oci);

impl Container for Interrupted {
    fn inner(&self) -> Option<&dyn Container> {
        Some(&self.0)
    }

    fn start(&self, io: Stdio) -> Result<Started> {
        self.0.start(io)
    }

    fn kill(&self, to: &Target<'_>, signal: Signal) -> Result<()> {
        self.0.kill(to, if signal == Signal::TERM { Signal::INT } else { signal })
    }
}

/// The managed task, of whose containers no image is written.
struct Secret(Managed<RuncOneChange>);

impl Task for Secret {
    fn inner(&self) -> Option<&dyn Task> {
        Some(&self.0)
    }

    fn checkpoint(&self, _: &Call<'_>, req: CheckpointTaskRequest) -> Result<Empty> {
        let message = format!("cannot checkpoint container `{}`: its memory is secret", req.id);
        Err(Error::new(Code::PermissionDenied, message))
    }
}
