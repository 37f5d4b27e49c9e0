//! A client of the CRI plugin that waits for each answer.

use std::path::Path;

use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::*;
use tokio::runtime::{Builder, Runtime};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::process::LIMIT;

/// A client, which finds the plugin again when containerd was started again.
pub(super) struct Client {
    tokio: Runtime,
    channel: Channel,
}

impl Client {
    pub(super) fn new(socket: &Path) -> Self {
        let tokio = Builder::new_current_thread().enable_all().build().expect("start tokio");
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()));
        let endpoint = endpoint.expect("the socket's path is an address");
        let guard = tokio.enter();
        let channel = endpoint.connect_lazy();
        drop(guard);
        Self { tokio, channel }
    }

    /// Whether the plugin answers and knows the image.
    pub(super) fn is_ready(&self, image: &str) -> bool {
        let image = Some(ImageSpec { image: image.into(), ..ImageSpec::default() });
        let request = ImageStatusRequest { image, ..ImageStatusRequest::default() };
        let mut client = ImageServiceClient::new(self.channel.clone());
        let answer = self.tokio.block_on(client.image_status(request));
        answer.is_ok_and(|answer| answer.into_inner().image.is_some())
            && self.status(StatusRequest::default()).is_ok()
    }
}

/// Makes a method of each call: it waits for the answer, and panics when there is none in time.
macro_rules! calls {
    ($($method:ident: $Request:ident -> $Response:ident)*) => {
        impl Client {
            $(pub(super) fn $method(&self, request: $Request) -> Result<$Response, Status> {
                let mut client = RuntimeServiceClient::new(self.channel.clone());
                let answer = self.tokio.block_on(async {
                    tokio::time::timeout(LIMIT, client.$method(request)).await
                });
                let answer = answer.unwrap_or_else(|_| panic!("no answer to {}", stringify!($method)));
                answer.map(tonic::Response::into_inner)
            })*
        }
    };
}

calls! {
    status: StatusRequest -> StatusResponse
    run_pod_sandbox: RunPodSandboxRequest -> RunPodSandboxResponse
    pod_sandbox_status: PodSandboxStatusRequest -> PodSandboxStatusResponse
    stop_pod_sandbox: StopPodSandboxRequest -> StopPodSandboxResponse
    remove_pod_sandbox: RemovePodSandboxRequest -> RemovePodSandboxResponse
    list_pod_sandbox: ListPodSandboxRequest -> ListPodSandboxResponse
    create_container: CreateContainerRequest -> CreateContainerResponse
    start_container: StartContainerRequest -> StartContainerResponse
    container_status: ContainerStatusRequest -> ContainerStatusResponse
    stop_container: StopContainerRequest -> StopContainerResponse
    remove_container: RemoveContainerRequest -> RemoveContainerResponse
    list_containers: ListContainersRequest -> ListContainersResponse
    exec_sync: ExecSyncRequest -> ExecSyncResponse
    container_stats: ContainerStatsRequest -> ContainerStatsResponse
    list_container_stats: ListContainerStatsRequest -> ListContainerStatsResponse
    update_container_resources: UpdateContainerResourcesRequest -> UpdateContainerResourcesResponse
    reopen_container_log: ReopenContainerLogRequest -> ReopenContainerLogResponse
}
