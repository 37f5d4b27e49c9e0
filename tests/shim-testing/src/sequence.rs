//! The daemon's sequences of calls (contract 6.2), and what it takes for granted about their answers.

use std::time::{Duration, SystemTime};

use containerd_shim_protos::api::{DeleteResponse, StateResponse, Status};

use super::bundle::Bundle;
use super::client::{Task, Waiting};
use super::events::Event;
use super::failure::Result;
use super::promise;
use shim_runtime::Code;

/// How long an event may take before its promise of order is not looked at.
const STAMP_LIMIT: Duration = Duration::from_secs(2);

impl Task {
    /// What the daemon does between `start` and the user's process running: Create, Connect, Wait beside
    /// Start, Start, State. Promises about the answers are reported, not returned.
    pub fn run(&self, bundle: &Bundle) -> Result<Waiting> {
        let created = self.create(bundle).inspect_err(|failure| {
            if failure.code() == Some(Code::Unimplemented) {
                let expected = format!("`{}`, as the answer of `start` says", self.service());
                self.watch.report(promise::TASK_SERVICE, failure.to_string(), expected);
            }
        })?;
        let returned = SystemTime::now();
        self.judge_created(created.pid);
        let connected = self.connect().inspect_err(|failure| self.report_connect(failure.to_string()))?;
        if connected.task_pid != created.pid || connected.shim_pid == 0 {
            self.report_connect(format!("shim {} and task {}", connected.shim_pid, connected.task_pid));
        }
        self.judge_stamp(returned);
        let waiting = self.wait();
        let started = self.start()?;
        let state = self.state()?;
        self.judge_state(&state, started.pid, &[Status::RUNNING, Status::STOPPED]);
        Ok(waiting)
    }

    /// What the daemon does first when a client deletes a container that has ended: State and Delete.
    pub fn remove(&self) -> Result<DeleteResponse> {
        let state = self.state()?;
        self.judge_state(&state, state.pid, &[Status::STOPPED]);
        self.delete()
    }

    fn judge_created(&self, pid: u32) {
        let lives = self.watch.with_processes(|all| all.iter().any(|process| process.pid().get() == pid));
        if !lives {
            self.watch.report(promise::CREATE_PID, format!("pid {pid}"), "the pid of a process that lives");
        }
    }

    fn report_connect(&self, seen: String) {
        self.watch.report(promise::CONNECT_ALWAYS, seen, "the pids of the shim and of the created task");
    }

    /// The create event is on its way when Create answers, so a short while is enough to see its stamp.
    fn judge_stamp(&self, returned: SystemTime) {
        let is_it = |event: &&Event| event.topic == "/tasks/create" && event.container == self.id;
        let find = |events: &[Event]| events.iter().rfind(is_it).cloned();
        if let Some(event) = self.events.wait_until(STAMP_LIMIT, find) {
            self.watch.stamped_before(&event, returned);
        }
    }

    fn judge_state(&self, state: &StateResponse, pid: u32, expected: &[Status]) {
        let right = state.status.enum_value().is_ok_and(|status| expected.contains(&status));
        if !right || state.pid != pid || state.id != self.id {
            let seen = format!("{:?}, pid {}, id `{}`", state.status, state.pid, state.id);
            let expected = format!("{expected:?}, pid {pid}, id `{}`", self.id);
            self.watch.report(promise::STATE_TRUE, seen, expected);
        }
    }
}
