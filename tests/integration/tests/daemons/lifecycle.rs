//! Moves of the state machine that need a shim which waits, pauses or fails on request.

use std::fs;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use crate::behaviours::{SLEEP, UNTIL_TERM, until_ready};
use crate::ctr::Output;
use crate::daemon::Daemon;
use crate::process::{Process, until};
use integration::gate::Gate;

/// Runs a container of the group `pod`, which has one shim, with annotations.
fn run(daemon: &Daemon, id: &str, annotations: &[&str], command: &[&str]) -> Output {
    let group = ["--annotation", "io.containerd.runc.v2.group=pod", "--detach", "--null-io"];
    let annotations = annotations.iter().flat_map(|annotation| ["--annotation", annotation]);
    let flags: Vec<_> = group.into_iter().chain(annotations).collect();
    daemon.ctr(&daemon.run_args(&flags, id, command))
}

fn run_ok(daemon: &Daemon, id: &str, annotations: &[&str], command: &[&str]) {
    let output = run(daemon, id, annotations, command);
    assert_eq!(output.status, Some(0), "{output:?}");
}

pub(crate) fn execs_at_the_same_time_each_report_their_status(daemon: &mut Daemon) {
    run_ok(daemon, "c", &[], SLEEP);
    let daemon = &*daemon;
    thread::scope(|scope| {
        for number in 1..=8 {
            scope.spawn(move || {
                let (id, script) = (format!("e{number}"), format!("echo {number}; exit {number}"));
                let exec =
                    ["task", "exec", "--fifo-dir", &daemon.fifos, "--exec-id", &id, "c", "sh", "-c", &script];
                let output = daemon.ctr(&exec);
                assert_eq!((output.status, output.stdout), (Some(number), format!("{number}\n")));
            });
        }
    });
    daemon.kill_and_remove("c");
}

pub(crate) fn what_a_runtime_does_not_support_is_refused_with_a_sentence(daemon: &mut Daemon) {
    run_ok(daemon, "c", &[], SLEEP);
    let output = daemon.ctr(&["task", "pause", "c"]);
    assert_ne!(output.status, Some(0));
    let sentence = "this runtime does not support pause";
    assert!(output.stderr.contains(sentence), "{}", output.stderr);
    assert_eq!(daemon.status("c"), "RUNNING");
    daemon.kill_and_remove("c");
}

pub(crate) fn a_paused_container_is_listed_as_such_with_its_exec_and_resumed(daemon: &mut Daemon) {
    run_ok(daemon, "c", &["fixture/kind=pausable"], SLEEP);
    let exec = ["task", "exec", "--fifo-dir", &daemon.fifos, "--detach", "--exec-id", "e", "c"];
    daemon.ctr_ok(&[&exec, SLEEP].concat());
    let events = daemon.events();
    daemon.ctr_ok(&["task", "pause", "c"]);
    assert_eq!(daemon.status("c"), "PAUSED");
    assert_eq!(daemon.pids("c").len(), 2);
    let refused = daemon.ctr(&["task", "exec", "--fifo-dir", &daemon.fifos, "--exec-id", "f", "c", "true"]);
    assert!(refused.status != Some(0) && refused.stderr.contains("it is paused"), "{refused:?}");
    daemon.ctr_ok(&["task", "resume", "c"]);
    assert_eq!(daemon.status("c"), "RUNNING");
    assert_eq!(events.task_topics_until("/tasks/resumed"), ["/tasks/paused", "/tasks/resumed"]);
    daemon.kill_and_remove("c");
}

pub(crate) fn a_container_killed_while_it_is_paused_is_stopped(daemon: &mut Daemon) {
    run_ok(daemon, "c", &["fixture/kind=pausable"], SLEEP);
    daemon.ctr_ok(&["task", "pause", "c"]);
    daemon.kill_and_remove("c");
}

/// Of a group whose shim stands still, the daemon gives up one container after the other.
pub(crate) fn of_a_group_the_container_that_was_given_up_is_ended_and_the_other_is_adopted(
    daemon: &mut Daemon,
) {
    for id in ["c1", "c2"] {
        run_ok(daemon, id, &[], SLEEP);
    }
    let open =
        |id| Process::open(daemon.task(id).expect("the task is listed").pid).expect("the container runs");
    let inits = ["c1", "c2"].map(|id| (id, open(id)));
    let shims = daemon.shims();
    daemon.stop_shims();
    daemon.crash();
    // The daemon is not there for anybody before it has loaded both, so the shim goes on meanwhile.
    let (given_up, _) = thread::scope(|scope| {
        let gone = scope.spawn(|| {
            let first = until("the end of one", || inits.iter().find(|(_, init)| init.has_ended()));
            for shim in &shims {
                shim.signal(Signal::CONT);
            }
            first
        });
        daemon.restart();
        gone.join().expect("nothing panics")
    });
    let kept = if *given_up == "c1" { "c2" } else { "c1" };
    assert_eq!(daemon.task(given_up), None);
    assert_eq!(daemon.status(kept), "RUNNING");
    daemon.ctr_ok(&["container", "rm", given_up]);
    daemon.kill_and_remove(kept);
}

