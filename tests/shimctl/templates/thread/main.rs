//! The containerd shim of `io.containerd.hello.v1`: every container is a thread of the shim.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;
use std::time::Duration;

use shim_runtime::prelude::*;

/// The shim; what all containers share goes here, an engine above all.
#[containerd_shim(runtime = "io.containerd.hello.v1")]
struct HelloRuntime;

impl Shim for HelloRuntime {
    type Container = Program;

    fn new(_: &Context) -> Result<Self> {
        Ok(Self)
    }

    /// Prepares a container: whatever can fail should fail here.
    fn create(&self, req: &mut Create) -> Result<Program> {
        let process = req.bundle().spec()?.process.unwrap_or_default();
        if process.args.is_empty() {
            return Err(Error::invalid_argument("the container has no `args`"));
        }
        Ok(Program { args: process.args })
    }
}

/// A container.
struct Program {
    args: Vec<String>,
}

impl Container for Program {
    fn start(&self, io: Stdio) -> Result<Started> {
        let args = self.args.clone();
        let flag = Arc::new(AtomicI32::new(0));
        let stop = flag.clone();
        Started::thread(
            move |signal| stop.store(signal.number(), Ordering::Relaxed),
            move || match io.stdout {
                Some(stdout) => run(&args, &flag, &mut File::from(stdout)),
                None => run(&args, &flag, &mut io::sink()),
            },
        )
    }
}

/// What a container runs; your engine goes here. This one prints the arguments and returns their number as the
/// exit status. `forever` runs until `stop` holds a signal: a thread cannot be killed, it has to look.
fn run(args: &[String], stop: &AtomicI32, output: &mut dyn Write) -> Result<u32> {
    writeln!(output, "{}", args.join(" "))?;
    if args[0] == "forever" {
        while stop.load(Ordering::Relaxed) == 0 {
            thread::sleep(Duration::from_millis(10));
        }
    }
    match stop.load(Ordering::Relaxed) {
        0 => Ok(u32::try_from(args.len()).unwrap_or(u32::MAX)),
        signal => Ok(128 + signal.unsigned_abs()),
    }
}

#[cfg(test)]
mod tests {
    use shim_runtime::Code;
    use shim_testing::{Harness, Result};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    type Tested = Harness<HelloRuntime>;

    #[test]
    fn a_thread_runs_and_its_exit_is_told() -> Result<()> {
        let harness = Tested::new()?;
        let bundle = harness
            .bundle("c1")
            .args(["hello", "world"])
            .capture()
            .build()?;
        let task = harness.task(&bundle)?;
        task.create(&bundle)?;
        let exit = task.wait();
        task.start()?;
        assert_eq!(exit.answer(LIMIT)?.exit_status, 2);
        task.delete()?;
        assert_eq!(bundle.stdio().finish(LIMIT)?.stdout, b"hello world\n");
        harness.assert_events(&["create c1", "start c1", "exit c1 2", "delete c1 2"])?;
        harness.check()
    }

    #[test]
    fn a_signal_stops_a_thread() -> Result<()> {
        let harness = Tested::new()?;
        let bundle = harness.bundle("c1").args(["forever"]).build()?;
        let task = harness.task(&bundle)?;
        let exit = task.run(&bundle)?;
        task.kill(Signal::TERM)?;
        assert_eq!(exit.answer(LIMIT)?.exit_status, 143);
        task.remove()?;
        harness.assert_events(&["create c1", "start c1", "exit c1 143", "delete c1 143"])?;
        harness.check()
    }

    #[test]
    fn a_container_without_arguments_is_refused() -> Result<()> {
        let harness = Tested::new()?;
        let bundle = harness.bundle("c1").args([""; 0]).build()?;
        let failure = harness.task(&bundle)?.create(&bundle).unwrap_err();
        assert_eq!(failure.code(), Some(Code::InvalidArgument));
        harness.assert_events(&[])?;
        harness.check()
    }
}
