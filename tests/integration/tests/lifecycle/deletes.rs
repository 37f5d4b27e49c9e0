//! Deletions that are asked for twice, take long, or fail (contract 6.3, 6.5).

use std::thread;
use std::time::Duration;

use protobuf::Message;
use shim_runtime::{Code, Signal};
use shim_testing::{Dialect, FakeContainerd, Result, api};

use super::execs::code;
use super::host::{Host, gated};
use super::{FIXTURE, LIMIT, bundle};
use integration::gate::Gate;

/// A container that has ended, and whose deletion waits at a gate.
fn stopped() -> Result<(Host, Gate)> {
    let mut gate = None;
    let host = Host::with("", |ctrd, bundle| {
        let (at, bundle) = gated(ctrd, bundle, "delete");
        gate = Some(at);
        bundle
    })?;
    host.task().kill(Signal::KILL)?;
    host.waiting.answer(LIMIT)?;
    Ok((host, gate.unwrap()))
}

#[test]
fn a_delete_retried_after_its_deadline_gets_the_same_answer_until_the_id_is_created_again() -> Result<()> {
    let (host, gate) = stopped()?;
    let task = host.task();
    assert_eq!(code(task.within(Duration::from_millis(100)).delete()), Some(Code::DeadlineExceeded));
    let held = gate.reached();
    let first = thread::scope(|scope| {
        let retried = scope.spawn(|| task.delete());
        drop(held);
        retried.join().unwrap()
    })?;
    assert_eq!(first.exit_status, 137);
    assert_eq!(task.delete()?, first, "as often as it is asked");
    for gone in [task.state().map(drop), task.wait().answer(LIMIT).map(drop), task.kill(Signal::KILL)] {
        assert_eq!(code(gone), Some(Code::NotFound));
    }
    assert_eq!(task.connect()?.task_pid, 0);
    assert_eq!(host.notes(), ["kill all 9", "delete"]);
    // The id is somebody else's from now on.
    task.create(&host.bundle)?;
    let deleted = thread::scope(|scope| {
        scope.spawn(|| drop(gate.reached()));
        task.delete()
    })?;
    assert_ne!(deleted.pid, first.pid);
    host.deleted()
}

#[test]
fn two_deletes_at_once_both_end_well_through_one_connection_or_two() -> Result<()> {
    for connections in [1, 2] {
        let (host, gate) = stopped()?;
        let (task, shim) = (host.task(), &host.shim);
        let [first, second] = thread::scope(|scope| {
            let first = scope.spawn(|| task.delete());
            let held = gate.reached();
            let second = scope.spawn(move || {
                if connections == 1 {
                    return shim.task().delete();
                }
                let request = api::DeleteRequest { id: "c1".into(), ..Default::default() };
                shim.raw()?.ask("containerd.task.v3.Task", "Delete", &request)
            });
            // Behind the second on its connection, or on a third: it has not overtaken the first.
            shim.task().state()?;
            drop(held);
            Ok::<_, shim_testing::Failure>([first.join().unwrap()?, second.join().unwrap()?])
        })?;
        assert_eq!(first, second);
        assert_eq!(host.notes(), ["kill all 9", "delete"], "author code deletes once");
        host.ctrd.assert_order(&["exit c1 137", "delete c1 137"])?;
        host.deleted()?;
    }
    Ok(())
}

#[test]
fn a_second_delete_is_answered_though_the_first_answer_leads_to_the_end_of_the_shim() -> Result<()> {
    let (host, gate) = stopped()?;
    let id = || "c1".to_owned();
    let delete = api::DeleteRequest { id: id(), ..Default::default() }.write_to_bytes().unwrap();
    let shutdown = api::ShutdownRequest { id: id(), ..Default::default() }.write_to_bytes().unwrap();
    let mut daemon = host.shim.raw()?;
    let service = "containerd.task.v3.Task";
    let first = daemon.begin(service, "Delete", delete.clone())?;
    let held = gate.reached();
    let second = daemon.begin(service, "Delete", delete)?;
    daemon.set_timeout(Some(LIMIT))?;
    drop(held);
    let mut answered = Vec::new();
    while let Some(frame) = daemon.receive()? {
        answered.push(frame.stream);
        if frame.stream == first {
            daemon.begin(service, "Shutdown", shutdown.clone())?;
        }
    }
    // A daemon hangs up once its Shutdown is answered.
    assert_eq!(answered, [second, first, second + 2]);
    host.deleted()
}

