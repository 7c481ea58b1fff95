//! Single calls that put messages in or take them out.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;

use super::{Broker, Call, Handover, OnConnection, Operation};
use crate::domain::bounds::MAX_REPLY_BYTES;
use crate::domain::message::Message;
use crate::domain::{Ordering, OutgoingMessage, QueueName, ReadOrder, Result};
use crate::engine::Changes;
use crate::pg::Connection;

/// The longest pause between two reads of an idle queue, which finds what plain SQL sent.
const IDLE_POLL: Duration = Duration::from_secs(1);

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
        msg_ids.first().copied().ok_or_else(|| crate::domain::Error::internal("a send gave no id"))
    }

    fn tell(&self, _: &i64, changes: &mut Changes) {
        changes.arrived(&self.queue);
    }
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
        let queue = &self.order.queue;
        let mut waiter = broker.events.follow(queue).waiter(self.order.ordering != Ordering::Unordered);
        loop {
            waiter.reset();
            let mut connection = broker.database.connect(Self::NAME, call.deadline).await?;
            let taken = connection.read(&self.order, self.count, MAX_REPLY_BYTES).await?;
            let read = Handover::new(broker, queue, taken.deliveries);
            if !read.deliveries().is_empty() || call.gone.is_cancelled() || broker.drain.is_cancelled() {
                return Ok(read);
            }
            if taken.cut {
                // What stood in front was moved aside; others may be behind it, and are there without a wait.
                continue;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(read);
            }
            let next = connection.next_visible(queue, taken.before_read).await?;
            drop(connection);
            tokio::select! {
                () = waiter.wait(idle_pause(next).min(left)) => {}
                () = call.gone.cancelled() => {}
                () = broker.drain.cancelled() => {}
            }
        }
    }
}

/// How long to leave an empty queue alone: until its next message is due, and no longer than the fallback poll, whose
/// jitter keeps many readers apart.
pub(super) fn idle_pause(next_visible: Option<Duration>) -> Duration {
    let poll = IDLE_POLL.mul_f64(rand::rng().random_range(0.75..1.0));
    next_visible.map_or(poll, |next| next.min(poll))
}
