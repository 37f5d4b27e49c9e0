//! Execs: processes like the init, but that they need it (contract 6.3 to 6.5).

use std::thread;

use shim_runtime::{Code, Signal};
use shim_testing::api::Status;
use shim_testing::{Bundle, Dialect, Failure, FakeContainerd, Mode, Result, Shim};

use super::host::{Host, Parked, gated};
use super::{FIXTURE, LIMIT, bundle};

/// The code of a call that must fail.
pub(super) fn code<T: std::fmt::Debug>(result: Result<T>) -> Option<Code> {
    result.unwrap_err().code()
}

#[test]
fn execs_at_the_same_time_each_have_their_own_life() -> Result<()> {
    let host = Host::new("")?;
    let (ctrd, bundle, task) = (&host.ctrd, &host.bundle, &host.task());
    thread::scope(|scope| {
        let live = |number: u32| {
            move || {
                let id = format!("e{number}");
                let exec = task.exec(&id);
                let script = format!("exit {number}");
                exec.add(bundle, &["sh", "-c", &script], &ctrd.stdio(&id, Mode::Null, false)?)?;
                let waiting = exec.wait();
                let pid = exec.start()?.pid;
                assert_ne!(pid, task.state()?.pid);
                assert_eq!(waiting.answer(LIMIT)?.exit_status, number);
                assert_eq!((exec.state()?.pid, exec.state()?.exit_status), (pid, number));
                assert_eq!(exec.delete()?.exit_status, number);
                assert_eq!(code(exec.state()), Some(Code::NotFound));
                Ok::<(), Failure>(())
            }
        };
        let lives: Vec<_> = (0..32).map(|number| scope.spawn(live(number))).collect();
        lives.into_iter().try_for_each(|life| life.join().unwrap())
    })?;
    host.end()
}

#[test]
fn an_exec_s_id_is_taken_until_it_is_deleted() -> Result<()> {
    let mut gate = None;
    let host = Host::with("", |ctrd, bundle| {
        let (at, bundle) = gated(ctrd, bundle, "delete");
        gate = Some(at);
        bundle
    })?;
    let gate = gate.unwrap();
    let taken = || code(host.exec("e1", &["true"]).map(drop)) == Some(Code::AlreadyExists);
    let exec = host.exec("e1", &["true"])?;
    assert!(taken(), "added");
    exec.start()?;
    exec.wait().answer(LIMIT)?;
    assert!(taken(), "ended");
    thread::scope(|scope| {
        let deleting = scope.spawn(|| exec.delete());
        let held = gate.reached();
        assert!(taken(), "being deleted");
        drop(held);
        deleting.join().unwrap()
    })?;
    let again = host.exec("e1", &["true"])?;
    assert_eq!(again.state()?.status, Status::CREATED.into());
    thread::scope(|scope| {
        let deleting = scope.spawn(|| again.delete());
        drop(gate.reached());
        deleting.join().unwrap()
    })?;
    host.task().kill(Signal::KILL)?;
    host.waiting.answer(LIMIT)?;
    thread::scope(|scope| {
        scope.spawn(|| drop(gate.reached()));
        host.ended()
    })
}

#[test]
fn an_exec_that_cannot_be_started_is_told_to_who_waits_and_is_never_started_again() -> Result<()> {
    let host = Host::new("")?;
    let exec = host.exec("e1", &["no-such-program"])?;
    let waiting = Parked::new(&host.shim, "e1")?;
    let failed = exec.start().unwrap_err();
    assert!(failed.to_string().contains("cannot execute `no-such-program`"), "{failed}");
    assert_eq!(waiting.answer()?, 255);
    assert_eq!(exec.wait().answer(LIMIT)?.exit_status, 255, "who comes later is told as well");
    assert_eq!(exec.state()?.status, Status::CREATED.into());
    let again = exec.start().unwrap_err();
    assert_eq!(again.code(), Some(Code::FailedPrecondition));
    assert!(again.to_string().contains("it is one that could not be started"), "{again}");
    assert_eq!(code(exec.kill(Signal::KILL)), Some(Code::FailedPrecondition));
    assert!(!host.has_event("exec-started c1/e1") && !host.has_event("exit c1/e1"));
    exec.delete()?;
    host.end()
}

