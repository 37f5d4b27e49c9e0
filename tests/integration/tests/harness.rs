//! Shims in the test's own process: the harness calls them as a server would, directly and over the wire, and
//! tells what they do wrong.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use shim_runtime::api::{
    CreateTaskRequest, CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ShutdownRequest,
};
use shim_runtime::prelude::*;
use shim_runtime::{Bundle, Code};
use shim_testing::api::Status;
use shim_testing::{Harness, Mode, Process as Watched, timeline};

const LIMIT: Duration = Duration::from_secs(30);

/// Every container is a process; what is wrong with it is said by annotations.
#[containerd_shim(runtime = "io.containerd.host.v1", main = false)]
struct Host;

impl Shim for Host {
    type Container = HostProcess;

    fn new(cx: &Context) -> Result<Self> {
        match annotation(cx.bundle(), "new")?.as_deref() {
            Some("fail") => Err(Error::failed_precondition("no engine here")),
            Some("panic") => panic!("on purpose"),
            _ => Ok(Self),
        }
    }

    fn create(&self, req: &mut Create) -> Result<HostProcess> {
        let process = HostProcess::create(req)?;
        match annotation(req.bundle(), "create")?.as_deref() {
            Some("fail") => Err(Error::resource_exhausted("no room")),
            Some("run") => {
                let output = req.run(Command::new("sh").args(["-c", "echo out; exit 4"]))?;
                assert_eq!((output.exit.status, output.stdout.as_slice()), (4, &b"out\n"[..]));
                Ok(process)
            }
            Some("file") => {
                std::fs::write(req.bundle().path().join("rootfs/left"), "")?;
                Ok(process)
            }
            _ => Ok(process),
        }
    }

    fn cleanup(cx: &Context) -> Result<Option<Exit>> {
        let said = cx.run(Command::new("cat").arg(cx.bundle().path().join("said")))?.stdout;
        let said = String::from_utf8_lossy(&said).trim().parse();
        said.map(|status| Some(Exit::now(status))).map_err(|_| Error::not_found("nothing was said"))
    }
}

fn annotation(bundle: &Bundle, name: &str) -> Result<Option<String>> {
    Ok(bundle.annotations()?.remove(name))
}

/// Every container is a thread that ends by a signal, or never.
#[containerd_shim(runtime = "io.containerd.thread.v1", main = false)]
struct Threads;

struct Thread {
    deaf: bool,
}

impl Shim for Threads {
    type Container = Thread;

    fn new(_: &Context) -> Result<Self> {
        Ok(Self)
    }

    fn create(&self, req: &mut Create) -> Result<Thread> {
        Ok(Thread { deaf: annotation(req.bundle(), "deaf")?.is_some() })
    }
}

impl Container for Thread {
    fn start(&self, _: Stdio) -> Result<Started> {
        let (deaf, flag) = (self.deaf, Arc::new(AtomicI32::new(0)));
        let stop = flag.clone();
        let ended = move || {
            while deaf || flag.load(Ordering::Relaxed) == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(128 + flag.load(Ordering::Relaxed).unsigned_abs())
        };
        Started::thread(move |signal| stop.store(signal.number(), Ordering::Relaxed), ended)
    }
}

/// Forgets to tell of what it does, and to end.
#[containerd_shim(runtime = "io.containerd.raw.v1", raw, main = false)]
struct Silent;

impl RawShim for Silent {
    fn new(_: &Context) -> Result<Self> {
        Ok(Self)
    }
}

impl Task for Silent {
    fn create(&self, _: &Call<'_>, _: CreateTaskRequest) -> Result<CreateTaskResponse> {
        Ok(CreateTaskResponse { pid: Pid::own().get(), ..CreateTaskResponse::default() })
    }

    fn delete(&self, _: &Call<'_>, _: DeleteRequest) -> Result<DeleteResponse> {
        Ok(DeleteResponse { pid: Pid::own().get(), ..DeleteResponse::default() })
    }

    fn shutdown(&self, _: &Call<'_>, _: ShutdownRequest) -> Result<Empty> {
        Ok(Empty::default())
    }
}

#[test]
fn a_create_from_a_checkpoint_without_restore_is_a_failed_precondition() -> shim_testing::Result<()> {
    let harness = Harness::<Host>::new()?;
    let bundle = harness.bundle("c1").build()?;
    let request = CreateTaskRequest {
        id: "c1".to_owned(),
        bundle: bundle.path().display().to_string(),
        checkpoint: "/nowhere".to_owned(),
        ..CreateTaskRequest::default()
    };
    // Unimplemented would have containerd fall back to an older task service (contract 6.3, Create).
    let refused = harness.task(&bundle)?.create_with(&request).unwrap_err();
    assert_eq!(refused.code(), Some(Code::FailedPrecondition));
    harness.check()
}

