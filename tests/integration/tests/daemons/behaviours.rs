//! The behaviours themselves, each under a daemon of whatever release.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::Stdio;
use std::thread;

use rustix::process::Signal;

use crate::daemon::Daemon;
use crate::preconditions;
use crate::process::{Process, belonging_to, until};

/// A container that runs until it is told to end by SIGTERM, and then exits with 5. Its file `/ready`
/// tells when it listens. The short sleeps are its only children, so none outlives it for long where
/// there is no pid namespace.
pub(crate) const UNTIL_TERM: &[&str] =
    &["sh", "-c", "trap 'exit 5' TERM; touch /ready; while :; do sleep 0.1; done"];
pub(crate) const SLEEP: &[&str] = &["sleep", "1000"];

pub(crate) fn run_prints_and_exits_with_the_containers_status(daemon: &mut Daemon) {
    let output = daemon.run("c", &["sh", "-c", "echo hi; echo oh >&2; exit 3"]);
    assert_eq!((output.status, &*output.stdout, &*output.stderr), (Some(3), "hi\n", "oh\n"));
}

pub(crate) fn run_passes_stdin_on_until_its_end(daemon: &mut Daemon) {
    let mut ctr = daemon
        .ctr_command(&daemon.run_args(&["--rm"], "c", &["sh", "-c", "echo ready; wc -c"]))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start ctr");
    let mut stdin = ctr.stdin.take().expect("stdin is piped");
    let mut stdout = BufReader::new(ctr.stdout.take().expect("stdout is piped"));
    let mut output = String::new();
    // ctr forgets to pass on an end of stdin that it sees before the task exists.
    stdout.read_line(&mut output).expect("read ctr's output");
    stdin.write_all(&vec![b'x'; 1_000_000]).expect("write to ctr");
    drop(stdin);
    stdout.read_to_string(&mut output).expect("read ctr's output");
    let status = ctr.wait().expect("reap ctr");
    assert_eq!((status.code(), &*output), (Some(0), "ready\n1000000\n"));
}

pub(crate) fn run_delivers_all_output_of_a_container_that_exits_at_once(daemon: &mut Daemon) {
    let output = daemon.run("c", &["seq", "200000"]);
    assert_eq!(output.status, Some(0), "{}", output.stderr);
    let numbers = output.stdout.lines().map(|line| line.parse::<u32>().expect("a number"));
    assert!(numbers.eq(1..=200_000), "{} bytes came", output.stdout.len());
}

pub(crate) fn run_of_a_missing_command_names_it_and_leaves_nothing(daemon: &mut Daemon) {
    let output = daemon.run("c", &["no-such-command"]);
    assert_ne!(output.status, Some(0));
    assert!(output.stderr.contains("no-such-command"), "{}", output.stderr);
    assert_eq!(daemon.task("c"), None);
}

pub(crate) fn run_on_an_overlay_has_the_image_and_a_layer_to_write_to(daemon: &mut Daemon) {
    if !daemon.has_overlayfs() {
        return preconditions::leave_out("it needs a file system in `/tmp` that can hold overlays");
    }
    let args =
        daemon.run_args(&["--rm", "--snapshotter", "overlayfs"], "c", &["sh", "-c", "touch /new; echo /*"]);
    let output = daemon.ctr(&args);
    assert_eq!(
        (output.status, &*output.stdout),
        (Some(0), "/bin /cat.wat /dev /endless.wat /etc /hello.wat /new /proc /run /sys /tmp\n"),
        "{output:?}"
    );
}

pub(crate) fn thirty_containers_that_exit_at_once_each_report_their_status(daemon: &mut Daemon) {
    for number in 1..=30 {
        let output = daemon.run(&format!("c{number}"), &["sh", "-c", &format!("exit {number}")]);
        assert_eq!(output.status, Some(number), "container {number}: {}", output.stderr);
    }
}

