//! The client: one connection, and the words that belong to no queue.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::call::{Call, MAX_WIRE_BYTES, Rpc};
use crate::connect::{Builder, Service};
use crate::list::List;
use crate::message::IntoMessage;
use crate::pb::admin_service_client::AdminServiceClient;
use crate::pb::queue_service_client::QueueServiceClient;
use crate::pb::topic_service_client::TopicServiceClient;
use crate::pb::transaction_service_client::TransactionServiceClient;
use crate::pb::{self, OutgoingMessage, QueuePolicy};
use crate::{Error, Queue, Watch};

/// One connection to a server, or to a name behind which there are several.
///
/// It is cheap to clone, and clones share the connection, which ends with the last of them.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    service: Service,
    timeout: Duration,
}

/// The generated stubs, over the same connection. They have what has no word here, `OpenTransaction` above all.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Raw {
    /// Queues and their messages.
    pub queues: QueueServiceClient<Service>,
    /// Topics.
    pub topics: TopicServiceClient<Service>,
    /// Administration.
    pub admin: AdminServiceClient<Service>,
    /// Transactions.
    pub transactions: TransactionServiceClient<Service>,
}

impl Client {
    /// A client of the server at the target; see [`Builder::connect`].
    ///
    /// # Errors
    ///
    /// `INVALID_ARGUMENT` for a target that makes no sense.
    pub fn connect<'a>(target: impl Into<Option<&'a str>>) -> Result<Self, Error> {
        Self::builder().connect(target)
    }

    /// A client with settings of its own: TLS, credentials, deadlines, layers.
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(crate) fn new(service: Service, timeout: Duration) -> Self {
        Self { inner: Arc::new(Inner { service, timeout }) }
    }

    pub(crate) fn service(&self) -> Service {
        self.inner.service.clone()
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.inner.timeout
    }

    /// The generated stubs.
    pub fn raw(&self) -> Raw {
        macro_rules! stub {
            ($stub:ident) => {
                $stub::new(self.service())
                    .max_decoding_message_size(MAX_WIRE_BYTES)
                    .max_encoding_message_size(MAX_WIRE_BYTES)
            };
        }
        Raw {
            queues: stub!(QueueServiceClient),
            topics: stub!(TopicServiceClient),
            admin: stub!(AdminServiceClient),
            transactions: stub!(TransactionServiceClient),
        }
    }

    /// Any request of the contract that has one reply, with the client's deadlines and repeats.
    pub fn call<Q: Rpc>(&self, request: Q) -> Call<Q> {
        Call::plain(self, request)
    }

    /// A queue of this name. It asks nobody: the queue need not exist.
    pub fn queue(&self, name: impl Into<String>) -> Queue {
        Queue::new(self.clone(), name.into())
    }

    /// Creates a queue, unless it is there.
    pub fn create_queue(&self, queue: impl Into<String>) -> Call<pb::CreateQueueRequest> {
        self.queue(queue).create()
    }

    /// Describes a queue.
    pub fn get_queue(&self, queue: impl Into<String>) -> Call<pb::GetQueueRequest, pb::Queue> {
        self.queue(queue).get()
    }

    /// The queues, by name.
    pub fn list_queues(&self) -> List<pb::ListQueuesRequest, pb::Queue> {
        List::new(self, pb::ListQueuesRequest::default(), |_, _, reply| reply.queues)
    }

    /// Changes the fields of a queue's policy that are set here.
    pub fn update_queue(
        &self,
        queue: impl Into<String>,
        policy: QueuePolicy,
    ) -> Call<pb::UpdateQueueRequest, pb::Queue> {
        self.queue(queue).update(policy)
    }

    /// Removes a queue with its messages and its archive.
    pub fn drop_queue(&self, queue: impl Into<String>) -> Call<pb::DropQueueRequest, ()> {
        self.queue(queue).drop()
    }

    /// Removes all messages of a queue, and tells how many.
    pub fn purge_queue(&self, queue: impl Into<String>) -> Call<pb::PurgeQueueRequest, i64> {
        self.queue(queue).purge()
    }

    /// Counts the messages of a queue.
    pub fn get_queue_metrics(
        &self,
        queue: impl Into<String>,
    ) -> Call<pb::GetQueueMetricsRequest, pb::QueueMetrics> {
        self.queue(queue).metrics()
    }

    /// Counts the messages of queues.
    pub fn list_queue_metrics(&self) -> List<pb::ListQueueMetricsRequest, pb::QueueMetrics> {
        List::new(self, pb::ListQueueMetricsRequest::default(), |_, _, reply| reply.metrics)
    }

    /// Lays a queue's table out anew.
    pub fn set_queue_layout(
        &self,
        queue: impl Into<String>,
        layout: pb::QueueLayout,
    ) -> Call<pb::SetQueueLayoutRequest, pb::Queue> {
        self.queue(queue).set_layout(layout)
    }

    /// Sends a message to all queues that are bound to a pattern which the routing key matches.
    pub fn send_topic(
        &self,
        routing_key: impl Into<String>,
        message: impl IntoMessage,
    ) -> Call<pb::SendTopicRequest> {
        let request = message.into_message().map(|message| pb::SendTopicRequest {
            routing_key: routing_key.into(),
            message: message.message,
            headers: message.headers,
            schedule: message.schedule.map(|schedule| match schedule {
                pb::outgoing_message::Schedule::Delay(delay) => {
                    pb::send_topic_request::Schedule::Delay(delay)
                }
                pb::outgoing_message::Schedule::VisibleAt(at) => {
                    pb::send_topic_request::Schedule::VisibleAt(at)
                }
            }),
            group: message.group,
            deduplication_id: message.deduplication_id,
            require_match: false,
        });
        Call::new(self, request, |_, _, reply| reply)
    }

    /// Sends messages with one routing key: all copies of all of them, or none.
    pub fn send_topic_batch<M: IntoMessage>(
        &self,
        routing_key: impl Into<String>,
        messages: impl IntoIterator<Item = M>,
    ) -> Call<pb::SendTopicBatchRequest, Vec<pb::TopicCopy>> {
        let messages: Result<Vec<OutgoingMessage>, Error> =
            messages.into_iter().map(IntoMessage::into_message).collect();
        let request = messages.map(|messages| pb::SendTopicBatchRequest {
            routing_key: routing_key.into(),
            messages,
            require_match: false,
        });
        Call::new(self, request, |_, _, reply| reply.copies)
    }

    /// Binds a queue to a pattern of routing keys, and tells whether it was not bound before.
    pub fn bind_topic(
        &self,
        pattern: impl Into<String>,
        queue: impl Into<String>,
    ) -> Call<pb::BindTopicRequest, bool> {
        let request = pb::BindTopicRequest { pattern: pattern.into(), queue: queue.into() };
        Call::new(self, Ok(request), |_, _, reply| reply.created)
    }

    /// Takes a binding away, and tells whether it was there.
    pub fn unbind_topic(
        &self,
        pattern: impl Into<String>,
        queue: impl Into<String>,
    ) -> Call<pb::UnbindTopicRequest, bool> {
        let request = pb::UnbindTopicRequest { pattern: pattern.into(), queue: queue.into() };
        Call::new(self, Ok(request), |_, _, reply| reply.removed)
    }

    /// The bindings, by pattern and queue.
    pub fn list_topic_bindings(&self) -> List<pb::ListTopicBindingsRequest, pb::TopicBinding> {
        List::new(self, pb::ListTopicBindingsRequest::default(), |_, _, reply| reply.bindings)
    }

    /// The bindings that a routing key matches. Nothing is sent.
    pub fn test_routing(
        &self,
        routing_key: impl Into<String>,
    ) -> Call<pb::TestRoutingRequest, Vec<pb::TopicBinding>> {
        let request = pb::TestRoutingRequest { routing_key: routing_key.into() };
        Call::new(self, Ok(request), |_, _, reply| reply.matches)
    }

    /// Begins a list of operations that are done together or not at all: add them by [`with`](Call::with).
    pub fn transact(&self) -> Call<pb::TransactRequest> {
        Call::plain(self, pb::TransactRequest::default())
    }

    /// Watches what happens to queues, without reading. It is there when the server has confirmed it.
    pub fn watch<S: Into<String>>(&self, queues: impl IntoIterator<Item = S>) -> Watch {
        Watch::new(self.clone(), queues.into_iter().map(Into::into).collect())
    }

    /// Checks a name of a queue to be created, a routing key or a pattern.
    pub fn validate_name(&self, name: pb::validate_name_request::Name) -> Call<pb::ValidateNameRequest, ()> {
        Call::new(self, Ok(pb::ValidateNameRequest { name: Some(name) }), |_, _, _| ())
    }

    /// Versions, and what works there.
    pub fn get_server_info(&self) -> Call<pb::GetServerInfoRequest> {
        Call::plain(self, pb::GetServerInfoRequest {})
    }

    /// Creates pgmq's index for grouped reads, of one queue or (`None`) of all.
    pub fn create_fifo_index<'a>(
        &self,
        queue: impl Into<Option<&'a str>>,
    ) -> Call<pb::CreateFifoIndexRequest, ()> {
        let target = match queue.into() {
            Some(queue) => pb::create_fifo_index_request::Target::Queue(queue.to_owned()),
            None => pb::create_fifo_index_request::Target::AllQueues(true),
        };
        Call::new(self, Ok(pb::CreateFifoIndexRequest { target: Some(target) }), |_, _, _| ())
    }

    /// Turns a queue's archive into a partitioned table.
    pub fn convert_archive_partitioned(
        &self,
        queue: impl Into<String>,
    ) -> Call<pb::ConvertArchivePartitionedRequest, ()> {
        let request = pb::ConvertArchivePartitionedRequest { queue: queue.into(), ..Default::default() };
        Call::new(self, Ok(request), |_, _, _| ())
    }

    /// Makes Postgres notify plain SQL listeners of what is sent to a queue.
    pub fn enable_notifications(
        &self,
        queue: impl Into<String>,
    ) -> Call<pb::EnableNotificationsRequest, pb::NotificationSettings> {
        let request = pb::EnableNotificationsRequest { queue: queue.into(), ..Default::default() };
        Call::new(self, Ok(request), |_, _, reply| reply.settings.unwrap_or_default())
    }

    /// Changes the interval of a queue that notifies.
    pub fn update_notifications(
        &self,
        queue: impl Into<String>,
    ) -> Call<pb::UpdateNotificationsRequest, pb::NotificationSettings> {
        let request = pb::UpdateNotificationsRequest { queue: queue.into(), ..Default::default() };
        Call::new(self, Ok(request), |_, _, reply| reply.settings.unwrap_or_default())
    }

    /// Ends the notifications of a queue.
    pub fn disable_notifications(
        &self,
        queue: impl Into<String>,
    ) -> Call<pb::DisableNotificationsRequest, ()> {
        Call::new(self, Ok(pb::DisableNotificationsRequest { queue: queue.into() }), |_, _, _| ())
    }

    /// The queues that notify, by name.
    pub fn list_notifications(&self) -> List<pb::ListNotificationsRequest, pb::NotificationSettings> {
        List::new(self, pb::ListNotificationsRequest::default(), |_, _, reply| reply.notifications)
    }

    /// Who sent or consumed within the last minute.
    pub fn list_clients(&self) -> List<pb::ListClientsRequest, pb::Client> {
        List::new(self, pb::ListClientsRequest::default(), |_, _, reply| reply.clients)
    }

    /// Installs pgmq into the database, or brings it up to date.
    pub fn install_pgmq(&self) -> Call<pb::InstallPgmqRequest> {
        Call::plain(self, pb::InstallPgmqRequest {})
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("timeout", &self.inner.timeout).finish_non_exhaustive()
    }
}
