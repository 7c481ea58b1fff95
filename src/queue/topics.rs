//! Topics: bindings, routing, and sends to every queue that matches.

use super::OnConnection;
use super::batch::{all_keyed, held_bytes};
use crate::domain::page::{Page, Paged};
use crate::domain::queue::{TopicBinding, TopicCopy};
use crate::domain::topic::{Pattern, RoutingKey};
use crate::domain::{Error, Kind, OutgoingMessage, QueueName, Result};
use crate::engine::Changes;
use crate::pg::Connection;

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
    let keyed = messages.iter().any(|message| message.deduplication_id().is_some());
    let by_queue = (keyed || connection.topics_follow_policies()).then_some(field);
    if by_queue.is_none() || connection.in_transaction() {
        return route(connection, routing_key, messages, require_match, by_queue).await;
    }
    match keyed {
        true => connection.begin_keyed().await?,
        false => connection.begin().await?,
    }
    let copies = route(connection, routing_key, messages, require_match, by_queue).await;
    connection.conclude(copies, all_keyed(messages)).await
}

async fn route(
    connection: &mut Connection,
    routing_key: &RoutingKey,
    messages: &[OutgoingMessage],
    require_match: bool,
    by_queue: Option<fn(usize) -> String>,
) -> Result<Vec<TopicCopy>> {
    let copies = match by_queue {
        Some(field) => connection.send_topic_by_queue(routing_key, messages, field).await?,
        None => connection.send_topic(routing_key, messages).await?,
    };
    if copies.is_empty() && require_match {
        return Err(Error::new(
            Kind::NoRoute,
            format!("no binding matches the routing key {:?}; nothing was sent", routing_key.as_str()),
        )
        .with("routing_key", routing_key.as_str()));
    }
    Ok(copies)
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