pub(crate) fn containers_that_run_at_the_same_time_keep_apart(daemon: &mut Daemon) {
    let daemon = &*daemon;
    thread::scope(|scope| {
        for number in 1..=8 {
            scope.spawn(move || {
                let output = daemon
                    .run(&format!("c{number}"), &["sh", "-c", &format!("echo {number}; exit {number}")]);
                assert_eq!((output.status, output.stdout), (Some(number), format!("{number}\n")));
            });
        }
    });
}

pub(crate) fn events_of_a_container_arrive_in_order(daemon: &mut Daemon) {
    let events = daemon.events();
    daemon.run("c", &["true"]);
    let topics = events.task_topics_until("/tasks/delete");
    assert_eq!(topics, ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]);
}

pub(crate) fn a_detached_container_is_listed_signalled_and_removed(daemon: &mut Daemon) {
    let pid = daemon.run_detached("c", UNTIL_TERM);
    until_ready(daemon);
    assert_eq!(daemon.status("c"), "RUNNING");
    assert!(daemon.pids("c").contains(&pid));
    let removed = daemon.ctr(&["task", "rm", "c"]);
    assert_ne!(removed.status, Some(0), "a running task cannot be removed: {removed:?}");
    daemon.ctr_ok(&["task", "kill", "c"]);
    daemon.until_stopped("c");
    assert_eq!(daemon.remove("c"), 5);
    assert_eq!(daemon.task("c"), None);
}

pub(crate) fn a_container_that_ignores_everything_is_killed(daemon: &mut Daemon) {
    daemon.run_detached("c", &["sh", "-c", "trap '' TERM INT HUP; touch /ready; exec sleep 1000"]);
    until_ready(daemon);
    daemon.ctr_ok(&["task", "kill", "c"]);
    assert_eq!(daemon.status("c"), "RUNNING");
    daemon.ctr_ok(&["task", "kill", "-s", "KILL", "c"]);
    daemon.until_stopped("c");
    assert_eq!(daemon.remove("c"), 137);
}

pub(crate) fn exec_prints_and_exits_with_its_own_status(daemon: &mut Daemon) {
    daemon.run_detached("c", SLEEP);
    let exec = ["task", "exec", "--fifo-dir", &daemon.fifos, "--exec-id", "e", "c"];
    let output = daemon.ctr(&[&exec, &["sh", "-c", "echo hi; echo oh >&2; exit 4"][..]].concat());
    assert_eq!((output.status, &*output.stdout, &*output.stderr), (Some(4), "hi\n", "oh\n"));
    assert_eq!(daemon.status("c"), "RUNNING");
    daemon.kill_and_remove("c");
}

pub(crate) fn a_detached_exec_is_listed_and_killed_alone(daemon: &mut Daemon) {
    let pid = daemon.run_detached("c", SLEEP);
    let exec = ["task", "exec", "--fifo-dir", &daemon.fifos, "--detach", "--exec-id", "e", "c"];
    daemon.ctr_ok(&[&exec, SLEEP].concat());
    assert_eq!(daemon.pids("c").len(), 2);
    daemon.ctr_ok(&["task", "kill", "--exec-id", "e", "-s", "KILL", "c"]);
    until("the exec to leave the list", || (daemon.pids("c") == [pid]).then_some(()));
    let removed = daemon.ctr(&["task", "rm", "--exec-id", "e", "c"]);
    assert_eq!(removed.status, Some(137), "{removed:?}");
    assert_eq!(daemon.status("c"), "RUNNING");
    daemon.kill_and_remove("c");
}

pub(crate) fn a_container_survives_a_killed_containerd_and_its_exit_is_seen_afterwards(daemon: &mut Daemon) {
    let pid = daemon.run_detached("c", UNTIL_TERM);
    until_ready(daemon);
    daemon.crash();
    daemon.restart();
    let task = daemon.task("c").expect("the task is adopted again");
    assert_eq!((task.pid, &*task.status), (pid, "RUNNING"));
    let events = daemon.events();
    daemon.ctr_ok(&["task", "kill", "c"]);
    assert_eq!(events.task_topics_until("/tasks/exit"), ["/tasks/exit"]);
    daemon.until_stopped("c");
    assert_eq!(daemon.remove("c"), 5);
}

