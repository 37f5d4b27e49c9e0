//! Commands that are run in a container, as probes are.

use std::fs;
use std::thread;
use std::time::Duration;

use tonic::Code;

use super::node::Node;
use crate::process::until;

const SLEEP: &[&str] = &["sleep", "1000"];

pub(super) fn an_exec_has_its_output_and_code(node: &mut Node) {
    let pod = node.pod("p");
    let container = pod.run("c", SLEEP);
    let answer = container.exec(&["sh", "-c", "echo hi; echo oh >&2; exit 4"]);
    assert_eq!((&*answer.stdout, &*answer.stderr, answer.exit_code), (&b"hi\n"[..], &b"oh\n"[..], 4));
    let answer = container.exec(&["seq", "200000"]);
    let text = String::from_utf8_lossy(&answer.stdout);
    assert!(text.lines().map(|line| line.parse().unwrap_or(0)).eq(1..=200_000), "{} bytes came", text.len());
    let error = container.try_exec(&["no-such-command"], Duration::ZERO).expect_err("it fails");
    assert!(error.message().contains("no-such-command"), "{error}");
    pod.remove();
}

pub(super) fn an_exec_that_takes_too_long_is_ended(node: &mut Node) {
    let pod = node.pod("p");
    let container = pod.run("c", SLEEP);
    let error = container.try_exec(&["sleep", "4321"], Duration::from_secs(1)).expect_err("it fails");
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    node.until_ended("sleep 4321");
    assert_eq!(container.exec(&["echo", "on"]).stdout, b"on\n");
    pod.remove();
}

pub(super) fn probes_leave_nothing_behind(node: &mut Node) {
    let pod = node.pod("p");
    let container = pod.run("c", SLEEP);
    container.exec(&["true"]);
    let shim = node.daemon.shims().pop().expect("the pod has a shim").pid;
    let before = descriptors(shim);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for number in 0..25 {
                    let answer = container.exec(&["sh", "-c", &format!("echo {number}; exit {number}")]);
                    assert_eq!(
                        (answer.exit_code, answer.stdout),
                        (number, format!("{number}\n").into_bytes())
                    );
                }
            });
        }
    });
    until("the shim to close what it opened", || (descriptors(shim) <= before).then_some(()));
    assert_eq!(node.daemon.pids(&container.id).len(), 1);
    pod.remove();
}

fn descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("list the shim's descriptors").count()
}
