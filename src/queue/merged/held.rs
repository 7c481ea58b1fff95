//! Messages whose deduplication ids other transactions hold: tried again until they are free, each line by itself, so
//! that nobody else waits for them. The callers of a queue who keep to no line are one crowd, which is tried together.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::SentParcel;
use super::lines::Line;
use super::pauses::Pauses;
use super::sends::{Insert, SEND, prepared, told};
use super::settles::FLUSH_TIME;
use crate::domain::{Deadline, DeduplicationId, Error, Kind, OutgoingMessage, QueueName, Result, Sent};
use crate::engine::merge::{MAX_FLUSH_ITEMS, Parcel, bisect};
use crate::engine::{Changes, Events};
use crate::pg::{Database, KeyPatience};
use crate::queue::Budget;
use crate::queue::budget::Held;

/// How many ids of a crowd are tried in one turn: all of them may be held, and have to be found one by one.
const IDS_PER_TURN: usize = 32;

/// The same after turns in which none was: who held them has ended. Each takes twice as many as the one before.
const MOST_IDS_PER_TURN: usize = 128;

/// How long a turn is waited for, before it is asked whether somebody has waited for long enough. It is long, because who
/// asks anew stands at the end of the line.
const TURN: Duration = Duration::from_secs(5);

/// How many turns that did not come are enough to give up.
const MISSED_TURNS: usize = 2;

/// How long those of a crowd wait whose turn was long ago, because there are too many others.
const LONGEST: Duration = Duration::from_secs(10);

/// How long it counts that an id was found held.
const FRESH: Duration = Duration::from_secs(1);

/// A caller's messages of which some are held.
pub(super) struct HeldParcel {
    messages: Vec<OutgoingMessage>,
    /// What became of each message; nothing of those that are held or behind one.
    verdicts: Vec<Option<Result<Sent>>>,
    caller: Parcel<(), SentParcel>,
    pauses: Pauses,
    /// When it was tried last and found held.
    tried: Option<Instant>,
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
        Self { messages, verdicts, caller, pauses: Pauses::new(), tried: None, _memory: memory }
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
            *verdict = Some(Err(busy(queue, message, self.tried.is_some())));
        }
    }

    fn answer(self) {
        self.caller.answer(Ok(self.verdicts.into_iter().flatten().collect()));
    }
}

