//! A queue: a name with methods.

use futures_util::FutureExt as _;

use crate::call::Call;
use crate::list::List;
use crate::message::{ArchivedMessage, Handle, IntoMessage, Receipt, Sent, to_json};
use crate::pb::{self, ErrorReason, Outcome, OutgoingMessage, QueuePolicy};
use crate::time::moment;
use crate::{Client, Consume, Error, Message, Producer, ProducerBuilder, Watch};

/// A queue of a client. It asks nobody before one of its methods is awaited, so the queue need not exist.
#[derive(Clone, Debug)]
pub struct Queue {
    client: Client,
    name: String,
}

impl Queue {
    pub(crate) fn new(client: Client, name: String) -> Self {
        Self { client, name }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Creates the queue, unless it is there.
    pub fn create(&self) -> Call<pb::CreateQueueRequest> {
        self.client.create_queue(&self.name)
    }

    /// Describes the queue.
    pub fn get(&self) -> Call<pb::GetQueueRequest, pb::Queue> {
        self.client.get_queue(&self.name)
    }

    /// Changes the fields of the policy that are set here, and those that are [cleared](Call::clear).
    pub fn update(&self, policy: QueuePolicy) -> Call<pb::UpdateQueueRequest, pb::Queue> {
        let request =
            pb::UpdateQueueRequest { queue: self.name.clone(), policy: Some(policy), update_mask: None };
        Call::new(&self.client, Ok(request), |_, _, reply| reply.queue.unwrap_or_default())
    }

    /// Removes the queue with its messages and its archive.
    pub fn drop(&self) -> Call<pb::DropQueueRequest, ()> {
        self.client.drop_queue(&self.name)
    }

    /// Removes all messages, and tells how many.
    pub fn purge(&self) -> Call<pb::PurgeQueueRequest, i64> {
        self.client.purge_queue(&self.name)
    }

    /// Counts the messages.
    pub fn metrics(&self) -> Call<pb::GetQueueMetricsRequest, pb::QueueMetrics> {
        self.client.get_queue_metrics(&self.name)
    }

    /// Lays the table of the queue out anew.
    pub fn set_layout(&self, layout: pb::QueueLayout) -> Call<pb::SetQueueLayoutRequest, pb::Queue> {
        let request = pb::SetQueueLayoutRequest { queue: self.name.clone(), layout: layout.into() };
        Call::new(&self.client, Ok(request), |_, _, reply| reply.queue.unwrap_or_default())
    }

    /// Sends one message. Those that are sent at the same time share a stream, which makes them many times as fast.
    pub fn send(&self, message: impl IntoMessage) -> Call<pb::SendRequest, Sent> {
        let request = message.into_message();
        let request = request.map(|message| pb::SendRequest { queue: self.name.clone(), ..message.into() });
        let answer = |_: &Client, _, reply: pb::SendResponse| Sent {
            msg_id: reply.msg_id,
            deduplicated: reply.deduplicated,
        };
        Call {
            make: |client, request, timeout| client.send(request, timeout).boxed(),
            ..Call::new(&self.client, request, answer)
        }
    }

    /// Sends several messages: all of them, in order, or none.
    pub fn send_batch<M: IntoMessage>(
        &self,
        messages: impl IntoIterator<Item = M>,
    ) -> Call<pb::SendBatchRequest, Vec<Sent>> {
        let messages: Result<Vec<OutgoingMessage>, Error> =
            messages.into_iter().map(IntoMessage::into_message).collect();
        let request = messages.map(|messages| pb::SendBatchRequest { queue: self.name.clone(), messages });
        Call::new(&self.client, request, |_, _, reply| {
            let sent =
                |result: pb::SendResult| Sent { msg_id: result.msg_id, deduplicated: result.deduplicated };
            reply.results.into_iter().map(sent).collect()
        })
    }

    /// A producer: a stream of sends of one's own. [`send`](Self::send) shares one too; a producer keeps messages while
    /// there is no server.
    pub fn producer(&self) -> Producer {
        self.producer_builder().start()
    }

    /// A producer with settings of its own.
    pub fn producer_builder(&self) -> ProducerBuilder {
        ProducerBuilder::new(&self.client, &self.name)
    }

    /// Reads messages, one unless told otherwise. Nobody else gets them before their visibility timeout ends.
    pub fn read(&self) -> Call<pb::ReadBatchRequest, Vec<Message>> {
        let request = pb::ReadBatchRequest { queue: self.name.clone(), ..Default::default() };
        Call::new(&self.client, Ok(request), |client, request, reply| {
            messages(client, &request.queue, reply.messages)
        })
    }

    /// Reads and deletes messages in one step: if the reply is lost, so are they.
    pub fn pop(&self) -> Call<pb::PopRequest, Vec<Message>> {
        let request = pb::PopRequest { queue: self.name.clone(), ..Default::default() };
        Call::new(&self.client, Ok(request), |client, request, reply| {
            messages(client, &request.queue, reply.messages)
        })
    }

    /// Streams messages as they become visible, until it is stopped. Set its options, and [start](Consume::start) it.
    pub fn consume(&self) -> Consume {
        Consume::new(self)
    }

    /// Watches what happens to the queue, without reading.
    pub fn watch(&self) -> Watch {
        self.client.watch([self.name.as_str()])
    }

    /// Deletes messages, by receipts or by ids. The outcomes are in order.
    pub fn delete<H: Into<Handle>>(
        &self,
        messages: impl IntoIterator<Item = H>,
    ) -> Call<pb::DeleteRequest, Vec<Outcome>> {
        let (msg_ids, receipts) = handles(messages);
        let request = pb::DeleteRequest { queue: self.name.clone(), msg_ids, receipts };
        Call::new(&self.client, Ok(request), |_, _, reply| outcomes(&reply.results))
    }

    /// Moves messages to the archive, by receipts or by ids.
    pub fn archive<H: Into<Handle>>(
        &self,
        messages: impl IntoIterator<Item = H>,
    ) -> Call<pb::ArchiveRequest, Vec<Outcome>> {
        let (msg_ids, receipts) = handles(messages);
        let request = pb::ArchiveRequest { queue: self.name.clone(), msg_ids, receipts };
        Call::new(&self.client, Ok(request), |_, _, reply| outcomes(&reply.results))
    }

    /// Gives messages back: visible after the delay that is set, or as the queue's policy says, else at once.
    pub fn release<R: Into<Receipt>>(
        &self,
        messages: impl IntoIterator<Item = R>,
    ) -> Call<pb::ReleaseRequest, Vec<Outcome>> {
        let request =
            pb::ReleaseRequest { queue: self.name.clone(), receipts: receipts(messages), delay: None };
        Call::new(&self.client, Ok(request), |_, _, reply| outcomes(&reply.results))
    }

    /// Moves messages to the dead-letter queue that the queue's policy names.
    pub fn dead_letter<R: Into<Receipt>>(
        &self,
        messages: impl IntoIterator<Item = R>,
    ) -> Call<pb::DeadLetterRequest, Vec<Outcome>> {
        let receipts = receipts(messages);
        let request = pb::DeadLetterRequest { queue: self.name.clone(), receipts, ..Default::default() };
        Call::new(&self.client, Ok(request), |_, _, reply| outcomes(&reply.results))
    }

    /// Sets when messages become visible, by receipts or by ids: with `visibility_timeout`, or `visible_at`.
    pub fn set_visibility_timeout<H: Into<Handle>>(
        &self,
        messages: impl IntoIterator<Item = H>,
    ) -> Call<pb::SetVisibilityTimeoutRequest, Vec<Outcome>> {
        let (msg_ids, receipts) = handles(messages);
        let queue = self.name.clone();
        let request = pb::SetVisibilityTimeoutRequest { queue, msg_ids, receipts, ..Default::default() };
        Call::new(&self.client, Ok(request), |_, _, reply| outcomes(&reply.results))
    }

    /// The messages of the queue, by id. Nothing is read: they have no receipts.
    pub fn list_messages(&self) -> List<pb::ListMessagesRequest, Message> {
        let request = pb::ListMessagesRequest { queue: self.name.clone(), ..Default::default() };
        List::new(&self.client, Ok(request), |client, request, reply| {
            messages(client, &request.queue, reply.messages)
        })
    }

    /// The messages of the archive, by id.
    pub fn list_archived_messages(&self) -> List<pb::ListArchivedMessagesRequest, ArchivedMessage> {
        let request = pb::ListArchivedMessagesRequest { queue: self.name.clone(), ..Default::default() };
        List::new(&self.client, Ok(request), |client, request, reply| {
            let archived = |message: pb::ArchivedMessage| ArchivedMessage {
                archived_at: moment(message.archived_at).unwrap_or(std::time::SystemTime::UNIX_EPOCH),
                message: Message::new(client, &request.queue, message.message.unwrap_or_default(), None),
            };
            reply.messages.into_iter().map(archived).collect()
        })
    }

    /// Deletes messages from the archive.
    pub fn delete_archived_messages(&self) -> Call<pb::DeleteArchivedMessagesRequest> {
        let request = pb::DeleteArchivedMessagesRequest { queue: self.name.clone(), ..Default::default() };
        Call::plain(&self.client, request)
    }

    /// Moves messages from the archive into the queue, or another.
    pub fn replay(&self) -> Call<pb::ReplayArchivedMessagesRequest> {
        let request = pb::ReplayArchivedMessagesRequest { queue: self.name.clone(), ..Default::default() };
        Call::plain(&self.client, request)
    }

    /// Moves messages of this dead-letter queue to where they came from, or to another queue.
    pub fn redrive(&self) -> Call<pb::RedriveMessagesRequest> {
        let dead_letter_queue = self.name.clone();
        let request = pb::RedriveMessagesRequest { dead_letter_queue, ..Default::default() };
        Call::plain(&self.client, request)
    }

    /// Binds the queue to a pattern of routing keys, and tells whether it was not bound before.
    pub fn bind_topic(&self, pattern: impl Into<String>) -> Call<pb::BindTopicRequest, bool> {
        self.client.bind_topic(pattern, &self.name)
    }

    /// Takes a binding away, and tells whether it was there.
    pub fn unbind_topic(&self, pattern: impl Into<String>) -> Call<pb::UnbindTopicRequest, bool> {
        self.client.unbind_topic(pattern, &self.name)
    }
}

macro_rules! headers {
    ($($request:ident),*) => { $(
        impl<A> Call<pb::$request, A> {
            /// The headers: a value that serializes as an object.
            pub fn headers<T: serde::Serialize + ?Sized>(mut self, headers: &T) -> Self {
                match (to_json(headers, ErrorReason::InvalidHeaders, "headers"), &mut self.request) {
                    (Ok(headers), Ok(request)) => request.headers = headers,
                    (Err(error), Ok(_)) => self.request = Err(error),
                    (_, Err(_)) => {}
                }
                self
            }

            /// The headers, as the JSON text of an object.
            pub fn headers_text(self, headers: impl Into<String>) -> Self {
                self.set(|request| request.headers = headers.into())
            }
        }
    )* };
}

headers!(SendRequest, SendTopicRequest);

impl<A> Call<pb::UpdateQueueRequest, A> {
    /// Clears these fields of the policy, such as `"default_delay"`.
    pub fn clear<S: Into<String>>(self, fields: impl IntoIterator<Item = S>) -> Self {
        let cleared: Vec<String> = fields.into_iter().map(Into::into).collect();
        self.set(|request| {
            // A mask names all that changes, so what is set has to stand in it too.
            let mut paths = request.policy.as_ref().map(set_fields).unwrap_or_default();
            paths.extend(cleared);
            request.update_mask = Some(prost_types::FieldMask { paths });
        })
    }
}

/// The names of a policy's fields that are set.
fn set_fields(policy: &QueuePolicy) -> Vec<String> {
    let fields = [
        ("default_visibility_timeout", policy.default_visibility_timeout.is_some()),
        ("default_delay", policy.default_delay.is_some()),
        ("default_wait", policy.default_wait.is_some()),
        ("max_message_bytes", policy.max_message_bytes.is_some()),
        ("dead_letter", policy.dead_letter.is_some()),
        ("retry_backoff", policy.retry_backoff.is_some()),
        ("deduplication_window", policy.deduplication_window.is_some()),
        ("default_ordering", policy.default_ordering != 0),
        ("archive_retention", policy.archive_retention.is_some()),
    ];
    fields.iter().filter(|(_, set)| *set).map(|(name, _)| (*name).to_owned()).collect()
}

fn messages(client: &Client, queue: &str, messages: Vec<pb::Message>) -> Vec<Message> {
    messages.into_iter().map(|message| Message::new(client, queue, message, None)).collect()
}

fn outcomes(results: &[pb::ItemResult]) -> Vec<Outcome> {
    results.iter().map(pb::ItemResult::outcome).collect()
}

fn handles<H: Into<Handle>>(messages: impl IntoIterator<Item = H>) -> (Vec<i64>, Vec<String>) {
    let (mut msg_ids, mut receipts) = (Vec::new(), Vec::new());
    for message in messages {
        match message.into() {
            Handle::Id(msg_id) => msg_ids.push(msg_id),
            Handle::Receipt(receipt) => receipts.push(receipt.0),
        }
    }
    (msg_ids, receipts)
}

fn receipts<R: Into<Receipt>>(messages: impl IntoIterator<Item = R>) -> Vec<String> {
    messages.into_iter().map(|message| message.into().0).collect()
}
