//! Processes that an OCI runtime leaves behind. Needs root and `runc`.

use shim_runtime::testing::{Dialect, FakeContainerd, Mode, Result};

use super::{FIXTURE, LIMIT, bundle};

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
    let children = std::fs::read_to_string(format!("/proc/{server}/task/{server}/children"))?;
    assert_eq!(children.split_whitespace().count(), 1, "only the anchor is left: {children}");
    shim.task().kill(shim_runtime::Signal::KILL)?;
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
    shim.task().kill(shim_runtime::Signal::KILL)?;
    waiting.answer(LIMIT)?;
    shim.remove()?;
    ctrd.check()
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
    let path = bundle.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path)?).unwrap();
    let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "pid");
    std::fs::write(&path, config.to_string())?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    assert_eq!(shim.run()?.answer(LIMIT)?.exit_status, 3);
    let text = bundle.stdio().finish(LIMIT)?.stdout;
    let stray = String::from_utf8_lossy(&text).trim().parse().ok().and_then(shim_runtime::Pid::new);
    if let Ok(stray) = shim_runtime::testing::Process::open(stray.unwrap()) {
        assert!(stray.ended_within(LIMIT), "the exit was told, and it lives");
    }
    shim.remove()?;
    ctrd.check()
}

#[test]
fn stats_come_from_a_container_s_own_cgroup() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle =
        bundle(&ctrd, "c1", "oci").full_spec().busybox("/bin/busybox").args(["sleep", "1000"]).build()?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    let waiting = shim.run()?;
    let stats = shim.task().stats()?.stats;
    assert!(stats.type_url.starts_with("io.containerd.cgroups.v"), "{}", stats.type_url);
    shim.task().kill(shim_runtime::Signal::KILL)?;
    waiting.answer(LIMIT)?;
    shim.remove()?;
    ctrd.check()
}
