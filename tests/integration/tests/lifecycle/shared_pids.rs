//! Containers in somebody else's pid namespace: the kernel does not end what their init leaves, so the shim
//! does, before it tells of the init's exit (contract 6.5, 4).

use serde_json::{Value, json};
use shim_runtime::{Pid, Signal};
use shim_testing::api::Status;
use shim_testing::{Dialect, FakeContainerd, Process, Result, Shim};

use super::host::{Host, gated};
use super::{FIXTURE, LIMIT, bundle, until};
use integration::gate::Gate;

/// A container whose init starts a process that is out of its reach, tells its pid, and sleeps.
fn with_stray(namespaces: &Value, step: &str) -> Result<(Host, Gate, Process)> {
    let mut gate = None;
    let mut strays = None;
    let host = Host::with("", |ctrd, bundle| {
        let path = ctrd.root().join("strays");
        let file = path.display().to_string();
        // It tells its pid itself, once it has left the init's group.
        let stray = format!("echo $$ > {file}.new; mv {file}.new {file}; exec sleep 1000");
        let script = format!("setsid sh -c '{stray}' & exec sleep 1000");
        let (at, bundle) = gated(ctrd, bundle, step);
        gate = Some(at);
        strays = Some(path);
        bundle
            .args(["sh", "-c", &script])
            .annotation("fixture/strays", &file)
            .linux(json!({ "namespaces": namespaces }))
    })?;
    let strays = strays.unwrap();
    until("the stray", || strays.exists());
    let pid: u32 = std::fs::read_to_string(&strays)?.trim().parse().unwrap();
    Ok((host, gate.unwrap(), Process::open(Pid::new(pid).unwrap())?))
}

#[test]
fn what_an_init_leaves_in_a_shared_pid_namespace_ends_before_its_exit_is_told() -> Result<()> {
    for namespaces in
        [json!(null), json!([{ "type": "mount" }]), json!([{ "type": "pid", "path": "/proc/1/ns/pid" }])]
    {
        let (host, gate, stray) = with_stray(&namespaces, "kill-all")?;
        host.kill_init()?;
        let held = gate.reached();
        assert_eq!(host.status()?, Status::RUNNING, "{namespaces}");
        assert!(!host.has_event("exit c1"), "{namespaces}");
        assert!(stray.is_alive());
        drop(held);
        host.waiting.answer(LIMIT)?;
        assert!(stray.ended_within(LIMIT));
        assert_eq!(host.notes(), ["kill all 9"]);
        host.ended()?;
    }
    Ok(())
}

#[test]
fn a_kill_of_the_rest_that_hangs_does_not_hold_an_exit_for_good() -> Result<()> {
    let (host, gate, stray) = with_stray(&json!(null), "kill-all")?;
    host.kill_init()?;
    let held = gate.reached();
    assert!(stray.is_alive());
    host.waiting.answer(LIMIT)?;
    assert!(stray.is_alive());
    drop(held);
    assert!(stray.ended_within(LIMIT));
    host.ended()
}

#[test]
fn in_a_pid_namespace_of_its_own_the_kernel_ends_the_rest_and_nothing_is_run() -> Result<()> {
    let (host, _, stray) = with_stray(&json!([{ "type": "pid" }]), "kill-all")?;
    host.kill_init()?;
    host.waiting.answer(LIMIT)?;
    assert_eq!(host.notes(), [""; 0]);
    // No kernel did it here: the fixture makes no namespace.
    stray.signal(Signal::KILL)?;
    host.ended()
}

#[test]
fn execs_that_are_left_are_killed_whatever_the_namespace() -> Result<()> {
    let host = Host::with("", |_, bundle| bundle.linux(json!({ "namespaces": [{ "type": "pid" }] })))?;
    let exec = host.exec("e1", &["sleep", "1000"])?;
    exec.start()?;
    host.kill_init()?;
    assert_eq!(exec.wait().answer(LIMIT)?.exit_status, 137);
    assert_eq!(host.notes(), ["kill all 9"]);
    let ctrd = host.ctrd.clone();
    host.ended()?;
    ctrd.assert_order(&["exit c1/e1 137", "exit c1 137"])
}

#[test]
fn an_unreadable_config_promises_no_namespace() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let notes = ctrd.root().join("notes");
    let builder =
        bundle(&ctrd, "c1", "thread").args(["0"]).linux(json!({ "namespaces": [{ "type": "pid" }] }));
    let (gate, builder) = gated(&ctrd, builder, "create");
    let bundle = builder.annotation("fixture/notes", notes.to_str().unwrap()).build()?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    let task = shim.task();
    std::thread::scope(|scope| {
        let creating = scope.spawn(|| task.create(&bundle));
        let held = gate.reached();
        std::fs::write(bundle.path().join("config.json"), "{")?;
        drop(held);
        creating.join().unwrap()
    })?;
    task.start()?;
    task.wait().answer(LIMIT)?;
    assert_eq!(std::fs::read_to_string(&notes)?, "kill all 9\n");
    task.delete()?;
    shim.end()?;
    ctrd.check()
}

#[test]
fn an_init_that_was_never_started_has_left_nothing() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let notes = ctrd.root().join("notes");
    let bundle = bundle(&ctrd, "c1", "").annotation("fixture/notes", notes.to_str().unwrap()).build()?;
    let mut shim: Shim = ctrd.start(FIXTURE, &bundle)?;
    shim.task().create(&bundle)?;
    shim.task().kill(Signal::KILL)?;
    shim.task().wait().answer(LIMIT)?;
    shim.remove()?;
    assert_eq!(std::fs::read_to_string(&notes)?, "delete\n");
    ctrd.assert_events(&["create c1", "exit c1 137", "delete c1 137"])?;
    ctrd.check()
}