pub(crate) fn an_exit_while_containerd_is_away_is_seen_afterwards(daemon: &mut Daemon) {
    let pid = daemon.run_detached("c", UNTIL_TERM);
    until_ready(daemon);
    let init = Process::open(pid).expect("the container runs");
    daemon.crash();
    init.signal(Signal::TERM);
    init.ended("the container");
    daemon.restart();
    daemon.until_stopped("c");
    assert_eq!(daemon.remove("c"), 5);
}

pub(crate) fn a_killed_shim_takes_its_container_along_and_leaves_nothing(daemon: &mut Daemon) {
    let pid = daemon.run_detached("c", SLEEP);
    let init = Process::open(pid).expect("the container runs");
    daemon.kill_shims();
    init.ended("the container");
    until("the task to leave the list", || daemon.task("c").is_none().then_some(()));
    daemon.ctr_ok(&["container", "rm", "c"]);
}

pub(crate) fn a_shim_killed_while_containerd_is_away_is_cleaned_up_at_its_return(daemon: &mut Daemon) {
    let pid = daemon.run_detached("c", SLEEP);
    let init = Process::open(pid).expect("the container runs");
    daemon.crash();
    daemon.kill_shims();
    daemon.restart();
    init.ended("the container");
    assert_eq!(daemon.task("c"), None);
    daemon.ctr_ok(&["container", "rm", "c"]);
}

/// The daemon waits 5 s for a shim when it starts, then has `delete` run.
pub(crate) fn a_container_that_the_daemon_gave_up_while_its_shim_was_stopped_is_ended(daemon: &mut Daemon) {
    let pid = daemon.run_detached("c", SLEEP);
    let init = Process::open(pid).expect("the container runs");
    let shims = daemon.shims();
    daemon.stop_shims();
    daemon.crash();
    daemon.restart();
    init.ended("the container that nobody knows any more");
    assert_eq!(daemon.task("c"), None);
    for shim in shims {
        shim.signal(Signal::CONT);
        shim.ended("the shim that nobody knows any more");
    }
    daemon.ctr_ok(&["container", "rm", "c"]);
}

impl Daemon {
    pub(crate) fn stop_shims(&self) {
        for shim in self.shims() {
            shim.signal(Signal::STOP);
        }
    }

    pub(crate) fn status(&self, id: &str) -> String {
        self.task(id).expect("the task is listed").status
    }

    pub(crate) fn until_stopped(&self, id: &str) {
        until("the task to be stopped", || (self.status(id) == "STOPPED").then_some(()));
    }

    /// The shims that run.
    pub(crate) fn shims(&self) -> Vec<Process> {
        let executable = fs::canonicalize(&self.shim).expect("find the shim");
        let shims = belonging_to(self.root()).into_iter();
        shims.filter(|process| process.executable() == executable).collect()
    }

    pub(crate) fn kill_shims(&self) {
        let shims = self.shims();
        assert!(!shims.is_empty(), "no process runs {}", self.shim);
        for shim in shims {
            shim.signal(Signal::KILL);
            shim.ended("the shim");
        }
    }

    pub(crate) fn kill_and_remove(&self, id: &str) {
        self.ctr_ok(&["task", "kill", "-s", "KILL", id]);
        self.until_stopped(id);
        assert_eq!(self.remove(id), 137);
    }
}

/// Waits until the container `c` listens to signals.
pub(crate) fn until_ready(daemon: &Daemon) {
    // As the daemon sees it, which may have mounts of its own.
    let ready = format!("/proc/{}/root{}/c/rootfs/ready", daemon.pid(), daemon.bundles().display());
    let ready = Path::new(&ready);
    until("the container to listen to signals", || ready.exists().then_some(()));
}
