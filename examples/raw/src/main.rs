//! A shim that answers every RPC of containerd itself. The runtime is still its process: it starts, listens,
//! reaps, copies stdio and delivers events. What a task is, and when what is told, is decided here.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use shim_runtime::api::{
    CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse, DeleteRequest,
    DeleteResponse, Empty, KillRequest, PidsRequest, PidsResponse, ProcessInfo, ShutdownRequest,
    StartRequest, StartResponse, StateRequest, StateResponse, Status, TaskCreate, TaskDelete, TaskExit,
    TaskStart, WaitRequest, WaitResponse,
};
use shim_runtime::prelude::*;
use shim_runtime::{Bundle, Waiters};

/// The tasks of this shim, one process each.
#[containerd_shim(runtime = "io.containerd.raw.v1", raw)]
#[derive(Default)]
struct Raw {
    tasks: Mutex<HashMap<String, Arc<Init>>>,
}

impl RawShim for Raw {
    fn new(_: &Context) -> Result<Self> {
        Ok(Self::default())
    }
}

/// A task's only process, from Create to Delete.
struct Init {
    id: String,
    bundle: Bundle,
    gate: Gated,
    streams: Streams,
    /// Held by Start until its event is queued: the end of a process must not be told before its start.
    starting: Mutex<()>,
    life: Mutex<Life>,
    ended: Condvar,
    waiters: Waiters<WaitResponse>,
}

#[derive(Default)]
struct Life {
    started: bool,
    exit: Option<Exit>,
}

impl Task for Raw {
    // Calls that move one task on come one after the other, so nobody else takes this id meanwhile.
    fn create(&self, call: &Call<'_>, req: CreateTaskRequest) -> Result<CreateTaskResponse> {
        if self.find(&req.id).is_ok() {
            return Err(Error::already_exists(format!("task `{}` exists", req.id)));
        }
        let bundle = Bundle::new(&req.bundle);
        let rootfs = bundle.mount_rootfs(&req.rootfs)?;
        let mut command = bundle.spec()?.process.unwrap_or_default().command()?;
        if !req.rootfs.is_empty() {
            command.root(rootfs);
        }
        let (streams, stdio) = call.open_stdio(&req.id, &req)?;
        stdio.apply(&mut command)?;
        let gate = call.spawn_gated(command)?;
        // From here on the `delete` action ends the process if this shim cannot.
        gate.child().note_in(&bundle)?;
        let pid = gate.pid().get();
        let init = Arc::new(Init {
            id: req.id.clone(),
            bundle,
            gate,
            streams,
            starting: Mutex::default(),
            life: Mutex::default(),
            ended: Condvar::new(),
            waiters: Waiters::default(),
        });
        lock(&self.tasks).insert(req.id.clone(), init.clone());
        // Events are queued before the answers that they belong to, so that no client is ahead of them.
        call.publish(&TaskCreate {
            container_id: req.id,
            bundle: req.bundle,
            rootfs: req.rootfs,
            pid,
            ..TaskCreate::default()
        });
        let (cx, ended) = (Context::clone(call), init.clone());
        // containerd's clients hang up when they know of an exit, so it is told after the output was read.
        init.gate.child().on_exit(move |exit| {
            let told = ended.clone();
            ended.streams.on_delivered(move || told.exited(&cx, exit));
        });
        Ok(CreateTaskResponse { pid, ..CreateTaskResponse::default() })
    }

    fn start(&self, call: &Call<'_>, req: StartRequest) -> Result<StartResponse> {
        let init = self.process(&req.id, &req.exec_id)?;
        let _starting = lock(&init.starting);
        init.gate.open().with_context(|| format!("cannot start task `{}`", req.id))?;
        lock(&init.life).started = true;
        let pid = init.gate.pid().get();
        call.publish(&TaskStart { container_id: req.id, pid, ..TaskStart::default() });
        Ok(StartResponse { pid, ..StartResponse::default() })
    }

    fn kill(&self, _: &Call<'_>, req: KillRequest) -> Result<Empty> {
        let init = self.process(&req.id, &req.exec_id)?;
        init.gate.child().signal(Signal::new(req.signal)?, req.all)?;
        Ok(Empty::default())
    }

    // A waiter is a record, not a thread. It is put aside under the lock under which the exit is told.
    fn wait(&self, _: &Call<'_>, req: WaitRequest, reply: Reply<WaitResponse>) {
        match self.process(&req.id, &req.exec_id) {
            Err(error) => reply.send(Err(error)),
            Ok(init) => {
                let life = lock(&init.life);
                match life.exit {
                    Some(exit) => reply.send(Ok(waited(exit))),
                    None => init.waiters.park(reply),
                }
            }
        }
    }