#[test]
fn an_exec_deleted_before_its_start_has_status_0_and_no_exit_event() -> Result<()> {
    let host = Host::new("")?;
    let exec = host.exec("e1", &["true"])?;
    let waiting = Parked::new(&host.shim, "e1")?;
    assert_eq!(code(exec.kill(Signal::KILL)), Some(Code::FailedPrecondition), "there is nothing to kill");
    assert_eq!(exec.delete()?.exit_status, 0);
    assert_eq!(waiting.answer()?, 0);
    for gone in [exec.start().map(drop), exec.delete().map(drop), exec.kill(Signal::KILL)] {
        assert_eq!(code(gone), Some(Code::NotFound));
    }
    let ctrd = host.ctrd.clone();
    host.end()?;
    ctrd.assert_events(&["create c1", "start c1", "exec-added c1/e1", "exit c1 137", "delete c1 137"])
}

#[test]
fn who_waits_for_an_exec_that_was_never_started_is_told_when_its_container_is_deleted() -> Result<()> {
    let host = Host::new("")?;
    host.exec("e1", &["true"])?;
    let waiting = Parked::new(&host.shim, "e1")?;
    host.task().kill(Signal::KILL)?;
    host.waiting.answer(LIMIT)?;
    host.task().delete()?;
    waiting.answer()?;
    host.deleted()
}

#[test]
fn a_signal_to_an_exec_that_is_being_started_arrives_once_it_runs() -> Result<()> {
    let mut gate = None;
    let host = Host::with("", |ctrd, bundle| {
        let (at, bundle) = gated(ctrd, bundle, "exec-e1");
        gate = Some(at);
        bundle
    })?;
    let exec = host.exec("e1", &["sleep", "1000"])?;
    let waiting = exec.wait();
    thread::scope(|scope| {
        let starting = scope.spawn(|| exec.start());
        let held = gate.unwrap().reached();
        exec.kill(Signal::TERM)?;
        assert_eq!(exec.state()?.status, Status::CREATED.into());
        assert_eq!(
            code(exec.within(std::time::Duration::from_millis(50)).delete()),
            Some(Code::DeadlineExceeded)
        );
        drop(held);
        starting.join().unwrap().map(drop)
    })?;
    assert_eq!(waiting.answer(LIMIT)?.exit_status, 128 + 15);
    // The Delete that waited behind Start has come to its end, or was refused before the exit came.
    let _ = exec.delete();
    host.end()
}

/// An exec is being started, and its init is reaped meanwhile.
fn init_ends_during_start_of(args: &[&str]) -> Result<(Host, Result<u32>)> {
    let mut gate = None;
    let host = Host::with("", |ctrd, bundle| {
        let (at, bundle) = gated(ctrd, bundle, "exec-e1");
        gate = Some(at);
        bundle
    })?;
    let exec = host.exec("e1", args)?;
    let late = host.exec("late", &["true"])?;
    let started = thread::scope(|scope| {
        let starting = scope.spawn(|| exec.start());
        let held = gate.unwrap().reached();
        host.kill_init()?;
        // Nothing may begin that was not under way.
        assert_eq!(code(late.start()), Some(Code::FailedPrecondition));
        assert_eq!(code(host.exec("later", &["true"]).map(drop)), Some(Code::FailedPrecondition));
        assert_eq!(code(host.task().pause()), Some(Code::FailedPrecondition));
        assert_eq!(code(host.task().delete()), Some(Code::FailedPrecondition), "an exec is left");
        assert_eq!(host.status()?, Status::RUNNING, "its end is not told yet");
        assert!(!host.has_event("exit c1"));
        drop(held);
        Ok::<_, Failure>(starting.join().unwrap())
    })?;
    Ok((host, started.map(|answer| answer.pid)))
}

#[test]
fn an_init_s_exit_is_held_for_an_exec_that_is_being_started_which_then_dies() -> Result<()> {
    let (host, started) = init_ends_during_start_of(&["sleep", "1000"])?;
    assert_ne!(started?, 0);
    assert_eq!(host.task().exec("e1").wait().answer(LIMIT)?.exit_status, 137);
    let ctrd = host.ctrd.clone();
    host.ended()?;
    ctrd.assert_order(&["exec-started c1/e1", "exit c1/e1 137", "exit c1 137", "delete c1 137"])
}

