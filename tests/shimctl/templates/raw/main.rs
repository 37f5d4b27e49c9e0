//! The containerd shim of `io.containerd.hello.v1`: answers containerd's calls itself. Every container is a
//! thread of the shim.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use shim_runtime::api::{
    ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse, DeleteRequest,
    DeleteResponse, Empty, KillRequest, ShutdownRequest, StartRequest, StartResponse, StateRequest,
    StateResponse, Status, TaskCreate, TaskDelete, TaskExit, TaskStart, Timestamp, WaitRequest,
    WaitResponse,
};
use shim_runtime::prelude::*;
use shim_runtime::{Bundle, Waiters};

/// The shim: the containers by their ids.
#[containerd_shim(runtime = "io.containerd.hello.v1", raw)]
#[derive(Default)]
struct HelloRuntime(Mutex<HashMap<String, Arc<Program>>>);

/// A container.
struct Program {
    context: Context,
    args: Vec<String>,
    request: CreateTaskRequest,
    /// Copies between the client and the container's ends.
    streams: Streams,
    /// The container's ends, until it runs.
    stdio: Mutex<Stdio>,
    /// The signal that is to stop it; 0 before there is one.
    stop: AtomicI32,
    phase: Mutex<Phase>,
    waiters: Waiters<WaitResponse>,
}

/// Where a container is in its life.
#[derive(Clone, Copy)]
enum Phase {
    Created,
    Running,
    Stopped { status: u32, at: SystemTime },
}

impl RawShim for HelloRuntime {
    fn new(_: &Context) -> Result<Self> {
        Ok(Self::default())
    }
}

/// What is not written here is answered with `Unimplemented`, but for `pids`, which names the shim.
impl Task for HelloRuntime {
    // Events are queued before the answers that they belong to, so that no client is ahead of them.
    fn create(&self, call: &Call<'_>, req: CreateTaskRequest) -> Result<CreateTaskResponse> {
        let id = req.id.clone();
        let args = Bundle::new(&req.bundle)
            .spec()?
            .process
            .unwrap_or_default()
            .args;
        if args.is_empty() {
            return Err(Error::invalid_argument(format!(
                "container `{id}` has no `args`"
            )));
        }
        let mut programs = lock(&self.0);
        if programs.contains_key(&id) {
            return Err(Error::already_exists(format!("container `{id}` exists")));
        }
        let (streams, stdio) = call.open_stdio(&id, &req)?;
        call.publish(&TaskCreate {
            container_id: id.clone(),
            bundle: req.bundle.clone(),
            pid: Pid::own().get(),
            ..TaskCreate::default()
        });
        let program = Program {
            context: Context::clone(call),
            args,
            request: req,
            streams,
            stdio: Mutex::new(stdio),
            stop: AtomicI32::new(0),
            phase: Mutex::new(Phase::Created),
            waiters: Waiters::default(),
        };
        programs.insert(id, Arc::new(program));
        // A thread has no pid of its own.
        Ok(CreateTaskResponse {
            pid: Pid::own().get(),
            ..CreateTaskResponse::default()
        })
    }

    fn start(&self, call: &Call<'_>, req: StartRequest) -> Result<StartResponse> {
        let program = self.find(&req.id, &req.exec_id)?;
        {
            let mut phase = lock(&program.phase);
            if !matches!(*phase, Phase::Created) {
                let message = format!("cannot start container `{}`: it was started before", req.id);
                return Err(Error::failed_precondition(message));
            }
            *phase = Phase::Running;
        }
        call.publish(&TaskStart {
            container_id: req.id,
            pid: Pid::own().get(),
            ..TaskStart::default()
        });
        thread::spawn(move || {
            let status = program.run().unwrap_or(1);
            // containerd's clients hang up when they know of an end, so it is told once the output was read.
            let ended = program.clone();
            program.streams.on_delivered(move || {
                ended.end(status);
            });
        });
        Ok(StartResponse {
            pid: Pid::own().get(),
            ..StartResponse::default()
        })
    }

    fn state(&self, _: &Call<'_>, req: StateRequest) -> Result<StateResponse> {
        let program = self.find(&req.id, &req.exec_id)?;
        let phase = *lock(&program.phase);
        let (status, exit) = match phase {
            Phase::Created => (Status::CREATED, None),
            Phase::Running => (Status::RUNNING, None),
            Phase::Stopped { status, at } => (Status::STOPPED, Some((status, at))),
        };
        let request = program.request.clone();
        Ok(StateResponse {
            id: request.id,
            bundle: request.bundle,
            pid: Pid::own().get(),
            status: status.into(),
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            exit_status: exit.map_or(0, |(status, _)| status),
            exited_at: exit.map(|(_, at)| Timestamp::from(at)).into(),
            ..StateResponse::default()
        })
    }

    /// An answer that is put aside: a thousand waiters need no thread.
    fn wait(&self, _: &Call<'_>, req: WaitRequest, reply: Reply<WaitResponse>) {
        let program = match self.find(&req.id, &req.exec_id) {
            Ok(program) => program,
            Err(error) => return reply.send(Err(error)),
        };
        let phase = lock(&program.phase);
        match *phase {
            Phase::Stopped { status, at } => reply.send(Ok(wait_response(status, at))),
            // Under the lock: an end that comes next finds the waiter.
            _ => program.waiters.park(reply),
        }
    }

