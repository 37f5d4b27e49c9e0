//! What happens to pods when containerd or a shim is killed.

use std::time::Duration;

use k8s_cri::v1::{ContainerState, PodSandboxState};
use rustix::process::Signal;

use super::node::Node;
use crate::process::Process;

const SLEEP: &[&str] = &["sleep", "1000"];
const UNTIL_TERM: &[&str] = &["sh", "-c", "trap 'exit 5' TERM; touch /ready; while :; do sleep 0.1; done"];

pub(super) fn pods_survive_a_killed_containerd(node: &mut Node) {
    let pods = ["p", "q"].map(|name| node.pod(name));
    let containers = pods.each_ref().map(|pod| pod.run("c", UNTIL_TERM));
    containers.iter().for_each(super::pod::Container::until_ready);
    node.daemon.crash();
    node.restart();
    for (pod, container) in pods.iter().zip(&containers) {
        assert_eq!(pod.state(), PodSandboxState::SandboxReady);
        assert_eq!(container.status().state(), ContainerState::ContainerRunning);
        assert_eq!(container.exec(&["echo", "on"]).stdout, b"on\n");
        pod.run("another", SLEEP);
        container.stop(Duration::from_mins(1));
        assert_eq!(container.exited().exit_code, 5);
    }
    assert_eq!(node.daemon.shims().len(), 2);
    pods.iter().for_each(super::pod::Pod::remove);
}

pub(super) fn an_exit_while_containerd_is_away_is_seen_afterwards(node: &mut Node) {
    let pod = node.pod("p");
    let container = pod.run("c", UNTIL_TERM);
    container.until_ready();
    let pid = node.daemon.task(&container.id).expect("the container has a task").pid;
    let init = Process::open(pid).expect("the container runs");
    node.daemon.crash();
    init.signal(Signal::TERM);
    init.ended("the container");
    node.restart();
    let status = container.exited();
    assert_eq!((status.exit_code, &*status.reason), (5, "Error"));
    assert_eq!(pod.state(), PodSandboxState::SandboxReady);
    pod.remove();
}

pub(super) fn a_killed_shim_takes_its_pod_along(node: &mut Node) {
    let pod = node.pod("p");
    let containers = ["a", "b"].map(|name| pod.run(name, SLEEP));
    node.daemon.kill_shims();
    for container in &containers {
        // Nobody could wait for the end any more: unless the plugin learns of it from the clean-up's event first, it
        // knows no better than 255.
        let code = container.exited().exit_code;
        assert!([137, 255].contains(&code), "{code}");
    }
    pod.until_not_ready();
    containers[0].remove();
    pod.remove();
}

pub(super) fn a_shim_killed_while_containerd_is_away_is_cleaned_up_at_its_return(node: &mut Node) {
    let pod = node.pod("p");
    let container = pod.run("c", SLEEP);
    let pid = node.daemon.task(&container.id).expect("the container has a task").pid;
    let init = Process::open(pid).expect("the container runs");
    node.daemon.crash();
    node.daemon.kill_shims();
    node.restart();
    init.ended("the container");
    container.exited();
    pod.until_not_ready();
    pod.remove();
}
