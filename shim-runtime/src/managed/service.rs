//! The task service's methods: what each checks, calls and answers (contract 6.3).

use containerd_shim_protos::shim::oci::ProcessDetails;
use protobuf::Message;

use super::Shim;
use super::processes::{Process, wait_response};
use super::state::{Move, Phase};
use super::{Managed, author};
use crate::api::{
    Any, Call, CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, Container,
    CreateTaskRequest, CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest,
    KillRequest, PauseRequest, PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest,
    ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse,
    Task, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use crate::args::check_id;
use crate::error::{Error, Result};
use crate::peer::Reply;
use crate::socket::GIVE_UP_KEY;
use crate::types::{Pid, Signal};

impl<S: Shim> Task for Managed<S> {
    fn create(&self, _: &Call<'_>, req: CreateTaskRequest) -> Result<CreateTaskResponse> {
        check_id("container id", &req.id)?;
        if !req.bundle.starts_with('/') {
            let message =
                format!("bad bundle {:?} of container `{}`: it is no absolute path", req.bundle, req.id);
            return Err(Error::invalid_argument(message));
        }
        let pid = self.create_container(&req)?;
        Ok(CreateTaskResponse { pid, ..CreateTaskResponse::default() })
    }

    fn start(&self, _: &Call<'_>, req: StartRequest) -> Result<StartResponse> {
        let pid = if req.exec_id.is_empty() {
            self.start_init(&req.id)?
        } else {
            self.start_exec(&req.id, &req.exec_id)?
        };
        Ok(StartResponse { pid, ..StartResponse::default() })
    }

    fn delete(&self, call: &Call<'_>, req: DeleteRequest) -> Result<DeleteResponse> {
        if call.metadata(GIVE_UP_KEY).is_some() {
            self.abandon(&req.id)
        } else if req.exec_id.is_empty() {
            self.delete_container(&req.id)
        } else {
            self.delete_exec(&req.id, &req.exec_id)
        }
    }

    fn exec(&self, _: &Call<'_>, req: ExecProcessRequest) -> Result<Empty> {
        check_id("exec id", &req.exec_id)?;
        let entry = self.0.table.find(&req.id)?;
        let mut processes = entry.processes();
        let exec = req.exec_id.clone();
        processes.add_exec(req)?;
        self.0.events.exec_added(&entry.id, &exec);
        Ok(Empty::default())
    }

    fn state(&self, _: &Call<'_>, req: StateRequest) -> Result<StateResponse> {
        let entry = self.0.table.find(&req.id)?;
        let mut processes = entry.processes();
        let paused =
            matches!(processes.init.phase, Phase::Paused | Phase::Pausing).then_some(processes.init.phase);
        let process = processes.get(&req.exec_id)?;
        // Go's shim reports the exec's id here, and clients rely on it (contract 6.1).
        let id = if req.exec_id.is_empty() { &entry.id } else { &req.exec_id };
        let mut report = process.report(id, &entry.bundle.path().to_string_lossy());
        if let (Phase::Running, Some(paused)) = (process.phase, paused) {
            report.status = paused.status().into();
        }
        Ok(report)
    }

    fn wait(&self, _: &Call<'_>, req: WaitRequest, reply: Reply<WaitResponse>) {
        let entry = match self.0.table.find(&req.id) {
            Ok(entry) => entry,
            Err(error) => return reply.send(Err(error)),
        };
        let mut processes = entry.processes();
        let known = match processes.get(&req.exec_id) {
            Err(error) => Err(error),
            Ok(Process { exit: Some(exit), .. }) => Ok(wait_response(*exit)),
            // Under the lock: an exit that is published next finds the waiter.
            Ok(process) => return process.waiters.park(reply),
        };
        drop(processes);
        reply.send(known);
    }

    fn kill(&self, _: &Call<'_>, req: KillRequest) -> Result<Empty> {
        let signal = Signal::new(req.signal)?;
        let entry = self.0.table.find(&req.id)?;
        {
            let mut processes = entry.processes();
            let process = processes.get(&req.exec_id)?;
            process.check(Move::Kill)?;
            if !req.exec_id.is_empty() && !process.phase.is_live() {
                let message = format!(
                    "cannot kill exec `{}` of container `{}`: it is not started",
                    req.exec_id, req.id
                );
                return Err(Error::failed_precondition(message));
            }
        }
        self.kill_process(&entry, &req.exec_id, signal, req.all)?;
        Ok(Empty::default())
    }

    fn pause(&self, _: &Call<'_>, req: PauseRequest) -> Result<Empty> {
        self.freeze(&req.id, Move::Pause, Phase::Pausing, Phase::Paused, C::<S>::pause)?;
        Ok(Empty::default())
    }

    fn resume(&self, _: &Call<'_>, req: ResumeRequest) -> Result<Empty> {
        self.freeze(&req.id, Move::Resume, Phase::Resuming, Phase::Running, C::<S>::resume)?;
        Ok(Empty::default())
    }

    fn update(&self, _: &Call<'_>, req: UpdateTaskRequest) -> Result<Empty> {
        let entry = self.0.table.find(&req.id)?;
        entry.processes().init.check(Move::Update)?;
        author(|| entry.container()?.update(&req))?;
        Ok(Empty::default())
    }

    fn checkpoint(&self, _: &Call<'_>, req: CheckpointTaskRequest) -> Result<Empty> {
        let entry = self.0.table.find(&req.id)?;
        entry.processes().init.check(Move::Checkpoint)?;
        author(|| entry.container()?.checkpoint(&req))?;
        self.0.events.checkpointed(&req.id, &req.path);
        Ok(Empty::default())
    }

    fn stats(&self, _: &Call<'_>, req: StatsRequest) -> Result<StatsResponse> {
        let entry = self.0.table.find(&req.id)?;
        let target = {
            let mut processes = entry.processes();
            processes.init.check(Move::Measure)?;
            processes.target("")?
        };
        let _inside = entry.calls.enter();
        let stats = author(|| entry.container()?.stats(&target))?;
        Ok(StatsResponse { stats: Some(stats).into(), ..StatsResponse::default() })
    }

    fn pids(&self, _: &Call<'_>, req: PidsRequest) -> Result<PidsResponse> {
        let entry = self.0.table.find(&req.id)?;
        let (over, init, target) = {
            let mut processes = entry.processes();
            let over = processes.init.is_over() || processes.init.phase == Phase::Deleting;
            (over, processes.init.pid, processes.target("")?)
        };
        let _inside = entry.calls.enter();
        // A stopped task answers with its init: an empty list would have it deleted as a leak (contract 6.3).
        let mut pids = if over { Vec::new() } else { author(|| entry.container()?.pids(&target))? };
        if pids.is_empty() {
            pids.extend(Pid::new(init));
        }
        let processes = entry.processes();
        let infos = pids.into_iter().map(|pid| process_info(pid, processes.exec_of(pid)));
        Ok(PidsResponse { processes: infos.collect(), ..PidsResponse::default() })
    }

    fn connect(&self, _: &Call<'_>, req: ConnectRequest) -> Result<ConnectResponse> {
        // Never `NotFound`: this is how a daemon asks whether the shim lives (contract 6.3).
        let task_pid = self.0.table.find(&req.id).map_or(0, |entry| entry.processes().init.pid);
        Ok(ConnectResponse { shim_pid: Pid::own().get(), task_pid, ..ConnectResponse::default() })
    }

    fn resize_pty(&self, _: &Call<'_>, req: ResizePtyRequest) -> Result<Empty> {
        let entry = self.0.table.find(&req.id)?;
        let mut processes = entry.processes();
        // As Go's shim has it: the size of a container's terminal may come late, that of an exec's may not.
        if !(req.exec_id.is_empty() && processes.init.is_over()) {
            processes.get(&req.exec_id)?.resize(req.width, req.height)?;
        }
        Ok(Empty::default())
    }

    fn close_io(&self, _: &Call<'_>, req: CloseIORequest) -> Result<Empty> {
        let entry = self.0.table.find(&req.id)?;
        entry.processes().get(&req.exec_id)?.close_input();
        Ok(Empty::default())
    }

    fn shutdown(&self, _: &Call<'_>, _: ShutdownRequest) -> Result<Empty> {
        // Nothing happens while a task is held; then it is remembered (contract 6.3).
        self.0.lifetime.leave();
        Ok(Empty::default())
    }
}

type C<S> = <S as Shim>::Container;

impl<S: Shim> Managed<S> {
    /// Pauses or resumes; whoever asks meanwhile sees that it is under way.
    fn freeze(
        &self,
        id: &str,
        wanted: Move,
        meanwhile: Phase,
        after: Phase,
        call: fn(&S::Container) -> Result<()>,
    ) -> Result<()> {
        let entry = self.0.table.find(id)?;
        let before = {
            let mut processes = entry.processes();
            let before = processes.init.phase;
            processes.init.advance(wanted, meanwhile)?;
            before
        };
        let result = author(|| call(entry.container()?));
        let mut processes = entry.processes();
        // Its exit may have come meanwhile, and stands.
        if processes.init.phase == meanwhile {
            processes.init.phase = if result.is_ok() { after } else { before };
            match (&result, wanted) {
                (Ok(()), Move::Pause) => self.0.events.paused(id),
                (Ok(()), _) => self.0.events.resumed(id),
                _ => {}
            }
        }
        result
    }
}

/// A process as `ps` shows it; execs are told by their id.
fn process_info(pid: Pid, exec: Option<&str>) -> ProcessInfo {
    let info = exec.map(|exec| {
        let details = ProcessDetails { exec_id: exec.to_owned(), ..ProcessDetails::default() };
        let type_url = "containerd.runc.v1.ProcessDetails".to_owned();
        Any { type_url, value: details.write_to_bytes().unwrap_or_default(), ..Any::default() }
    });
    ProcessInfo { pid: pid.get(), info: info.into(), ..ProcessInfo::default() }
}