#[test]
fn a_process_lives_through_every_call() -> shim_testing::Result<()> {
    let harness = Harness::<Host>::new()?;
    let bundle = harness.bundle("c1").args(["sh", "-c", "cat; exit 3"]).capture().build()?;
    let task = harness.task(&bundle)?;
    let created = task.create(&bundle)?;
    assert_eq!(task.state()?.status.enum_value(), Ok(Status::CREATED));
    let waiting = task.wait();
    assert_eq!(task.start()?.pid, created.pid);
    assert_eq!(task.connect()?.task_pid, created.pid);
    assert_eq!(task.pids()?.processes.len(), 1);
    assert_eq!(task.delete().unwrap_err().code(), Some(Code::FailedPrecondition));
    assert_eq!(task.pause().unwrap_err().code(), Some(Code::Unimplemented));
    bundle.stdio().write("hi\n");
    bundle.stdio().close_stdin();
    task.close_io()?;
    assert_eq!(waiting.answer(LIMIT)?.exit_status, 3);
    assert_eq!(task.delete()?.exit_status, 3);
    assert_eq!(task.container("c2").state().unwrap_err().code(), Some(Code::NotFound));
    assert_eq!(bundle.stdio().finish(LIMIT)?.stdout, b"hi\n");
    harness.assert_events(&["create c1", "start c1", "exit c1 3", "delete c1 3"])?;
    harness.check()
}

#[test]
fn an_exec_runs_beside_the_init_and_goes_before_it() -> shim_testing::Result<()> {
    let harness = Harness::<Host>::new()?;
    let bundle = harness.bundle("c1").args(["sleep", "1000"]).build()?;
    let task = harness.task(&bundle)?;
    let waiting = task.run(&bundle)?;
    let (exec, stdio) = (task.exec("e1"), harness.stdio("e1", Mode::Capture, false)?);
    exec.add(&bundle, &["sh", "-c", "echo out; kill -9 $$"], &stdio)?;
    let exec_waiting = exec.wait();
    exec.start()?;
    assert_eq!(exec_waiting.answer(LIMIT)?.exit_status, 137);
    exec.delete()?;
    assert_eq!(stdio.finish(LIMIT)?.stdout, b"out\n");
    task.kill(Signal::TERM)?;
    assert_eq!(waiting.answer(LIMIT)?.exit_status, 143);
    task.remove()?;
    harness.assert_events(&[
        "create c1",
        "start c1",
        "exec-added c1/e1",
        "exec-started c1/e1",
        "exit c1/e1 137",
        "exit c1 143",
        "delete c1 143",
    ])?;
    harness.check()
}

#[test]
fn one_shim_serves_all_bundles_and_runs_commands() -> shim_testing::Result<()> {
    let harness = Harness::<Host>::new()?;
    let make = |id: &str| harness.bundle(id).annotation("create", "run").build();
    let bundles = [make("c1")?, make("c2")?];
    for bundle in &bundles {
        let task = harness.task(bundle)?;
        assert_eq!(task.run(bundle)?.answer(LIMIT)?.exit_status, 0);
        task.remove()?;
    }
    assert_eq!(constructions(harness.timeline()), 1);
    harness.check()
}

fn constructions(timeline: &shim_testing::Timeline) -> usize {
    timeline.entries().iter().filter(|entry| entry.what.starts_with("new ")).count()
}

#[test]
fn a_thread_is_stopped_by_a_signal() -> shim_testing::Result<()> {
    let harness = Harness::<Threads>::new()?;
    let bundle = harness.bundle("c1").build()?;
    let task = harness.task(&bundle)?;
    let waiting = task.run(&bundle)?;
    assert_eq!(task.state()?.pid, Pid::own().get());
    task.kill(Signal::TERM)?;
    assert_eq!(waiting.answer(LIMIT)?.exit_status, 143);
    task.remove()?;
    harness.assert_events(&["create c1", "start c1", "exit c1 143", "delete c1 143"])?;
    harness.check()
}

#[test]
fn a_create_that_fails_leaves_neither_event_nor_process() -> shim_testing::Result<()> {
    let harness = Harness::<Host>::new()?;
    let bundle = harness.bundle("c1").args(["sleep", "1000"]).annotation("create", "fail").build()?;
    let task = harness.task(&bundle)?;
    let failure = task.create(&bundle).unwrap_err();
    assert_eq!(failure.code(), Some(Code::ResourceExhausted));
    assert!(failure.to_string().contains("no room"), "{failure}");
    assert_eq!(task.state().unwrap_err().code(), Some(Code::NotFound));
    harness.assert_events(&[])?;
    harness.check()
}

#[test]
fn a_constructor_that_fails_or_panics_is_the_failure_of_the_first_task() -> shim_testing::Result<()> {
    let harness = Harness::<Host>::new()?;
    for (how, code, words) in
        [("fail", Code::FailedPrecondition, "no engine here"), ("panic", Code::Internal, "on purpose")]
    {
        let bundle = harness.bundle(how).annotation("new", how).build()?;
        let failure = harness.task(&bundle).map(drop).unwrap_err();
        assert_eq!(failure.code(), Some(code));
        assert!(format!("{failure:?}").contains(words), "{failure:?}");
    }
    Ok(())
}

