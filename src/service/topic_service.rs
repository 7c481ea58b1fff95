//! `pgmq.v1.TopicService`.

use tonic::{Request, Response, Status};

use super::Service;
use crate::proto::v1::topic_service_server::TopicService;
use crate::proto::v1::{
    BindTopicRequest, BindTopicResponse, ListTopicBindingsRequest, ListTopicBindingsResponse,
    SendTopicBatchRequest, SendTopicBatchResponse, SendTopicRequest, SendTopicResponse, TestRoutingRequest,
    TestRoutingResponse, UnbindTopicRequest, UnbindTopicResponse,
};
use crate::queue;

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl TopicService for Service {
    async fn bind_topic(&self, request: Request<BindTopicRequest>) -> Answer<BindTopicResponse> {
        self.call::<queue::BindTopic, _, _>(request).await
    }

    async fn unbind_topic(&self, request: Request<UnbindTopicRequest>) -> Answer<UnbindTopicResponse> {
        self.call::<queue::UnbindTopic, _, _>(request).await
    }

    async fn list_topic_bindings(
        &self,
        request: Request<ListTopicBindingsRequest>,
    ) -> Answer<ListTopicBindingsResponse> {
        self.call::<queue::ListTopicBindings, _, _>(request).await
    }

    async fn test_routing(&self, request: Request<TestRoutingRequest>) -> Answer<TestRoutingResponse> {
        self.call::<queue::TestRouting, _, _>(request).await
    }

    async fn send_topic(&self, request: Request<SendTopicRequest>) -> Answer<SendTopicResponse> {
        self.call::<queue::SendTopic, _, _>(request).await
    }

    async fn send_topic_batch(
        &self,
        request: Request<SendTopicBatchRequest>,
    ) -> Answer<SendTopicBatchResponse> {
        self.call::<queue::SendTopicBatch, _, _>(request).await
    }
}
