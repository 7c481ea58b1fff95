//! Looks at a queue for streams that open: thousands come back at once after a restart, and one look does for all that have
//! asked before it began.

use crate::domain::{Deadline, Error, Ordering, Queue, QueueName, Result};
use crate::engine::merge::{Load, Merge, Parcel};
use crate::pg::{Connection, Database};

use super::settles::{FLUSH_TIME, failure};

/// What a stream wants to know: whether its queue is there, and can be read in this order.
pub(super) struct Look(pub(super) Ordering);

impl Load for Look {
    fn items(&self) -> usize {
        1
    }

    fn bytes(&self) -> usize {
        size_of::<Self>()
    }
}

/// Looks at queues.
pub(super) struct Looks(pub(super) Database);

impl Merge for Looks {
    type Lane = QueueName;
    type Load = Look;
    type Answer = Queue;
    type Open = Connection;
    type Picked = ();

    async fn open(&self, queue: &QueueName) -> Result<Connection> {
        self.0.connect_for("look", queue.as_str(), Deadline::within(FLUSH_TIME)).await
    }

    async fn flush(
        &self,
        queue: &QueueName,
        mut connection: Connection,
        parcels: Vec<Parcel<Look, Queue>>,
    ) -> Option<Error> {
        connection.set_deadline(Deadline::within(FLUSH_TIME));
        let found = connection.get_queue(queue).await.map_err(|error| failure(error).error);
        for parcel in parcels {
            let readable = match &found {
                Ok(queue) => connection.check_ordering(parcel.load.0).await.map(|()| queue.clone()),
                Err(error) => Err(error.clone()),
            };
            parcel.answer(readable);
        }
        None
    }
}
