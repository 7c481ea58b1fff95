//! Messages of many callers for one queue, in one insert.

use std::sync::Arc;

use super::SentParcel;
use crate::domain::{Deadline, Error, Kind, OutgoingMessage, QueueName, Result, Sent};
use crate::engine::merge::{Attempt, Failure, Load, Merge, Parcel, Share, Shares, bisect};
use crate::engine::{Changes, Events};
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
    type Answer = SentParcel;
    type Open = (Share, Connection);
    /// Whether the parcels of the flush have deduplication ids, and whether another kind came after them.
    type Picked = (Option<bool>, bool);

    /// Parcels with deduplication ids are sent by themselves, because a stranger's open transaction can keep such an id
    /// from them. What comes after a parcel of the other kind waits with it, so that the order holds.
    fn goes_with((keyed, turned): &mut Self::Picked, messages: &Self::Load) -> bool {
        let is_keyed = messages.iter().any(|message| message.deduplication_id().is_some());
        *turned |= *keyed.get_or_insert(is_keyed) != is_keyed;
        !*turned
    }

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
        parcels: Vec<Parcel<Self::Load, SentParcel>>,
    ) {
        let messages: Vec<&OutgoingMessage> = parcels.iter().flat_map(|parcel| &parcel.load).collect();
        let mut insert = Insert { connection, queue };
        let verdicts = bisect(&messages, &mut insert).await;
        let verdicts: Vec<Result<Sent>> = verdicts.into_iter().map(Result::flatten).collect();
        let repeatable = |(verdict, message): (Result<Sent>, &&OutgoingMessage)| match verdict {
            Err(error) if message.deduplication_id().is_some() => Err(retry_safe(error)),
            verdict => verdict,
        };
        let verdicts: Vec<Result<Sent>> = verdicts.into_iter().zip(&messages).map(repeatable).collect();
        drop((insert, share));
        let stored = messages.iter().zip(&verdicts).filter(|(_, verdict)| verdict.is_ok());
        let mut changes = Changes::default();
        changes.sent(queue, stored.map(|(message, _)| message.schedule()));
        changes.tell(&self.events);
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
    type Output = Result<Sent>;

    async fn attempt(&mut self, messages: &[&OutgoingMessage]) -> Result<Vec<Result<Sent>>, Failure> {
        if messages.iter().any(|message| message.deduplication_id().is_some()) {
            return self.connection.send_keyed(self.queue, messages).await.map_err(failure);
        }
        let msg_ids = self.connection.send(self.queue, messages).await.map_err(failure)?;
        Ok(msg_ids.into_iter().map(|msg_id| Ok(Sent { msg_id, deduplicated: false })).collect())
    }
}

/// A message with a deduplication id can be sent again, whatever else was in its statement.
fn retry_safe(error: Error) -> Error {
    match error.kind() {
        Kind::OutcomeUnknown => {
            let why = "the connection to the database was lost; the message may have been stored, and repeating it is safe";
            error.reworded(Kind::OutcomeUnknownRetrySafe, why).retry_after(std::time::Duration::from_secs(1))
        }
        _ => error,
    }
}
