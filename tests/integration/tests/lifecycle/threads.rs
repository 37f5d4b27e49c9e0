//! Containers without a process: threads, and what runs elsewhere. They can only be asked to stop.

use std::time::{Duration, Instant};

use shim_runtime::{Code, Signal};
use shim_testing::api::Status;
use shim_testing::{Bundle, Dialect, FakeContainerd, Mode, Result, Shim};

use super::execs::code;
use super::host::{Parked, gated};
use super::strangers::Stranger;
use super::{FIXTURE, LIMIT, bundle, until};

fn created(ctrd: &FakeContainerd, argument: &str) -> Result<(Bundle, Shim)> {
    let bundle = bundle(ctrd, "c1", "thread").args([argument]).build()?;
    let shim = ctrd.start(FIXTURE, &bundle)?;
    shim.task().create(&bundle)?;
    Ok((bundle, shim))
}

#[test]
fn the_end_of_a_thread_or_an_engine_is_an_exit_however_it_comes() -> Result<()> {
    for (argument, signal, status, log) in [
        ("0", None, 0, ""),
        ("42", None, 42, ""),
        ("fails", None, 1, "a container's thread failed: the thread fails on purpose"),
        (
            "panic",
            None,
            101,
            "a container's thread has ended: the shim panicked: the thread panics on purpose",
        ),
        ("waits", Some(Signal::TERM), 128 + 15, ""),
        ("external", Some(Signal::USR1), 128 + 10, ""),
        ("dropped", None, 255, ""),
    ] {
        let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
        let (bundle, mut shim) = created(&ctrd, argument)?;
        let waiting = shim.task().wait();
        shim.task().start()?;
        if let Some(signal) = signal {
            assert_eq!(shim.task().state()?.status, Status::RUNNING.into());
            shim.task().kill(signal)?;
        }
        assert_eq!(waiting.answer(LIMIT)?.exit_status, status, "{argument}");
        until(log, || bundle.log().contains(log));
        shim.remove()?;
        ctrd.assert_events(&[
            "create c1",
            "start c1",
            &format!("exit c1 {status}"),
            &format!("delete c1 {status}"),
        ])?;
        ctrd.check()?;
    }
    Ok(())
}

#[test]
fn a_thread_that_does_not_stop_is_given_up_some_time_after_a_kill_and_left_behind() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let (bundle, mut shim) = created(&ctrd, "hangs")?;
    let waiting = shim.task().wait();
    shim.task().start()?;
    shim.task().kill(Signal::TERM)?;
    until("the first signal", || bundle.log().contains("asked to stop by SIGTERM"));
    let began = Instant::now();
    shim.task().kill(Signal::KILL)?;
    until("the second signal", || bundle.log().contains("asked to stop by SIGKILL"));
    assert_eq!(shim.task().state()?.status, Status::RUNNING.into(), "it has some time");
    assert_eq!(waiting.answer(LIMIT)?.exit_status, 137);
    assert!(began.elapsed() > Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(code(shim.task().kill(Signal::KILL)), Some(Code::NotFound));
    // The thread hangs still, and holds up neither the deletion nor the end of the shim.
    shim.remove()?;
    ctrd.check()
}

#[test]
fn a_thread_killed_before_its_start_is_stopped_and_cannot_be_started() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let (_, mut shim) = created(&ctrd, "42")?;
    let (task, waiting) = (shim.task(), shim.task().wait());
    assert_eq!(code(task.kill(Signal::USR1)), Some(Code::NotFound), "nothing is there to take it");
    task.kill(Signal::KILL)?;
    assert_eq!(waiting.answer(LIMIT)?.exit_status, 137);
    assert_eq!(task.state()?.status, Status::STOPPED.into());
    assert_eq!(code(task.start()), Some(Code::FailedPrecondition));
    shim.remove()?;
    ctrd.assert_events(&["create c1", "exit c1 137", "delete c1 137"])?;
    ctrd.check()
}

#[test]
fn a_thread_killed_while_it_is_started_gets_the_signal_once_it_runs() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let (gate, builder) = gated(&ctrd, bundle(&ctrd, "c1", "thread").args(["waits"]), "start");
    let bundle = builder.build()?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    let task = shim.task();
    task.create(&bundle)?;
    let waiting = task.wait();
    std::thread::scope(|scope| {
        let starting = scope.spawn(|| task.start());
        let held = gate.reached();
        task.kill(Signal::TERM)?;
        drop(held);
        starting.join().unwrap().map(drop)
    })?;
    assert_eq!(waiting.answer(LIMIT)?.exit_status, 128 + 15);
    shim.remove()?;
    ctrd.assert_events(&["create c1", "start c1", "exit c1 143", "delete c1 143"])?;
    ctrd.check()
}

#[test]
fn a_start_that_is_refused_leaves_a_container_that_can_be_deleted() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let (_, mut shim) = created(&ctrd, "refused")?;
    let waiting = Parked::new(&shim, "")?;
    let refused = shim.task().start().unwrap_err();
    assert_eq!(refused.code(), Some(Code::ResourceExhausted));
    assert!(refused.to_string().contains("no engine is free"), "{refused}");
    assert_eq!(shim.task().state()?.status, Status::CREATED.into());
    shim.task().delete()?;
    waiting.answer()?;
    shim.end()?;
    ctrd.assert_events(&["create c1", "delete c1"])?;
    ctrd.check()
}

#[test]
fn execs_that_are_threads_are_stopped_before_the_end_of_their_init_is_told() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let (bundle, mut shim) = created(&ctrd, "waits")?;
    let task = shim.task();
    let waiting = task.wait();
    task.start()?;
    let exec = task.exec("e1");
    exec.add(&bundle, &["any"], &ctrd.stdio("e1", Mode::Null, false)?)?;
    exec.start()?;
    task.kill(Signal::TERM)?;
    assert_eq!(waiting.answer(LIMIT)?.exit_status, 143);
    assert_eq!(exec.wait().answer(LIMIT)?.exit_status, 137);
    shim.remove()?;
    ctrd.assert_order(&["exec-started c1/e1", "exit c1/e1 137", "exit c1 143", "delete c1 143"])?;
    ctrd.check()
}

#[test]
fn delete_after_a_crash_knows_no_pid_of_what_is_no_process_and_kills_nobody() -> Result<()> {
    for argument in ["waits", "external"] {
        let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
        let (bundle, mut shim) = created(&ctrd, argument)?;
        shim.task().start()?;
        let server = shim.server()?.pid();
        assert_eq!(shim.task().state()?.pid, server.get(), "it has its shim's pid");
        shim.server()?.signal(Signal::KILL)?;
        assert!(shim.server()?.ended_within(LIMIT));
        let record = std::fs::read(bundle.path().join("shim.json"))?;
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
        assert!(record["init"].is_null(), "{record}");
        let stranger = Stranger::with(server.get());
        let deleted = shim.delete_action()?;
        assert_eq!((deleted.pid, deleted.exit_status), (0, 137));
        if let Some(stranger) = stranger {
            assert!(stranger.lives(), "it was killed in the shim's place");
        }
        shim.abandon();
        ctrd.check_leaks()?;
    }
    Ok(())
}
