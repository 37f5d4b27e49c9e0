//! A container that its daemon has given up while the shim lives, because the shim was stopped or slow when the
//! daemon restarted, or because the connection broke: `delete` ends it, and nothing else (contract 2.6).

use shim_runtime::{Pid, Signal};
use shim_testing::api::Status;
use shim_testing::{Bundle, BundleBuilder, Dialect, FakeContainerd, Process, Result, Shim};

use super::execs::code;
use super::host::gated;
use super::{FIXTURE, LIMIT, bundle, until};

/// A signal that nothing can catch.
fn stop() -> Signal {
    Signal::new(19).unwrap()
}

/// A container that runs, and what the daemon knows of its init.
fn running(ctrd: &FakeContainerd, builder: BundleBuilder) -> Result<(Bundle, Shim, Process)> {
    let bundle = builder.build()?;
    let shim = ctrd.start(FIXTURE, &bundle)?;
    shim.run()?;
    let init = Process::open(Pid::new(shim.task().state()?.pid).unwrap())?;
    Ok((bundle, shim, init))
}

fn sleeping(ctrd: &FakeContainerd, id: &str) -> BundleBuilder {
    bundle(ctrd, id, "").args(["sleep", "1000"])
}

/// Ends the container that is left of a group, and with it the shim.
fn end_the_last(ctrd: &FakeContainerd, shim: &Shim) -> Result<()> {
    let task = shim.task();
    assert_eq!(task.state()?.status, Status::RUNNING.into());
    assert!(shim.socket().exists());
    task.kill(Signal::KILL)?;
    task.wait().answer(LIMIT)?;
    task.remove()?;
    task.shutdown()?;
    shim.disconnect();
    shim.delete_action()?;
    shim.bundle().remove()?;
    ends_by_itself(ctrd, shim)
}

/// Nobody asks it to.
fn ends_by_itself(ctrd: &FakeContainerd, shim: &Shim) -> Result<()> {
    assert!(shim.server()?.ended_within(LIMIT), "the shim stays, and nobody knows of it");
    assert!(!shim.socket().exists());
    ctrd.check_leaks()
}

#[test]
fn a_container_is_ended_while_its_shim_lives_and_the_rest_of_its_group_goes_on() -> Result<()> {
    let marks = tempfile::tempdir()?;
    let mark = marks.path().join("cleaned");
    let ctrd = FakeContainerd::builder(Dialect::PARAMS).env("FIXTURE_CLEANUP_MARK", &mark).build()?;
    let (_, one, _) = running(&ctrd, sleeping(&ctrd, "c1").group("pod"))?;
    let (second, two, init) = running(&ctrd, sleeping(&ctrd, "c2").group("pod"))?;
    two.disconnect();
    let deleted = two.delete_action()?;
    assert!(init.ended_within(LIMIT), "it runs on, and nobody knows of it");
    assert_eq!((deleted.pid, deleted.exit_status), (init.pid().get(), 137));
    assert!(!mark.exists(), "its shim has deleted it, so there is nothing left for author code");
    ctrd.assert_order(&["create c2", "start c2", "exit c2 137", "delete c2 137"])?;
    assert_eq!(two.delete_action()?, deleted, "as often as it is run");
    second.remove()?;
    // A Delete that comes late is answered as ever.
    let late = shim_runtime::api::DeleteRequest { id: "c2".into(), ..Default::default() };
    let answer: shim_runtime::api::DeleteResponse = one.raw()?.ask(&one.task().service(), "Delete", &late)?;
    assert_eq!(answer.exit_status, 137);
    end_the_last(&ctrd, &one)
}

#[test]
fn a_container_is_ended_while_its_shim_is_stopped_and_the_shim_ends_once_it_goes_on() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let (bundle, shim, init) = running(&ctrd, sleeping(&ctrd, "c1"))?;
    // containerd 2 keeps the connection on which it waited in vain.
    let mut kept = shim.raw()?;
    let connect = shim_runtime::api::ConnectRequest { id: "c1".into(), ..Default::default() };
    kept.ask::<_, shim_runtime::api::ConnectResponse>(&shim.task().service(), "Connect", &connect)?;
    shim.server()?.signal(stop())?;
    shim.disconnect();
    for _ in 0..2 {
        assert_eq!(shim.delete_action()?.exit_status, 137);
        assert!(init.ended_within(LIMIT));
        assert!(shim.socket().exists(), "it is the shim's own to remove");
    }
    bundle.remove()?;
    shim.server()?.signal(Signal::CONT)?;
    ends_by_itself(&ctrd, &shim)?;
    ctrd.assert_events(&["create c1", "start c1", "exit c1 137", "delete c1 137"])
}