#[test]
fn an_init_s_exit_is_told_when_the_exec_that_it_was_held_for_cannot_be_started() -> Result<()> {
    let (host, started) = init_ends_during_start_of(&["no-such-program"])?;
    assert!(started.unwrap_err().to_string().contains("no-such-program"));
    let ctrd = host.ctrd.clone();
    host.ended()?;
    let events =
        ["create c1", "start c1", "exec-added c1/e1", "exec-added c1/late", "exit c1 137", "delete c1 137"];
    ctrd.assert_events(&events)
}

#[test]
fn execs_are_told_of_in_pids_by_their_id() -> Result<()> {
    let host = Host::new("")?;
    let exec = host.exec("e1", &["sleep", "1000"])?;
    let pid = exec.start()?.pid;
    let pids = host.task().pids()?.processes;
    let found = pids.iter().find(|process| process.pid == pid).unwrap();
    assert_eq!(found.info.type_url, "containerd.runc.v1.ProcessDetails");
    assert!(found.info.value.ends_with(b"e1"));
    let init = pids.iter().find(|process| process.pid != pid).unwrap();
    assert!(init.info.is_none());
    exec.kill(Signal::KILL)?;
    exec.wait().answer(LIMIT)?;
    exec.delete()?;
    host.end()
}

/// A container that is created, and not started.
fn unstarted(kind: &str) -> Result<(FakeContainerd, Bundle, Shim)> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = bundle(&ctrd, "c1", kind).args(["sleep", "1000"]).build()?;
    let shim = ctrd.start(FIXTURE, &bundle)?;
    shim.task().create(&bundle)?;
    Ok((ctrd, bundle, shim))
}

#[test]
fn an_exec_runs_in_a_container_that_is_not_started_yet() -> Result<()> {
    let (ctrd, bundle, mut shim) = unstarted("")?;
    let (task, exec) = (shim.task(), shim.task().exec("e1"));
    exec.add(&bundle, &["sh", "-c", "exit 7"], &ctrd.stdio("e1", Mode::Null, false)?)?;
    exec.start()?;
    assert_eq!(exec.wait().answer(LIMIT)?.exit_status, 7);
    assert_eq!(task.state()?.status, Status::CREATED.into());
    exec.delete()?;
    let waiting = task.wait();
    task.start()?;
    task.kill(Signal::KILL)?;
    waiting.answer(LIMIT)?;
    shim.remove()?;
    ctrd.assert_events(&[
        "create c1",
        "exec-added c1/e1",
        "exec-started c1/e1",
        "exit c1/e1 7",
        "start c1",
        "exit c1 137",
        "delete c1 137",
    ])?;
    ctrd.check()
}

#[test]
fn the_deletion_of_a_container_that_was_never_started_ends_its_execs_first() -> Result<()> {
    for (kind, exits) in [("", &["exit c1/e1 137", "exit c1 137"][..]), ("thread", &["exit c1/e1 137"])] {
        let (ctrd, bundle, mut shim) = unstarted(kind)?;
        let exec = shim.task().exec("e1");
        exec.add(&bundle, &["sleep", "1000"], &ctrd.stdio("e1", Mode::Null, false)?)?;
        exec.start()?;
        let waiting = Parked::new(&shim, "e1")?;
        shim.task().delete()?;
        assert_eq!(waiting.answer()?, 137);
        shim.end()?;
        let last = if kind.is_empty() { "delete c1 137" } else { "delete c1 0" };
        let begun = ["create c1", "exec-added c1/e1", "exec-started c1/e1"];
        ctrd.assert_events(&[&begun[..], exits, &[last]].concat())?;
        ctrd.check()?;
    }
    Ok(())
}

#[test]
fn an_init_that_dies_before_its_start_takes_its_execs_along() -> Result<()> {
    let (ctrd, bundle, mut shim) = unstarted("")?;
    let exec = shim.task().exec("e1");
    exec.add(&bundle, &["sleep", "1000"], &ctrd.stdio("e1", Mode::Null, false)?)?;
    exec.start()?;
    let waiting = shim.task().wait();
    shim.task().kill(Signal::KILL)?;
    assert_eq!(waiting.answer(LIMIT)?.exit_status, 137);
    shim.remove()?;
    ctrd.assert_order(&["exec-started c1/e1", "exit c1/e1 137", "exit c1 137", "delete c1 137"])?;
    ctrd.check()
}
