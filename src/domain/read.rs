//! Reads: what is wanted and what came.

use super::bounds::VisibilityTimeout;
use super::{Delivery, Ordering, QueueName, Timestamp};

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
    /// More messages were visible than fit.
    pub cut: bool,
}
