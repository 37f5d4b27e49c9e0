//! Author code that hangs holds up its own container and nobody else (contract 6.5, 9; 12.2).

use std::thread;

use shim_runtime::{Code, Signal};
use shim_testing::api::Status;
use shim_testing::{Dialect, FakeContainerd, Result, Shim};

use super::execs::code;
use super::host::{gated, is_there};
use super::{FIXTURE, LIMIT, bundle, until};

/// A shim for a group, with a container that does nothing but sleep.
fn group(ctrd: &FakeContainerd) -> Result<Shim> {
    let bundle = bundle(ctrd, "first", "").group("pod").args(["sleep", "1000"]).build()?;
    let shim = ctrd.start(FIXTURE, &bundle)?;
    shim.run()?;
    Ok(shim)
}

/// The whole life of another container of the group, with an exec in it.
fn live(ctrd: &FakeContainerd, shim: &Shim, id: &str) -> Result<()> {
    let bundle = bundle(ctrd, id, "").group("pod").args(["sleep", "1000"]).build()?;
    let mut other = ctrd.attach(shim, &bundle)?;
    let waiting = other.run()?;
    let exec = other.task().exec("e1");
    exec.add(&bundle, &["sh", "-c", "exit 3"], &ctrd.stdio("e1", shim_testing::Mode::Null, false)?)?;
    exec.start()?;
    assert_eq!(exec.wait().answer(LIMIT)?.exit_status, 3);
    exec.delete()?;
    assert_eq!(other.task().pids()?.processes.len(), 1);
    other.task().kill(Signal::KILL)?;
    assert_eq!(waiting.answer(LIMIT)?.exit_status, 137);
    other.remove().map(drop)
}

fn end(ctrd: &FakeContainerd, mut shim: Shim) -> Result<()> {
    shim.task().kill(Signal::KILL)?;
    shim.task().wait().answer(LIMIT)?;
    shim.remove()?;
    ctrd.check()
}

#[test]
fn a_start_that_hangs_holds_up_no_other_call() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let shim = group(&ctrd)?;
    let (gate, builder) = gated(&ctrd, bundle(&ctrd, "c1", "").group("pod").args(["sleep", "1000"]), "start");
    let hanging = builder.build()?;
    let mut other = ctrd.attach(&shim, &hanging)?;
    let task = other.task();
    task.create(&hanging)?;
    let waiting = task.wait();
    thread::scope(|scope| {
        let starting = scope.spawn(|| task.start());
        let held = gate.reached();
        for n in 0..3 {
            live(&ctrd, &shim, &format!("other{n}"))?;
        }
        assert_eq!(task.state()?.status, Status::CREATED.into());
        assert_eq!(task.pids()?.processes.len(), 1);
        assert_ne!(task.connect()?.task_pid, 0);
        // Its own process can be killed; the end is told when Start has come to its own.
        let pid = task.state()?.pid;
        task.kill(Signal::KILL)?;
        until("the init's end", || !is_there(pid));
        drop(held);
        assert_eq!(code(starting.join().unwrap()), Some(Code::FailedPrecondition), "it died at its gate");
        Ok::<(), shim_testing::Failure>(())
    })?;
    assert_eq!(waiting.answer(LIMIT)?.exit_status, 137);
    other.remove()?;
    end(&ctrd, shim)
}

#[test]
fn a_create_that_hangs_is_not_there_yet_and_holds_up_no_other_call() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let shim = group(&ctrd)?;
    let (gate, builder) = gated(&ctrd, bundle(&ctrd, "c1", "").group("pod"), "create");
    let hanging = builder.build()?;
    let mut other = ctrd.attach(&shim, &hanging)?;
    let task = other.task();
    thread::scope(|scope| {
        let creating = scope.spawn(|| task.create(&hanging));
        let held = gate.reached();
        live(&ctrd, &shim, "other")?;
        assert_eq!(shim.task().state()?.status, Status::RUNNING.into());
        assert_eq!(code(task.state()), Some(Code::NotFound));
        assert_eq!(task.connect()?.task_pid, 0);
        drop(held);
        creating.join().unwrap().map(drop)
    })?;
    task.start()?;
    task.wait().answer(LIMIT)?;
    other.remove()?;
    end(&ctrd, shim)
}

#[test]
fn a_delete_and_a_kill_that_hang_hold_up_no_other_container() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let shim = group(&ctrd)?;
    let builder = bundle(&ctrd, "c1", "").group("pod").args(["sleep", "1000"]);
    let (killing, builder) = gated(&ctrd, builder, "kill-all");
    let (deleting, builder) = gated(&ctrd, builder, "delete");
    let hanging = builder.build()?;
    let mut other = ctrd.attach(&shim, &hanging)?;
    let (task, waiting) = (other.task(), other.run()?);
    thread::scope(|scope| {
        let killed = scope.spawn(|| task.kill_with(Signal::KILL, true));
        let held = killing.reached();
        live(&ctrd, &shim, "other1")?;
        drop(held);
        killed.join().unwrap()?;
        // What is left is killed once more, by the runtime.
        drop(killing.reached());
        waiting.answer(LIMIT)?;
        let deleted = scope.spawn(|| task.delete());
        let held = deleting.reached();
        live(&ctrd, &shim, "other2")?;
        drop(held);
        deleted.join().unwrap().map(drop)
    })?;
    other.end()?;
    end(&ctrd, shim)
}