    fn state(&self, _: &Call<'_>, req: StateRequest) -> Result<StateResponse> {
        let init = self.process(&req.id, &req.exec_id)?;
        let life = lock(&init.life);
        let status = match *life {
            Life { exit: Some(_), .. } => Status::STOPPED,
            Life { started: true, .. } => Status::RUNNING,
            Life { .. } => Status::CREATED,
        };
        Ok(StateResponse {
            id: req.id,
            bundle: init.bundle.path().to_string_lossy().into_owned(),
            pid: init.gate.pid().get(),
            status: status.into(),
            exit_status: life.exit.map_or(0, |exit| exit.status),
            exited_at: life.exit.map(Exit::timestamp).into(),
            ..StateResponse::default()
        })
    }

    fn delete(&self, call: &Call<'_>, req: DeleteRequest) -> Result<DeleteResponse> {
        let init = self.process(&req.id, &req.exec_id)?;
        let exit = init.exit().with_context(|| format!("cannot delete task `{}`", req.id))?;
        init.streams.drain();
        init.bundle.unmount_rootfs()?;
        lock(&self.tasks).remove(&req.id);
        let pid = init.gate.pid().get();
        let exited_at = Some(exit.timestamp());
        call.publish(&TaskDelete {
            container_id: req.id,
            pid,
            exit_status: exit.status,
            exited_at: exited_at.clone().into(),
            ..TaskDelete::default()
        });
        Ok(DeleteResponse {
            pid,
            exit_status: exit.status,
            exited_at: exited_at.into(),
            ..DeleteResponse::default()
        })
    }

    fn close_io(&self, _: &Call<'_>, req: CloseIORequest) -> Result<Empty> {
        self.process(&req.id, &req.exec_id)?.streams.close_input();
        Ok(Empty::default())
    }

    fn pids(&self, _: &Call<'_>, req: PidsRequest) -> Result<PidsResponse> {
        let pid = self.find(&req.id)?.gate.pid().get();
        let processes = vec![ProcessInfo { pid, ..ProcessInfo::default() }];
        Ok(PidsResponse { processes, ..PidsResponse::default() })
    }

    // Never an error: this is how containerd asks whether the shim lives.
    fn connect(&self, _: &Call<'_>, req: ConnectRequest) -> Result<ConnectResponse> {
        let task_pid = self.find(&req.id).map_or(0, |init| init.gate.pid().get());
        Ok(ConnectResponse { shim_pid: Pid::own().get(), task_pid, ..ConnectResponse::default() })
    }

    // containerd asks after every Delete; tasks of the same group may be left.
    fn shutdown(&self, call: &Call<'_>, _: ShutdownRequest) -> Result<Empty> {
        if lock(&self.tasks).is_empty() {
            call.shutdown();
        }
        Ok(Empty::default())
    }
}

impl Raw {
    fn find(&self, id: &str) -> Result<Arc<Init>> {
        lock(&self.tasks).get(id).cloned().ok_or_else(|| Error::not_found(format!("no task `{id}`")))
    }

    /// The process that a request means; there are no execs.
    fn process(&self, id: &str, exec: &str) -> Result<Arc<Init>> {
        if !exec.is_empty() {
            return Err(Error::not_found(format!("no exec `{exec}` in task `{id}`")));
        }
        self.find(id)
    }
}

impl Init {
    /// It has ended, started or not: tells containerd, then those who wait.
    fn exited(&self, cx: &Context, exit: Exit) {
        let _started = lock(&self.starting);
        cx.publish(&TaskExit {
            container_id: self.id.clone(),
            id: self.id.clone(),
            pid: self.gate.pid().get(),
            exit_status: exit.status,
            exited_at: Some(exit.timestamp()).into(),
            ..TaskExit::default()
        });
        lock(&self.life).exit = Some(exit);
        self.ended.notify_all();
        self.waiters.answer(&waited(exit));
    }

    /// How it ended, for a Delete. One that still waits at its gate is killed for it.
    fn exit(&self) -> Result<Exit> {
        let mut life = lock(&self.life);
        if !life.started && life.exit.is_none() {
            self.gate.child().signal(Signal::KILL, true)?;
            life = self
                .ended
                .wait_while(life, |life| life.exit.is_none())
                .unwrap_or_else(PoisonError::into_inner);
        }
        life.exit.ok_or_else(|| Error::failed_precondition("it is running"))
    }
}

fn waited(exit: Exit) -> WaitResponse {
    WaitResponse {
        exit_status: exit.status,
        exited_at: Some(exit.timestamp()).into(),
        ..WaitResponse::default()
    }
}

/// A panic in one call must not take the others along.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
