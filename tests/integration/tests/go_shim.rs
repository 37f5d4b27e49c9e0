//! The stand-in against a shim that others wrote: containerd's own runc shim, as the distribution packs it.
//! What it does there is what a shim's author may rely on.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use integration::workspace;
use shim_runtime::{Code, Signal};
use shim_testing::api::Status;
use shim_testing::promise::Level;
use shim_testing::{BundleBuilder, Dialect, FakeContainerd, Mode, Process, Result, Task};

const BUSYBOX: &str = "/bin/busybox";
const LIMIT: Duration = Duration::from_secs(10);

type Done = Result<(), Box<dyn Error>>;

/// The shim of a containerd that `tests/deps` has brought.
fn shim_of(line: &str) -> PathBuf {
    workspace::containerd(line, "containerd-shim-runc-v2")
}

/// The oldest shim: brought, or installed on a machine of that age.
fn oldest() -> PathBuf {
    let brought = shim_of("1.6");
    if brought.exists() { brought } else { "/usr/bin/containerd-shim-runc-v2".into() }
}

/// Whether a test can run here. With `SHIM_TESTS=all` whatever is missing is a failure.
fn is_possible(shims: &[PathBuf]) -> bool {
    let mut missing: Vec<_> =
        shims.iter().filter(|shim| !shim.exists()).map(|shim| format!("`{}`", shim.display())).collect();
    if !nix::unistd::geteuid().is_root() {
        missing.push("root".to_owned());
    }
    if Command::new("runc").arg("--version").output().is_err() {
        missing.push("`runc`".to_owned());
    }
    if !Path::new(BUSYBOX).exists() {
        missing.push("a static busybox".to_owned());
    }
    if missing.is_empty() {
        return true;
    }
    let current = thread::current();
    let (name, missing) = (current.name().unwrap_or("a test"), missing.join(", "));
    let all = std::env::var_os("SHIM_TESTS").is_some_and(|tests| tests == "all");
    assert!(!all, "{name} cannot run: it needs {missing}");
    println!("left out: {name}: it needs {missing}; `tests/deps` brings it on Debian");
    false
}

fn bundle(ctrd: &FakeContainerd, id: &str, script: &str) -> BundleBuilder {
    ctrd.bundle(id).args(["sh", "-c", script]).full_spec().busybox(BUSYBOX).capture()
}

/// Every promise, the ones that are no more than advice too: this shim keeps those that it can.
fn assert_spotless(ctrd: &FakeContainerd) {
    assert!(ctrd.broken().is_empty(), "{:?}\n{}", ctrd.broken(), ctrd.timeline());
}

#[test]
fn a_container_lives_and_dies_under_every_legacy_dialect() -> Done {
    if !is_possible(&[oldest()]) {
        return Ok(());
    }
    for dialect in [Dialect::V1_6, Dialect::V1_7, Dialect::V2_0] {
        let ctrd = FakeContainerd::new(dialect)?;
        let bundle = bundle(&ctrd, "c1", "cat; echo err >&2; exit 3").build()?;
        let mut shim = ctrd.start(oldest(), &bundle)?;
        assert_eq!(shim.answer().version, 2);
        let waiting = shim.run()?;
        bundle.stdio().write("hi\n");
        bundle.stdio().close_stdin();
        shim.task().close_io()?;
        assert_eq!(waiting.answer(LIMIT)?.exit_status, 3);
        assert_eq!(shim.remove()?.exit_status, 3);
        let captured = bundle.stdio().finish(LIMIT)?;
        assert_eq!((captured.stdout.as_slice(), captured.stderr.as_slice()), (&b"hi\n"[..], &b"err\n"[..]));
        ctrd.assert_events(&["create c1", "start c1", "exit c1 3", "delete c1 3"])?;
        ctrd.check()?;
        assert_spotless(&ctrd);
    }
    Ok(())
}

/// What a dialect makes of a shim.
#[derive(Debug, PartialEq)]
enum Outcome {
    /// It runs a container by the task service of that version.
    Runs(u32),
    /// Its `start` fails.
    StartFails,
    /// Its answer is not understood.
    AnswerUnknown,
}

use Outcome::{AnswerUnknown, Runs, StartFails};

