//! containerd's own command line client, of the same release as the daemon.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use crate::daemon::Daemon;
use crate::process::{LIMIT, Process, until};
use crate::{image, leaks};

/// What one `ctr` command did.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) status: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A line of `ctr task ls`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Task {
    pub(crate) pid: i32,
    pub(crate) status: String,
}

/// `ctr events`, which listens until it is dropped.
pub(crate) struct Events {
    ctr: Child,
    lines: Receiver<String>,
}

impl Events {
    /// The topics of the task events up to `last`, in their order.
    pub(crate) fn task_topics_until(&self, last: &str) -> Vec<String> {
        let mut topics = Vec::new();
        while topics.last().is_none_or(|topic| topic != last) {
            let line = self
                .lines
                .recv_timeout(LIMIT)
                .unwrap_or_else(|_| panic!("{last} does not follow {topics:?}"));
            topics.extend(line.split(' ').find(|word| word.starts_with("/tasks/")).map(str::to_owned));
        }
        topics
    }

    /// Waits for a while, in which no event may come.
    pub(crate) fn none_within(&self, time: Duration) {
        if let Ok(line) = self.lines.recv_timeout(time) {
            panic!("an event has come: {line}");
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // `timeout` passes SIGTERM on to ctr.
        if let Some(timeout) = Process::open(self.ctr.id() as i32) {
            timeout.signal(Signal::TERM);
        }
        let _ = self.ctr.wait();
    }
}

impl Daemon {
    /// Listens to events. Earlier ones are lost, so this makes some until the first arrives.
    pub(crate) fn events(&self) -> Events {
        let mut ctr = self.ctr_command(&["events"]).stdout(Stdio::piped()).spawn().expect("start ctr");
        let output = BufReader::new(ctr.stdout.take().expect("stdout is piped"));
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let events = Events { ctr, lines };
        let mut count = 0;
        until("ctr to listen to events", || {
            count += 1;
            self.ctr_ok(&["namespaces", "label", &self.namespace, &format!("count={count}")]);
            events.lines.try_recv().ok()
        });
        events
    }

    /// A `ctr` command that is not started yet. It is ended when it hangs.
    pub(crate) fn ctr_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command
            .arg(LIMIT.as_secs().to_string())
            .arg(self.release.binary("ctr"))
            .args(args)
            .env("CONTAINERD_ADDRESS", self.address())
            .env("CONTAINERD_NAMESPACE", &self.namespace)
            .env("CONTAINERD_SNAPSHOTTER", "native")
            .stdin(Stdio::null());
        command
    }

    /// Runs `ctr`, whatever its outcome.
    pub(crate) fn ctr(&self, args: &[&str]) -> Output {
        let output = self.ctr_command(args).output().expect("run ctr");
        Output {
            status: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs a `ctr` command that must succeed, and returns its output.
    pub(crate) fn ctr_ok(&self, args: &[&str]) -> String {
        let output = self.ctr(args);
        assert!(output.status == Some(0), "ctr {} failed: {output:?}", args.join(" "));
        output.stdout
    }

    /// The arguments of `ctr run` for a container of the shim under test.
    pub(crate) fn run_args<'a>(
        &'a self,
        flags: &[&'a str],
        id: &'a str,
        command: &[&'a str],
    ) -> Vec<&'a str> {
        self.remember(id);
        let runtime: Vec<_> = self.runtime.iter().map(String::as_str).collect();
        let common = ["run", "--fifo-dir", &self.fifos];
        [&common, &runtime[..], flags, &[image::NAME, id], command].concat()
    }

    /// Runs a container to its end, and removes it.
    pub(crate) fn run(&self, id: &str, command: &[&str]) -> Output {
        self.ctr(&self.run_args(&["--rm"], id, command))
    }

    /// Starts a container in the background and returns the pid of its init.
    pub(crate) fn run_detached(&self, id: &str, command: &[&str]) -> i32 {
        self.ctr_ok(&self.run_args(&["--detach", "--null-io"], id, command));
        // Only while it runs can be told that the socket is where its remains are looked for later.
        let socket = leaks::socket(self, id);
        assert!(socket.exists(), "the shim of {id} does not listen at {}", socket.display());
        self.task(id).expect("the task is listed").pid
    }

    /// Whether containerd found that it can make overlays.
    pub(crate) fn has_overlayfs(&self) -> bool {
        let plugins = self.ctr_ok(&["plugins", "ls"]);
        plugins.lines().any(|line| line.contains(" overlayfs ") && line.trim_end().ends_with(" ok"))
    }

    /// What `ctr task ls` says about a container.
    pub(crate) fn task(&self, id: &str) -> Option<Task> {
        let list = self.ctr_ok(&["task", "ls"]);
        list.lines().skip(1).find_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some(id)).then(|| Task {
                pid: words.next().and_then(|pid| pid.parse().ok()).unwrap_or_default(),
                status: words.next().unwrap_or_default().to_owned(),
            })
        })
    }

    /// The pids that `ctr task ps` lists, the smallest first.
    pub(crate) fn pids(&self, id: &str) -> Vec<i32> {
        let list = self.ctr_ok(&["task", "ps", id]);
        let pid = |line: &str| line.split_whitespace().next()?.parse().ok();
        let mut pids: Vec<i32> = list.lines().skip(1).filter_map(pid).collect();
        pids.sort_unstable();
        pids
    }

    /// Removes a stopped task and its container, and returns the task's exit status.
    pub(crate) fn remove(&self, id: &str) -> i32 {
        let removed = self.ctr(&["task", "rm", id]);
        assert!(removed.status == Some(0), "ctr cannot remove the task {id}: {removed:?}");
        self.ctr_ok(&["container", "rm", id]);
        // ctr warns of a status that is not zero, and does not mention zero.
        let status = removed.stderr.split("with non-zero exit code ").nth(1).unwrap_or("0");
        let digits = status.split(|character: char| !character.is_ascii_digit()).next();
        digits.and_then(|digits| digits.parse().ok()).expect("ctr's warning holds a number")
    }
}
