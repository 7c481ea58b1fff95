//! `pgmq.v1.QueueService`.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::call::{caller, request_id};
use super::consume::ConsumeReplies;
use super::convert::stream_response;
use super::produce::Answers;
use super::stream::{NO_DEADLINE, stream_started};
use super::watch::WatchReplies;
use super::{RequestId, Service, to_status};
use crate::domain::{Deadline, Error};
use crate::proto::v1::queue_service_server::QueueService;
use crate::proto::v1::{
    ArchiveRequest, ArchiveResponse, ConsumeRequest, CreateQueueRequest, CreateQueueResponse,
    DeadLetterRequest, DeadLetterResponse, DeleteRequest, DeleteResponse, DropQueueRequest,
    DropQueueResponse, GetQueueMetricsRequest, GetQueueMetricsResponse, GetQueueRequest, GetQueueResponse,
    GetServerInfoRequest, GetServerInfoResponse, ListQueueMetricsRequest, ListQueueMetricsResponse,
    ListQueuesRequest, ListQueuesResponse, PopRequest, PopResponse, ProduceRequest, PurgeQueueRequest,
    PurgeQueueResponse, ReadBatchRequest, ReadBatchResponse, ReadRequest, ReadResponse, ReleaseRequest,
    ReleaseResponse, SendBatchRequest, SendBatchResponse, SendRequest, SendResponse,
    SetVisibilityTimeoutRequest, SetVisibilityTimeoutResponse, StreamStarted, TransactRequest,
    TransactResponse, ValidateNameRequest, ValidateNameResponse, WatchRequest,
};
use crate::queue::{self, ReadStream, StreamOptions};

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl QueueService for Service {
    async fn create_queue(&self, request: Request<CreateQueueRequest>) -> Answer<CreateQueueResponse> {
        self.call::<queue::CreateQueue, _, _>(request).await
    }

    async fn get_queue(&self, request: Request<GetQueueRequest>) -> Answer<GetQueueResponse> {
        self.call::<queue::GetQueue, _, _>(request).await
    }

    async fn list_queues(&self, request: Request<ListQueuesRequest>) -> Answer<ListQueuesResponse> {
        self.call::<queue::ListQueues, _, _>(request).await
    }

    async fn drop_queue(&self, request: Request<DropQueueRequest>) -> Answer<DropQueueResponse> {
        self.call::<queue::DropQueue, _, _>(request).await
    }

    async fn purge_queue(&self, request: Request<PurgeQueueRequest>) -> Answer<PurgeQueueResponse> {
        self.call::<queue::PurgeQueue, _, _>(request).await
    }

    async fn get_queue_metrics(
        &self,
        request: Request<GetQueueMetricsRequest>,
    ) -> Answer<GetQueueMetricsResponse> {
        self.call::<queue::GetQueueMetrics, _, _>(request).await
    }

    async fn list_queue_metrics(
        &self,
        request: Request<ListQueueMetricsRequest>,
    ) -> Answer<ListQueueMetricsResponse> {
        self.call::<queue::ListQueueMetrics, _, _>(request).await
    }

    async fn send(&self, request: Request<SendRequest>) -> Answer<SendResponse> {
        self.call::<queue::Send, _, _>(request).await
    }

    async fn send_batch(&self, request: Request<SendBatchRequest>) -> Answer<SendBatchResponse> {
        self.call::<queue::SendBatch, _, _>(request).await
    }

    type ProduceStream = Answers;

    async fn produce(&self, request: Request<Streaming<ProduceRequest>>) -> Answer<Answers> {
        self.produce_stream(request).map(Response::new)
    }

    async fn read_batch(&self, request: Request<ReadBatchRequest>) -> Answer<ReadBatchResponse> {
        self.call::<queue::ReadBatch, _, _>(request).await
    }

    type ReadStream = ReadReplies;

    async fn read(&self, request: Request<ReadRequest>) -> Answer<ReadReplies> {
        let request_id = request_id(&request);
        let deadline = self.deadline(&request, NO_DEADLINE);
        self.open_stream(request, &request_id, deadline)
            .await
            .map(Response::new)
            .map_err(|error| to_status(&error, &request_id))
    }

    type WatchStream = WatchReplies;

    async fn watch(&self, request: Request<WatchRequest>) -> Answer<WatchReplies> {
        let request_id = request_id(&request);
        let deadline = self.deadline(&request, NO_DEADLINE);
        self.open_watch(request, &request_id, deadline)
            .await
            .map(Response::new)
            .map_err(|error| to_status(&error, &request_id))
    }

    type ConsumeStream = ConsumeReplies;

    async fn consume(&self, request: Request<Streaming<ConsumeRequest>>) -> Answer<ConsumeReplies> {
        let request_id = request_id(&request);
        self.open_consume(request).await.map(Response::new).map_err(|error| to_status(&error, &request_id))
    }

    async fn pop(&self, request: Request<PopRequest>) -> Answer<PopResponse> {
        self.call::<queue::Pop, _, _>(request).await
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Answer<DeleteResponse> {
        self.call::<queue::Delete, _, _>(request).await
    }

    async fn archive(&self, request: Request<ArchiveRequest>) -> Answer<ArchiveResponse> {
        self.call::<queue::Archive, _, _>(request).await
    }

    async fn release(&self, request: Request<ReleaseRequest>) -> Answer<ReleaseResponse> {
        self.call::<queue::Release, _, _>(request).await
    }

    async fn dead_letter(&self, request: Request<DeadLetterRequest>) -> Answer<DeadLetterResponse> {
        self.call::<queue::DeadLetter, _, _>(request).await
    }

    async fn set_visibility_timeout(
        &self,
        request: Request<SetVisibilityTimeoutRequest>,
    ) -> Answer<SetVisibilityTimeoutResponse> {
        self.call::<queue::SetVisibilityTimeout, _, _>(request).await
    }

    async fn transact(&self, request: Request<TransactRequest>) -> Answer<TransactResponse> {
        self.call::<queue::Transact, _, _>(request).await
    }

    async fn validate_name(&self, request: Request<ValidateNameRequest>) -> Answer<ValidateNameResponse> {
        self.call::<queue::ValidateName, _, _>(request).await
    }

    async fn get_server_info(&self, request: Request<GetServerInfoRequest>) -> Answer<GetServerInfoResponse> {
        self.call::<queue::GetServerInfo, _, _>(request).await
    }
}

impl Service {
    async fn open_stream(
        &self,
        request: Request<ReadRequest>,
        request_id: &RequestId,
        deadline: Deadline,
    ) -> Result<ReadReplies, Error> {
        let caller = caller(&request);
        self.broker.learn_policies(deadline).await?;
        let options = self.parse::<StreamOptions, _>(request)?;
        let started = queue::Started {
            visibility_timeout: options.order.visibility_timeout.span(),
            max_in_flight: options.max_in_flight,
            heartbeat_interval: options.heartbeat_interval,
            has_retry_backoff: self.broker.has_retry_backoff(&options.order.queue),
        };
        let started = stream_started(request_id, &self.broker.replica, started);
        let stream = ReadStream::open(&self.broker, &caller, options, deadline).await?;
        Ok(ReadReplies { started: Some(started), stream, request_id: request_id.clone() })
    }
}

/// The replies of one `Read`: `started` first, then what the stream gives.
pub struct ReadReplies {
    started: Option<StreamStarted>,
    stream: ReadStream,
    request_id: RequestId,
}

impl Stream for ReadReplies {
    type Item = Result<ReadResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(started) = self.started.take() {
            return Poll::Ready(Some(Ok(ReadResponse { started: Some(started), ..Default::default() })));
        }
        // From here on the messages of an item are the client's.
        self.stream.poll_next(context).map(|item| {
            item.map(|item| item.map(stream_response).map_err(|error| to_status(&error, &self.request_id)))
        })
    }
}
