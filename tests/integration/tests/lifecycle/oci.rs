//! Processes that an OCI runtime leaves behind. Needs root and `runc`.

use protobuf::Message;
use shim_runtime::{Code, Signal};
use shim_testing::{Bundle, Dialect, FakeContainerd, Mode, Result, Task};

use super::execs::code;
use super::host::{Parked, gated};
use super::{FIXTURE, LIMIT, bundle};
use integration::gate::Gate;

/// Whether the test can run; with `SHIM_TESTS=all` it must.
fn can_run() -> bool {
    let runc = std::process::Command::new("runc").arg("--version").output().is_ok();
    let possible = runc && nix::unistd::geteuid().is_root() && std::path::Path::new("/bin/busybox").exists();
    let needed = std::env::var_os("SHIM_TESTS").is_some_and(|tests| tests == "all");
    assert!(possible || !needed, "root, runc and a static busybox are needed");
    if !possible {
        println!("left out: lifecycle::oci needs root, runc and a static busybox");
    }
    possible
}

#[test]
fn of_two_hundred_containers_that_exit_at_once_no_exit_is_lost_and_no_zombie_left() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let anchor = bundle(&ctrd, "anchor", "").group("pod").args(["sleep", "1000"]).build()?;
    let mut shim = ctrd.start(FIXTURE, &anchor)?;
    shim.run()?;
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|worker| {
                scope.spawn({
                    let (ctrd, shim) = (&ctrd, &shim);
                    move || -> Result<()> {
                        for n in 0..50 {
                            let id = format!("c{worker}-{n}");
                            let status = n % 120;
                            let script = format!("exit {status}");
                            let bundle =
                                bundle(ctrd, &id, "oci").group("pod").full_spec().busybox("/bin/busybox");
                            let bundle = bundle.args(["sh", "-c", &script]).build()?;
                            let mut container = ctrd.attach(shim, &bundle)?;
                            assert_eq!(container.run()?.answer(LIMIT)?.exit_status, status);
                            container.remove()?;
                        }
                        Ok(())
                    }
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().unwrap())
    })?;
    let server = shim.server()?.pid();
    let children = shim_testing::kernel_text(format!("/proc/{server}/task/{server}/children"))?;
    assert_eq!(children.split_whitespace().count(), 1, "only the anchor is left: {children}");
    shim.task().kill(Signal::KILL)?;
    shim.task().wait().answer(LIMIT)?;
    shim.remove()?;
    ctrd.check()
}

#[test]
fn an_exec_that_runc_leaves_behind_is_adopted() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle =
        bundle(&ctrd, "c1", "oci").full_spec().busybox("/bin/busybox").args(["sleep", "1000"]).build()?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    let waiting = shim.run()?;
    for n in 0..20 {
        let exec = shim.task().exec(&format!("e{n}"));
        let stdio = ctrd.stdio(&format!("e{n}"), Mode::Capture, false)?;
        exec.add(&bundle, &["sh", "-c", &format!("echo {n}; exit {n}")], &stdio)?;
        let waits = exec.wait();
        exec.start()?;
        assert_eq!(waits.answer(LIMIT)?.exit_status, n);
        assert_eq!(exec.delete()?.exit_status, n);
        assert_eq!(stdio.finish(LIMIT)?.stdout, format!("{n}\n").as_bytes());
    }
    shim.task().kill(Signal::KILL)?;
    waiting.answer(LIMIT)?;
    shim.remove()?;
    ctrd.check()
}

/// Takes a container's pid namespace away.
fn share_pids(bundle: &Bundle) -> Result<()> {
    let path = bundle.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path)?).unwrap();
    let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "pid");
    Ok(std::fs::write(&path, config.to_string())?)
}

#[test]
fn what_an_init_leaves_in_the_host_s_pid_namespace_is_killed_by_runc() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let script = "setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo $!; exit 3";
    let bundle =
        bundle(&ctrd, "c1", "oci").full_spec().busybox("/bin/busybox").args(["sh", "-c", script]).build()?;
    share_pids(&bundle)?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    assert_eq!(shim.run()?.answer(LIMIT)?.exit_status, 3);
    let text = bundle.stdio().finish(LIMIT)?.stdout;
    let stray = String::from_utf8_lossy(&text).trim().parse().ok().and_then(shim_runtime::Pid::new);
    if let Ok(stray) = shim_testing::Process::open(stray.unwrap()) {
        assert!(stray.ended_within(LIMIT), "the exit was told, and it lives");
    }
    shim.remove()?;
    ctrd.check()
}