pub(crate) fn two_removals_at_once_leave_nothing(daemon: &mut Daemon) {
    let gate = Gate::new(daemon.root(), "delete");
    run_ok(daemon, "c", &[&format!("fixture/gate-delete={}", gate.path())], SLEEP);
    daemon.ctr_ok(&["task", "kill", "-s", "KILL", "c"]);
    daemon.until_stopped("c");
    let daemon = &*daemon;
    thread::scope(|scope| {
        let remove = || daemon.ctr(&["task", "rm", "c"]);
        let first = scope.spawn(remove);
        let held = gate.reached();
        let second = scope.spawn(remove);
        until("the second removal in the shim", || {
            daemon.log().contains("asked again to delete `c` while that is under way").then_some(())
        });
        drop(held);
        for removal in [first, second] {
            let output = removal.join().expect("a removal");
            assert!(output.stderr.contains("non-zero exit code 137"), "{output:?}");
        }
    });
    assert_eq!(daemon.task("c"), None);
    daemon.ctr_ok(&["container", "rm", "c"]);
}

pub(crate) fn a_start_that_hangs_holds_up_nobody(daemon: &mut Daemon) {
    let gate = Gate::new(daemon.root(), "start");
    let daemon = &*daemon;
    thread::scope(|scope| {
        let annotation = format!("fixture/gate-start={}", gate.path());
        let hanging = scope.spawn(move || run(daemon, "hanging", &[&annotation], SLEEP));
        let held = gate.reached();
        for id in ["c1", "c2"] {
            run_ok(daemon, id, &[], SLEEP);
            let exec =
                ["task", "exec", "--fifo-dir", &daemon.fifos, "--exec-id", "e", id, "sh", "-c", "exit 4"];
            assert_eq!(daemon.ctr(&exec).status, Some(4));
            assert_eq!(daemon.status("hanging"), "CREATED");
            daemon.kill_and_remove(id);
        }
        drop(held);
        let output = hanging.join().expect("the run");
        assert_eq!(output.status, Some(0), "{output:?}");
    });
    daemon.kill_and_remove("hanging");
}

pub(crate) fn what_a_container_leaves_in_a_shared_pid_namespace_is_killed(daemon: &mut Daemon) {
    let strays = daemon.root().join("strays");
    let annotation = format!("fixture/strays={}", strays.display());
    // In the container's root, which is not the daemon's, and where the shell misses its input for what it starts.
    let script = ": >/dev/null; busybox setsid sh -c 'echo $$ >/stray; exec sleep 1000' & exec sleep 1000";
    let flags = ["--with-ns", "pid:/proc/1/ns/pid", "--detach", "--null-io", "--annotation", &annotation];
    daemon.ctr_ok(&daemon.run_args(&flags, "c", &["sh", "-c", script]));
    let file = daemon.bundles().join("c/rootfs/stray");
    let pid = until("the stray", || fs::read_to_string(&file).ok().filter(|pid| pid.ends_with('\n')));
    let stray = Process::open(pid.trim().parse().expect("a pid")).expect("the stray runs");
    fs::write(&strays, &pid).expect("tell the fixture");
    daemon.ctr_ok(&["task", "kill", "-s", "KILL", "c"]);
    daemon.until_stopped("c");
    stray.ended("the stray");
    assert_eq!(daemon.remove("c"), 137);
}

pub(crate) fn an_exit_while_containerd_is_stopped_is_told_once_when_it_goes_on(daemon: &mut Daemon) {
    let pid = daemon.run_detached("c", UNTIL_TERM);
    until_ready(daemon);
    let (init, containerd) = (Process::open(pid), Process::open(daemon.pid()));
    let (init, containerd) = (init.expect("the container runs"), containerd.expect("the daemon runs"));
    let events = daemon.events();
    containerd.signal(Signal::STOP);
    init.signal(Signal::TERM);
    init.ended("the container");
    // Longer than any shim tries to send an event at a time.
    events.none_within(Duration::from_secs(11));
    containerd.signal(Signal::CONT);
    daemon.until_stopped("c");
    assert_eq!(daemon.remove("c"), 5);
    assert_eq!(events.task_topics_until("/tasks/delete"), ["/tasks/exit", "/tasks/delete"]);
}