fn busy(queue: &QueueName, message: &OutgoingMessage, is_tried: bool) -> Error {
    let id = message.deduplication_id().map(DeduplicationId::as_str).unwrap_or_default();
    let why = match is_tried {
        true => format!("another transaction held the deduplication id {id:?} when it was tried last"),
        false => format!("there was no turn to try whether the deduplication id {id:?} is free"),
    };
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

/// Looks after what is held of one line or crowd.
pub(super) struct Keeper {
    pub(super) means: Arc<Means>,
    pub(super) queue: QueueName,
    pub(super) line: Arc<Line>,
    /// Whether one that is held holds up those behind it; else it is a crowd.
    pub(super) in_order: bool,
}

impl Keeper {
    /// Tries again until nothing is held any more.
    pub(super) async fn run(self) {
        Pauses::new().pause().await;
        let (mut missed, mut ids) = (0, IDS_PER_TURN);
        loop {
            let mut parcels = self.line.take_held(if self.in_order { MAX_FLUSH_ITEMS } else { usize::MAX });
            if parcels.is_empty() {
                return;
            }
            parcels.retain(|parcel| parcel.caller.is_awaited());
            let now = if self.in_order {
                parcels.len()
            } else {
                // First those who had no turn yet, for their ids may be free; then whose turn was the longest ago.
                parcels.sort_by_key(|parcel| parcel.tried);
                of_one_turn(&parcels, ids)
            };
            let has_turn = self.try_again(&mut parcels[..now]).await;
            missed = if has_turn { 0 } else { missed + 1 };
            let all_free = has_turn && parcels[..now].iter().all(|parcel| parcel.open() == 0);
            ids = if all_free { (2 * ids).min(MOST_IDS_PER_TURN) } else { IDS_PER_TURN };
            let mut left = self.answer(parcels);
            let refused = if self.in_order { left.len().min(1) } else { left.len() };
            for parcel in &mut left[..refused] {
                if self.gives_up(parcel, missed) {
                    parcel.refuse_first(&self.queue);
                }
            }
            let mut left = self.answer(left);
            if let Some(first) = left.first_mut()
                && !all_free
                && !first.pauses.are_over()
            {
                first.pauses.pause().await;
            }
            self.line.put_back(left);
        }
    }

    /// Whether a parcel has waited for long enough. One that was only behind others, or whose turn was long ago, is tried
    /// first; and one that was never tried may be free, so it waits for as long as its caller does and turns come.
    fn gives_up(&self, parcel: &HeldParcel, missed: usize) -> bool {
        let is_late = !self.in_order && parcel.pauses.waited() >= LONGEST;
        let is_known = parcel.tried.is_some_and(|tried| tried.elapsed() < FRESH || is_late);
        parcel.pauses.are_over() && (is_known || missed >= MISSED_TURNS)
    }

    /// Answers parcels whose messages all have verdicts, and gives the others.
    fn answer(&self, parcels: Vec<HeldParcel>) -> Vec<HeldParcel> {
        let (answered, left) = parcels.into_iter().partition(|parcel| parcel.open() == 0);
        let answered: Vec<HeldParcel> = answered;
        answered.into_iter().for_each(HeldParcel::answer);
        left
    }

    /// Stores messages without a verdict, of a line up to the first that is still held. Whether it had a turn.
    async fn try_again(&self, parcels: &mut [HeldParcel]) -> bool {
        let lines = (0..).map(|place| if self.in_order { 0 } else { place });
        let messages: Vec<(usize, &OutgoingMessage)> = lines
            .zip(parcels.iter())
            .flat_map(|(line, parcel)| parcel.open_messages().map(move |message| (line, message)))
            .collect();
        if messages.is_empty() {
            return true;
        }
        let (database, name) = (&self.means.database, self.queue.as_str());
        // What is slow has its own part of the pool, and would keep the turn from others while it waits there.
        let _turn = match database.is_slow(SEND, name) {
            true => None,
            false => match timeout(TURN, self.means.turns.acquire()).await {
                // It may have become known meanwhile.
                Ok(turn) => turn.ok().filter(|_| !database.is_slow(SEND, name)),
                Err(_) => return false,
            },
        };
        let connected =
            async { prepared(database.connect_for(SEND, name, Deadline::within(FLUSH_TIME)).await?).await };
        let verdicts = match connected.await {
            Ok(connection) => {
                let mut insert = Insert::new(connection, &self.queue, Some(KeyPatience::None), usize::MAX);
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
        let (tried, now) = (if self.in_order { 1 } else { parcels.len() }, Instant::now());
        parcels.iter_mut().take(tried).for_each(|parcel| parcel.tried = Some(now));
        true
    }
}

/// How many parcels of a crowd go in one turn of so many ids, with all that were sent under the same ones.
fn of_one_turn(parcels: &[HeldParcel], most_ids: usize) -> usize {
    let (mut ids, mut messages) = (HashSet::new(), 0);
    let first_left = parcels.iter().position(|parcel| {
        ids.extend(parcel.open_messages().filter_map(OutgoingMessage::deduplication_id));
        messages += parcel.open();
        ids.len() > most_ids || messages > MAX_FLUSH_ITEMS
    });
    // A larger one goes alone.
    first_left.map_or(parcels.len(), |place| place.max(1))
}

impl Drop for Keeper {
    /// After a panic the line must not wait for ever. Its callers hear of it by their parcels' end.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.line.forget();
        }
    }
}
