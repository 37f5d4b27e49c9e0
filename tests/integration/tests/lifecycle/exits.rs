//! Exits: whenever they come, each is seen once, in its order, with its status (contract 6.4, 6.5).

use shim_runtime::{Code, Signal};
use shim_testing::{Dialect, FakeContainerd, Result};

use super::strangers::Stranger;
use super::{BOTH, FIXTURE, LIMIT, bundle, shell};

#[test]
fn the_whole_path_runs_in_every_dialect_and_under_both_task_versions() -> Result<()> {
    for dialect in Dialect::ALL {
        for version in [2, 3] {
            let ctrd = FakeContainerd::builder(dialect).task_version(version).build()?;
            let bundle = shell(&ctrd, "c1", "", "echo hi; exit 3")?;
            let mut shim = ctrd.start(FIXTURE, &bundle)?;
            assert_eq!(shim.run()?.answer(LIMIT)?.exit_status, 3);
            shim.remove()?;
            assert_eq!(bundle.stdio().finish(LIMIT)?.stdout, b"hi\n");
            ctrd.assert_order(&["create c1", "start c1", "exit c1 3", "delete c1 3"])?;
            ctrd.check()?;
        }
    }
    Ok(())
}

#[test]
fn an_exit_that_comes_before_start_returns_is_held_until_the_start_event() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = shell(&ctrd, "c1", "exits-before-start-returns", "exit 5")?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    assert_eq!(shim.run()?.answer(LIMIT)?.exit_status, 5);
    shim.remove()?;
    ctrd.assert_order(&["create c1", "start c1", "exit c1 5", "delete c1 5"])?;
    ctrd.check()
}

#[test]
fn an_init_that_dies_between_create_and_start_is_stopped_and_cannot_be_started() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = shell(&ctrd, "c1", "", "exit 0")?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    let task = shim.task();
    task.create(&bundle)?;
    let waiting = task.wait();
    task.kill(Signal::KILL)?;
    assert_eq!(waiting.answer(LIMIT)?.exit_status, 137);
    let refused = task.start().unwrap_err();
    assert_eq!(refused.code(), Some(Code::FailedPrecondition));
    assert!(refused.to_string().contains("cannot start container `c1`: it is stopped"), "{refused}");
    shim.remove()?;
    ctrd.assert_events(&["create c1", "exit c1 137", "delete c1 137"])?;
    ctrd.check()
}

#[test]
fn a_container_deleted_before_its_start_has_an_exit_before_its_delete_event() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = shell(&ctrd, "c1", "", "exit 0")?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    shim.task().create(&bundle)?;
    assert_eq!(shim.task().delete()?.exit_status, 137);
    shim.end()?;
    ctrd.assert_events(&["create c1", "exit c1 137", "delete c1 137"])?;
    ctrd.check()
}

#[test]
fn a_child_killed_by_a_real_time_signal_is_reported_as_such() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    for (id, number) in [("c1", 34), ("c2", 64)] {
        let bundle = shell(&ctrd, id, "", "exec sleep 1000")?;
        let mut shim = ctrd.start(FIXTURE, &bundle)?;
        let waiting = shim.run()?;
        shim.task().kill(Signal::new(number).unwrap())?;
        assert_eq!(waiting.answer(LIMIT)?.exit_status, 128 + number);
        shim.remove()?;
    }
    ctrd.check()
}

#[test]
fn commands_of_author_code_and_exits_of_containers_are_not_taken_from_each_other() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let group =
        |id: &str, kind: &str| bundle(&ctrd, id, kind).group("pod").args(["sh", "-c", "exit 7"]).build();
    let first = group("runner", "runs-commands")?;
    let mut runner = ctrd.start(FIXTURE, &first)?;
    runner.task().create(&first)?;
    std::thread::scope(|scope| {
        // 200 commands through `std`, in author code; an error there fails this Start.
        let task = runner.task();
        let running = scope.spawn(move || task.start());
        for n in 0..40 {
            let bundle = group(&format!("c{n}"), "")?;
            let mut shim = ctrd.start(FIXTURE, &bundle)?;
            assert_eq!(shim.run()?.answer(LIMIT)?.exit_status, 7);
            shim.remove()?;
        }
        running.join().unwrap().map(drop)
    })?;
    assert_eq!(runner.task().wait().answer(LIMIT)?.exit_status, 7);
    runner.remove()?;
    ctrd.check()
}