#[test]
fn a_second_delete_of_an_exec_finds_nothing() -> Result<()> {
    let host = Host::new("")?;
    let exec = host.exec("e1", &["true"])?;
    exec.start()?;
    exec.wait().answer(LIMIT)?;
    exec.delete()?;
    assert_eq!(code(exec.delete()), Some(Code::NotFound));
    host.end()
}

#[test]
fn a_delete_that_fails_can_be_retried() -> Result<()> {
    let host = Host::with("", |ctrd, bundle| {
        let fails = ctrd.root().join("fails");
        std::fs::write(&fails, "").unwrap();
        bundle.annotation("fixture/fail-delete", fails.to_str().unwrap())
    })?;
    host.kill_init()?;
    host.waiting.answer(LIMIT)?;
    let failure = host.task().delete().unwrap_err();
    assert!(failure.to_string().contains("delete fails on purpose"), "{failure}");
    assert!(!host.has_event("delete c1"));
    assert_eq!(host.task().state()?.exit_status, 137, "it is as it was");
    host.ended()
}

#[test]
fn what_runs_is_not_deleted() -> Result<()> {
    let host = Host::new("")?;
    let exec = host.exec("e1", &["sleep", "1000"])?;
    exec.start()?;
    for running in [host.task(), exec.clone()] {
        let refused = running.delete().unwrap_err();
        assert_eq!(refused.code(), Some(Code::FailedPrecondition));
        assert!(refused.to_string().contains("it is running"), "{refused}");
    }
    host.end()
}

#[test]
fn many_deletes_and_shutdowns_of_one_task_leave_no_shim() -> Result<()> {
    let (host, gate) = stopped()?;
    let task = host.task();
    thread::scope(|scope| {
        let retries: Vec<_> = (0..8).map(|_| scope.spawn(|| task.delete())).collect();
        drop(gate.reached());
        retries.into_iter().try_for_each(|retry| retry.join().unwrap().map(drop))
    })?;
    host.deleted()
}

#[test]
fn a_bundle_keeps_its_modes() -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = bundle(&ctrd, "c1", "").build()?;
    let modes = || {
        let folders = bundle.path().ancestors().take_while(|folder| folder.starts_with(ctrd.root()));
        let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode();
        folders.map(mode).collect::<Vec<_>>()
    };
    let before = modes();
    let shim = ctrd.start(FIXTURE, &bundle)?;
    shim.run()?.answer(LIMIT)?;
    shim.task().delete()?;
    shim.delete_action()?;
    assert_eq!(modes(), before, "never wider than the daemon made them (contract 12.2)");
    let mut shim = shim;
    shim.end()?;
    ctrd.check()
}

#[test]
fn a_shutdown_that_came_while_others_lived_is_remembered_until_the_last_is_deleted() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let build = |id: &str| bundle(&ctrd, id, "").group("pod").args(["sleep", "1000"]).build();
    let (first, second) = (build("c1")?, build("c2")?);
    let mut pod = ctrd.start(FIXTURE, &first)?;
    let mut other = ctrd.attach(&pod, &second)?;
    let waiting = [pod.run()?, other.run()?];
    // The pause container goes first, and nobody says Shutdown again (contract 6.3).
    pod.task().kill(Signal::KILL)?;
    waiting[0].answer(LIMIT)?;
    pod.remove()?;
    assert_eq!(other.task().state()?.status, api::Status::RUNNING.into());
    other.task().kill(Signal::KILL)?;
    waiting[1].answer(LIMIT)?;
    other.task().delete()?;
    other.disconnect();
    assert!(pod.server()?.ended_within(LIMIT), "it has nothing left to do");
    other.abandon();
    ctrd.check_leaks()
}
