//! The client: one connection, and the words that belong to no queue.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::call::{Call, MAX_WIRE_BYTES, Rpc};
use crate::connect::{Builder, Service};
use crate::life::Life;
use crate::list::List;
use crate::message::IntoMessage;
use crate::pb::admin_service_client::AdminServiceClient;
use crate::pb::queue_service_client::QueueServiceClient;
use crate::pb::topic_service_client::TopicServiceClient;
use crate::pb::transaction_service_client::TransactionServiceClient;
use crate::pb::{self, OutgoingMessage, QueuePolicy};
use crate::send::Sends;
use crate::{Error, Queue, Watch};

/// One connection to a server, or to a name behind which there are several.
///
/// It is cheap to clone, and clones share the connection, which ends with the last of them.
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    service: Service,
    timeout: Duration,
    pub(crate) sends: Sends,
    pub(crate) life: Arc<Life>,
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
        Self { inner: Arc::new(Inner { service, timeout, sends: Sends::default(), life: Life::new() }) }
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
                $stub::new(self.service()).max_decoding_message_size(MAX_WIRE_BYTES)
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

    /// Changes the fields of a queue's policy that are set here.
    pub fn update_queue(
        &self,
        queue: impl Into<String>,
        policy: QueuePolicy,
    ) -> Call<pb::UpdateQueueRequest, pb::Queue> {
        self.queue(queue).update(policy)
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
        let routing_key = routing_key.into();
        let request = message.into_message();
        let request = request.map(|message| pb::SendTopicRequest { routing_key, ..message.into() });
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

    /// Watches what happens to queues, without reading. It is there when the server has confirmed it.
    pub fn watch<S: Into<String>>(&self, queues: impl IntoIterator<Item = S>) -> Watch {
        Watch::new(self.clone(), queues.into_iter().map(Into::into).collect())
    }

    /// Checks a name of a queue to be created, a routing key or a pattern.
    pub fn validate_name(&self, name: pb::validate_name_request::Name) -> Call<pb::ValidateNameRequest, ()> {
        Call::new(self, Ok(pb::ValidateNameRequest { name: Some(name) }), |_, _, _| ())
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
}

/// Calls whose arguments are texts, and what each gives of its reply.
macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident($($field:ident),*) -> $kind:ident<$request:ident, $answer:ty> $reply:ident => $pick:expr;)*) => {
        impl Client { $(
            $(#[$doc])*
            pub fn $name(&self, $($field: impl Into<String>),*) -> $kind<pb::$request, $answer> {
                $kind::new(self, Ok(pb::$request::default()), |_, _, $reply| $pick)
                    $(.set(|request| request.$field = $field.into()))*
            }
        )* }
    };
}

calls! {
    /// Creates a queue, unless it is there.
    create_queue(queue) -> Call<CreateQueueRequest, pb::CreateQueueResponse> reply => reply;
    /// Describes a queue.
    get_queue(queue) -> Call<GetQueueRequest, pb::Queue> reply => reply.queue.unwrap_or_default();
    /// The queues, by name.
    list_queues() -> List<ListQueuesRequest, pb::Queue> reply => reply.queues;
    /// Removes a queue with its messages and its archive.
    drop_queue(queue) -> Call<DropQueueRequest, ()> _reply => ();
    /// Removes all messages of a queue, and tells how many.
    purge_queue(queue) -> Call<PurgeQueueRequest, i64> reply => reply.purged_count;
    /// Counts the messages of a queue.
    get_queue_metrics(queue) -> Call<GetQueueMetricsRequest, pb::QueueMetrics> reply => reply.metrics.unwrap_or_default();
    /// Counts the messages of queues.
    list_queue_metrics() -> List<ListQueueMetricsRequest, pb::QueueMetrics> reply => reply.metrics;
    /// Binds a queue to a pattern of routing keys, and tells whether it was not bound before.
    bind_topic(pattern, queue) -> Call<BindTopicRequest, bool> reply => reply.created;
    /// Takes a binding away, and tells whether it was there.
    unbind_topic(pattern, queue) -> Call<UnbindTopicRequest, bool> reply => reply.removed;
    /// The bindings, by pattern and queue.
    list_topic_bindings() -> List<ListTopicBindingsRequest, pb::TopicBinding> reply => reply.bindings;
    /// The bindings that a routing key matches. Nothing is sent.
    test_routing(routing_key) -> Call<TestRoutingRequest, Vec<pb::TopicBinding>> reply => reply.matches;
    /// Begins a list of operations that are done together or not at all: add them by [`with`](Call::with).
    transact() -> Call<TransactRequest, pb::TransactResponse> reply => reply;
    /// Versions, and what works there.
    get_server_info() -> Call<GetServerInfoRequest, pb::GetServerInfoResponse> reply => reply;
    /// Turns a queue's archive into a partitioned table.
    convert_archive_partitioned(queue) -> Call<ConvertArchivePartitionedRequest, ()> _reply => ();
    /// Makes Postgres notify plain SQL listeners of what is sent to a queue.
    enable_notifications(queue) -> Call<EnableNotificationsRequest, pb::NotificationSettings> reply => reply.settings.unwrap_or_default();
    /// Changes the interval of a queue that notifies.
    update_notifications(queue) -> Call<UpdateNotificationsRequest, pb::NotificationSettings> reply => reply.settings.unwrap_or_default();
    /// Ends the notifications of a queue.
    disable_notifications(queue) -> Call<DisableNotificationsRequest, ()> _reply => ();
    /// The queues that notify, by name.
    list_notifications() -> List<ListNotificationsRequest, pb::NotificationSettings> reply => reply.notifications;
    /// Who sent or consumed within the last minute.
    list_clients() -> List<ListClientsRequest, pb::Client> reply => reply.clients;
    /// Installs pgmq into the database, or brings it up to date.
    install_pgmq() -> Call<InstallPgmqRequest, pb::InstallPgmqResponse> reply => reply;
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("timeout", &self.inner.timeout).finish_non_exhaustive()
    }
}
