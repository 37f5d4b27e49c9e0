//! Pods and containers as a kubelet makes them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, ContainerState, ContainerStats, ContainerStatsRequest,
    ContainerStatus, ContainerStatusRequest, CreateContainerRequest, ExecSyncRequest, ExecSyncResponse,
    ImageSpec, LinuxContainerConfig, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata,
    PodSandboxState, PodSandboxStatusRequest, RemoveContainerRequest, RemovePodSandboxRequest,
    RunPodSandboxRequest, StartContainerRequest, StopContainerRequest, StopPodSandboxRequest,
};
use tonic::Status;

use super::client::Client;
use super::node::Node;
use crate::process::until;
use crate::{image, leaks};

impl Node {
    /// Runs a pod in which each container has its own pid namespace.
    pub(super) fn pod(&self, name: &str) -> Pod {
        self.pod_with_pids(name, NamespaceMode::Container)
    }

    pub(super) fn pod_with_pids(&self, name: &str, pids: NamespaceMode) -> Pod {
        let security_context = Some(LinuxSandboxSecurityContext {
            namespace_options: Some(namespaces(pids)),
            ..LinuxSandboxSecurityContext::default()
        });
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                uid: name.into(),
                namespace: "default".into(),
                attempt: 0,
            }),
            log_directory: self.daemon.root().join("logs").join(name).to_string_lossy().into_owned(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("/{}", self.daemon.cgroup),
                security_context,
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        };
        let request =
            RunPodSandboxRequest { config: Some(config.clone()), ..RunPodSandboxRequest::default() };
        let id = self.client.run_pod_sandbox(request).expect("run the pod").pod_sandbox_id;
        // Its remains are looked for in the end.
        self.daemon.remember(&id);
        Pod {
            socket: leaks::socket(&self.daemon, &id),
            bundles: self.daemon.bundles(),
            client: Arc::clone(&self.client),
            config,
            id,
        }
    }
}

/// The host's network, since there is no other; the rest is the kubelet's default.
fn namespaces(pids: NamespaceMode) -> NamespaceOption {
    NamespaceOption { network: NamespaceMode::Node.into(), pid: pids.into(), ..NamespaceOption::default() }
}

/// A pod that was run.
pub(super) struct Pod {
    client: Arc<Client>,
    pub(super) id: String,
    /// Where the pod's shim listens.
    pub(super) socket: PathBuf,
    bundles: PathBuf,
    config: PodSandboxConfig,
}

impl Pod {
    /// Makes a container that is not started yet.
    pub(super) fn container(&self, name: &str, command: &[&str]) -> Container {
        self.container_with(name, command, |_| ())
    }

    /// Makes and starts a container.
    pub(super) fn run(&self, name: &str, command: &[&str]) -> Container {
        let container = self.container(name, command);
        container.start();
        container
    }

    /// Makes a container that `change` has made different.
    pub(super) fn container_with(
        &self,
        name: &str,
        command: &[&str],
        change: impl FnOnce(&mut ContainerConfig),
    ) -> Container {
        let pods = self.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        let security_context = Some(LinuxContainerSecurityContext {
            namespace_options: pods.and_then(|context| context.namespace_options.clone()),
            ..LinuxContainerSecurityContext::default()
        });
        let mut config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
            image: Some(ImageSpec { image: image::NAME.into(), ..ImageSpec::default() }),
            command: command.iter().map(|word| (*word).into()).collect(),
            log_path: format!("{name}.log"),
            linux: Some(LinuxContainerConfig { security_context, ..LinuxContainerConfig::default() }),
            ..ContainerConfig::default()
        };
        change(&mut config);
        let request = CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        let id = self.client.create_container(request).expect("create the container").container_id;
        Container {
            client: Arc::clone(&self.client),
            log: Path::new(&self.config.log_directory).join(format!("{name}.log")),
            rootfs: self.bundles.join(&id).join("rootfs"),
            id,
        }
    }

    pub(super) fn state(&self) -> PodSandboxState {
        let request =
            PodSandboxStatusRequest { pod_sandbox_id: self.id.clone(), ..PodSandboxStatusRequest::default() };
        let answer = self.client.pod_sandbox_status(request).expect("ask for the pod's status");
        answer.status.expect("the answer has a status").state()
    }

    pub(super) fn until_not_ready(&self) {
        until("the pod to be not ready", || (self.state() == PodSandboxState::SandboxNotready).then_some(()));
    }

    pub(super) fn stop(&self) {
        let request = StopPodSandboxRequest { pod_sandbox_id: self.id.clone() };
        self.client.stop_pod_sandbox(request).expect("stop the pod");
        assert_eq!(self.state(), PodSandboxState::SandboxNotready);
    }

    /// Stops the pod with all that runs in it, and removes it.
    pub(super) fn remove(&self) {
        self.stop();
        let request = RemovePodSandboxRequest { pod_sandbox_id: self.id.clone() };
        self.client.remove_pod_sandbox(request).expect("remove the pod");
    }
}

/// A container of a pod.
pub(super) struct Container {
    client: Arc<Client>,
    pub(super) id: String,
    pub(super) log: PathBuf,
    rootfs: PathBuf,
}

impl Container {
    pub(super) fn start(&self) {
        let request = StartContainerRequest { container_id: self.id.clone() };
        self.client.start_container(request).expect("start the container");
    }

    pub(super) fn status(&self) -> ContainerStatus {
        let request =
            ContainerStatusRequest { container_id: self.id.clone(), ..ContainerStatusRequest::default() };
        let answer = self.client.container_status(request).expect("ask for the container's status");
        answer.status.expect("the answer has a status")
    }

    /// Waits until the container has exited, and returns what is told of it then.
    pub(super) fn exited(&self) -> ContainerStatus {
        until("the container to exit", || {
            Some(self.status()).filter(|status| status.state() == ContainerState::ContainerExited)
        })
    }

    /// Waits until the container has made the file `/ready`.
    pub(super) fn until_ready(&self) {
        until("the container to be ready", || self.rootfs.join("ready").exists().then_some(()));
    }

    /// Runs a command in the container, without a limit of its own.
    pub(super) fn exec(&self, command: &[&str]) -> ExecSyncResponse {
        self.try_exec(command, Duration::ZERO).expect("run a command in the container")
    }

    pub(super) fn try_exec(&self, command: &[&str], limit: Duration) -> Result<ExecSyncResponse, Status> {
        self.client.exec_sync(ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: command.iter().map(|word| (*word).into()).collect(),
            timeout: limit.as_secs() as i64,
        })
    }

    /// The statistics of the container alone.
    pub(super) fn stats(&self) -> ContainerStats {
        let request = ContainerStatsRequest { container_id: self.id.clone() };
        let answer = self.client.container_stats(request).expect("ask for the container's statistics");
        answer.stats.expect("the answer has statistics")
    }

    pub(super) fn stop(&self, grace: Duration) {
        let request = StopContainerRequest { container_id: self.id.clone(), timeout: grace.as_secs() as i64 };
        self.client.stop_container(request).expect("stop the container");
    }

    pub(super) fn remove(&self) {
        let request = RemoveContainerRequest { container_id: self.id.clone() };
        self.client.remove_container(request).expect("remove the container");
    }
}
