//! Messages of many callers for one queue, in one insert.

use std::sync::Arc;

use super::Sent;
use crate::domain::{Deadline, OutgoingMessage, QueueName, Result};
use crate::engine::Events;
use crate::engine::merge::{Attempt, Failure, Load, Merge, Parcel, Share, Shares, bisect};
use crate::pg::{Connection, Database};
use crate::queue::merged::settles::{FLUSH_TIME, failure};

/// Inserts what gathers.
pub(super) struct Sends {
    database: Database,
    events: Events,
    shares: Arc<Shares>,
}

impl Sends {
    pub(super) fn new(database: Database, events: Events, shares: Arc<Shares>) -> Self {
        Self { database, events, shares }
    }
}

impl Load for Vec<OutgoingMessage> {
    fn items(&self) -> usize {
        self.len()
    }

    fn bytes(&self) -> usize {
        self.iter().map(OutgoingMessage::held_bytes).sum()
    }
}

impl Merge for Sends {
    type Lane = QueueName;
    type Load = Vec<OutgoingMessage>;
    type Answer = Sent;
    type Open = (Share, Connection);
    type Picked = ();

    async fn open(&self, queue: &QueueName) -> Result<Self::Open> {
        let share = self.shares.take(queue).await;
        let mut connection = self.database.connect("send", Deadline::within(FLUSH_TIME)).await?;
        connection.set_deadline(Deadline::within(FLUSH_TIME));
        Ok((share, connection))
    }

    async fn flush(
        &self,
        queue: &QueueName,
        (share, connection): Self::Open,
        parcels: Vec<Parcel<Self::Load, Sent>>,
    ) {
        let messages: Vec<&OutgoingMessage> = parcels.iter().flat_map(|parcel| &parcel.load).collect();
        let mut insert = Insert { connection, queue };
        let verdicts = bisect(&messages, &mut insert).await;
        drop((insert, share));
        if verdicts.iter().any(Result::is_ok) {
            self.events.arrived(queue);
        }
        let mut verdicts = verdicts.into_iter();
        for parcel in parcels {
            let sent = verdicts.by_ref().take(parcel.load.len()).collect();
            parcel.answer(Ok(sent));
        }
    }
}

struct Insert<'a> {
    connection: Connection,
    queue: &'a QueueName,
}

impl Attempt<&OutgoingMessage> for Insert<'_> {
    type Output = i64;

    async fn attempt(&mut self, messages: &[&OutgoingMessage]) -> Result<Vec<i64>, Failure> {
        self.connection.send(self.queue, messages).await.map_err(failure)
    }
}
