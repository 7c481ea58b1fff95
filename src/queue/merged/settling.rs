//! One caller's settle: handed in, and handed in again for the messages that others have locked.

use std::time::Duration;

use super::Merging;
use super::pauses::Pauses;
use super::settles::{Change, Looked, SettleLane, Wanted};
use crate::domain::message::{ItemResult, Outcome};
use crate::domain::{Error, Kind, QueueName, Result};
use crate::pg::FirstLook;
use crate::queue::settle::{Targets, distinct};

/// What is told of each target; nothing of those that others have locked.
pub type Told = Vec<Option<ItemResult>>;

impl Merging {
    /// Settles messages of one queue; equal targets get equal results, in the order of the targets.
    ///
    /// # Errors
    /// `Overloaded` where no place is left; `QueueNotFound`; `QueueBusy` if other transactions hold one of the rows for
    /// more than 2 s; `OutcomeUnknownRetrySafe` if the connection was lost meanwhile, or `OutcomeUnknown` where
    /// repeating is not safe.
    pub async fn settle(
        &self,
        queue: QueueName,
        targets: Targets,
        change: Change,
    ) -> Result<Vec<ItemResult>> {
        // The server's end waits for those whose verdict is there and not yet taken, and for those who pause.
        let _answering = self.tasks.token();
        let (lane, wanted, places) = wanted(queue.clone(), targets, change);
        let (told, wanted) = told(self.settles.submit(lane, wanted)?.wait().await?);
        let _parked = told.iter().any(Option::is_none).then(|| self.parked.park());
        Ok(in_places(self.until_unlocked(queue, wanted.targets, change, told).await?, places))
    }

    /// The same as soon as there is a place for it, but for what others have locked: of that it tells nothing.
    ///
    /// # Errors
    /// Those of [`Merging::settle`], but for `Overloaded`.
    pub async fn settle_unlocked(&self, queue: QueueName, targets: Targets, change: Change) -> Result<Told> {
        let (lane, wanted, places) = wanted(queue, targets, change);
        let (told, _) = told(self.settles.submit_when_room(lane, wanted).await.wait().await?);
        Ok(in_places(told, places))
    }

    /// The results of all targets, of which some are told. The others are handed in again and again, without a
    /// connection meanwhile, until they are settled or were locked for too long.
    ///
    /// # Errors
    /// Those of [`Merging::settle`], but for `Overloaded`.
    pub async fn until_unlocked(
        &self,
        queue: QueueName,
        targets: Targets,
        change: Change,
        mut told: Told,
    ) -> Result<Vec<ItemResult>> {
        let wanted = Wanted { targets, change };
        let mut pauses = Pauses::new();
        loop {
            let locked: Vec<usize> = (0..told.len()).filter(|&place| told[place].is_none()).collect();
            if locked.is_empty() {
                return Ok(told.into_iter().flatten().collect());
            }
            let some_are_done = told.iter().flatten().any(|result| result.outcome == Outcome::Done);
            let failed = |error| match some_are_done {
                true => partly_applied(error, wanted.may_be_repeated()),
                false => error,
            };
            if pauses.are_over() {
                return Err(failed(busy(&queue)));
            }
            pauses.pause().await;
            // It waits for room, for the first part may be applied already.
            let again = self.settle_unlocked(queue.clone(), wanted.targets.at(&locked), change).await;
            for (place, result) in locked.into_iter().zip(again.map_err(failed)?) {
                told[place] = result;
            }
        }
    }
}

/// What was told of targets, and the targets.
fn told(looked: Looked) -> (Told, Wanted) {
    let told = looked.looks.into_iter().map(|look| match look {
        FirstLook::Told(result) => Some(result),
        FirstLook::NotSettled => None,
    });
    (told.collect(), looked.wanted)
}

/// Replaces "nothing was applied" where an earlier statement of the same call has been.
fn partly_applied(error: Error, may_be_repeated: bool) -> Error {
    let (lost, repeat) = match may_be_repeated {
        true => (Kind::OutcomeUnknownRetrySafe, "repeating the call is safe"),
        false => (Kind::OutcomeUnknown, "a repeat can take them from consumers who have read them since"),
    };
    let kind = error.kind();
    let why = match kind {
        Kind::QueueBusy => "others held some of the messages for more than 2 s",
        // Not a conflict any more: repeating the whole call would lose what the earlier statement answered.
        Kind::Conflict => {
            let why = format!(
                "some of the messages collided with others each time; the rest is settled, and {repeat}"
            );
            return error.reworded(Kind::QueueBusy, why);
        }
        Kind::DatabaseResources | Kind::StorageFull => {
            "the database lacks a resource for some of the messages"
        }
        Kind::DatabaseUnavailable | Kind::Overloaded => {
            let why = format!(
                "the database could not be reached again; some of the messages are settled, and {repeat}"
            );
            return error.reworded(lost, why);
        }
        _ => return error,
    };
    error.reworded(kind, format!("{why}; the rest is settled, and {repeat}"))
}

fn busy(queue: &QueueName) -> Error {
    let why = "others held some of the messages for more than 2 s; nothing was applied";
    Error::new(Kind::QueueBusy, why).with("queue", queue.as_str()).retry_after(Duration::from_secs(1))
}

/// What is handed in for some targets: each of them once. With it goes where the result of each target will be found,
/// where that is not its own place.
fn wanted(queue: QueueName, targets: Targets, change: Change) -> (SettleLane, Wanted, Option<Vec<usize>>) {
    let (targets, places) = match targets {
        Targets::Ids(msg_ids) if msg_ids.len() > 1 => {
            let (distinct, places) = distinct(&msg_ids);
            (Targets::Ids(distinct), Some(places))
        }
        Targets::Receipts(receipts) if receipts.len() > 1 => {
            let (distinct, places) = distinct(&receipts);
            (Targets::Receipts(distinct), Some(places))
        }
        single => (single, None),
    };
    (SettleLane::of(queue, &targets, change), Wanted { targets, change }, places)
}

fn in_places<T: Copy>(results: Vec<T>, places: Option<Vec<usize>>) -> Vec<T> {
    match places {
        Some(places) => places.into_iter().map(|place| results[place]).collect(),
        None => results,
    }
}
