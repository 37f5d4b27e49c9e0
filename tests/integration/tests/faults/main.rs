//! Faults, each forced: of clients, of containerd, of the system and of author code (contract 6.5, 6.6, 7, 9.2).
//! Neither root nor containerd is needed.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a step that fails is a test that fails")]

mod interleavings;
mod limits;
mod load;
mod mutation;
mod processes;
mod publisher;
mod signals;
mod wire;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use integration::gate::Gate;
use protobuf::Message;
use shim_runtime::{Code, Pid, Signal};
use shim_testing::{BundleBuilder, FakeContainerd, Frame, Process, RawConnection, Result, Shim, api};

/// The shim that misbehaves on request.
const FIXTURE: &str = env!("CARGO_BIN_EXE_containerd-shim-fixture-v1");
/// How long anything is waited for that should come at once.
const LIMIT: Duration = Duration::from_mins(1);
const TASK: &str = "containerd.task.v3.Task";
/// The fixture's own service; see `fixture/faults.rs`.
const FAULTS: &str = "fixture.Faults";
const MIB: usize = 1 << 20;

/// A bundle for a container of one of the fixture's kinds.
fn bundle(ctrd: &FakeContainerd, id: &str, kind: &str) -> BundleBuilder {
    let builder = ctrd.bundle(id);
    if kind.is_empty() { builder } else { builder.annotation("fixture/kind", kind) }
}

/// A shim without a container.
fn idle(ctrd: &FakeContainerd) -> Result<Shim> {
    ctrd.start(FIXTURE, &bundle(ctrd, "c1", "").build()?)
}

/// A shim whose container has a process that sleeps.
fn sleeping(ctrd: &FakeContainerd) -> Result<Shim> {
    let bundle = bundle(ctrd, "c1", "").args(["sleep", "1000"]).build()?;
    let shim = ctrd.start(FIXTURE, &bundle)?;
    shim.task().create(&bundle)?;
    shim.task().start()?;
    Ok(shim)
}

/// Ends a shim whose container runs.
fn end(mut shim: Shim) -> Result<()> {
    shim.task().kill(Signal::KILL)?;
    shim.task().wait().answer(LIMIT)?;
    shim.remove().map(drop)
}

/// A connection whose reads end at last.
fn raw(shim: &Shim) -> Result<RawConnection> {
    let connection = shim.raw()?;
    connection.set_timeout(Some(LIMIT))?;
    Ok(connection)
}

fn request(method: &str, message: &impl Message) -> ttrpc::Request {
    ttrpc::Request {
        service: TASK.into(),
        method: method.into(),
        payload: message.write_to_bytes().unwrap(),
        ..ttrpc::Request::default()
    }
}

fn wait_request(id: &str) -> ttrpc::Request {
    request("Wait", &api::WaitRequest { id: id.into(), ..Default::default() })
}

fn state_request(id: &str) -> ttrpc::Request {
    request("State", &api::StateRequest { id: id.into(), ..Default::default() })
}

/// The code in an answer; 0 for success.
fn code_of(frame: &Frame) -> i32 {
    assert_eq!((frame.kind, frame.flags), (2, 0), "not an answer: {frame:?}");
    ttrpc::Response::parse_from_bytes(&frame.body).unwrap().status.code.value()
}

/// The next answer's stream and code.
fn answer(connection: &mut RawConnection) -> Result<(u32, i32)> {
    let frame = connection.receive()?.expect("the connection has ended");
    Ok((frame.stream, code_of(&frame)))
}

/// Whether the shim answers a client that has just come.
fn answers(shim: &Shim) -> Result<()> {
    let mut connection = raw(shim)?;
    let state = state_request("nobody");
    let answer = connection.call(&state.service, &state.method, state.payload)?;
    assert_eq!(answer.status.code.value(), Code::NotFound as i32);
    Ok(())
}

/// Calls the fixture's own service.
fn ask(connection: &mut RawConnection, method: &str, payload: &str) -> Result<String> {
    let answer = connection.call(FAULTS, method, payload.into())?;
    assert_eq!(answer.status.code.value(), 0, "{method}: {}", answer.status.message);
    Ok(String::from_utf8(answer.payload).unwrap())
}

/// Waits for a condition that nothing tells of.
fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < end, "in vain waited for: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// A number from a process's status file, such as `Threads`; sizes are in KiB.
fn status(pid: Pid, field: &str) -> usize {
    number_in(&format!("/proc/{pid}/status"), field)
}

fn number_in(file: &str, field: &str) -> usize {
    let text = shim_testing::kernel_text(file).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
    value.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Resident memory in bytes.
fn memory(pid: Pid) -> usize {
    status(pid, "VmRSS") << 10
}

fn descriptors(pid: Pid) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// The pids of a process's children, zombies included.
fn children(pid: Pid) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let lists = tasks.filter_map(|task| shim_testing::kernel_text(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// Runs the bundle's shim through a script that comes first.
fn through(ctrd: &FakeContainerd, first: &str) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let script = ctrd.root().join(Path::new(FIXTURE).file_name().unwrap());
    std::fs::write(&script, format!("#!/bin/sh\n{first}\nexec {FIXTURE} \"$@\"\n"))?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
    Ok(script)
}

/// The one socket of a stand-in's shims.
fn only_socket(ctrd: &FakeContainerd) -> Option<PathBuf> {
    std::fs::read_dir(ctrd.root().join("s")).unwrap().flatten().map(|entry| entry.path()).next()
}

/// Makes the test's process the parent of what its children leave behind, so that [`exit_status`] can ask.
fn adopt_orphans() {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
}

/// How a server that was started after [`adopt_orphans`] has ended; `None` for a signal.
fn exit_status(server: &Process) -> Option<i32> {
    use rustix::process::{WaitOptions, waitpid};
    assert!(server.ended_within(LIMIT), "the server lives");
    let pid = rustix::process::Pid::from_raw(server.pid().get() as i32);
    waitpid(pid, WaitOptions::empty()).unwrap().unwrap().1.exit_status()
}
