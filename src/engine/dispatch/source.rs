//! Where messages come from, as far as a dispatcher sees it: the database, or in tests a make-believe one.

use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::domain::{Delivery, QueueName, ReadOrder, Receipt, Result, Taken, Timestamp, View};

/// Gives sessions on the database.
pub trait Source: Send + Sync + 'static {
    /// Waits for a turn on the database, for a queue or for many.
    fn open<'a>(
        &'a self,
        purpose: &'static str,
        queue: Option<&'a QueueName>,
    ) -> BoxFuture<'a, Result<Box<dyn Session>>>;

    /// Whether this has turned out to be slow with a queue, so that its turns come among those of its like.
    fn is_slow(&self, purpose: &'static str, queue: &QueueName) -> bool;
}

/// A turn on the database.
pub trait Session: Send {
    /// Reads at most `count` messages that take at most `bytes` together, or one that is larger but fits a reply.
    fn read<'a>(
        &'a mut self,
        order: &'a ReadOrder,
        count: usize,
        bytes: usize,
    ) -> BoxFuture<'a, Result<Taken>>;

    /// How long until a message becomes visible that was not at `after`; none if nothing waits.
    fn next_visible<'a>(
        &'a mut self,
        queue: &'a QueueName,
        after: Timestamp,
    ) -> BoxFuture<'a, Result<Option<Duration>>>;

    /// Undoes reads whose messages nobody got.
    fn give_back<'a>(
        &'a mut self,
        queue: &'a QueueName,
        deliveries: &'a [Delivery],
    ) -> BoxFuture<'a, Result<()>>;

    /// How long each delivery still holds its message; none where it does no more.
    fn hidden_for<'a>(
        &'a mut self,
        queue: &'a QueueName,
        receipts: &'a [Receipt],
    ) -> BoxFuture<'a, Result<Vec<Option<Duration>>>>;

    /// Looks at many queues at once, at those marked closely.
    fn look_around<'a>(&'a mut self, queues: &'a [(QueueName, bool)]) -> BoxFuture<'a, Result<View>>;
}
