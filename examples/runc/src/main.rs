//! A drop-in for containerd's own shim: containers of an OCI runtime, `runc` unless the options name another.

use std::path::Path;

use shim_runtime::api::Any;
use shim_runtime::prelude::*;
use shim_runtime::{Engine, Info, Oci};

const RUNC: Engine = Engine::new("runc");

/// Every container is one of the OCI runtime.
#[containerd_shim(runtime = "io.containerd.runc.v2")]
struct Runc;

impl Shim for Runc {
    type Container = Oci;

    fn new(_: &Context) -> Result<Self> {
        Ok(Self)
    }

    fn create(&self, req: &mut Create) -> Result<Oci> {
        Oci::create(req, RUNC)
    }

    fn restore(&self, req: &mut Create, image: &Path) -> Result<Oci> {
        Oci::restore(req, image, RUNC)
    }

    fn cleanup(cx: &Context) -> Result<Option<Exit>> {
        Oci::cleanup(cx, RUNC)
    }

    fn info(options: Option<&Any>) -> Result<Info> {
        Oci::info(options, RUNC)
    }
}
