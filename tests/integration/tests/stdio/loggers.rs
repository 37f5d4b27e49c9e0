//! Logging programs (contract 5.2, 11.5).

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use shim_runtime::Signal;
use shim_testing::{Dialect, FakeContainerd, Process, Result, Stdio, related_to};

use super::{FIXTURE, Host, LIMIT, numbers, until_stuck, until_text, when, write_program};

/// Writes a logging program in shell; `$LOGS` is the folder for what it gets.
fn program(host: &Host, script: &str) -> String {
    let path: PathBuf = host.ctrd.root().join("logger");
    let logs = host.ctrd.root().display();
    write_program(&path, &format!("LOGS={logs}\n{script}"));
    path.to_string_lossy().into_owned()
}

/// The process that runs the logging program; its end is awaited before the file can be written anew.
fn running(host: &Host) -> Process {
    let path = host.ctrd.root().join("logger");
    let pids = related_to(&path.to_string_lossy());
    Process::open(*pids.first().expect("the logging program runs")).unwrap()
}

const BOTH: &str = "printf x >&5; exec 5>&-; cat <&3 >>$LOGS/out & exec 3<&-; cat <&4 >>$LOGS/err; wait";

#[test]
fn a_program_gets_both_streams_its_arguments_and_two_variables() -> Result<()> {
    let host = Host::new()?;
    let told = host.ctrd.root().join("told");
    let script = format!("echo \"$@\" >$LOGS/told; tr '\\0' '\\n' </proc/self/environ >>$LOGS/told; {BOTH}");
    for scheme in ["binary", "binary-v2"] {
        let uri = format!("{scheme}://{}?--tag=a%20b&-v", program(&host, &script));
        let exec = host.run("e1", "seq 100000; echo oh >&2", &Stdio::log(&uri, false))?;
        exec.delete()?;
        // All is there once the exec is deleted.
        let expected = numbers(100_000, "\n");
        let logs = host.ctrd.root();
        assert!(fs::read_to_string(logs.join("out")).unwrap() == expected);
        assert_eq!(fs::read_to_string(logs.join("err")).unwrap(), "oh\n");
        let text = fs::read_to_string(&told).unwrap();
        let mut lines: Vec<_> = text.lines().collect();
        lines.sort_unstable();
        let namespace = format!("CONTAINER_NAMESPACE={}", host.ctrd.namespace());
        assert_eq!(lines, ["--tag a b -v ", "CONTAINER_ID=e1", &namespace]);
        fs::remove_file(logs.join("out")).unwrap();
        fs::remove_file(logs.join("err")).unwrap();
    }
    host.end()
}

#[test]
fn a_program_serves_a_terminal_and_its_second_stream_stays_open_till_the_end() -> Result<()> {
    let host = Host::new()?;
    let uri = format!("binary://{}", program(&host, BOTH));
    let exec = host.run("e1", "echo hi; echo oh >&2", &Stdio::log(&uri, true))?;
    exec.delete()?;
    assert_eq!(fs::read_to_string(host.ctrd.root().join("out")).unwrap(), "hi\r\noh\r\n");
    assert_eq!(fs::read_to_string(host.ctrd.root().join("err")).unwrap(), "");
    host.end()
}

#[test]
fn a_program_that_ends_unready_fails_create_in_version_two_alone() -> Result<()> {
    let host = Host::new()?;
    let path = program(&host, "exit 3");
    host.run("e1", "true", &Stdio::log(&format!("binary://{path}"), false))?.delete()?;
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = ctrd.bundle("c1").log_uri(&format!("binary-v2://{path}")).build()?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    let failed = shim.task().create(&bundle).unwrap_err().to_string();
    assert!(failed.contains(&format!("the logging program `{path}`")), "{failed}");
    assert!(failed.contains("it ended with status 3 before it was ready"), "{failed}");
    shim.end()?;
    ctrd.assert_events(&[])?;
    ctrd.check()?;
    host.end()
}

#[test]
fn a_program_that_cannot_be_run_fails_create_and_is_named() -> Result<()> {
    let ctrd = FakeContainerd::new(Dialect::PARAMS)?;
    let bundle = ctrd.bundle("c1").log_uri("binary:///no/such/program").build()?;
    let mut shim = ctrd.start(FIXTURE, &bundle)?;
    let failed = shim.task().create(&bundle).unwrap_err().to_string();
    assert!(failed.contains("cannot execute `/no/such/program`"), "{failed}");
    shim.end()?;
    ctrd.check()
}

