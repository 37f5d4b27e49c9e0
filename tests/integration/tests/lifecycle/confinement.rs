//! What a specification says of a process's rights and limits, applied to the ready-made process on the host: to a
//! container's init and to its execs.

use nix::unistd::geteuid;
use serde_json::{Value, json};
use shim_runtime::Code;
use shim_testing::{Dialect, FakeContainerd, Mode, Result, Shim};

use super::{FIXTURE, LIMIT};

/// What a process tells of itself: its line of `/proc/self/status`, of `/proc/self/limits`, or its score.
const TELL: &str = "cat /proc/self/status /proc/self/limits; echo Score: $(cat /proc/self/oom_score_adj)";

/// A `process` object that says what its process is to tell.
fn process(change: &Value) -> Value {
    let mut process = json!({ "args": ["sh", "-c", TELL], "cwd": "/", "env": ["PATH=/usr/bin:/bin"] });
    if let (Some(process), Some(change)) = (process.as_object_mut(), change.as_object()) {
        process.extend(change.clone());
    }
    process
}

/// Runs a container with this `process` to its end; returns what it wrote.
fn told_by(change: &Value) -> Result<String> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = ctrd.bundle("c1").config(json!({ "process": process(change) })).capture().build()?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    let exit = shim.run()?;
    assert_eq!(exit.answer(LIMIT)?.exit_status, 0);
    shim.remove()?;
    let captured = bundle.stdio().finish(LIMIT)?;
    ctrd.check()?;
    Ok(String::from_utf8_lossy(&captured.stdout).into_owned())
}

/// The words that follow a name at the beginning of a line.
fn value(told: &str, name: &str) -> String {
    let line = told.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no `{name}` in:\n{told}")).split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn a_process_has_the_limits_and_the_score_of_its_specification() -> Result<()> {
    let own = std::fs::read_to_string("/proc/self/oom_score_adj")?.trim().parse::<i32>().unwrap_or_default();
    let score = (own + 100).min(1000);
    let told = told_by(&json!({
        "oomScoreAdj": score,
        "noNewPrivileges": true,
        "rlimits": [
            { "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 },
            { "type": "RLIMIT_CORE", "soft": 0, "hard": 4096 },
        ],
    }))?;
    assert_eq!(value(&told, "Score:"), score.to_string());
    assert_eq!(value(&told, "Max open files"), "100 200 files");
    assert_eq!(value(&told, "Max core file size"), "0 4096 bytes");
    assert_eq!(value(&told, "NoNewPrivs:"), "1");
    Ok(())
}

#[test]
fn a_process_has_the_capabilities_of_its_specification_and_no_way_to_more() -> Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let [kill, chown] = ["CAP_KILL", "CAP_CHOWN"];
    let bits = |bits: u64| format!("{bits:016x}");
    let capabilities = json!({
        "bounding": [kill, chown, "CAP_OF_TOMORROW"], "effective": [kill], "permitted": [kill],
        "inheritable": [kill], "ambient": [kill],
    });
    // Root has all that it may have.
    let told = told_by(&json!({ "capabilities": capabilities, "user": { "uid": 0, "gid": 0 } }))?;
    assert_eq!(value(&told, "CapBnd:"), bits(1 << 5 | 1));
    assert_eq!(value(&told, "CapEff:"), bits(1 << 5 | 1));
    // Others have what is passed on to them.
    let told = told_by(&json!({ "capabilities": capabilities, "user": { "uid": 1234, "gid": 1234 } }))?;
    assert_eq!(value(&told, "Uid:"), "1234 1234 1234 1234");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(value(&told, set), bits(1 << 5), "{set}");
    }
    assert_eq!(value(&told, "CapBnd:"), bits(1 << 5 | 1));
    // None at all is not the same as nothing said.
    let told = told_by(&json!({ "capabilities": {} }))?;
    assert_eq!((value(&told, "CapBnd:"), value(&told, "CapEff:")), (bits(0), bits(0)));
    let own = std::fs::read_to_string("/proc/self/status")?;
    assert_eq!(value(&told_by(&json!({}))?, "CapBnd:"), value(&own, "CapBnd:"));
    Ok(())
}

#[test]
fn an_exec_has_the_limits_and_capabilities_of_its_own_specification() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = ctrd.bundle("c1").args(["sleep", "1000"]).build()?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    let exit = shim.run()?;
    let spec = process(&json!({
        "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": 50, "hard": 60 }],
        "capabilities": { "bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"] },
    }));
    let exec = shim.task().exec("e1");
    let stdio = ctrd.stdio("e1", Mode::Capture, false)?;
    exec.add_with(&bundle, &["true"], &stdio, |request| {
        if let Some(process) = request.spec.as_mut() {
            process.value = spec.to_string().into_bytes();
        }
    })?;
    let exec_exit = exec.wait();
    exec.start()?;
    assert_eq!(exec_exit.answer(LIMIT)?.exit_status, 0);
    exec.delete()?;
    let told = String::from_utf8_lossy(&stdio.finish(LIMIT)?.stdout).into_owned();
    assert_eq!(value(&told, "Max open files"), "50 60 files");
    if geteuid().is_root() {
        assert_eq!(value(&told, "CapBnd:"), format!("{:016x}", 1 << 5));
    }
    shim.task().kill(shim_runtime::Signal::KILL)?;
    exit.answer(LIMIT)?;
    shim.remove()?;
    ctrd.check()
}

#[test]
fn what_cannot_be_applied_to_a_process_is_refused_by_its_name() -> Result<()> {
    let twice = json!([{ "type": "RLIMIT_CPU", "soft": 1, "hard": 1 }, { "type": "RLIMIT_CPU" }]);
    let cases = [
        (json!({ "rlimits": [{ "type": "RLIMIT_TEA", "soft": 1, "hard": 1 }] }), "`RLIMIT_TEA`"),
        (json!({ "rlimits": twice }), "`RLIMIT_CPU`"),
        (json!({ "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": 9, "hard": 8 }] }), "`rlimits`"),
        (json!({ "oomScoreAdj": 2000 }), "`oomScoreAdj`"),
        (json!({ "apparmorProfile": "no-such-profile" }), "no-such-profile"),
        (json!({ "selinuxLabel": "no-such-label" }), "no-such-label"),
    ];
    for (change, name) in cases {
        let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
        let bundle = ctrd.bundle("c1").config(json!({ "process": process(&change) })).build()?;
        let mut shim: Shim = ctrd.start(FIXTURE, &bundle)?;
        let error = shim.task().create(&bundle).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
        assert_ne!(error.code(), Some(Code::Unimplemented));
        shim.end()?;
        ctrd.check()?;
    }
    Ok(())
}
