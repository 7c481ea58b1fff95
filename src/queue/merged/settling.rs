//! One caller's settle: handed in, and handed in again for the messages that others have locked.

use std::time::Duration;

use super::Merging;
use super::pauses::Pauses;
use super::settles::{Change, Deed, Looked, SettleLane, Wanted};
use crate::domain::dead_letter::Cause;
use crate::domain::error::Applied;
use crate::domain::message::{ItemResult, Outcome};
use crate::domain::{Error, Kind, QueueName, Result, Settlement};
use crate::engine::merge::Verdict;
use crate::pg::{Connection, FirstLook, Sight};
use crate::queue::release::{Released, is_nowhere_to_go};
use crate::queue::settle::{Targets, distinct};

/// What is told of each target; nothing of those that others have locked.
pub type Told = Vec<Option<ItemResult>>;

impl Merging {
    /// Settles messages of one queue; equal targets get equal results, in the order of the targets.
    ///
    /// # Errors
    /// `Overloaded` where no place is left; `QueueNotFound`; `QueueBusy` if other transactions hold one of the rows for
    /// more than 2 s; `DeadLetterQueueMissing` and `DeadLetterChain` for dead letters; `OutcomeUnknownRetrySafe` if the
    /// connection was lost meanwhile, or `OutcomeUnknown` where repeating is not safe.
    pub async fn settle(
        &self,
        queue: QueueName,
        targets: Targets,
        change: Change,
    ) -> Result<Vec<ItemResult>> {
        // The server's end waits for those whose verdict is there and not yet taken, and for those who pause.
        let _answering = self.tasks.token();
        let (targets, places) = distinct_targets(targets);
        let parts = self.parts(&queue, &targets, &change);
        let (told, targets) = self.hand_in(&queue, targets, parts, Patience::Refused).await?;
        let _parked = told.iter().any(Option::is_none).then(|| self.parked.park());
        Ok(in_places(self.until_unlocked(queue, targets, change, told).await?, places))
    }

    /// The same as soon as there is a place for it, but for what others have locked: of that it tells nothing.
    ///
    /// # Errors
    /// Those of [`Merging::settle`], but for `Overloaded`.
    pub async fn settle_unlocked(&self, queue: QueueName, targets: Targets, change: Change) -> Result<Told> {
        self.settle_with(&queue, targets, &change, Patience::Waits).await
    }

    async fn settle_with(
        &self,
        queue: &QueueName,
        targets: Targets,
        change: &Change,
        patience: Patience,
    ) -> Result<Told> {
        let (targets, places) = distinct_targets(targets);
        let parts = self.parts(queue, &targets, change);
        let (told, _) = self.hand_in(queue, targets, parts, patience).await?;
        Ok(in_places(told, places))
    }

    /// The results of all targets, of which some are told. The others are handed in again and again, without a
    /// connection meanwhile, until they are settled or were locked for too long.
    ///
    /// # Errors
    /// Those of [`Merging::settle`], but for `Overloaded`; `RefusedByDatabase` where a trigger swallows what would be done.
    pub async fn until_unlocked(
        &self,
        queue: QueueName,
        targets: Targets,
        change: Change,
        mut told: Told,
    ) -> Result<Vec<ItemResult>> {
        let mut pauses = Pauses::new();
        loop {
            let locked: Vec<usize> = (0..told.len()).filter(|&place| told[place].is_none()).collect();
            if locked.is_empty() {
                return Ok(told.into_iter().flatten().collect());
            }
            let some_are_done = told.iter().flatten().any(|result| result.outcome == Outcome::Done);
            let failed = |error| match some_are_done {
                true => partly_applied(error, change.may_be_repeated(&targets)),
                false => error,
            };
            if pauses.are_over() {
                return Err(failed(busy(&queue)));
            }
            pauses.pause().await;
            // It waits for room, for the first part may be applied already.
            let again = self.settle_with(&queue, targets.at(&locked), &change, Patience::Again).await;
            for (place, result) in locked.into_iter().zip(again.map_err(failed)?) {
                told[place] = result;
            }
        }
    }

    /// What is to be done with distinct targets. Of what is released, that which was handed over often enough has another
    /// fate than the rest.
    fn parts(&self, queue: &QueueName, targets: &Targets, change: &Change) -> Parts {
        let deed = match change {
            Change::Delete => Deed::Settle(Settlement::Delete),
            Change::Archive => Deed::Settle(Settlement::Archive),
            Change::Reschedule(settlement) => Deed::Settle(*settlement),
            Change::GiveBack => Deed::GiveBack,
            Change::DeadLetter(cause) => Deed::DeadLetter(cause.clone()),
            Change::Release { delay_ms } => {
                let Released { delays_ms, worn_out, dead_letter_queue } =
                    Released::by(&self.policies, queue, targets.receipts(), *delay_ms);
                return Parts { deed: Deed::Release(delays_ms), worn_out, dead_letter_queue };
            }
        };
        Parts { deed, worn_out: Vec::new(), dead_letter_queue: None }
    }

