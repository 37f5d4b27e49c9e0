//! Pods as wholes: their shim, their namespaces, and what the plugin says of their handler.

use std::fs;
use std::process::Command;
use std::time::Duration;

use k8s_cri::v1::{ContainerConfig, ContainerState, NamespaceMode, PodSandboxState, StatusRequest};
use rustix::process::Signal;
use serde_json::Value;

use super::node::Node;
use crate::daemon::Release;
use crate::process::{Process, until};

const SLEEP: &[&str] = &["sleep", "1000"];

pub(super) fn a_pod_runs_a_container_and_leaves_nothing(node: &mut Node) {
    let pod = node.pod("p");
    assert_eq!(pod.state(), PodSandboxState::SandboxReady);
    let container = pod.container("c", SLEEP);
    assert_eq!(container.status().state(), ContainerState::ContainerCreated);
    container.start();
    assert_eq!(container.status().state(), ContainerState::ContainerRunning);
    assert!(pod.socket.exists(), "no shim listens at {}", pod.socket.display());
    pod.remove();
}

pub(super) fn a_pod_has_one_shim_whatever_it_holds(node: &mut Node) {
    let pods = ["p", "q"].map(|name| node.pod(name));
    for pod in &pods {
        for name in ["a", "b", "c"] {
            pod.run(name, SLEEP);
        }
    }
    assert_eq!(node.daemon.shims().len(), 2);
    pods[0].remove();
    until("the shim of the first pod to end", || (node.daemon.shims().len() == 1).then_some(()));
    pods[1].remove();
}

/// Whatever is deleted last, the pod's own container or another (contract 6.3, Shutdown).
pub(super) fn a_shim_stays_while_its_pod_has_a_container_and_no_longer(node: &mut Node) {
    let pod = node.pod("p");
    let container = pod.run("c", SLEEP);
    let pause = node.daemon.task(&pod.id).expect("the pod has a task").pid;
    let pause = Process::open(pause).expect("the pod's own container runs");
    pause.signal(Signal::KILL);
    pod.until_not_ready();
    until("the pod's task to be deleted", || node.daemon.task(&pod.id).is_none().then_some(()));
    assert_eq!(container.exec(&["echo", "on"]).stdout, b"on\n");
    container.stop(Duration::ZERO);
    container.remove();
    until("the shim to end", || node.daemon.shims().is_empty().then_some(()));
    pod.remove();
}

pub(super) fn containers_of_a_shared_pid_namespace_end_alone(node: &mut Node) {
    let pod = node.pod_with_pids("p", NamespaceMode::Pod);
    let stays = pod.run("stays", SLEEP);
    let first = stays.exec(&["cat", "/proc/1/cmdline"]).stdout;
    let pause = node.daemon.task(&pod.id).expect("the pod has a task").pid;
    assert_eq!(first, fs::read(format!("/proc/{pause}/cmdline")).expect("read the first command"));
    let ends = pod.run("ends", &["sh", "-c", "sleep 4321 & exit 6"]);
    assert_eq!(ends.exited().exit_code, 6);
    // What an exited container leaves is ended with it where the namespace goes on (contract 6.5).
    node.until_ended("sleep 4321");
    assert_eq!(stays.status().state(), ContainerState::ContainerRunning);
    pod.remove();
}

pub(super) fn a_container_in_the_pid_namespace_of_another_ends_alone(node: &mut Node) {
    let pod = node.pod("p");
    let target = pod.run("target", &["sleep", "1234"]);
    let guest =
        pod.container_with("guest", &["sh", "-c", "cat /proc/1/cmdline; sleep 4321 & exit 6"], |config| {
            enter(config, &target.id);
        });
    guest.start();
    assert_eq!(guest.exited().exit_code, 6);
    let log = fs::read_to_string(&guest.log).expect("read the log");
    assert!(log.contains("sleep\x001234"), "{log}");
    node.until_ended("sleep 4321");
    assert_eq!(target.status().state(), ContainerState::ContainerRunning);
    pod.remove();
}

fn enter(config: &mut ContainerConfig, target: &str) {
    let context = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
    let namespaces = context.and_then(|context| context.namespace_options.as_mut());
    let namespaces = namespaces.expect("each container has namespaces");
    namespaces.set_pid(NamespaceMode::Target);
    namespaces.target_id = target.into();
}

/// From 2.0 on the plugin asks `-info` of the shim (contract 3).
pub(super) fn the_handlers_features_are_those_of_the_engine(node: &mut Node) {
    let status = node.client.status(StatusRequest::default()).expect("ask for the plugin's status");
    if !matches!(node.daemon.release, Release::V2) {
        return assert_eq!(status.runtime_handlers, []);
    }
    let handler = status.runtime_handlers.iter().find(|handler| handler.name == "runc");
    let told = handler.and_then(|handler| handler.features.as_ref()).expect("`runc` has features");
    let output = Command::new("runc").arg("features").output().expect("run runc");
    let features: Value = serde_json::from_slice(&output.stdout).expect("runc tells its features");
    let mut options = features["mountOptions"].as_array().into_iter().flatten();
    assert_eq!(told.recursive_read_only_mounts, options.any(|option| option == "rro"));
    let idmap = &features["linux"]["mountExtensions"]["idmap"]["enabled"];
    assert_eq!(told.user_namespaces, idmap == true);
}
