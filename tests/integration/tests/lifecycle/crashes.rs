//! A shim that dies between any two steps of a container's life: `delete` tells the truth as far as it was
//! known, ends what is left, and can be repeated (contract 2.6).

use shim_runtime::Signal;
use shim_testing::{CRASH_AT, Dialect, FakeContainerd, Process, Result, listeners};

use super::{FIXTURE, LIMIT, shell, until};

/// Runs a container that ends with status 9, in a shim that dies at `place`, and cleans up after it. Returns
/// the status that `delete` tells.
fn status_after_crash_at(place: &str) -> Result<u32> {
    let ctrd = FakeContainerd::builder(Dialect::PARAMS).env(CRASH_AT, place).build()?;
    let bundle = shell(&ctrd, "c1", "", "exit 9")?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    let task = shim.task();
    let step = || {
        task.create(&bundle)?;
        let waiting = task.wait();
        task.start()?;
        waiting.answer(LIMIT)?;
        task.delete()
    };
    assert!(step().is_err(), "{place}: the shim lives");
    assert!(shim.server()?.ended_within(LIMIT), "{place}: the shim lives");
    let first = shim.delete_action()?;
    let second = shim.delete_action()?;
    assert_eq!(first.exit_status, second.exit_status, "{place}");
    assert!(!shim.socket().exists(), "{place}: the dead shim's socket is left");
    if let Some(init) = shim_runtime::Pid::new(first.pid)
        && let Ok(init) = Process::open(init)
    {
        assert!(init.ended_within(LIMIT), "{place}: the container's process is left");
    }
    shim.abandon();
    ctrd.check_leaks()?;
    Ok(first.exit_status)
}

#[test]
fn delete_says_killed_where_the_shim_died_before_it_saw_an_exit() -> Result<()> {
    for place in ["create.reserved", "create.made", "create.recorded", "create.queued", "start.begun"] {
        assert_eq!(status_after_crash_at(place)?, 137, "{place}");
    }
    Ok(())
}

#[test]
fn delete_tells_the_exit_wherever_the_shim_died_after_it_saw_it() -> Result<()> {
    for place in ["exit.recorded", "exit.queued", "delete.begun", "delete.given-up", "delete.queued"] {
        assert_eq!(status_after_crash_at(place)?, 9, "{place}");
    }
    Ok(())
}

#[test]
fn delete_tells_either_where_the_exit_and_the_shim_s_death_came_together() -> Result<()> {
    for place in ["start.running", "start.queued"] {
        let status = status_after_crash_at(place)?;
        assert!([9, 137].contains(&status), "{place}: {status}");
    }
    Ok(())
}

#[test]
fn a_start_that_is_killed_leaves_no_server_and_the_next_one_succeeds() -> Result<()> {
    for place in ["socket.bound", "server.spawned", "server.ready"] {
        let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
        let bundle = shell(&ctrd, "c1", "", "exit 0")?;
        let mut launch = ctrd.launch(FIXTURE, &bundle, "start");
        launch.env.push((CRASH_AT.into(), place.into()));
        let output = launch.run()?;
        assert_eq!(output.code(), None, "{place}: {output}");
        // A server that was ready is the group's: the next start finds it.
        let shim = ctrd.start(FIXTURE, &bundle)?;
        assert_eq!(listeners(&shim.socket()).len(), 1, "{place}");
        shim.run()?.answer(LIMIT)?;
        shim.task().delete()?;
        shim.task().shutdown()?;
        shim.disconnect();
        // It gives the daemon of the killed start its time to come, then ends.
        assert!(shim.server()?.ended_within(LIMIT), "{place}");
        bundle.remove()?;
        ctrd.check_leaks()?;
    }
    Ok(())
}

/// A program names itself as it likes, and the kernel cuts a name after 15 bytes, in the middle of a letter too.
#[test]
fn delete_kills_an_init_whose_name_is_no_text() -> Result<()> {
    for name in [r"\377\376", "\u{44f}\u{44f}\u{44f}\u{44f}\u{44f}\u{44f}\u{44f}\u{44f}"] {
        let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
        let script = format!("printf '{name}' >/proc/$$/comm; while :; do sleep 1000; done");
        let bundle = shell(&ctrd, "c1", "", &script)?;
        let mut shim = ctrd.start(FIXTURE, &bundle)?;
        shim.run()?;
        let init = Process::open(shim_runtime::Pid::new(shim.task().state()?.pid).unwrap())?;
        let comm = format!("/proc/{}/comm", init.pid());
        until("the name", || std::fs::read(&comm).is_ok_and(|name| String::from_utf8(name).is_err()));
        shim.server()?.signal(Signal::KILL)?;
        assert!(shim.server()?.ended_within(LIMIT));
        shim.delete_action()?;
        assert!(init.ended_within(LIMIT), "{name}");
        shim.abandon();
        ctrd.check_leaks()?;
    }
    Ok(())
}

#[test]
fn delete_never_kills_a_process_that_only_has_the_pid() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = shell(&ctrd, "c1", "", "exec sleep 1000")?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    let created = shim.task().create(&bundle)?;
    shim.server()?.signal(Signal::KILL)?;
    assert!(shim.server()?.ended_within(LIMIT));
    // Another process under the recorded pid: this very one, which would notice being killed.
    let record = bundle.path().join("shim.json");
    let text = std::fs::read_to_string(&record)?;
    let other = text.replace(&created.pid.to_string(), &std::process::id().to_string());
    assert_ne!(text, other, "the record names the pid");
    std::fs::write(&record, other)?;
    shim.delete_action()?;
    std::fs::write(&record, text)?;
    shim.delete_action()?;
    shim.abandon();
    ctrd.check_leaks()
}
