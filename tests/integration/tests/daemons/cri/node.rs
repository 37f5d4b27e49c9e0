//! A daemon with its CRI plugin.

use std::path::Path;
use std::sync::Arc;

use k8s_cri::v1::{ListContainersRequest, ListPodSandboxRequest};

use super::client::Client;
use crate::daemon::{Daemon, Release, Setup};
use crate::image;
use crate::process::{Process, belonging_to, until};
use crate::shim::Example;

/// Everything that the plugin would keep elsewhere is in the daemon's folder. Its namespace is that of every
/// daemon with the plugin, so the engine's state is kept apart by the option `Root`.
const SETUP: Setup =
    Setup { disabled: &[], config, namespace: Some("k8s.io"), engine_state: Some(ENGINE_STATE) };
const ENGINE_STATE: &str = "runc";

fn config(release: Release, root: &Path) -> String {
    let (image, root) = (image::NAME, root.display());
    // One plugin or two, in which the same things have other places.
    let (runtime, images) = match release {
        Release::V1_6 | Release::V1_7 => {
            let plugin = "plugins.'io.containerd.grpc.v1.cri'";
            let images = format!("sandbox_image = '{image}'\n[{plugin}.containerd]");
            (plugin, images)
        }
        Release::V2 => {
            let plugin = "plugins.'io.containerd.cri.v1.images'";
            let images = format!("[{plugin}.pinned_images]\nsandbox = '{image}'\n[{plugin}]");
            ("plugins.'io.containerd.cri.v1.runtime'", images)
        }
    };
    // Not every root may give a process a better score than its own.
    format!(
        "[{runtime}]\n\
         restrict_oom_score_adj = true\n\
         {images}\n\
         snapshotter = 'native'\n\
         [{runtime}.cni]\n\
         bin_dir = '{root}/cni'\n\
         conf_dir = '{root}/cni'\n\
         [{runtime}.containerd.runtimes.runc]\n\
         runtime_type = 'io.containerd.runc.v2'\n\
         [{runtime}.containerd.runtimes.runc.options]\n\
         Root = '{root}/{ENGINE_STATE}'\n"
    )
}

/// A daemon with its CRI plugin.
pub(super) struct Node {
    pub(super) daemon: Daemon,
    pub(super) client: Arc<Client>,
}

impl Node {
    pub(super) fn start(release: Release) -> Self {
        let daemon = Daemon::start_with(release, Example::Runc, &SETUP);
        let node = Self { client: Arc::new(Client::new(&daemon.address())), daemon };
        node.until_ready();
        node
    }

    /// Starts containerd again after a crash.
    pub(super) fn restart(&mut self) {
        self.daemon.restart();
        self.until_ready();
    }

    fn until_ready(&self) {
        until("the CRI plugin and its image", || self.client.is_ready(image::NAME).then_some(()));
    }

    /// Ends the test: the plugin may know of nothing any more, and nothing may be left.
    pub(super) fn finish(self) {
        let pods = self.client.list_pod_sandbox(ListPodSandboxRequest::default()).expect("list the pods");
        assert_eq!(pods.items, []);
        let containers =
            self.client.list_containers(ListContainersRequest::default()).expect("list the containers");
        assert_eq!(containers.containers, []);
        self.daemon.finish();
    }

    /// The process in the daemon's folder, shim or container, that runs this command.
    pub(super) fn process(&self, command: &str) -> Option<Process> {
        belonging_to(self.daemon.root()).into_iter().find(|process| process.command() == command)
    }

    /// Waits until no process runs this command.
    pub(super) fn until_ended(&self, command: &str) {
        until("a process to end", || self.process(command).is_none().then_some(()));
    }
}