/// The matrix that was observed between real daemons and real shims (contract 0.1), oldest dialect first.
const MATRIX: [(&str, [Outcome; 4]); 3] = [
    ("1.6", [Runs(2), Runs(2), Runs(2), StartFails]),
    ("1.7", [Runs(2), Runs(2), Runs(2), Runs(2)]),
    ("2", [AnswerUnknown, AnswerUnknown, Runs(3), Runs(3)]),
];

#[test]
fn shims_and_dialects_understand_each_other_as_real_daemons_do() -> Done {
    if !is_possible(&MATRIX.map(|(line, _)| shim_of(line))) {
        return Ok(());
    }
    for (line, outcomes) in &MATRIX {
        for (dialect, expected) in Dialect::ALL.into_iter().zip(outcomes) {
            let outcome = meet(dialect, &shim_of(line))?;
            assert_eq!(outcome, *expected, "the shim of {line} under {dialect}");
        }
    }
    Ok(())
}

fn meet(dialect: Dialect, shim: &Path) -> Result<Outcome> {
    let ctrd = FakeContainerd::new(dialect)?;
    let bundle = bundle(&ctrd, "c1", "exit 3").build()?;
    let mut shim = match ctrd.start(shim, &bundle) {
        Ok(shim) => shim,
        Err(failure)
            if failure.promises().iter().any(|broken| broken.promise.name == "start.answer-form") =>
        {
            return Ok(AnswerUnknown);
        }
        Err(_) => {
            // Which must leave nothing behind.
            ctrd.check()?;
            return Ok(StartFails);
        }
    };
    let waiting = shim.run()?;
    assert_eq!(waiting.answer(LIMIT)?.exit_status, 3);
    shim.task().remove()?;
    // Now and then Go's shim of 2.1 loses an event that is still on its way when Shutdown comes.
    ctrd.assert_events(&["create c1", "start c1", "exit c1 3", "delete c1 3"])?;
    shim.end()?;
    ctrd.check()?;
    Ok(Runs(shim.answer().version))
}

#[test]
fn execs_and_their_events_are_followed() -> Done {
    if !is_possible(&[oldest()]) {
        return Ok(());
    }
    let ctrd = FakeContainerd::new(Dialect::V1_7)?;
    let bundle = bundle(&ctrd, "c1", "exec sleep 1000").build()?;
    let mut shim = ctrd.start(oldest(), &bundle)?;
    let waiting = shim.run()?;
    let task = shim.task();
    let stdio = ctrd.stdio("e1", Mode::Capture, false)?;
    let exec = task.exec("e1");
    exec.add(&bundle, &["sh", "-c", "echo from exec; exit 7"], &stdio)?;
    let again = exec.add(&bundle, &["true"], &stdio).err();
    assert_eq!(again.and_then(|failure| failure.code()), Some(Code::AlreadyExists));
    let exec_waiting = exec.wait();
    exec.start()?;
    assert_eq!(exec_waiting.answer(LIMIT)?.exit_status, 7);
    exec.delete()?;
    assert_eq!(stdio.finish(LIMIT)?.stdout, b"from exec\n");
    assert_eq!(task.pids()?.processes.len(), 1);

    task.kill(Signal::KILL)?;
    assert_eq!(waiting.answer(LIMIT)?.exit_status, 137);
    assert_eq!(code_of(task.kill(Signal::KILL)), Some(Code::NotFound));
    shim.remove()?;
    ctrd.assert_events(&[
        "create c1",
        "start c1",
        "exec-added c1/e1",
        "exec-started c1/e1",
        "exit c1/e1 7",
        "exit c1 137",
        "delete c1 137",
    ])?;
    ctrd.check()?;
    assert_spotless(&ctrd);
    Ok(())
}

fn code_of<T>(result: Result<T>) -> Option<Code> {
    result.err().and_then(|failure| failure.code())
}

#[test]
fn a_group_shares_one_server_until_its_last_container_is_gone() -> Done {
    if !is_possible(&[oldest()]) {
        return Ok(());
    }
    let ctrd = FakeContainerd::new(Dialect::V2_0)?;
    let [first, second] = ["c1", "c2"].map(|id| bundle(&ctrd, id, "exec sleep 1000").group("pod").build());
    let (first, second) = (first?, second?);
    let mut one = ctrd.start(oldest(), &first)?;
    let mut two = ctrd.start(oldest(), &second)?;
    assert_eq!(one.socket(), two.socket());
    let waiting = [one.run()?, two.run()?];
    end(&one.task(), &waiting[0])?;
    one.remove()?;
    // The server is spared by the `delete` action and serves on.
    assert_eq!(two.task().state()?.status.enum_value(), Ok(Status::RUNNING));
    end(&two.task(), &waiting[1])?;
    two.remove()?;
    ctrd.check()?;
    assert_spotless(&ctrd);
    Ok(())
}