#[test]
fn a_process_outlives_its_logging_program() -> Result<()> {
    let host = Host::new()?;
    let go = host.ctrd.root().join("go");
    let uri =
        format!("binary://{}", program(&host, "printf x >&5; until [ -e $LOGS/end ]; do sleep 0.02; done"));
    let exec =
        host.add("e1", &format!("echo one; {}; seq 100000; exit 7", when(&go)), &Stdio::log(&uri, false))?;
    exec.start()?;
    let waiting = exec.wait();
    let logger = running(&host);
    fs::write(host.ctrd.root().join("end"), "").unwrap();
    assert!(logger.ended_within(LIMIT));
    fs::write(&go, "").unwrap();
    assert_eq!(waiting.answer(LIMIT)?.exit_status, 7);
    exec.delete()?;
    let told = "the logging program of `e1` has ended with status 0; output is dropped";
    super::until("the loss to be told", || host.bundle.log().matches(told).count() == 1);
    host.end()
}

#[test]
fn a_program_that_does_not_end_is_killed_and_holds_up_delete_for_a_moment_only() -> Result<()> {
    let host = Host::new()?;
    let uri =
        format!("binary://{}", program(&host, "trap '' TERM; printf x >&5; while :; do sleep 0.1; done"));
    let exec = host.run("e1", "echo hi", &Stdio::log(&uri, false))?;
    let (logger, start) = (running(&host), Instant::now());
    exec.within(Duration::from_secs(8)).delete()?;
    assert!(logger.ended_within(LIMIT));
    assert!(start.elapsed() >= Duration::from_secs(12), "killed too early: {:?}", start.elapsed());
    host.end()
}

#[test]
fn a_program_that_takes_nothing_is_given_up() -> Result<()> {
    let host = Host::new()?;
    let uri = format!("binary://{}", program(&host, "printf x >&5; while :; do sleep 0.1; done"));
    for terminal in [false, true] {
        let exec = host.add("e1", "exec yes", &Stdio::log(&uri, terminal))?;
        exec.start()?;
        until_stuck(&exec)?;
        exec.kill(Signal::KILL)?;
        exec.wait().answer(LIMIT)?;
        let start = Instant::now();
        exec.within(Duration::from_secs(8)).delete()?;
        // Between a terminal and the program the shim copies, which nothing but a reader can make room for.
        let least = Duration::from_secs(if terminal { 2 } else { 1 });
        assert!(start.elapsed() >= least, "given up too early: {:?}", start.elapsed());
    }
    host.end()
}

#[test]
fn a_program_that_leaves_its_work_to_another_keeps_all_output() -> Result<()> {
    let host = Host::new()?;
    let go = host.ctrd.root().join("go");
    let uri = format!("binary://{}", program(&host, "cat <&3 >$LOGS/out 5>&- & exit 0"));
    let script = format!("{}; seq 100000", when(&go));
    let exec = host.add("e1", &script, &Stdio::log(&uri, false))?;
    exec.start()?;
    let waiting = exec.wait();
    fs::write(&go, "").unwrap();
    waiting.answer(LIMIT)?;
    exec.delete()?;
    until_text(&host.ctrd.root().join("out"), &numbers(100_000, "\n"));
    host.end()
}

#[test]
fn a_program_has_read_everything_when_the_exit_is_told() -> Result<()> {
    let host = Host::new()?;
    let read = "while [ -n \"$(head -c 2000 <&3 | tee -a $LOGS/out)\" ]; do sleep 0.002; done";
    let uri = format!("binary://{}", program(&host, &format!("printf x >&5; {read}")));
    for terminal in [false, true] {
        let exec = host.run("e1", "stty -opost 2>/dev/null; seq 10000", &Stdio::log(&uri, terminal))?;
        let log = host.ctrd.root().join("out");
        // It may be about to write what it has read last.
        let written = fs::metadata(&log).unwrap().len();
        assert!(written >= numbers(10_000, "\n").len() as u64 - 2000, "{written} bytes were logged");
        exec.delete()?;
        assert_eq!(fs::read_to_string(&log).unwrap(), numbers(10_000, "\n"));
        fs::remove_file(log).unwrap();
    }
    host.end()
}
