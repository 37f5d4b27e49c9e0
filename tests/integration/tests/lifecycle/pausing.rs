//! Pause, resume, and what else not every runtime can do (contract 6.3, 11.5).

use std::thread;

use shim_runtime::{Code, Signal};
use shim_testing::api::Status;
use shim_testing::{Dialect, FakeContainerd, Result};

use super::execs::code;
use super::host::{Host, gated};
use super::{FIXTURE, LIMIT, bundle};
use integration::gate::Gate;

/// A container that can be paused, with a gate at a step.
fn pausable(step: &str) -> Result<(Host, Gate)> {
    let mut gate = None;
    let host = Host::with("pausable", |ctrd, bundle| {
        let (at, bundle) = gated(ctrd, bundle, step);
        gate = Some(at);
        bundle
    })?;
    Ok((host, gate.unwrap()))
}

#[test]
fn what_a_runtime_does_not_support_is_unimplemented_in_a_sentence() -> Result<()> {
    let host = Host::new("")?;
    let task = host.task();
    let results = [
        ("pause", task.pause()),
        ("update", task.update(&serde_json::json!({}))),
        ("checkpoint", task.checkpoint("/nowhere")),
    ];
    for (what, result) in results {
        let failure = result.unwrap_err();
        assert_eq!(failure.code(), Some(Code::Unimplemented));
        let sentence = format!("this runtime does not support {what}");
        assert!(failure.to_string().contains(&sentence), "{failure}");
    }
    assert_eq!(code(task.resume()), Some(Code::FailedPrecondition), "it is not paused");
    assert_eq!(host.status()?, Status::RUNNING);
    for event in ["paused c1", "checkpointed c1"] {
        assert!(!host.has_event(event), "{event}");
    }
    host.end()
}

#[test]
fn an_exec_in_a_runtime_without_execs_is_unimplemented_in_a_sentence() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = bundle(&ctrd, "c1", "console").terminal().args(["sleep", "1000"]).build()?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    let waiting = shim.run()?;
    let exec = shim.task().exec("e1");
    exec.add(&bundle, &["true"], &ctrd.stdio("e1", shim_testing::Mode::Null, false)?)?;
    let failure = exec.start().unwrap_err();
    assert_eq!(failure.code(), Some(Code::Unimplemented));
    let sentence = "this runtime does not support exec";
    assert!(failure.to_string().contains(sentence), "{failure}");
    shim.task().kill(Signal::KILL)?;
    waiting.answer(LIMIT)?;
    shim.remove()?;
    ctrd.check()
}

#[test]
fn a_pause_is_seen_from_its_beginning_by_the_container_and_its_execs() -> Result<()> {
    let (host, gate) = pausable("pause")?;
    let task = host.task();
    let exec = host.exec("e1", &["sleep", "1000"])?;
    let unstarted = host.exec("e2", &["true"])?;
    exec.start()?;
    let seen = || Ok::<_, shim_testing::Failure>([task.state()?.status, exec.state()?.status]);
    thread::scope(|scope| {
        let pausing = scope.spawn(|| task.pause());
        let held = gate.reached();
        assert_eq!(seen()?, [Status::PAUSING.into(); 2]);
        drop(held);
        pausing.join().unwrap()
    })?;
    assert_eq!(seen()?, [Status::PAUSED.into(); 2]);
    assert_eq!(unstarted.state()?.status, Status::CREATED.into());
    for refused in [task.pause(), unstarted.start().map(drop), host.exec("e3", &["true"]).map(drop)] {
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), Some(Code::FailedPrecondition));
        assert!(refused.to_string().contains("it is paused"), "{refused}");
    }
    assert_eq!(code(task.update(&serde_json::json!({}))), Some(Code::Unimplemented), "it may be called");
    assert_eq!(task.pids()?.processes.len(), 2);
    task.resume()?;
    assert_eq!(seen()?, [Status::RUNNING.into(); 2]);
    assert_eq!(code(task.resume()), Some(Code::FailedPrecondition));
    unstarted.start()?;
    unstarted.wait().answer(LIMIT)?;
    exec.kill(Signal::KILL)?;
    exec.wait().answer(LIMIT)?;
    let ctrd = host.ctrd.clone();
    host.end()?;
    ctrd.assert_order(&["start c1", "paused c1", "resumed c1", "exit c1 137"])
}

#[test]
fn a_pause_that_fails_leaves_the_container_running() -> Result<()> {
    let host = Host::with("pausable", |ctrd, bundle| {
        let fails = ctrd.root().join("fails");
        std::fs::write(&fails, "").unwrap();
        bundle.annotation("fixture/fail-pause", fails.to_str().unwrap())
    })?;
    let failure = host.task().pause().unwrap_err();
    assert!(failure.to_string().contains("pause fails on purpose"), "{failure}");
    assert_eq!(host.status()?, Status::RUNNING);
    assert!(!host.has_event("paused c1"));
    host.task().pause()?;
    host.task().resume()?;
    host.end()
}

#[test]
fn an_init_that_dies_while_it_is_paused_is_resumed_and_then_stopped() -> Result<()> {
    let (host, gate) = pausable("resume")?;
    let exec = host.exec("e1", &["sleep", "1000"])?;
    exec.start()?;
    host.task().pause()?;
    host.kill_init()?;
    let held = gate.reached();
    assert_eq!(host.status()?, Status::PAUSED);
    assert!(!host.has_event("exit c1"), "what it has left is frozen");
    drop(held);
    host.waiting.answer(LIMIT)?;
    assert_eq!(host.status()?, Status::STOPPED);
    assert_eq!(host.notes(), ["pause", "resume", "kill all 9"]);
    let ctrd = host.ctrd.clone();
    host.ended()?;
    ctrd.assert_order(&["paused c1", "exit c1/e1 137", "exit c1 137", "delete c1 137"])
}

#[test]
fn an_init_that_dies_while_it_is_being_paused_is_resumed_once_it_is() -> Result<()> {
    let (host, gate) = pausable("pause")?;
    let task = host.task();
    thread::scope(|scope| {
        let pausing = scope.spawn(|| task.pause());
        let held = gate.reached();
        host.kill_init()?;
        assert_eq!(host.status()?, Status::PAUSING);
        drop(held);
        pausing.join().unwrap()
    })?;
    host.waiting.answer(LIMIT)?;
    assert_eq!(host.notes(), ["pause", "resume", "kill all 9"]);
    host.ended()
}

#[test]
fn a_stopped_task_names_its_init() -> Result<()> {
    let host = Host::new("")?;
    let pid = host.task().state()?.pid;
    host.kill_init()?;
    host.waiting.answer(LIMIT)?;
    let pids: Vec<_> = host.task().pids()?.processes.iter().map(|process| process.pid).collect();
    assert_eq!(pids, [pid], "an empty list would have a restarted daemon delete it (contract 6.3, Pids)");
    host.ended()
}

#[test]
fn stats_of_what_has_no_cgroup_of_its_own_are_not_found() -> Result<()> {
    let host = Host::new("")?;
    assert_eq!(code(host.task().stats()), Some(Code::NotFound));
    host.end()
}