fn end(task: &Task, waiting: &shim_testing::Waiting) -> Result<()> {
    task.kill(Signal::KILL)?;
    waiting.answer(LIMIT).map(drop)
}

#[test]
fn events_that_happen_while_the_daemon_is_away_come_late() -> Done {
    if !is_possible(&[oldest()]) {
        return Ok(());
    }
    let ctrd = FakeContainerd::new(Dialect::V1_7)?;
    let bundle = bundle(&ctrd, "c1", "exec sleep 1000").build()?;
    let mut shim = ctrd.start(oldest(), &bundle)?;
    let waiting = shim.run()?;
    ctrd.assert_order(&["create c1", "start c1"])?;
    ctrd.events().stop();
    end(&shim.task(), &waiting)?;
    ctrd.events().resume()?;
    ctrd.events().wait_for("/tasks/exit", LIMIT, |event| event.container == "c1")?;
    shim.remove()?;
    ctrd.check()?;
    Ok(())
}

#[test]
fn a_restarted_daemon_finds_the_shim_again() -> Done {
    if !is_possible(&[oldest()]) {
        return Ok(());
    }
    for dialect in [Dialect::V1_6, Dialect::V2_0] {
        let ctrd = FakeContainerd::new(dialect)?;
        let bundle = bundle(&ctrd, "c1", "exec sleep 1000").build()?;
        let shim = ctrd.start(oldest(), &bundle)?;
        shim.run()?;
        ctrd.events().stop();
        shim.disconnect();
        ctrd.events().resume()?;
        let mut shim = ctrd.adopt(oldest(), &bundle)?;
        let waiting = shim.task().wait();
        end(&shim.task(), &waiting)?;
        shim.remove()?;
        ctrd.check()?;
    }
    Ok(())
}

#[test]
fn what_a_killed_server_leaves_is_found_and_removed() -> Done {
    if !is_possible(&[oldest()]) {
        return Ok(());
    }
    let ctrd = FakeContainerd::new(Dialect::V1_7)?;
    let bundle = bundle(&ctrd, "c1", "exec sleep 1000").build()?;
    let shim = ctrd.start(oldest(), &bundle)?;
    let waiting = shim.run()?;
    let init = shim.task().connect()?.task_pid;
    let init = Process::open(shim_runtime::Pid::new(init).ok_or("no pid")?)?;
    shim.server()?.signal(Signal::KILL)?;
    assert_eq!(code_of(waiting.answer(LIMIT)), Some(Code::Unavailable));
    assert!(init.is_alive());
    // The `delete` action ends the container, but not the socket (contract 2.6).
    assert_eq!(shim.delete_action()?.exit_status, 137);
    assert!(init.ended_within(LIMIT));
    let names: Vec<_> =
        ctrd.check_leaks().err().into_iter().flat_map(|failure| failure.promises().to_vec()).collect();
    assert_eq!(names.iter().map(|broken| broken.promise.name).collect::<Vec<_>>(), ["leak.socket"]);
    let socket = shim.socket();
    assert!(socket.exists());
    ctrd.clean_up();
    assert!(!socket.exists());
    Ok(())
}

#[test]
fn a_create_that_is_refused_publishes_nothing() -> Done {
    if !is_possible(&[oldest()]) {
        return Ok(());
    }
    let ctrd = FakeContainerd::new(Dialect::V1_6)?;
    let bundle = ctrd.bundle("c1").args(["no-such-program"]).full_spec().busybox(BUSYBOX).build()?;
    let mut shim = ctrd.start(oldest(), &bundle)?;
    let refused = shim.run().err().ok_or("the Create of a missing program succeeded")?;
    assert_eq!(refused.code(), Some(Code::Unknown));
    assert!(refused.to_string().contains("no-such-program"), "{refused}");
    shim.abandon();
    ctrd.assert_events(&[])?;
    ctrd.check()?;
    assert!(ctrd.broken().iter().all(|broken| broken.promise.level == Level::Should));
    Ok(())
}
