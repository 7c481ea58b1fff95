//! Single calls that put messages in or take them out.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Broker, Call, OnConnection, Operation};
use crate::domain::message::Message;
use crate::domain::{Deadline, Error, OutgoingMessage, QueueName, ReadOrder, Result};
use crate::engine::{Changes, Handover};
use crate::pg::Connection;

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
    type Output = i64;

    async fn apply(&self, connection: &mut Connection) -> Result<i64> {
        let msg_ids = connection.send(&self.queue, std::slice::from_ref(&self.message)).await?;
        msg_ids.first().copied().ok_or_else(no_id)
    }

    async fn call(self, broker: &Arc<Broker>, deadline: Deadline) -> Result<i64> {
        let verdict = broker.merging.send(self.queue, vec![self.message])?;
        let sent = broker.until(deadline, verdict.wait()).await?;
        sent.into_iter().next().unwrap_or_else(|| Err(no_id()))
    }

    fn tell(&self, _: &i64, changes: &mut Changes) {
        changes.arrived(&self.queue);
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
    type Output = Vec<i64>;

    async fn apply(&self, connection: &mut Connection) -> Result<Vec<i64>> {
        connection.send(&self.queue, &self.messages).await
    }

    fn tell(&self, _: &Vec<i64>, changes: &mut Changes) {
        changes.arrived(&self.queue);
    }
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

    async fn run(self, broker: &Arc<Broker>, call: &Call) -> Result<Handover> {
        let until = Instant::now() + self.wait.min(call.deadline.remaining().saturating_sub(ANSWER_TIME));
        let count = usize::try_from(self.count).unwrap_or(1);
        let stopped = async {
            tokio::select! {
                () = call.gone.cancelled() => {}
                () = broker.drain.cancelled() => {}
            }
        };
        broker.dispatch.read_once(&self.order, count, until, stopped).await
    }
}
