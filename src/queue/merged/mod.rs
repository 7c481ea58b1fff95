//! Sends and settles of all callers, merged: one statement for many, and for each its own verdict.

mod sends;
mod settles;

use std::sync::Arc;

use tokio_util::task::TaskTracker;

use super::settle::{Targets, distinct};
use crate::domain::message::ItemResult;
use crate::domain::{OutgoingMessage, QueueName, Result, Sent};
use crate::engine::Events;
use crate::engine::merge::{Bounds, Merger, Shares, Verdict};
use crate::pg::Database;

use sends::Sends;
pub use settles::Change;
use settles::{SettleLane, Settles, Wanted};

/// What becomes of each message of a parcel: its id, or why it was not stored.
pub type SentParcel = Vec<Result<Sent>>;

/// The mergers of a server.
pub struct Merging {
    sends: Merger<Sends>,
    settles: Merger<Settles>,
}

impl Merging {
    /// Mergers over a database of so many connections; their flushes are waited for in `tasks`.
    pub fn new(
        database: &Database,
        events: &Events,
        connections: u32,
        bounds: Bounds,
        tasks: &TaskTracker,
    ) -> Self {
        // Half of the pool for one queue's flushes; what waits for locked rows has a quarter of its own.
        let connections = connections as usize;
        let shares = Arc::new(Shares::new(connections / 2));
        let sends = Sends::new(database.clone(), events.clone(), Arc::clone(&shares));
        let settles = Settles::new(database.clone(), events.clone(), shares, connections / 4, tasks.clone());
        Self {
            sends: Merger::new(sends, bounds, tasks.clone()),
            settles: Merger::new(settles, bounds, tasks.clone()),
        }
    }

    /// Hands in messages for one queue, which keep their order; each gets its own verdict, after the commit.
    ///
    /// # Errors
    /// `Overloaded` where no place is left: nothing was applied.
    pub fn send(&self, queue: QueueName, messages: Vec<OutgoingMessage>) -> Result<Verdict<SentParcel>> {
        self.sends.submit(queue, messages)
    }

    /// The same as soon as there is a place for them.
    pub async fn send_when_room(
        &self,
        queue: QueueName,
        messages: Vec<OutgoingMessage>,
    ) -> Verdict<SentParcel> {
        self.sends.submit_when_room(queue, messages).await
    }

    /// Settles messages of one queue; equal targets get equal results, in the order of the targets.
    ///
    /// # Errors
    /// `Overloaded` where no place is left; `QueueNotFound`; `QueueBusy` if another transaction holds one of the rows
    /// for more than 2 s; `OutcomeUnknownRetrySafe` if the connection was lost meanwhile, or `OutcomeUnknown` where
    /// repeating is not safe.
    pub async fn settle(
        &self,
        queue: QueueName,
        targets: Targets,
        change: Change,
    ) -> Result<Vec<ItemResult>> {
        let (lane, wanted, places) = wanted(queue, targets, change);
        let results = self.settles.submit(lane, wanted)?.wait().await?;
        Ok(in_places(results, places))
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
        let results = self.settles.submit_when_room(lane, wanted).await.wait().await?;
        Ok(in_places(results, places))
    }
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
