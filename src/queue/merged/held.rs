//! Messages whose deduplication ids other transactions hold: tried again until they are free, each line by itself, so
//! that nobody else waits for them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::SentParcel;
use super::lines::Line;
use super::pauses::Pauses;
use super::sends::{Insert, told};
use super::settles::FLUSH_TIME;
use crate::domain::{Deadline, DeduplicationId, Error, Kind, OutgoingMessage, QueueName, Result, Sent};
use crate::engine::merge::{MAX_FLUSH_ITEMS, Parcel, bisect};
use crate::engine::{Changes, Events};
use crate::pg::{Database, KeyPatience};
use crate::queue::Budget;
use crate::queue::budget::Held;

/// A caller's messages of which some are held.
pub(super) struct HeldParcel {
    messages: Vec<OutgoingMessage>,
    /// What became of each message; nothing of those that are held or behind one.
    verdicts: Vec<Option<Result<Sent>>>,
    caller: Parcel<(), SentParcel>,
    pauses: Pauses,
    _memory: Held,
}

impl HeldParcel {
    /// A parcel in memory that was taken for it.
    pub(super) fn new(
        messages: Vec<OutgoingMessage>,
        verdicts: Vec<Option<Result<Sent>>>,
        caller: Parcel<(), SentParcel>,
        memory: Held,
    ) -> Self {
        Self { messages, verdicts, caller, pauses: Pauses::new(), _memory: memory }
    }

    /// How many messages have no verdict.
    pub(super) fn open(&self) -> usize {
        self.verdicts.iter().filter(|verdict| verdict.is_none()).count()
    }

    fn open_messages(&self) -> impl Iterator<Item = &OutgoingMessage> {
        self.messages
            .iter()
            .zip(&self.verdicts)
            .filter(|(_, verdict)| verdict.is_none())
            .map(|(open, _)| open)
    }

    /// Refuses the first message that is held: it was for too long.
    fn refuse_first(&mut self, queue: &QueueName) {
        let held = self.messages.iter().zip(&mut self.verdicts).find(|(_, verdict)| verdict.is_none());
        if let Some((message, verdict)) = held {
            *verdict = Some(Err(busy(queue, message)));
        }
    }

    fn answer(self) {
        self.caller.answer(Ok(self.verdicts.into_iter().flatten().collect()));
    }
}

fn busy(queue: &QueueName, message: &OutgoingMessage) -> Error {
    let id = message.deduplication_id().map(DeduplicationId::as_str).unwrap_or_default();
    let why = format!("another transaction has held the deduplication id {id:?} for more than 2 s");
    Error::new(Kind::QueueBusy, format!("{why}; the message was not stored"))
        .with("queue", queue.as_str())
        .with("deduplication_id", id)
        .retry_after(Duration::from_secs(1))
}

/// What those who look after held messages share.
pub(super) struct Means {
    pub(super) database: Database,
    pub(super) events: Events,
    /// The memory of what is held.
    pub(super) budget: Budget,
    /// The connections of those who try again.
    pub(super) turns: Semaphore,
}

/// Looks after what is held of one line.
pub(super) struct Keeper {
    pub(super) means: Arc<Means>,
    pub(super) queue: QueueName,
    pub(super) line: Arc<Line>,
}

impl Keeper {
    /// Tries again until nothing of the line is held any more.
    pub(super) async fn run(self) {
        Pauses::new().pause().await;
        loop {
            let mut parcels = self.line.take_held(MAX_FLUSH_ITEMS);
            if parcels.is_empty() {
                return;
            }
            parcels.retain(|parcel| parcel.caller.is_awaited());
            self.try_again(&mut parcels).await;
            let mut left = Vec::new();
            for parcel in parcels {
                match parcel.open() {
                    0 => parcel.answer(),
                    _ => left.push(parcel),
                }
            }
            if let Some(first) = left.first_mut() {
                match first.pauses.are_over() {
                    true => first.refuse_first(&self.queue),
                    false => first.pauses.pause().await,
                }
            }
            self.line.put_back(left);
        }
    }

    /// Stores messages without a verdict up to the first that is still held.
    async fn try_again(&self, parcels: &mut [HeldParcel]) {
        let messages: Vec<(usize, &OutgoingMessage)> =
            parcels.iter().flat_map(HeldParcel::open_messages).map(|message| (0, message)).collect();
        if messages.is_empty() {
            return;
        }
        let _turn = self.means.turns.acquire().await;
        let verdicts = match self.means.database.connect("send", Deadline::within(FLUSH_TIME)).await {
            Ok(mut connection) => {
                connection.set_deadline(Deadline::within(FLUSH_TIME));
                let mut insert = Insert::new(connection, &self.queue, Some(KeyPatience::None));
                // The first alone: it is the one that was held.
                let (first, others) = messages.split_at(1);
                let mut verdicts = bisect(first, &mut insert).await;
                verdicts.extend(bisect(others, &mut insert).await);
                told(verdicts, &messages)
            }
            Err(error) => messages.iter().map(|_| Some(Err(error.clone()))).collect(),
        };
        let stored = messages.iter().zip(&verdicts).filter(|(_, verdict)| matches!(verdict, Some(Ok(_))));
        let mut changes = Changes::default();
        changes.sent(&self.queue, stored.map(|((_, message), _)| message.schedule()));
        changes.tell(&self.means.events);
        let open = parcels.iter_mut().flat_map(|parcel| &mut parcel.verdicts).filter(|open| open.is_none());
        for (open, verdict) in open.zip(verdicts) {
            *open = verdict;
        }
    }
}

impl Drop for Keeper {
    /// After a panic the line must not wait for ever. Its callers hear of it by their parcels' end.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.line.forget();
        }
    }
}
