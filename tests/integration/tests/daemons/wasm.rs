//! The behaviours of the example `wasm`, whose containers are threads of their shim.

use std::io::Write;
use std::process::Stdio;

use rustix::process::Signal;

use crate::daemon::Daemon;
use crate::process::until;

pub(crate) fn a_program_prints_and_exits_with_its_status(daemon: &mut Daemon) {
    let output = daemon.run("c", &["/hello.wat", "one"]);
    let lines: Vec<_> = output.stdout.lines().collect();
    assert_eq!((output.status, &lines[..2]), (Some(3), &["/hello.wat", "one"][..]), "{}", output.stderr);
    assert!(lines.contains(&"PATH=/bin"), "{lines:?}");
}

pub(crate) fn input_passes_through_a_program(daemon: &mut Daemon) {
    let mut ctr = daemon
        .ctr_command(&daemon.run_args(&["--rm"], "c", &["/cat.wat"]))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("start ctr");
    // ctr forgets to pass on an end of stdin that it sees before the task exists.
    until("the program to run", || daemon.task("c").filter(|task| task.status == "RUNNING"));
    let mut stdin = ctr.stdin.take().expect("stdin is piped");
    stdin.write_all(b"passed through\n").expect("write to ctr");
    drop(stdin);
    let output = ctr.wait_with_output().expect("reap ctr");
    assert_eq!((output.status.code(), &*output.stdout), (Some(0), &b"passed through\n"[..]));
}

pub(crate) fn a_program_that_never_ends_is_killed_or_told_to_end(daemon: &mut Daemon) {
    for (id, signal, status) in [("k", "KILL", 137), ("t", "TERM", 143)] {
        daemon.run_detached(id, &["/endless.wat"]);
        assert_eq!(daemon.status(id), "RUNNING");
        daemon.ctr_ok(&["task", "kill", "-s", signal, id]);
        daemon.until_stopped(id);
        assert_eq!(daemon.remove(id), status);
    }
}

/// No pid tells of it: its shim ends it, as soon as that goes on.
pub(crate) fn a_program_that_the_daemon_gave_up_while_its_shim_was_stopped_is_ended(daemon: &mut Daemon) {
    daemon.run_detached("c", &["/endless.wat"]);
    let shims = daemon.shims();
    daemon.stop_shims();
    daemon.crash();
    daemon.restart();
    assert_eq!(daemon.task("c"), None);
    for shim in shims {
        shim.signal(Signal::CONT);
        shim.ended("the shim that nobody knows any more");
    }
    daemon.ctr_ok(&["container", "rm", "c"]);
}

pub(crate) fn an_exec_is_refused_with_a_sentence(daemon: &mut Daemon) {
    daemon.run_detached("c", &["/endless.wat"]);
    let exec = ["task", "exec", "--fifo-dir", &daemon.fifos, "--exec-id", "e", "c", "/hello.wat"];
    let output = daemon.ctr(&exec);
    assert_ne!(output.status, Some(0));
    assert!(output.stderr.contains("this runtime does not support exec"), "{}", output.stderr);
    assert_eq!(daemon.status("c"), "RUNNING");
    daemon.kill_and_remove("c");
}

pub(crate) fn a_file_that_is_no_program_is_named(daemon: &mut Daemon) {
    let output = daemon.run("c", &["/bin/busybox"]);
    assert_ne!(output.status, Some(0));
    assert!(output.stderr.contains("`/bin/busybox` is no WebAssembly module"), "{}", output.stderr);
    assert_eq!(daemon.task("c"), None);
}