#[test]
fn one_container_of_a_stopped_shim_is_ended_and_the_others_are_served_once_it_goes_on() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let (_, one, _) = running(&ctrd, sleeping(&ctrd, "c1").group("pod"))?;
    let (second, two, init) = running(&ctrd, sleeping(&ctrd, "c2").group("pod"))?;
    one.server()?.signal(stop())?;
    two.disconnect();
    two.delete_action()?;
    assert!(init.ended_within(LIMIT));
    second.remove()?;
    one.server()?.signal(Signal::CONT)?;
    end_the_last(&ctrd, &one)
}

/// No pid tells of it, so its shim is the only one that can end it.
#[test]
fn what_has_no_process_is_ended_by_its_shim_at_once_or_when_it_goes_on() -> Result<()> {
    for (argument, stopped) in [("waits", false), ("waits", true), ("external", true)] {
        let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
        let bundle = bundle(&ctrd, "c1", "thread").args([argument]).build()?;
        let shim = ctrd.start(FIXTURE, &bundle)?;
        shim.run()?;
        if stopped {
            shim.server()?.signal(stop())?;
        }
        shim.disconnect();
        assert_eq!(shim.delete_action()?.exit_status, 137);
        bundle.remove()?;
        if stopped {
            shim.server()?.signal(Signal::CONT)?;
        }
        ends_by_itself(&ctrd, &shim)?;
        ctrd.assert_events(&["create c1", "start c1", "exit c1 137", "delete c1 137"])?;
    }
    Ok(())
}

#[test]
fn a_thread_that_does_not_stop_keeps_its_shim_only_until_it_is_given_up() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = bundle(&ctrd, "c1", "thread").args(["hangs"]).build()?;
    let shim = ctrd.start(FIXTURE, &bundle)?;
    shim.run()?;
    shim.disconnect();
    assert_eq!(shim.delete_action()?.exit_status, 137);
    bundle.remove()?;
    ends_by_itself(&ctrd, &shim)
}

#[test]
fn a_container_that_is_being_created_when_it_is_given_up_is_ended_as_soon_as_it_is_there() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let (gate, builder) = gated(&ctrd, sleeping(&ctrd, "c1"), "create");
    let bundle = builder.build()?;
    let shim = ctrd.start(FIXTURE, &bundle)?;
    let task = shim.task();
    std::thread::scope(|scope| {
        let creating = scope.spawn(|| task.create(&bundle).map(drop));
        let held = gate.reached();
        shim.delete_action()?;
        drop(held);
        creating.join().unwrap()
    })?;
    shim.disconnect();
    assert!(shim.server()?.ended_within(LIMIT));
    bundle.remove()?;
    ctrd.check_leaks()?;
    ctrd.assert_order(&["create c1", "exit c1 137", "delete c1 137"])
}

#[test]
fn a_paused_container_and_one_that_was_never_started_are_ended_too() -> Result<()> {
    for paused in [true, false] {
        let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
        let bundle = bundle(&ctrd, "c1", "pausable").args(["sleep", "1000"]).build()?;
        let shim = ctrd.start(FIXTURE, &bundle)?;
        let task = shim.task();
        task.create(&bundle)?;
        if paused {
            task.start()?;
            task.pause()?;
        }
        shim.disconnect();
        assert_eq!(shim.delete_action()?.exit_status, 137);
        bundle.remove()?;
        ends_by_itself(&ctrd, &shim)?;
    }
    Ok(())
}

#[test]
fn author_code_that_fails_to_delete_does_not_keep_a_shim_that_nobody_knows() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let fails = ctrd.root().join("fails");
    std::fs::write(&fails, "")?;
    let builder = sleeping(&ctrd, "c1").annotation("fixture/fail-delete", fails.to_str().unwrap());
    let (bundle, shim, init) = running(&ctrd, builder)?;
    shim.disconnect();
    shim.delete_action()?;
    assert!(init.ended_within(LIMIT));
    until("the refusal", || bundle.log().contains("delete fails on purpose"));
    bundle.remove()?;
    ends_by_itself(&ctrd, &shim)
}

/// A daemon that gives up before it has asked for anything sends no Shutdown either.
#[test]
fn a_shim_whose_container_was_never_asked_for_ends_when_that_is_given_up() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = sleeping(&ctrd, "c1").build()?;
    let shim = ctrd.start(FIXTURE, &bundle)?;
    assert_eq!(code(shim.task().state()), Some(shim_runtime::Code::NotFound));
    shim.disconnect();
    shim.delete_action()?;
    bundle.remove()?;
    ends_by_itself(&ctrd, &shim)
}
