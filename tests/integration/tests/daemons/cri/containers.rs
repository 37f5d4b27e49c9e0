//! The life of a container: exits, ends, resources.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use k8s_cri::v1::{
    ContainerState, ContainerStatsFilter, LinuxContainerResources, ListContainerStatsRequest,
    StartContainerRequest, UpdateContainerResourcesRequest,
};

use super::node::Node;
use super::pod::{Container, Pod};
use crate::process::until;

pub(super) fn an_exit_has_its_code_and_reason(node: &mut Node) {
    let pod = node.pod("p");
    for (name, command, code, reason) in [
        ("done", "exit 0", 0, "Completed"),
        ("failed", "exit 3", 3, "Error"),
        ("killed", "sh -c 'kill -9 $$'; exit $?", 137, "Error"),
    ] {
        let container = pod.run(name, &["sh", "-c", command]);
        let status = container.exited();
        assert_eq!((status.exit_code, &*status.reason), (code, reason), "{name}");
        assert!(status.finished_at > status.created_at, "{status:?}");
        container.remove();
    }
    pod.remove();
}

pub(super) fn a_stopped_container_gets_its_grace_and_then_the_end(node: &mut Node) {
    let pod = node.pod("p");
    let polite = "trap 'exit 5' TERM; touch /ready; while :; do sleep 0.1; done";
    let stubborn = "trap '' TERM; touch /ready; while :; do sleep 0.1; done";
    for (name, command, grace, code) in [("polite", polite, 60, 5), ("stubborn", stubborn, 1, 137)] {
        let container = pod.run(name, &["sh", "-c", command]);
        container.until_ready();
        container.stop(Duration::from_secs(grace));
        let status = container.status();
        assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, code), "{name}");
        container.remove();
    }
    pod.remove();
}

pub(super) fn a_command_that_is_missing_is_named(node: &mut Node) {
    let pod = node.pod("p");
    let container = pod.container("c", &["no-such-command"]);
    let error = node
        .client
        .start_container(StartContainerRequest { container_id: container.id.clone() })
        .expect_err("it fails");
    assert!(error.message().contains("no-such-command"), "{error}");
    let status = container.status();
    assert_eq!((status.state(), &*status.reason), (ContainerState::ContainerExited, "StartError"));
    container.remove();
    pod.remove();
}

/// Five at a time, so that exits of one shim meet.
pub(super) fn fifty_containers_that_exit_at_once_have_their_status_and_whole_log(node: &mut Node) {
    let pod = node.pod("p");
    thread::scope(|scope| {
        for first in (0..50).step_by(10) {
            let pod = &pod;
            scope.spawn(move || (first..first + 10).for_each(|number| exit_at_once(pod, number)));
        }
    });
    pod.remove();
}

fn exit_at_once(pod: &Pod, number: i32) {
    let command = format!("echo {number}; echo end >&2; exit {number}");
    let container = pod.run(&format!("c{number}"), &["sh", "-c", &command]);
    assert_eq!(container.exited().exit_code, number);
    let log = fs::read_to_string(&container.log).expect("read the log");
    for end in [format!(" stdout F {number}\n"), " stderr F end\n".into()] {
        assert!(log.contains(&end), "container {number}: {log}");
    }
    container.remove();
}

pub(super) fn statistics_tell_of_processor_and_memory(node: &mut Node) {
    let pod = node.pod("p");
    let busy = pod.run("busy", &["sh", "-c", "while :; do :; done"]);
    let quiet = pod.run("quiet", &["sleep", "1000"]);
    let processor = || busy.stats().cpu?.usage_core_nano_seconds.map(|used| used.value);
    let first = until("time of the processor", || processor().filter(|used| *used > 0));
    until("more time of the processor", || processor().filter(|used| *used > first));
    let memory = busy.stats().memory.expect("the statistics have a memory");
    assert!(memory.working_set_bytes.is_some_and(|bytes| bytes.value > 0), "{memory:?}");
    let filter =
        Some(ContainerStatsFilter { pod_sandbox_id: pod.id.clone(), ..ContainerStatsFilter::default() });
    let stats = node
        .client
        .list_container_stats(ListContainerStatsRequest { filter })
        .expect("ask for all statistics");
    let mut ids: Vec<_> = stats.stats.iter().filter_map(|one| Some(&*one.attributes.as_ref()?.id)).collect();
    ids.sort_unstable();
    let mut expected = [&*busy.id, &*quiet.id];
    expected.sort_unstable();
    assert_eq!(ids, expected);
    assert!(stats.stats.iter().all(|one| one.cpu.is_some() && one.memory.is_some()), "{stats:?}");
    pod.remove();
}

/// How much memory a container may use once it is limited.
const LIMIT: i64 = 64 << 20;

fn limit_memory(node: &Node, container: &Container) {
    let request = UpdateContainerResourcesRequest {
        container_id: container.id.clone(),
        linux: Some(LinuxContainerResources {
            memory_limit_in_bytes: LIMIT,
            cpu_shares: 512,
            ..LinuxContainerResources::default()
        }),
        ..UpdateContainerResourcesRequest::default()
    };
    node.client.update_container_resources(request).expect("update the container");
}

pub(super) fn a_container_that_uses_more_than_its_memory_says_so(node: &mut Node) {
    let pod = node.pod("p");
    let hungry = "while [ ! -e /go ]; do sleep 0.1; done; exec /bin/busybox tail /dev/zero";
    let container = pod.run("c", &["sh", "-c", hungry]);
    limit_memory(node, &container);
    assert_eq!(container.exec(&["touch", "/go"]).exit_code, 0);
    let status = container.exited();
    assert_eq!((status.exit_code, &*status.reason), (137, "OOMKilled"));
    pod.remove();
}

pub(super) fn a_new_memory_limit_is_in_force(node: &mut Node) {
    let pod = node.pod("p");
    let container = pod.run("c", &["sleep", "1000"]);
    limit_memory(node, &container);
    let group = Path::new(&node.daemon.cgroup).join(&container.id);
    let cgroups = Path::new("/sys/fs/cgroup");
    let v1 = cgroups.join("memory").join(&group).join("memory.limit_in_bytes");
    let v2 = cgroups.join(&group).join("memory.max");
    let limit = fs::read_to_string(v1).or_else(|_| fs::read_to_string(v2)).expect("read the limit");
    assert_eq!(limit.trim(), LIMIT.to_string());
    pod.remove();
}
