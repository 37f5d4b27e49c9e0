//! A container that runs until its test kills it, for what happens around it meanwhile.

use std::path::PathBuf;

use protobuf::Message;
use shim_runtime::{Pid, Signal};
use shim_testing::api::{self, Status};
use shim_testing::{
    Bundle, BundleBuilder, Dialect, FakeContainerd, Mode, RawConnection, Result, Shim, Task, Usage, Waiting,
};

use super::{FIXTURE, LIMIT, bundle, until};
use integration::gate::Gate;

const TASK: &str = "containerd.task.v3.Task";

/// See the module.
pub(super) struct Host {
    pub(super) ctrd: FakeContainerd,
    pub(super) bundle: Bundle,
    pub(super) shim: Shim,
    pub(super) waiting: Waiting,
    before: Usage,
}

impl Host {
    /// One of a kind that sleeps.
    pub(super) fn new(kind: &str) -> Result<Self> {
        Self::with(kind, |_, bundle| bundle)
    }

    /// One that sleeps unless it is told otherwise.
    pub(super) fn with(
        kind: &str,
        change: impl FnOnce(&FakeContainerd, BundleBuilder) -> BundleBuilder,
    ) -> Result<Self> {
        let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
        let builder = bundle(&ctrd, "c1", kind).args(["sleep", "1000"]);
        let notes = notes_of(&ctrd);
        let builder = builder.annotation("fixture/notes", &notes.display().to_string());
        let bundle = change(&ctrd, builder).build()?;
        let shim = ctrd.start(FIXTURE, &bundle)?;
        let before = shim.usage()?;
        let waiting = shim.run()?;
        Ok(Self { ctrd, bundle, shim, waiting, before })
    }

    pub(super) fn task(&self) -> Task {
        self.shim.task()
    }

    /// Adds an exec without streams.
    pub(super) fn exec(&self, id: &str, args: &[&str]) -> Result<Task> {
        let exec = self.task().exec(id);
        exec.add(&self.bundle, args, &self.ctrd.stdio(id, Mode::Null, false)?)?;
        Ok(exec)
    }

    /// What author code was asked, line by line.
    pub(super) fn notes(&self) -> Vec<String> {
        let notes = std::fs::read_to_string(notes_of(&self.ctrd)).unwrap_or_default();
        notes.lines().map(str::to_owned).collect()
    }

    pub(super) fn status(&self) -> Result<Status> {
        Ok(self.task().state()?.status.enum_value().unwrap())
    }

    /// Kills the init, and waits until its shim has reaped it.
    pub(super) fn kill_init(&self) -> Result<()> {
        let pid = self.task().state()?.pid;
        self.task().kill(Signal::KILL)?;
        until("the init's end", || !is_there(pid));
        Ok(())
    }

    pub(super) fn has_event(&self, event: &str) -> bool {
        self.ctrd.events().all().iter().any(|seen| seen.matches(event))
    }

    /// Ends the container; nothing may be left.
    pub(super) fn end(self) -> Result<()> {
        self.task().kill(Signal::KILL)?;
        self.ended()
    }

    /// The container was killed; nothing may be left.
    pub(super) fn ended(self) -> Result<()> {
        assert_eq!(self.task().wait().answer(LIMIT)?.exit_status, 137);
        self.task().remove()?;
        self.deleted()
    }

    /// The container was deleted; nothing may be left.
    pub(super) fn deleted(mut self) -> Result<()> {
        self.shim.expect_descriptors(&self.before)?;
        self.shim.end()?;
        self.ctrd.check()
    }
}

/// A Wait of which is known that the shim has it.
pub(super) struct Parked(RawConnection);

impl Parked {
    /// Waits for a process of the container that the task means.
    pub(super) fn new(shim: &Shim, exec: &str) -> Result<Self> {
        let mut connection = shim.raw()?;
        connection.set_timeout(Some(LIMIT))?;
        let (id, exec_id) = (shim.bundle().id().to_owned(), exec.to_owned());
        let wait = api::WaitRequest { id: id.clone(), exec_id, ..Default::default() };
        connection.begin(TASK, "Wait", wait.write_to_bytes().unwrap())?;
        // Calls are read in their order.
        let request = api::ConnectRequest { id, ..Default::default() };
        connection.ask::<_, api::ConnectResponse>(TASK, "Connect", &request)?;
        Ok(Self(connection))
    }

    /// The exit status in its answer.
    pub(super) fn answer(mut self) -> Result<u32> {
        let frame = self.0.receive()?.unwrap();
        let response = ttrpc::Response::parse_from_bytes(&frame.body).unwrap();
        assert_eq!(response.status.code.value(), 0, "{}", response.status.message);
        Ok(api::WaitResponse::parse_from_bytes(&response.payload).unwrap().exit_status)
    }
}

fn notes_of(ctrd: &FakeContainerd) -> PathBuf {
    ctrd.root().join("notes")
}

/// Adds a gate at a step of the fixture's.
pub(super) fn gated(ctrd: &FakeContainerd, bundle: BundleBuilder, step: &str) -> (Gate, BundleBuilder) {
    let gate = Gate::new(ctrd.root(), step);
    let bundle = bundle.annotation(&format!("fixture/gate-{step}"), gate.path());
    (gate, bundle)
}

/// Whether there is such a process, reaped or not.
pub(super) fn is_there(pid: u32) -> bool {
    Pid::new(pid).is_some() && std::path::Path::new(&format!("/proc/{pid}")).exists()
}
