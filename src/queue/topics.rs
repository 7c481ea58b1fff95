//! Topics: bindings, routing, and sends to every queue that matches.

use super::OnConnection;
use super::batch::{all_keyed, held_bytes};
use crate::domain::page::{Page, Paged};
use crate::domain::queue::{TopicBinding, TopicCopy};
use crate::domain::topic::{Pattern, RoutingKey};
use crate::domain::{Error, Kind, OutgoingMessage, QueueName, Result};
use crate::engine::Changes;
use crate::pg::{Connection, Subject, is_swallowed};

/// Binds a pattern to a queue (`pgmq.bind_topic`); gives whether it was not bound before.
#[derive(Debug)]
pub struct BindTopic {
    /// The pattern.
    pub pattern: Pattern,
    /// The queue that gets copies.
    pub queue: QueueName,
}

impl OnConnection for BindTopic {
    const NAME: &'static str = "bind_topic";
    type Output = bool;

    fn subject(&self) -> Subject<'_> {
        self.queue.as_str().into()
    }

    async fn apply(&self, connection: &mut Connection) -> Result<bool> {
        connection.bind_topic(&self.pattern, &self.queue).await
    }
}

/// Removes a binding (`pgmq.unbind_topic`); gives whether it was there.
#[derive(Debug)]
pub struct UnbindTopic {
    /// The pattern.
    pub pattern: Pattern,
    /// The queue.
    pub queue: QueueName,
}

impl OnConnection for UnbindTopic {
    const NAME: &'static str = "unbind_topic";
    type Output = bool;

    fn subject(&self) -> Subject<'_> {
        self.queue.as_str().into()
    }

    async fn apply(&self, connection: &mut Connection) -> Result<bool> {
        connection.unbind_topic(&self.pattern, &self.queue).await
    }
}

/// A page of the bindings of one queue or of all (`pgmq.list_topic_bindings`).
#[derive(Debug)]
pub struct ListTopicBindings {
    /// Only this queue's.
    pub queue: Option<QueueName>,
    /// Which page.
    pub page: Page,
}

impl OnConnection for ListTopicBindings {
    const NAME: &'static str = "list_topic_bindings";
    type Output = Paged<TopicBinding>;

    async fn apply(&self, connection: &mut Connection) -> Result<Self::Output> {
        connection.list_topic_bindings(self.queue.as_ref(), &self.page).await
    }
}

/// The bindings that a routing key matches (`pgmq.test_routing`).
#[derive(Debug)]
pub struct TestRouting {
    /// The key.
    pub routing_key: RoutingKey,
}

impl OnConnection for TestRouting {
    const NAME: &'static str = "test_routing";
    type Output = Vec<TopicBinding>;

    async fn apply(&self, connection: &mut Connection) -> Result<Self::Output> {
        connection.test_routing(&self.routing_key).await
    }
}

/// Stores a copy of a message in every matching queue, all or none (`pgmq.send_topic`).
#[derive(Debug)]
pub struct SendTopic {
    /// The key.
    pub routing_key: RoutingKey,
    /// The message.
    pub message: OutgoingMessage,
    /// No match is an error.
    pub require_match: bool,
}

impl OnConnection for SendTopic {
    const NAME: &'static str = "send_topic";
    type Output = Vec<TopicCopy>;

    fn subject(&self) -> Subject<'_> {
        Subject::Topic(self.routing_key.as_str())
    }

    fn held_bytes(&self) -> usize {
        self.message.held_bytes()
    }

    async fn apply(&self, connection: &mut Connection) -> Result<Self::Output> {
        let message = std::slice::from_ref(&self.message);
        send(connection, &self.routing_key, message, self.require_match, |_| "message".to_owned()).await
    }

    fn tell(&self, copies: &Vec<TopicCopy>, changes: &mut Changes) {
        tell_of_copies(copies, changes);
    }
}

/// Stores copies of messages in every matching queue, all or none (`pgmq.send_batch_topic`).
#[derive(Debug)]
pub struct SendTopicBatch {
    /// The key.
    pub routing_key: RoutingKey,
    /// The messages, at least one.
    pub messages: Vec<OutgoingMessage>,
    /// No match is an error.
    pub require_match: bool,
}

impl OnConnection for SendTopicBatch {
    const NAME: &'static str = "send_topic_batch";
    type Output = Vec<TopicCopy>;

    fn subject(&self) -> Subject<'_> {
        Subject::Topic(self.routing_key.as_str())
    }

    fn held_bytes(&self) -> usize {
        held_bytes(&self.messages)
    }

    async fn apply(&self, connection: &mut Connection) -> Result<Self::Output> {
        let field = |index: usize| format!("messages[{index}].message");
        send(connection, &self.routing_key, &self.messages, self.require_match, field).await
    }

    fn tell(&self, copies: &Vec<TopicCopy>, changes: &mut Changes) {
        tell_of_copies(copies, changes);
    }
}

async fn send(
    connection: &mut Connection,
    routing_key: &RoutingKey,
    messages: &[OutgoingMessage],
    require_match: bool,
    field: fn(usize) -> String,
) -> Result<Vec<TopicCopy>> {
    let routed = |copies: Vec<TopicCopy>| match copies.is_empty() && require_match {
        true => Err(no_route(routing_key)),
        false => Ok(copies),
    };
    if connection.in_transaction() {
        return connection.send_topic_by_queue(routing_key, messages, field).await.and_then(routed);
    }
    let keyed = messages.iter().any(|message| message.deduplication_id().is_some());
    if !keyed && !connection.topics_follow_policies() {
        match connection.send_topic(routing_key, messages).await {
            // Or a queue was unbound meanwhile: which of the two it was, shows queue by queue.
            Err(error) if is_swallowed(&error) => {}
            copies => return copies.and_then(routed),
        }
    }
    match keyed {
        true => connection.begin_keyed().await?,
        false => connection.begin().await?,
    }
    let copies = connection.send_topic_by_queue(routing_key, messages, field).await.and_then(routed);
    connection.conclude(copies, all_keyed(messages)).await
}

fn no_route(routing_key: &RoutingKey) -> Error {
    let why = format!("no binding matches the routing key {:?}; nothing was sent", routing_key.as_str());
    Error::new(Kind::NoRoute, why).with("routing_key", routing_key.as_str())
}

/// Wakes the readers of each queue once.
pub(super) fn tell_of_copies(copies: &[TopicCopy], changes: &mut Changes) {
    let mut queues: Vec<&QueueName> = copies.iter().map(|copy| &copy.queue).collect();
    queues.sort_unstable();
    queues.dedup();
    for queue in queues {
        changes.arrived(queue);
    }
}