#[test]
fn the_author_s_part_of_delete_is_called_with_its_bundle() -> shim_testing::Result<()> {
    let harness = Harness::<Host>::new()?;
    let bundle = harness.bundle("c1").build()?;
    assert_eq!(harness.cleanup(&bundle).unwrap_err().code(), Some(Code::NotFound));
    std::fs::write(bundle.path().join("said"), "7")?;
    assert_eq!(harness.cleanup(&bundle)?.map(|exit| exit.status), Some(7));
    Ok(())
}

#[test]
fn other_events_than_expected_are_told_with_the_timeline() -> shim_testing::Result<()> {
    let harness = Harness::<Host>::new()?;
    let bundle = harness.bundle("c1").build()?;
    let task = harness.task(&bundle)?;
    task.run(&bundle)?.answer(LIMIT)?;
    task.remove()?;
    let failure = harness.assert_events(&["create c1", "start c1", "exit c1 1", "delete c1"]).unwrap_err();
    let text = format!("{failure:?}");
    for part in ["exit c1 0, delete c1 0]; expected [create c1", "Create c1", "Start c1", "> exit c1 0"] {
        assert!(text.contains(part), "no `{part}` in {text}");
    }
    harness.check()
}

#[test]
fn what_a_shim_leaves_or_forgets_fails_the_check_by_name() -> shim_testing::Result<()> {
    let names = |failure: shim_testing::Failure| {
        failure.promises().iter().map(|broken| broken.promise.name).collect::<Vec<_>>()
    };
    let harness = Harness::<Host>::new()?;
    let bundle = harness.bundle("c1").annotation("create", "file").build()?;
    let task = harness.task(&bundle)?;
    task.run(&bundle)?.answer(LIMIT)?;
    task.remove()?;
    assert_eq!(names(harness.check().unwrap_err()), ["leak.rootfs"]);

    let harness = Harness::<Silent>::new()?;
    let bundle = harness.bundle("c1").build()?;
    let task = harness.task(&bundle)?;
    task.create(&bundle)?;
    task.delete()?;
    assert_eq!(names(harness.check().unwrap_err()), ["event.create", "event.delete-after-exit"]);

    let harness = Harness::<Silent>::new()?;
    harness.task(&harness.bundle("c1").build()?)?;
    assert_eq!(names(harness.check().unwrap_err()), ["shutdown.ends"]);
    Ok(())
}

/// Whether nothing is left of a process, not even a zombie.
fn is_gone(process: &Watched) -> bool {
    process.ended_within(LIMIT) && !Path::new(&format!("/proc/{}", process.pid())).exists()
}

#[test]
fn a_dropped_harness_takes_its_processes_along_and_answers_who_waits() -> shim_testing::Result<()> {
    let harness = Harness::<Host>::new()?;
    let bundle = harness.bundle("c1").args(["sleep", "1000"]).build()?;
    let task = harness.task(&bundle)?;
    let waiting = task.run(&bundle)?;
    let process = Pid::new(task.state()?.pid).map(Watched::open).expect("a pid")?;
    assert!(process.is_alive());
    drop(harness);
    assert!(is_gone(&process));
    assert_eq!(waiting.answer(LIMIT).unwrap_err().code(), Some(Code::Unavailable));
    assert_eq!(task.state().unwrap_err().code(), Some(Code::Unavailable));
    Ok(())
}

#[test]
fn a_thread_that_hears_nothing_does_not_hold_up_the_harness() -> shim_testing::Result<()> {
    let harness = Harness::<Threads>::new()?;
    let bundle = harness.bundle("c1").annotation("deaf", "").build()?;
    let task = harness.task(&bundle)?;
    let waiting = task.run(&bundle)?;
    drop(harness);
    assert_eq!(waiting.answer(LIMIT).unwrap_err().code(), Some(Code::Unavailable));
    Ok(())
}

#[test]
fn a_call_is_given_up_at_its_deadline_and_those_after_it_are_answered() -> shim_testing::Result<()> {
    let harness = Harness::<Threads>::new()?;
    let bundle = harness.bundle("c1").build()?;
    let task = harness.task(&bundle)?;
    let waiting = task.run(&bundle)?;
    let request = shim_testing::api::WaitRequest { id: "c1".into(), ..Default::default() };
    let limit = Duration::from_millis(20);
    let waited = task.call::<_, shim_testing::api::WaitResponse>("Wait", &request, limit);
    assert_eq!(waited.unwrap_err().code(), Some(Code::DeadlineExceeded));
    task.kill(Signal::KILL)?;
    assert_eq!(waiting.answer(LIMIT)?.exit_status, 137);
    task.remove()?;
    let calls = harness.timeline().entries();
    let unanswered = |entry: &&timeline::Entry| matches!(&entry.kind, timeline::Kind::Call { outcome, .. } if outcome.contains("DeadlineExceeded"));
    assert_eq!(calls.iter().filter(unanswered).count(), 1);
    harness.check()
}
