//! `pgmq.v1.AdminService`.

use tonic::{Request, Response, Status};

use super::Service;
use crate::proto::v1::admin_service_server::AdminService;
use crate::proto::v1::{
    ConvertArchivePartitionedRequest, ConvertArchivePartitionedResponse, CreateFifoIndexRequest,
    CreateFifoIndexResponse, DeleteArchivedMessagesRequest, DeleteArchivedMessagesResponse,
    DisableNotificationsRequest, DisableNotificationsResponse, EnableNotificationsRequest,
    EnableNotificationsResponse, InstallPgmqRequest, InstallPgmqResponse, ListArchivedMessagesRequest,
    ListArchivedMessagesResponse, ListClientsRequest, ListClientsResponse, ListMessagesRequest,
    ListMessagesResponse, ListNotificationsRequest, ListNotificationsResponse, RedriveMessagesRequest,
    RedriveMessagesResponse, ReplayArchivedMessagesRequest, ReplayArchivedMessagesResponse,
    SetQueueLayoutRequest, SetQueueLayoutResponse, UpdateNotificationsRequest, UpdateNotificationsResponse,
    UpdateQueueRequest, UpdateQueueResponse,
};
use crate::queue;

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl AdminService for Service {
    async fn update_queue(&self, request: Request<UpdateQueueRequest>) -> Answer<UpdateQueueResponse> {
        self.call::<queue::UpdateQueue, _, _>(request).await
    }

    async fn install_pgmq(&self, request: Request<InstallPgmqRequest>) -> Answer<InstallPgmqResponse> {
        self.call::<queue::InstallPgmq, _, _>(request).await
    }

    async fn set_queue_layout(
        &self,
        request: Request<SetQueueLayoutRequest>,
    ) -> Answer<SetQueueLayoutResponse> {
        self.call::<queue::SetQueueLayout, _, _>(request).await
    }

    async fn list_messages(&self, request: Request<ListMessagesRequest>) -> Answer<ListMessagesResponse> {
        self.call::<queue::ListMessages, _, _>(request).await
    }

    async fn list_archived_messages(
        &self,
        request: Request<ListArchivedMessagesRequest>,
    ) -> Answer<ListArchivedMessagesResponse> {
        self.call::<queue::ListArchivedMessages, _, _>(request).await
    }

    async fn delete_archived_messages(
        &self,
        request: Request<DeleteArchivedMessagesRequest>,
    ) -> Answer<DeleteArchivedMessagesResponse> {
        self.call::<queue::TakeArchived, _, _>(request).await
    }

    async fn replay_archived_messages(
        &self,
        request: Request<ReplayArchivedMessagesRequest>,
    ) -> Answer<ReplayArchivedMessagesResponse> {
        self.call::<queue::TakeArchived, _, _>(request).await
    }

    async fn redrive_messages(
        &self,
        request: Request<RedriveMessagesRequest>,
    ) -> Answer<RedriveMessagesResponse> {
        self.call::<queue::RedriveMessages, _, _>(request).await
    }

    async fn create_fifo_index(
        &self,
        request: Request<CreateFifoIndexRequest>,
    ) -> Answer<CreateFifoIndexResponse> {
        self.call::<queue::CreateFifoIndex, _, _>(request).await
    }

    async fn convert_archive_partitioned(
        &self,
        request: Request<ConvertArchivePartitionedRequest>,
    ) -> Answer<ConvertArchivePartitionedResponse> {
        self.call::<queue::ConvertArchivePartitioned, _, _>(request).await
    }

    async fn enable_notifications(
        &self,
        request: Request<EnableNotificationsRequest>,
    ) -> Answer<EnableNotificationsResponse> {
        self.call::<queue::EnableNotifications, _, _>(request).await
    }

    async fn disable_notifications(
        &self,
        request: Request<DisableNotificationsRequest>,
    ) -> Answer<DisableNotificationsResponse> {
        self.call::<queue::DisableNotifications, _, _>(request).await
    }

    async fn update_notifications(
        &self,
        request: Request<UpdateNotificationsRequest>,
    ) -> Answer<UpdateNotificationsResponse> {
        self.call::<queue::UpdateNotifications, _, _>(request).await
    }

    async fn list_notifications(
        &self,
        request: Request<ListNotificationsRequest>,
    ) -> Answer<ListNotificationsResponse> {
        self.call::<queue::ListNotifications, _, _>(request).await
    }
    async fn list_clients(&self, request: Request<ListClientsRequest>) -> Answer<ListClientsResponse> {
        self.call::<queue::ListClients, _, _>(request).await
    }
}
