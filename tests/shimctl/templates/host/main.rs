//! The containerd shim of `io.containerd.hello.v1`: every container is one process of the host.

use shim_runtime::prelude::*;

/// The shim; what all containers share goes here.
#[containerd_shim(runtime = "io.containerd.hello.v1")]
struct HelloRuntime;

impl Shim for HelloRuntime {
    type Container = HostProcess;

    fn new(_: &Context) -> Result<Self> {
        Ok(Self)
    }

    /// Prepares a container. To change what a container does, return a type of your own that implements
    /// `Container` and hands the rest to this one by `Container::inner`.
    fn create(&self, req: &mut Create) -> Result<HostProcess> {
        HostProcess::create(req)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use shim_testing::{Harness, Mode, Result};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    type Tested = Harness<HelloRuntime>;

    #[test]
    fn a_process_runs_and_its_exit_is_told() -> Result<()> {
        let harness = Tested::new()?;
        let script = "echo hello; exit 3";
        let bundle = harness
            .bundle("c1")
            .args(["sh", "-c", script])
            .capture()
            .build()?;
        let task = harness.task(&bundle)?;
        task.create(&bundle)?;
        let exit = task.wait();
        task.start()?;
        assert_eq!(exit.answer(LIMIT)?.exit_status, 3);
        task.delete()?;
        assert_eq!(bundle.stdio().finish(LIMIT)?.stdout, b"hello\n");
        harness.assert_events(&["create c1", "start c1", "exit c1 3", "delete c1 3"])?;
        harness.check()
    }

    #[test]
    fn an_exec_runs_beside_the_process() -> Result<()> {
        let harness = Tested::new()?;
        let bundle = harness.bundle("c1").args(["sleep", "1000"]).build()?;
        let task = harness.task(&bundle)?;
        let exit = task.run(&bundle)?;
        let exec = task.exec("e1");
        exec.add(&bundle, &["true"], &harness.stdio("e1", Mode::Null, false)?)?;
        let exec_exit = exec.wait();
        exec.start()?;
        assert_eq!(exec_exit.answer(LIMIT)?.exit_status, 0);
        exec.delete()?;
        task.kill(Signal::KILL)?;
        assert_eq!(exit.answer(LIMIT)?.exit_status, 137);
        task.remove()?;
        harness.assert_order(&["start c1", "exit c1/e1 0", "exit c1 137"])?;
        harness.check()
    }

    #[test]
    fn a_program_that_is_not_there_is_refused_by_name() -> Result<()> {
        let harness = Tested::new()?;
        let bundle = harness.bundle("c1").args(["no-such-program"]).build()?;
        let failure = harness.task(&bundle)?.create(&bundle).unwrap_err();
        assert!(failure.to_string().contains("no-such-program"), "{failure}");
        harness.assert_events(&[])?;
        harness.check()
    }
}
