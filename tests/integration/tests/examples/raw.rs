//! `raw`: the RPCs are answered by hand, and the promises hold all the same.

use shim_runtime::{Code, Signal};
use shim_testing::{Dialect, FakeContainerd, Result};

use crate::LIMIT;
use crate::shim;

#[test]
fn every_dialect_and_both_task_services_run_a_container() -> Result<()> {
    for dialect in Dialect::ALL {
        for version in [2, 3] {
            let ctrd = FakeContainerd::builder(dialect).task_version(version).build()?;
            let script = "cat; echo err >&2; exit 3";
            let bundle = ctrd.bundle("c1").args(["sh", "-c", script]).capture().build()?;
            let mut shim = ctrd.start(shim("raw"), &bundle)?;
            let waiting = shim.run()?;
            bundle.stdio().write("hi\n");
            bundle.stdio().close_stdin();
            shim.task().close_io()?;
            assert_eq!(waiting.answer(LIMIT)?.exit_status, 3);
            shim.remove()?;
            let captured = bundle.stdio().finish(LIMIT)?;
            assert_eq!((&*captured.stdout, &*captured.stderr), (&b"hi\n"[..], &b"err\n"[..]));
            ctrd.assert_events(&["create c1", "start c1", "exit c1 3", "delete c1 3"])?;
            ctrd.check()?;
            assert!(ctrd.broken().is_empty(), "{:?}\n{}", ctrd.broken(), ctrd.timeline());
        }
    }
    Ok(())
}

#[test]
fn processes_that_end_at_once_are_told_of_in_order() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    for number in 0..20 {
        let id = format!("c{number}");
        let bundle = ctrd.bundle(&id).args(["true"]).build()?;
        let mut shim = ctrd.start(shim("raw"), &bundle)?;
        assert_eq!(shim.run()?.answer(LIMIT)?.exit_status, 0);
        shim.remove()?;
        let events = ["create", "start", "exit", "delete"].map(|event| format!("{event} {id}"));
        ctrd.assert_order(&events.each_ref().map(String::as_str))?;
    }
    ctrd.check()
}

#[test]
fn tasks_of_a_pod_share_one_process_that_outlives_the_first() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::LEGACY)?;
    let make = |id: &str| ctrd.bundle(id).args(["sleep", "1000"]).group("pod").build();
    let (first, second) = (make("c1")?, make("c2")?);
    let mut one = ctrd.start(shim("raw"), &first)?;
    let mut two = ctrd.start(shim("raw"), &second)?;
    assert_eq!(one.socket(), two.socket());
    let waiting = [one.run()?, two.run()?];
    for (shim, waiting) in [&mut one, &mut two].into_iter().zip(waiting) {
        shim.task().kill(Signal::KILL)?;
        assert_eq!(waiting.answer(LIMIT)?.exit_status, 137);
        shim.remove()?;
    }
    ctrd.check()
}

#[test]
fn wrong_moves_are_refused_with_the_codes_that_containerd_acts_upon() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = ctrd.bundle("c1").args(["sleep", "1000"]).build()?;
    let mut shim = ctrd.start(shim("raw"), &bundle)?;
    let task = shim.task();
    assert_eq!(task.state().unwrap_err().code(), Some(Code::NotFound));
    let waiting = shim.run()?;
    assert_eq!(task.create(&bundle).unwrap_err().code(), Some(Code::AlreadyExists));
    assert_eq!(task.start().unwrap_err().code(), Some(Code::FailedPrecondition));
    assert_eq!(task.delete().unwrap_err().code(), Some(Code::FailedPrecondition));
    assert_eq!(task.exec("e1").state().unwrap_err().code(), Some(Code::NotFound));
    task.kill(Signal::KILL)?;
    waiting.answer(LIMIT)?;
    assert_eq!(task.kill(Signal::KILL).unwrap_err().code(), Some(Code::NotFound));
    shim.remove()?;
    ctrd.check()
}

#[test]
fn a_task_that_was_never_started_is_deleted_with_its_exit_told() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = ctrd.bundle("c1").args(["sleep", "1000"]).build()?;
    let mut shim = ctrd.start(shim("raw"), &bundle)?;
    shim.task().create(&bundle)?;
    let waiting = shim.task().wait();
    assert_eq!(shim.task().delete()?.exit_status, 137);
    // Nothing orders the two calls, so the Wait may also come after the Delete.
    match waiting.answer(LIMIT) {
        Ok(exit) => assert_eq!(exit.exit_status, 137),
        Err(late) => assert_eq!(late.code(), Some(Code::NotFound)),
    }
    shim.end()?;
    ctrd.assert_events(&["create c1", "exit c1 137", "delete c1 137"])?;
    ctrd.check()
}

#[test]
fn a_killed_server_s_process_is_ended_by_delete() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = ctrd.bundle("c1").args(["sleep", "1000"]).build()?;
    let shim = ctrd.start(shim("raw"), &bundle)?;
    let waiting = shim.run()?;
    shim.server()?.signal(Signal::KILL)?;
    assert_eq!(waiting.answer(LIMIT).unwrap_err().code(), Some(Code::Unavailable));
    shim.delete_action()?;
    ctrd.check_leaks()
}

#[test]
fn an_exit_is_known_to_delete_after_the_server_s_death() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = ctrd.bundle("c1").args(["sh", "-c", "exit 5"]).build()?;
    let shim = ctrd.start(shim("raw"), &bundle)?;
    assert_eq!(shim.run()?.answer(LIMIT)?.exit_status, 5);
    shim.server()?.signal(Signal::KILL)?;
    assert!(shim.server()?.ended_within(LIMIT));
    assert_eq!(shim.delete_action()?.exit_status, 5);
    ctrd.check_leaks()
}
