//! A shim that was started, with a connection to it: the daemon's sequences (contract 6.2), and handles to do
//! things out of order.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_shim_protos::api::DeleteResponse;
use protobuf::Message;

use super::bootstrap::Answer;
use super::bundle::Bundle;
use super::client::{HangUp, Task, Waiting};
use super::containerd::FakeContainerd;
use super::failure::{Failure, Result};
use super::frames::RawConnection;
use super::launch::Output;
use super::process::{self, Process};
use super::promise;
use super::watch::Watch;
use shim_runtime::{Code, Signal};

/// The daemon's budget for the `delete` action (contract 2.6).
pub(crate) const DELETE_LIMIT: Duration = Duration::from_secs(5);

/// How long a server may take to end after Shutdown.
const END_LIMIT: Duration = Duration::from_secs(5);

/// What `start` led to.
pub(crate) struct Started {
    pub(crate) binary: PathBuf,
    pub(crate) answer: Answer,
    pub(crate) took: Duration,
    pub(crate) servers: Vec<Process>,
}

/// A shim's connection for one bundle.
pub struct Shim {
    ctrd: FakeContainerd,
    bundle: Bundle,
    started: Started,
    task: Task,
    hang_up: HangUp,
}

impl Shim {
    pub(crate) fn new(
        ctrd: FakeContainerd,
        bundle: Bundle,
        started: Started,
        task: Task,
        stream: UnixStream,
    ) -> Self {
        Self { ctrd, bundle, started, task, hang_up: HangUp(stream) }
    }

    /// The task service, aimed at the bundle's container.
    pub fn task(&self) -> Task {
        self.task.clone()
    }

    /// The bundle it was started for.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// Its binary.
    pub fn binary(&self) -> &Path {
        &self.started.binary
    }

    /// What `start` answered.
    pub fn answer(&self) -> &Answer {
        &self.started.answer
    }

    /// The path of its socket.
    pub fn socket(&self) -> PathBuf {
        // The answer was taken, so its path is one.
        self.started.answer.path().unwrap_or_default()
    }

    /// How long `start` took; zero for one that was attached.
    pub fn start_took(&self) -> Duration {
        self.started.took
    }

    /// The process that listens on the socket, for example to be killed.
    pub fn server(&self) -> Result<&Process> {
        self.started
            .servers
            .first()
            .ok_or_else(|| Failure::setup(format!("nobody listens on `{}`", self.socket().display())))
    }

    pub(crate) fn watch(&self) -> &Watch {
        self.ctrd.watch()
    }

    /// A further connection, by hand.
    pub fn raw(&self) -> io::Result<RawConnection> {
        RawConnection::connect(self.socket())
    }

    /// See [`Task::run`], for the bundle that the shim was started for.
    pub fn run(&self) -> Result<Waiting> {
        self.task.run(&self.bundle)
    }

    /// What the daemon does when a client deletes a container that has ended: State, Delete, and the shim's
    /// end as in [`Shim::end`].
    pub fn remove(&mut self) -> Result<DeleteResponse> {
        let deleted = self.task.remove()?;
        self.end()?;
        Ok(deleted)
    }

    /// What follows a Delete: Shutdown, the end of the connection, the `delete` action, the end of the bundle.
    /// The action is run twice, since a restarted daemon may ([contract 2.6](shim_runtime::contract#s2-6)).
    pub fn end(&mut self) -> Result<()> {
        self.task.shutdown()?;
        self.disconnect();
        for _ in 0..2 {
            let output = self.delete_output()?;
            if let Err(reason) = read_delete(&output) {
                self.ctrd.watch().report(
                    promise::DELETE_IDEMPOTENT,
                    reason,
                    "success after a normal deletion",
                );
            }
        }
        // Only its own: others of its group may be under way.
        self.ctrd.settle_those(|container, _| container == self.bundle.id());
        super::leaks::check_bundle(&self.ctrd, &self.bundle);
        self.bundle.remove()?;
        self.expect_end();
        Ok(())
    }

    /// Ends the connection, as the daemon does.
    pub fn disconnect(&self) {
        self.hang_up.now();
    }

    /// Runs the `delete` action and reads its answer.
    pub fn delete_action(&self) -> Result<DeleteResponse> {
        let output = self.delete_output()?;
        read_delete(&output).map_err(|reason| {
            let promise = if output.success() { promise::DELETE_ANSWER } else { promise::DELETE_QUICK };
            self.ctrd.broken_now(promise, reason, "0 within 5 s, and an answer or nothing on stdout")
        })
    }

    fn delete_output(&self) -> Result<Output> {
        let running = self.ctrd.timeline().call(format!("delete {}", self.bundle.id()));
        let output = self.ctrd.launch(&self.started.binary, &self.bundle, "delete").run()?;
        running.done(match read_delete(&output) {
            Ok(answer) => format!("status {}", answer.exit_status),
            Err(reason) => reason,
        });
        Ok(output)
    }

    /// The server ends once the last of its containers is gone; before that it must not.
    fn expect_end(&self) {
        let left = {
            let mut addresses = self.ctrd.addresses();
            let served = addresses.entry(self.socket()).or_default();
            served.remove(self.bundle.id());
            served.len()
        };
        for server in &self.started.servers {
            if left > 0 && !server.is_alive() {
                let seen = format!("the server ended while {left} containers were left");
                self.ctrd.watch().report(promise::DELETE_SPARES_GROUP, seen, "a server that serves them");
            } else if left == 0 && !server.ended_within(END_LIMIT) {
                let seen = format!("{} alive after {END_LIMIT:?}", process::describe(server.pid()));
                self.ctrd.watch().report(promise::SHUTDOWN_ENDS, seen, "its end");
            }
        }
    }

    /// What the daemon does when Create or Start failed or a client lost interest: kill, delete, shut down,
    /// hang up, `delete` action, bundle removed. Errors are in the timeline only.
    pub fn abandon(&mut self) {
        let task = self.task.within(Duration::from_secs(5));
        match task.kill_with(Signal::KILL, true) {
            Ok(()) => drop(task.wait().answer(Duration::from_secs(5))),
            Err(failure) if failure.code() == Some(Code::Unavailable) => {}
            Err(_) => {}
        }
        let _ = task.delete();
        let _ = task.shutdown();
        self.disconnect();
        let _ = self.delete_output();
        let _ = self.bundle.remove();
        self.expect_end();
    }
}

/// An answer, or nothing, from a `delete` that succeeded (contract 2.6).
fn read_delete(output: &Output) -> std::result::Result<DeleteResponse, String> {
    if output.kept_open || !output.success() {
        let kept = if output.kept_open { ", and something keeps its output open" } else { "" };
        return Err(format!("{output}{kept}"));
    }
    DeleteResponse::parse_from_bytes(&output.stdout)
        .map_err(|error| format!("no `DeleteResponse` on stdout: {error}"))
}