    /// Hands in targets, and gives what is told of each. Where a part fails and another does not, nothing is told of the
    /// former, so that it is handed in again.
    async fn hand_in(
        &self,
        queue: &QueueName,
        targets: Targets,
        parts: Parts,
        patience: Patience,
    ) -> Result<(Told, Targets)> {
        let Parts { deed, worn_out, dead_letter_queue } = parts;
        let (Some(to), Deed::Release(delays_ms)) = (dead_letter_queue, &deed) else {
            return self.hand_in_alike(queue, targets, deed, patience).await;
        };
        let is_worn_out = |place: &usize| worn_out.binary_search(place).is_ok();
        let others: Vec<usize> = (0..targets.len()).filter(|place| !is_worn_out(place)).collect();
        let delays_of = |places: &[usize]| places.iter().map(|&place| delays_ms[place]).collect();
        let release = |places: &[usize], patience| {
            self.hand_in_alike(queue, targets.at(places), Deed::Release(delays_of(places)), patience)
        };
        let dead = Deed::DeadLetter(Cause::MaxReceives);
        // Once the others are let in, these are as well.
        let later = if let Patience::Refused = patience { Patience::Waits } else { patience };
        let bury_patience = if others.is_empty() { patience } else { later };
        let bury = async {
            match self.hand_in_alike(queue, targets.at(&worn_out), dead, bury_patience).await {
                Err(error) if is_nowhere_to_go(&error) => {
                    Connection::warn_of_missing(queue, &to);
                    release(&worn_out, later).await
                }
                told => told,
            }
        };
        if others.is_empty() {
            return bury.await;
        }
        let released =
            self.enter(queue, targets.at(&others), Deed::Release(delays_of(&others)), patience).await?;
        let (buried, released) = tokio::join!(bury, async { released.wait().await.map(told) });
        let errors = || [&buried, &released].into_iter().filter_map(|part| part.as_ref().err());
        // What may have been applied is not told as nothing.
        if let Some(error) = errors().find(|error| error.applied() == Applied::Unknown) {
            return Err(error.clone());
        }
        if let (Err(error), Err(_)) = (&buried, &released) {
            return Err(error.clone());
        }
        let mut told = vec![None; targets.len()];
        for (places, part) in [(worn_out, buried), (others, released)] {
            for (place, result) in places.into_iter().zip(part.map(|(told, _)| told).into_iter().flatten()) {
                told[place] = result;
            }
        }
        Ok((told, targets))
    }

    async fn hand_in_alike(
        &self,
        queue: &QueueName,
        targets: Targets,
        deed: Deed,
        patience: Patience,
    ) -> Result<(Told, Targets)> {
        self.enter(queue, targets, deed, patience).await?.wait().await.map(told)
    }

    async fn enter(
        &self,
        queue: &QueueName,
        targets: Targets,
        deed: Deed,
        patience: Patience,
    ) -> Result<Verdict<Looked>> {
        let sight = if let Patience::Again = patience { Sight::Sure } else { Sight::Quick };
        let lane = SettleLane::of(queue.clone(), &targets, &deed, sight);
        let wanted = Wanted { targets, deed };
        match patience {
            Patience::Refused => self.settles.submit(lane, wanted),
            Patience::Waits | Patience::Again => Ok(self.settles.submit_when_room(lane, wanted).await),
        }
    }
}

/// What is to be done with one caller's distinct targets.
struct Parts {
    deed: Deed,
    /// The places of those that go to the dead-letter queue instead.
    worn_out: Vec<usize>,
    dead_letter_queue: Option<QueueName>,
}

/// What happens where no place is left.
#[derive(Clone, Copy)]
enum Patience {
    /// The caller hears so at once.
    Refused,
    /// The caller waits for one.
    Waits,
    /// The same, and it is not the first try.
    Again,
}

/// What was told of targets, and the targets.
fn told(looked: Looked) -> (Told, Targets) {
    let told = looked.looks.into_iter().map(|look| match look {
        FirstLook::Told(result) => Some(result),
        FirstLook::NotSettled => None,
    });
    (told.collect(), looked.wanted.targets)
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
        Kind::RefusedByDatabase => {
            let why = "the database refuses what would be done to some of the messages; others are settled";
            return error.reworded(kind, format!("{why}, and {repeat}"));
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

/// Each target once. With them goes where the result of each target will be found, where that is not its own place.
fn distinct_targets(targets: Targets) -> (Targets, Option<Vec<usize>>) {
    match targets {
        Targets::Ids(msg_ids) if msg_ids.len() > 1 => {
            let (distinct, places) = distinct(&msg_ids);
            (Targets::Ids(distinct), Some(places))
        }
        Targets::Receipts(receipts) if receipts.len() > 1 => {
            let (distinct, places) = distinct(&receipts);
            (Targets::Receipts(distinct), Some(places))
        }
        single => (single, None),
    }
}

fn in_places<T: Copy>(results: Vec<T>, places: Option<Vec<usize>>) -> Vec<T> {
    match places {
        Some(places) => places.into_iter().map(|place| results[place]).collect(),
        None => results,
    }
}
