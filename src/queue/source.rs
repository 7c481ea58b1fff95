//! The database as the engine's dispatchers see it.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::domain::{Deadline, Delivery, QueueName, ReadOrder, Receipt, Result, Taken, Timestamp, View};
use crate::engine::dispatch::{Session, Source};
use crate::pg::{Connection, Database};

/// How long a turn of a dispatcher may take: as long as a merged statement, so that a session that does both in turn
/// keeps its limit.
const TURN_TIME: Duration = Duration::from_secs(15);

impl Source for Database {
    fn open<'a>(
        &'a self,
        purpose: &'static str,
        queue: Option<&'a QueueName>,
    ) -> BoxFuture<'a, Result<Box<dyn Session>>> {
        async move {
            let deadline = Deadline::within(TURN_TIME);
            let connection = match queue {
                Some(queue) => self.connect_for(purpose, queue.as_str(), deadline).await?,
                None => self.connect(purpose, deadline).await?,
            };
            Ok(Box::new(connection) as Box<dyn Session>)
        }
        .boxed()
    }

    fn is_slow(&self, purpose: &'static str, queue: &QueueName) -> bool {
        self.is_slow(purpose, queue.as_str())
    }
}

impl Session for Connection {
    fn read<'a>(
        &'a mut self,
        order: &'a ReadOrder,
        count: usize,
        bytes: usize,
    ) -> BoxFuture<'a, Result<Taken>> {
        let count = i32::try_from(count).unwrap_or(i32::MAX);
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.read(order, count, bytes).boxed()
    }

    fn next_visible<'a>(
        &'a mut self,
        queue: &'a QueueName,
        after: Timestamp,
    ) -> BoxFuture<'a, Result<Option<Duration>>> {
        self.next_visible(queue, after).boxed()
    }

    fn give_back<'a>(
        &'a mut self,
        queue: &'a QueueName,
        deliveries: &'a [Delivery],
    ) -> BoxFuture<'a, Result<()>> {
        self.give_back(queue, deliveries).boxed()
    }

    fn hidden_for<'a>(
        &'a mut self,
        queue: &'a QueueName,
        receipts: &'a [Receipt],
    ) -> BoxFuture<'a, Result<Vec<Option<Duration>>>> {
        self.hidden_for(queue, receipts).boxed()
    }

    fn look_around<'a>(&'a mut self, queues: &'a [(QueueName, bool)]) -> BoxFuture<'a, Result<View>> {
        self.look_around(queues).boxed()
    }
}