    fn kill(&self, _: &Call<'_>, req: KillRequest) -> Result<Empty> {
        let program = self.find(&req.id, &req.exec_id)?;
        let signal = Signal::new(req.signal)?;
        let phase = *lock(&program.phase);
        match phase {
            // Clients take this code for "already done".
            Phase::Stopped { .. } => return Err(Error::not_found("process already finished")),
            Phase::Created => drop(program.end(128 + req.signal)),
            Phase::Running => program.stop.store(signal.number(), Ordering::Relaxed),
        }
        Ok(Empty::default())
    }

    fn delete(&self, call: &Call<'_>, req: DeleteRequest) -> Result<DeleteResponse> {
        let program = self.find(&req.id, &req.exec_id)?;
        if let Phase::Running = *lock(&program.phase) {
            let message = format!("cannot delete container `{}`: it is running", req.id);
            return Err(Error::failed_precondition(message));
        }
        // One that was never started ends here: whoever waits for it is told.
        let (status, at) = program.end(0);
        program.streams.drain();
        lock(&self.0).remove(&req.id);
        let exited_at = Some(Timestamp::from(at));
        call.publish(&TaskDelete {
            container_id: req.id,
            pid: Pid::own().get(),
            exit_status: status,
            exited_at: exited_at.clone().into(),
            ..TaskDelete::default()
        });
        Ok(DeleteResponse {
            pid: Pid::own().get(),
            exit_status: status,
            exited_at: exited_at.into(),
            ..DeleteResponse::default()
        })
    }

    fn connect(&self, _: &Call<'_>, req: ConnectRequest) -> Result<ConnectResponse> {
        // Never `NotFound`: this is how containerd asks whether the shim lives.
        let task_pid = self.find(&req.id, "").map_or(0, |_| Pid::own().get());
        let shim_pid = Pid::own().get();
        Ok(ConnectResponse {
            shim_pid,
            task_pid,
            ..ConnectResponse::default()
        })
    }

    fn shutdown(&self, call: &Call<'_>, _: ShutdownRequest) -> Result<Empty> {
        // Containers of the same group may be left.
        if lock(&self.0).is_empty() {
            call.shutdown();
        }
        Ok(Empty::default())
    }
}

impl HelloRuntime {
    fn find(&self, id: &str, exec: &str) -> Result<Arc<Program>> {
        if !exec.is_empty() {
            return Err(Error::not_found(format!(
                "no exec `{exec}` in container `{id}`"
            )));
        }
        let found = lock(&self.0).get(id).cloned();
        found.ok_or_else(|| Error::not_found(format!("no container `{id}`")))
    }
}

impl Program {
    /// What a container runs; your engine goes here. This one prints the arguments and returns their number as
    /// the exit status. `forever` runs until it is told to stop.
    fn run(&self) -> io::Result<u32> {
        // Dropped when this returns, which is the end of the output to the client.
        let stdio = std::mem::take(&mut *lock(&self.stdio));
        let mut output: Box<dyn Write> = match stdio.stdout {
            Some(stdout) => Box::new(File::from(stdout)),
            None => Box::new(io::sink()),
        };
        writeln!(output, "{}", self.args.join(" "))?;
        if self.args[0] == "forever" {
            while self.stop.load(Ordering::Relaxed) == 0 {
                thread::sleep(Duration::from_millis(10));
            }
        }
        match self.stop.load(Ordering::Relaxed) {
            0 => Ok(u32::try_from(self.args.len()).unwrap_or(u32::MAX)),
            signal => Ok(128 + signal.unsigned_abs()),
        }
    }

    /// Tells the end, the first one only, and returns it.
    fn end(&self, status: u32) -> (u32, SystemTime) {
        let mut phase = lock(&self.phase);
        if let Phase::Stopped { status, at } = *phase {
            return (status, at);
        }
        let at = SystemTime::now();
        *phase = Phase::Stopped { status, at };
        // Under the lock: a Delete that comes next finds it queued.
        self.context.publish(&TaskExit {
            container_id: self.request.id.clone(),
            id: self.request.id.clone(),
            pid: Pid::own().get(),
            exit_status: status,
            exited_at: Some(Timestamp::from(at)).into(),
            ..TaskExit::default()
        });
        drop(phase);
        self.waiters.answer(&wait_response(status, at));
        (status, at)
    }
}

fn wait_response(status: u32, at: SystemTime) -> WaitResponse {
    WaitResponse {
        exit_status: status,
        exited_at: Some(Timestamp::from(at)).into(),
        ..WaitResponse::default()
    }
}

/// A panic elsewhere leaves nothing here half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
        assert_eq!(
            task.start().unwrap_err().code(),
            Some(Code::FailedPrecondition)
        );
        assert_eq!(
            task.kill(Signal::KILL).unwrap_err().code(),
            Some(Code::NotFound)
        );
        assert_eq!(task.delete()?.exit_status, 2);
        assert_eq!(task.state().unwrap_err().code(), Some(Code::NotFound));
        assert_eq!(bundle.stdio().finish(LIMIT)?.stdout, b"hello world\n");
        harness.assert_events(&["create c1", "start c1", "exit c1 2", "delete c1 2"])?;
        harness.check()
    }

    #[test]
    fn a_signal_stops_a_thread() -> Result<()> {
        let harness = Tested::new()?;
        let bundle = harness.bundle("c1").args(["forever"]).build()?;
        let task = harness.task(&bundle)?;
        task.create(&bundle)?;
        let exit = task.wait();
        task.start()?;
        assert_eq!(
            task.delete().unwrap_err().code(),
            Some(Code::FailedPrecondition)
        );
        task.kill(Signal::TERM)?;
        assert_eq!(exit.answer(LIMIT)?.exit_status, 143);
        assert_eq!(task.delete()?.exit_status, 143);
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
