//! What only containers of an OCI runtime can do: freeze, run out of memory, tell what they use.

use std::fs;
use std::path::Path;

use rustix::process::Signal;

use crate::behaviours::SLEEP;
use crate::ctr::Output;
use crate::daemon::Daemon;
use crate::process::{Process, until};

impl Daemon {
    fn exec(&self, id: &str, flags: &[&str], command: &[&str]) -> Output {
        let exec = ["task", "exec", "--fifo-dir", &self.fifos, "--exec-id", "e"];
        self.ctr(&[&exec, flags, &[id], command].concat())
    }
}

pub(crate) fn a_paused_container_does_nothing_until_it_is_resumed(daemon: &mut Daemon) {
    let pid = daemon.run_detached("c", SLEEP);
    let events = daemon.events();
    daemon.ctr_ok(&["task", "pause", "c"]);
    assert_eq!(daemon.status("c"), "PAUSED");
    assert!(daemon.pids("c").contains(&pid));
    let refused = daemon.exec("c", &[], &["true"]);
    assert!(refused.status != Some(0) && refused.stderr.contains("paused"), "{refused:?}");
    daemon.ctr_ok(&["task", "resume", "c"]);
    assert_eq!(daemon.status("c"), "RUNNING");
    assert_eq!(events.task_topics_until("/tasks/resumed"), ["/tasks/paused", "/tasks/resumed"]);
    daemon.kill_and_remove("c");
}

pub(crate) fn a_container_killed_while_it_is_paused_is_stopped(daemon: &mut Daemon) {
    daemon.run_detached("c", SLEEP);
    daemon.ctr_ok(&["task", "pause", "c"]);
    daemon.kill_and_remove("c");
}

pub(crate) fn a_kill_for_want_of_memory_is_told_before_the_exit(daemon: &mut Daemon) {
    let events = daemon.events();
    // The limit has to let the engine's own part of the start pass.
    let flags = ["--detach", "--null-io", "--memory-limit", "33554432"];
    daemon.ctr_ok(&daemon.run_args(&flags, "c", &["/bin/busybox", "tail", "/dev/zero"]));
    let topics = events.task_topics_until("/tasks/exit");
    assert_eq!(topics, ["/tasks/create", "/tasks/start", "/tasks/oom", "/tasks/exit"]);
    daemon.until_stopped("c");
    assert_eq!(daemon.remove("c"), 137);
}

pub(crate) fn all_processes_of_a_container_are_listed(daemon: &mut Daemon) {
    let pid = daemon.run_detached("c", &["sh", "-c", "sleep 1000 & sleep 1000 & wait"]);
    until("its children", || (daemon.pids("c").len() == 3).then_some(()));
    let exec = daemon.exec("c", &["--detach"], SLEEP);
    assert_eq!(exec.status, Some(0), "{exec:?}");
    let list = daemon.ctr_ok(&["task", "ps", "c"]);
    assert_eq!(daemon.pids("c").len(), 4, "{list}");
    // Each release of ctr prints it in its own way.
    let has_exec = list.contains("exec_id:\"e\"") || list.contains("ExecID:e");
    assert!(daemon.pids("c").contains(&pid) && has_exec, "{list}");
    daemon.kill_and_remove("c");
}

/// As systemd does in a container.
pub(crate) fn an_init_that_goes_on_to_a_cgroup_below_hides_nothing(daemon: &mut Daemon) {
    let pid = daemon.run_detached("c", &["sh", "-c", "sleep 1000 & exec sleep 1000"]);
    let all = until("its child", || Some(daemon.pids("c")).filter(|pids| pids.len() == 2));
    let groups = shim_testing::kernel_text(format!("/proc/{pid}/cgroup")).expect("the container runs");
    let of_pids = |line: &str| line.split_once(":pids:/").map(|(_, path)| path.to_owned());
    let path = groups.lines().find_map(of_pids).expect("the hierarchy of `pids` is there");
    let below = Path::new("/sys/fs/cgroup/pids").join(path).join("init.scope");
    fs::create_dir(&below).expect("make a cgroup");
    fs::write(below.join("cgroup.procs"), pid.to_string()).expect("move the init");
    assert_eq!(daemon.pids("c"), all);
    let metrics = daemon.ctr_ok(&["task", "metrics", "c"]);
    let count = metrics.lines().find(|line| line.starts_with("pids.current")).unwrap_or_default();
    assert!(count.trim_end().ends_with('2'), "{metrics}");
    daemon.kill_and_remove("c");
}

pub(crate) fn what_a_container_uses_is_told(daemon: &mut Daemon) {
    daemon.run_detached("c", SLEEP);
    let metrics = daemon.ctr_ok(&["task", "metrics", "c"]);
    let value = |name: &str| {
        let line = metrics.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|value| value.parse::<u64>().ok()).unwrap_or_default()
    };
    assert!(value("memory.usage_in_bytes") > 0 && value("pids.current") == 1, "{metrics}");
    daemon.kill_and_remove("c");
}

pub(crate) fn what_the_engine_refuses_is_told_in_its_words(daemon: &mut Daemon) {
    daemon.run_detached("c", SLEEP);
    let output = daemon.exec("c", &[], &["no-such-command"]);
    assert_ne!(output.status, Some(0));
    told_once(&output, "OCI runtime exec failed: ");
    daemon.kill_and_remove("c");
    let output = daemon.run("d", &["no-such-command"]);
    assert_ne!(output.status, Some(0));
    told_once(&output, "OCI runtime create failed: ");
}

/// The engine's words come first in what the client is told of `no-such-command`, and do not come a second time as
/// the container's own output.
fn told_once(output: &Output, words: &str) {
    let told = output.stderr.matches("no-such-command").count();
    assert!(told == 1 && output.stderr.contains(words), "{}", output.stderr);
    assert!(!output.stderr.contains("cannot "), "{}", output.stderr);
    assert_eq!(output.stdout, "");
}

pub(crate) fn what_an_init_leaves_in_the_pid_namespace_of_another_is_killed(daemon: &mut Daemon) {
    let pod = daemon.run_detached("pod", SLEEP);
    let namespace = format!("pid:/proc/{pod}/ns/pid");
    let flags = ["--detach", "--null-io", "--with-ns", &namespace];
    daemon.ctr_ok(&daemon.run_args(&flags, "c", &["sh", "-c", "sleep 1000 & exec sleep 1000"]));
    let pid = daemon.task("c").expect("the task is listed").pid;
    let child = until("the child", || daemon.pids("c").into_iter().find(|other| *other != pid));
    let (init, child) = (Process::open(pid).expect("the init"), Process::open(child).expect("the child"));
    init.signal(Signal::KILL);
    daemon.until_stopped("c");
    child.ended("what the init has left");
    assert_eq!(daemon.remove("c"), 137);
    daemon.kill_and_remove("pod");
}
