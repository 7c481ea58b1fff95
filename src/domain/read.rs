//! Reads: what is wanted and what came.

use std::time::Duration;

use super::bounds::VisibilityTimeout;
use super::dead_letter::SetAside;
use super::{Delivery, Error, Ordering, QueueName, Timestamp};

/// What is to be read. Those who read alike can share one read.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ReadOrder {
    /// The queue.
    pub queue: QueueName,
    /// How long the messages are hidden.
    pub visibility_timeout: VisibilityTimeout,
    /// In which order they are taken.
    pub ordering: Ordering,
    /// Only bodies that contain this JSON text are taken; `{}` takes all. Unordered reads only.
    pub conditional: Option<String>,
}

/// What a read gave.
#[derive(Debug)]
pub struct Taken {
    /// The messages, sorted by id or, round robin, as pgmq gave them.
    pub deliveries: Vec<Delivery>,
    /// When the queue was made, which tells one that was made anew from the one before.
    pub queue_created_at: Timestamp,
    /// The database's clock from before the read.
    pub before_read: Timestamp,
    /// More messages were visible than are here.
    pub cut: bool,
    /// Messages that the read moved out of the queue instead.
    pub set_aside: Vec<SetAside>,
    /// Why nothing came, where the database refuses to have messages read and nothing says that it takes others.
    pub refused: Option<Error>,
    /// Nothing came and nothing was moved although much was tried: the next read should not follow at once.
    pub in_vain: bool,
}

/// What one look at many queues saw.
#[derive(Debug, Clone)]
pub struct View {
    /// Of each queue, in the order asked; none where there is no such queue.
    pub sights: Vec<Option<Sight>>,
    /// The oldest transaction of the database that may still commit something.
    pub oldest_running: i64,
    /// The first transaction that had not begun.
    pub next_transaction: i64,
}

/// What a look at one queue saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sight {
    /// When the queue was made.
    pub created_at: Timestamp,
    /// The last id that was given to a message, also of a send that has not been committed; none if there was none.
    pub last_id: Option<i64>,
    /// Whether the last id may be read at all.
    pub is_readable: bool,
    /// The size of the queue's table.
    pub bytes: u64,
    /// Whether a message is visible; none if that was not looked at.
    pub visible: Option<bool>,
    /// How long until the next message becomes visible, if that was looked at and there is one.
    pub next_visible: Option<Duration>,
}
