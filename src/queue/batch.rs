//! Single calls that put messages in or take them out.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Broker, OnConnection, Operation};
use crate::domain::message::Message;
use crate::domain::{Deadline, Error, OutgoingMessage, QueueName, ReadOrder, Result, Sent};
use crate::engine::{Changes, Handover};
use crate::pg::{Connection, Subject};

/// How long before its caller's deadline a waiting read gives up, so that the empty answer still arrives.
const ANSWER_TIME: Duration = Duration::from_millis(250);

/// Stores one message (`pgmq.send`).
#[derive(Debug)]
pub struct Send {
    /// The queue.
    pub queue: QueueName,
    /// The message.
    pub message: OutgoingMessage,
}

impl OnConnection for Send {
    const NAME: &'static str = "send";
    type Output = Sent;

    fn subject(&self) -> Subject<'_> {
        self.queue.as_str().into()
    }

    async fn apply(&self, connection: &mut Connection) -> Result<Sent> {
        let messages = std::slice::from_ref(&self.message);
        let sent = match self.message.deduplication_id() {
            Some(_) => connection.send_keyed(&self.queue, messages).await?.pop().transpose()?,
            None => connection.send(&self.queue, messages).await?.first().copied().map(Sent::now),
        };
        sent.ok_or_else(no_id)
    }

    async fn call(self, broker: &Arc<Broker>, deadline: Deadline) -> Result<Sent> {
        let verdict = broker.merging.send(self.queue, vec![self.message])?;
        let sent = broker.until(deadline, verdict.wait()).await?;
        sent.into_iter().next().unwrap_or_else(|| Err(no_id()))
    }

    fn tell(&self, _: &Sent, changes: &mut Changes) {
        changes.sent(&self.queue, std::iter::once(self.message.schedule()));
    }
}

fn no_id() -> Error {
    Error::internal("a send gave no id")
}

/// Stores messages, all or none, in order (`pgmq.send_batch`).
#[derive(Debug)]
pub struct SendBatch {
    /// The queue.
    pub queue: QueueName,
    /// The messages, at least one.
    pub messages: Vec<OutgoingMessage>,
}

impl OnConnection for SendBatch {
    const NAME: &'static str = "send_batch";
    type Output = Vec<Sent>;

    fn subject(&self) -> Subject<'_> {
        self.queue.as_str().into()
    }

    fn held_bytes(&self) -> usize {
        held_bytes(&self.messages)
    }

    async fn apply(&self, connection: &mut Connection) -> Result<Vec<Sent>> {
        if !self.messages.iter().any(|message| message.deduplication_id().is_some()) {
            let msg_ids = connection.send(&self.queue, &self.messages).await?;
            return Ok(msg_ids.into_iter().map(Sent::now).collect());
        }
        if connection.in_transaction() {
            return self.send_keyed(connection).await;
        }
        // One wrong id takes back all, and is known only after the others are stored.
        connection.begin_keyed().await?;
        let sent = self.send_keyed(connection).await;
        connection.conclude(sent, all_keyed(&self.messages)).await
    }

    fn tell(&self, _: &Vec<Sent>, changes: &mut Changes) {
        changes.sent(&self.queue, self.messages.iter().map(OutgoingMessage::schedule));
    }
}

impl SendBatch {
    async fn send_keyed(&self, connection: &mut Connection) -> Result<Vec<Sent>> {
        let verdicts = connection.send_keyed(&self.queue, &self.messages).await?;
        let sent = verdicts.into_iter().enumerate();
        sent.map(|(index, verdict)| verdict.map_err(|error| error.with("item_index", index.to_string())))
            .collect()
    }
}

/// The bytes of messages while they wait.
pub(super) fn held_bytes(messages: &[OutgoingMessage]) -> usize {
    messages.iter().map(OutgoingMessage::held_bytes).sum()
}

/// Whether repeating the send of all messages stores none twice.
pub(super) fn all_keyed(messages: &[OutgoingMessage]) -> bool {
    messages.iter().all(|message| message.deduplication_id().is_some())
}

/// Takes messages out for good (`pgmq.pop`).
#[derive(Debug)]
pub struct Pop {
    /// The queue.
    pub queue: QueueName,
    /// How many at most.
    pub count: i32,
}

impl OnConnection for Pop {
    const NAME: &'static str = "pop";
    type Output = Vec<Message>;

    fn subject(&self) -> Subject<'_> {
        self.queue.as_str().into()
    }

    async fn apply(&self, connection: &mut Connection) -> Result<Vec<Message>> {
        connection.pop(&self.queue, self.count).await
    }

    fn tell(&self, popped: &Vec<Message>, changes: &mut Changes) {
        changes.settled(&self.queue, popped.iter().map(|message| message.msg_id));
    }
}

/// Reads messages once, waiting for the first one if told so (`pgmq.read` and its grouped kin).
#[derive(Debug)]
pub struct ReadBatch {
    /// What to read.
    pub order: ReadOrder,
    /// How many at most.
    pub count: i32,
    /// How long to wait for a message.
    pub wait: Duration,
}

impl Operation for ReadBatch {
    const NAME: &'static str = "read_batch";
    type Output = Handover;

    async fn run(self, broker: &Arc<Broker>, deadline: Deadline) -> Result<Handover> {
        let until = Instant::now() + self.wait.min(deadline.remaining().saturating_sub(ANSWER_TIME));
        let count = usize::try_from(self.count).unwrap_or(1);
        broker.dispatch.read_once(&self.order, count, until).await
    }

    /// The dispatcher reads, and what it has read for a caller who left goes back; so it needs no task of its own.
    async fn call(self, broker: &Arc<Broker>, deadline: Deadline) -> Result<Handover> {
        broker.until(deadline, self.run(broker, deadline)).await
    }
}
