//! The containerd shim of `io.containerd.hello.v1`: every container is one of an OCI runtime.

use std::path::Path;

use shim_runtime::api::Any;
use shim_runtime::prelude::*;
use shim_runtime::{Engine, Info, Oci};

/// The runtime, looked for in `PATH`; containerd's options for a container may name another.
const ENGINE: Engine = Engine::new("runc");

/// The shim; what all containers share goes here.
#[containerd_shim(runtime = "io.containerd.hello.v1")]
struct HelloRuntime;

impl Shim for HelloRuntime {
    type Container = Oci;

    fn new(_: &Context) -> Result<Self> {
        Ok(Self)
    }

    /// Prepares a container. To change what a container does, return a type of your own that implements
    /// `Container` and hands the rest to this one by `Container::inner`.
    fn create(&self, req: &mut Create) -> Result<Oci> {
        Oci::create(req, ENGINE)
    }

    fn restore(&self, req: &mut Create, image: &Path) -> Result<Oci> {
        Oci::restore(req, image, ENGINE)
    }

    fn cleanup(cx: &Context) -> Result<Option<Exit>> {
        Oci::cleanup(cx, ENGINE)
    }

    fn info(options: Option<&Any>) -> Result<Info> {
        Oci::info(options, ENGINE)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use shim_runtime::Code;
    use shim_testing::{Harness, Result};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    type Tested = Harness<HelloRuntime>;

    #[test]
    fn a_container_that_the_runtime_refuses_leaves_nothing() -> Result<()> {
        let harness = Tested::new()?;
        let bundle = harness.bundle("c1").without_config().build()?;
        let failure = harness.task(&bundle)?.create(&bundle).unwrap_err();
        assert!(failure.to_string().contains("create failed"), "{failure}");
        harness.assert_events(&[])?;
        harness.check()
    }

    #[test]
    fn an_exec_that_nobody_added_is_not_found() -> Result<()> {
        let harness = Tested::new()?;
        let bundle = harness.bundle("c1").build()?;
        let task = harness.task(&bundle)?.within(LIMIT);
        let failure = task.exec("e1").start().unwrap_err();
        assert_eq!(failure.code(), Some(Code::NotFound));
        harness.check()
    }
}