#[test]
fn events_wait_in_order_for_a_containerd_that_is_away() -> Result<()> {
    for dialect in BOTH {
        let ctrd = FakeContainerd::new(dialect)?;
        let bundle = shell(&ctrd, "c1", "", "exit 4")?;
        let mut shim = ctrd.start(FIXTURE, &bundle)?;
        ctrd.events().stop();
        assert_eq!(shim.run()?.answer(LIMIT)?.exit_status, 4);
        assert_eq!(shim.task().delete()?.exit_status, 4);
        assert!(ctrd.events().all().is_empty());
        ctrd.events().resume()?;
        ctrd.events().wait_for("/tasks/delete", LIMIT, |_| true)?;
        shim.end()?;
        ctrd.assert_events(&["create c1", "start c1", "exit c1 4", "delete c1 4"])?;
        ctrd.check()?;
    }
    Ok(())
}

#[test]
fn an_event_whose_answer_was_lost_is_sent_again() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = shell(&ctrd, "c1", "", "exit 0")?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    ctrd.events().lose_next_answer();
    shim.run()?.answer(LIMIT)?;
    shim.remove()?;
    ctrd.assert_events(&["create c1", "start c1", "exit c1 0", "delete c1 0"])?;
    ctrd.check()
}

#[test]
fn a_failed_or_panicking_start_leaves_a_container_that_can_be_deleted() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = shell(&ctrd, "c1", "panics-in-start", "exit 0")?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    shim.task().create(&bundle)?;
    let failed = shim.task().start().unwrap_err();
    assert_eq!(failed.code(), Some(Code::Internal));
    assert!(failed.to_string().contains("start panics on purpose"), "{failed}");
    shim.task().delete()?;
    shim.end()?;
    ctrd.assert_events(&["create c1", "exit c1 137", "delete c1 137"])?;
    ctrd.check()
}

#[test]
fn a_failed_create_publishes_nothing_and_leaves_no_process() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = shell(&ctrd, "c1", "fails-after-spawn", "exit 0")?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    let failed = shim.task().create(&bundle).unwrap_err();
    assert!(failed.to_string().contains("creation fails on purpose"), "{failed}");
    assert_eq!(shim.task().delete().unwrap_err().code(), Some(Code::NotFound));
    shim.end()?;
    ctrd.assert_events(&[])?;
    ctrd.check()
}

#[test]
fn execs_end_before_their_init_does() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = shell(&ctrd, "c1", "", "exec sleep 1000")?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    let task = shim.task();
    let waiting = shim.run()?;
    for exec in ["e1", "e2"] {
        let stdio = ctrd.stdio(exec, shim_testing::Mode::Null, false)?;
        task.exec(exec).add(&bundle, &["sleep", "1000"], &stdio)?;
        task.exec(exec).start()?;
    }
    task.kill(Signal::KILL)?;
    assert_eq!(waiting.answer(LIMIT)?.exit_status, 137);
    for exec in ["e1", "e2"] {
        assert_eq!(task.exec(exec).wait().answer(LIMIT)?.exit_status, 137);
        task.exec(exec).delete()?;
    }
    let late = ctrd.stdio("late", shim_testing::Mode::Null, false)?;
    let refused = task.exec("late").add(&bundle, &["true"], &late).unwrap_err();
    assert_eq!(refused.code(), Some(Code::FailedPrecondition));
    shim.remove()?;
    ctrd.settle();
    let events: Vec<_> = ctrd.events().all().iter().map(ToString::to_string).collect();
    let place = |event: &str| events.iter().position(|seen| seen == event);
    for exec in ["e1", "e2"] {
        let [added, started] = ["exec-added", "exec-started"].map(|kind| place(&format!("{kind} c1/{exec}")));
        let exit = place(&format!("exit c1/{exec} 137"));
        assert!(added < started && started < exit && exit < place("exit c1 137"), "{events:?}");
    }
    ctrd.check()
}

#[test]
fn a_process_that_got_a_dead_container_s_pid_is_never_signalled() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = shell(&ctrd, "c1", "", "exit 0")?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    shim.run()?.answer(LIMIT)?;
    let pid = shim.task().state()?.pid;
    let stranger = Stranger::with(pid);
    assert_eq!(shim.task().kill_with(Signal::KILL, true).unwrap_err().code(), Some(Code::NotFound));
    shim.task().delete()?;
    shim.delete_action()?;
    if let Some(stranger) = stranger {
        assert!(stranger.lives(), "it was killed in the container's place");
    }
    shim.end()?;
    ctrd.check_leaks()
}
