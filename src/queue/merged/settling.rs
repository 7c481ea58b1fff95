//! One caller's settle: handed in, and handed in again for the messages that others have locked.

use std::time::Duration;

use super::Merging;
use super::pauses::Pauses;
use super::settles::{Change, Looked, SettleLane, Wanted, partly_applied};
use crate::domain::message::{ItemResult, Outcome};
use crate::domain::{Error, Kind, QueueName, Result};
use crate::pg::FirstLook;
use crate::queue::settle::{Targets, distinct};

/// The result of a message that is locked, until it is known.
const PENDING: ItemResult = ItemResult { outcome: Outcome::NotFound, vt: None };

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
        let (lane, wanted, places) = wanted(queue, targets, change);
        let looked = self.settles.submit(lane.clone(), wanted)?.wait().await?;
        Ok(in_places(self.until_unlocked(lane, looked).await?, places))
    }

    /// The same as soon as there is a place for it.
    ///
    /// # Errors
    /// Those of [`Merging::settle`], but for `Overloaded`.
    pub async fn settle_when_room(
        &self,
        queue: QueueName,
        targets: Targets,
        change: Change,
    ) -> Result<Vec<ItemResult>> {
        let (lane, wanted, places) = wanted(queue, targets, change);
        let looked = self.settles.submit_when_room(lane.clone(), wanted).await.wait().await?;
        Ok(in_places(self.until_unlocked(lane, looked).await?, places))
    }

    /// The results of what was looked at; what others have locked is handed in again and again, without a connection
    /// meanwhile, until it is settled or was locked for too long.
    async fn until_unlocked(&self, lane: SettleLane, looked: Looked) -> Result<Vec<ItemResult>> {
        let Looked { wanted, looks } = looked;
        let mut results = vec![PENDING; looks.len()];
        let mut locked: Vec<usize> = (0..looks.len()).collect();
        take_told(&mut results, &mut locked, looks);
        // The server's end waits for those who pause, too.
        let _waiting = (!locked.is_empty()).then(|| self.tasks.token());
        let mut pauses = Pauses::new();
        while !locked.is_empty() {
            let some_are_done = results.iter().any(|result| result.outcome == Outcome::Done);
            let failed = |error| match some_are_done {
                true => partly_applied(error, wanted.may_be_repeated()),
                false => error,
            };
            if pauses.are_over() {
                return Err(failed(busy(lane.queue())));
            }
            pauses.pause().await;
            let again = Wanted { targets: wanted.targets.at(&locked), change: wanted.change };
            // It waits for room, for the first part may be applied already.
            let verdict = self.settles.submit_when_room(lane.clone(), again).await;
            take_told(&mut results, &mut locked, verdict.wait().await.map_err(failed)?.looks);
        }
        Ok(results)
    }
}

/// Takes the results of messages that were locked, and leaves those that still are.
fn take_told(results: &mut [ItemResult], locked: &mut Vec<usize>, looks: Vec<FirstLook>) {
    let mut looks = looks.into_iter();
    locked.retain(|&place| match looks.next() {
        Some(FirstLook::Told(result)) => {
            results[place] = result;
            false
        }
        Some(FirstLook::NotSettled) | None => true,
    });
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

fn in_places(results: Vec<ItemResult>, places: Option<Vec<usize>>) -> Vec<ItemResult> {
    match places {
        Some(places) => places.into_iter().map(|place| results[place]).collect(),
        None => results,
    }
}