/// A container of `runc` whose memory is limited.
fn limited(ctrd: &FakeContainerd, script: &str, gated_at: &str) -> Result<(Gate, Bundle)> {
    let builder = bundle(ctrd, "c1", "oci").full_spec().busybox("/bin/busybox").args(["sh", "-c", script]);
    let (gate, builder) = gated(ctrd, builder, gated_at);
    let bundle = builder.build()?;
    let path = bundle.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path)?).unwrap();
    config["linux"]["resources"]["memory"]["limit"] = (32 << 20).into();
    std::fs::write(&path, config.to_string())?;
    Ok((gate, bundle))
}

/// How many kills for want of memory a task's statistics tell of.
fn kills(task: &Task) -> Result<u64> {
    use containerd_shim_protos::{cgroups, cgroups_v2};
    let any = task.stats()?.stats;
    Ok(if any.type_url == "io.containerd.cgroups.v1.Metrics" {
        cgroups::metrics::Metrics::parse_from_bytes(&any.value).unwrap().memory_oom_control.oom_kill
    } else {
        cgroups_v2::metrics::Metrics::parse_from_bytes(&any.value).unwrap().memory_events.oom_kill
    })
}

#[test]
fn stats_are_told_from_the_end_of_create_to_the_beginning_of_delete() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let (gate, bundle) = limited(&ctrd, "sleep 1000", "create")?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    let task = shim.task();
    std::thread::scope(|scope| {
        let creating = scope.spawn(|| task.create(&bundle));
        let held = gate.reached();
        // Any other code is an error in the daemon's log, for every container and every time.
        assert_eq!(code(task.stats()), Some(Code::NotFound), "being created");
        drop(held);
        creating.join().unwrap().map(drop)
    })?;
    assert_eq!(kills(&task)?, 0, "created");
    let waiting = task.wait();
    task.start()?;
    assert_eq!(kills(&task)?, 0, "running");
    task.pause()?;
    assert_eq!(kills(&task)?, 0, "paused");
    task.resume()?;
    task.kill(Signal::KILL)?;
    waiting.answer(LIMIT)?;
    assert_eq!(kills(&task)?, 0, "stopped");
    task.delete()?;
    assert_eq!(code(task.stats()), Some(Code::NotFound), "deleted");
    shim.end()?;
    ctrd.check()
}

/// CRI asks then, and without an answer does not say that the container was killed for want of memory.
#[test]
fn stats_tell_of_the_kill_for_want_of_memory_that_has_ended_a_container() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let (_, bundle) = limited(&ctrd, "exec tail /dev/zero", "nowhere")?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    assert_eq!(shim.run()?.answer(LIMIT)?.exit_status, 137);
    assert_eq!(kills(&shim.task())?, 1);
    shim.remove()?;
    ctrd.check()
}

#[test]
fn an_exec_in_a_container_that_is_never_started_ends_before_it() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    for shares_pids in [false, true] {
        let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
        let (_, bundle) = limited(&ctrd, "exit 3", "nowhere")?;
        if shares_pids {
            share_pids(&bundle)?;
        }
        let mut shim = ctrd.start(FIXTURE, &bundle)?;
        let task = shim.task();
        task.create(&bundle)?;
        let exec = task.exec("e1");
        exec.add(&bundle, &["sleep", "1000"], &ctrd.stdio("e1", Mode::Null, false)?)?;
        exec.start()?;
        let waiting = [Parked::new(&shim, "")?, Parked::new(&shim, "e1")?];
        task.delete()?;
        for waiting in waiting {
            assert_eq!(waiting.answer()?, 137);
        }
        shim.end()?;
        ctrd.assert_events(&[
            "create c1",
            "exec-added c1/e1",
            "exec-started c1/e1",
            "exit c1/e1 137",
            "exit c1 137",
            "delete c1 137",
        ])?;
        ctrd.check()?;
    }
    Ok(())
}
