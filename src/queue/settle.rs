//! What becomes of messages that were read: deleted, archived, released, hidden for longer.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use super::merged::Change;
use super::{Broker, OnConnection};
use crate::domain::message::{ItemResult, Message, Outcome};
use crate::domain::{Deadline, QueueName, Receipt, Result, Settlement};
use crate::engine::Changes;
use crate::pg::{Connection, Subject};

/// Which messages are meant: by id, whoever holds them, or by receipt, if this delivery still holds them.
#[derive(Debug, Clone)]
pub enum Targets {
    /// Ids, as pgmq's functions take them.
    Ids(Vec<i64>),
    /// Receipts, fenced.
    Receipts(Vec<Receipt>),
}

impl Targets {
    /// The ids of the messages, in order.
    pub fn msg_ids(&self) -> Vec<i64> {
        match self {
            Self::Ids(msg_ids) => msg_ids.clone(),
            Self::Receipts(receipts) => receipts.iter().map(Receipt::msg_id).collect(),
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Ids(msg_ids) => msg_ids.len(),
            Self::Receipts(receipts) => receipts.len(),
        }
    }

    /// The id of the message at a place.
    pub(super) fn msg_id(&self, place: usize) -> i64 {
        match self {
            Self::Ids(msg_ids) => msg_ids[place],
            Self::Receipts(receipts) => receipts[place].msg_id(),
        }
    }

    /// The receipts; none for ids.
    pub(super) fn receipts(&self) -> &[Receipt] {
        match self {
            Self::Ids(_) => &[],
            Self::Receipts(receipts) => receipts,
        }
    }

    /// Those at some places.
    pub(super) fn at(&self, places: &[usize]) -> Self {
        match self {
            Self::Ids(msg_ids) => Self::Ids(places.iter().map(|&place| msg_ids[place]).collect()),
            Self::Receipts(receipts) => Self::Receipts(places.iter().map(|&place| receipts[place]).collect()),
        }
    }

    /// The receipts that did what was asked, by the ids of their messages; none for ids.
    fn done_receipts(&self, results: &[ItemResult]) -> HashMap<i64, Receipt> {
        let done = self.receipts().iter().zip(results).filter(|(_, result)| result.outcome == Outcome::Done);
        done.map(|(receipt, _)| (receipt.msg_id(), *receipt)).collect()
    }

    /// Settles each distinct target once; equal targets get equal results, in the order of the targets.
    pub(super) async fn settle(
        &self,
        connection: &mut Connection,
        queue: &QueueName,
        settlement: Settlement,
    ) -> Result<Vec<ItemResult>> {
        match self {
            Self::Ids(msg_ids) => {
                let (distinct, places) = distinct(msg_ids);
                let results = connection.settle_by_id(queue, &distinct, settlement).await?;
                Ok(places.into_iter().map(|place| results[place]).collect())
            }
            Self::Receipts(receipts) => {
                let (distinct, places) = distinct(receipts);
                let results = connection.settle_or_tell(queue, &distinct, settlement).await?;
                Ok(places.into_iter().map(|place| results[place]).collect())
            }
        }
    }
}

/// The distinct items, and for each item its place among them.
pub(super) fn distinct<T: Copy + Eq + Hash>(items: &[T]) -> (Vec<T>, Vec<usize>) {
    let mut places = HashMap::with_capacity(items.len());
    let mut distinct = Vec::with_capacity(items.len());
    let of_each = items
        .iter()
        .map(|&item| {
            *places.entry(item).or_insert_with(|| {
                distinct.push(item);
                distinct.len() - 1
            })
        })
        .collect();
    (distinct, of_each)
}

fn done_ids<'a>(targets: &'a Targets, results: &'a [ItemResult]) -> impl Iterator<Item = i64> + Clone + 'a {
    let msg_ids = targets.msg_ids().into_iter().zip(results);
    msg_ids.filter(|(_, result)| result.outcome == Outcome::Done).map(|(msg_id, _)| msg_id)
}

/// Deletes messages (`pgmq.delete`).
#[derive(Debug, Clone)]
pub struct Delete {
    /// The queue.
    pub queue: QueueName,
    /// Which messages.
    pub targets: Targets,
}

impl OnConnection for Delete {
    const NAME: &'static str = "delete";
    type Output = Vec<ItemResult>;

    async fn apply(&self, connection: &mut Connection) -> Result<Vec<ItemResult>> {
        self.targets.settle(connection, &self.queue, Settlement::Delete).await
    }

    async fn call(self, broker: &Arc<Broker>, deadline: Deadline) -> Result<Vec<ItemResult>> {
        broker.until(deadline, broker.merging.settle(self.queue, self.targets, Change::Delete)).await
    }

    fn tell(&self, results: &Vec<ItemResult>, changes: &mut Changes) {
        changes.settled(&self.queue, done_ids(&self.targets, results));
    }
}

/// Moves messages to the archive (`pgmq.archive`).
#[derive(Debug, Clone)]
pub struct Archive {
    /// The queue.
    pub queue: QueueName,
    /// Which messages.
    pub targets: Targets,
}

impl OnConnection for Archive {
    const NAME: &'static str = "archive";
    type Output = Vec<ItemResult>;

    async fn apply(&self, connection: &mut Connection) -> Result<Vec<ItemResult>> {
        self.targets.settle(connection, &self.queue, Settlement::Archive).await
    }

    async fn call(self, broker: &Arc<Broker>, deadline: Deadline) -> Result<Vec<ItemResult>> {
        broker.until(deadline, broker.merging.settle(self.queue, self.targets, Change::Archive)).await
    }

    fn tell(&self, results: &Vec<ItemResult>, changes: &mut Changes) {
        changes.settled(&self.queue, done_ids(&self.targets, results));
    }
}

/// Sets when messages become visible (`pgmq.set_vt`).
#[derive(Debug, Clone)]
pub struct SetVisibilityTimeout {
    /// The queue.
    pub queue: QueueName,
    /// Which messages.
    pub targets: Targets,
    /// When they become visible.
    pub visible: Settlement,
    /// Give the changed messages too.
    pub return_messages: bool,
    /// The most bytes that these may take.
    pub reply_bytes: i64,
}

/// What a change of visibility did.
#[derive(Debug, Clone)]
pub struct Settled {
    /// Each target's outcome.
    pub results: Vec<ItemResult>,
    /// The changed messages that fit a reply, if asked for; with the receipts that named them, if any did.
    pub messages: Vec<(Message, Option<Receipt>)>,
}

impl OnConnection for SetVisibilityTimeout {
    const NAME: &'static str = "set_visibility_timeout";
    type Output = Settled;

    fn subject(&self) -> Subject<'_> {
        self.queue.as_str().into()
    }

    async fn apply(&self, connection: &mut Connection) -> Result<Settled> {
        let results = self.targets.settle(connection, &self.queue, self.visible).await?;
        let changed = self.changed(&results);
        let messages = match changed.is_empty() {
            true => Vec::new(),
            false => connection.fetch(&self.queue, &changed, self.reply_bytes).await?,
        };
        Ok(self.settled(results, messages))
    }

    async fn call(self, broker: &Arc<Broker>, deadline: Deadline) -> Result<Settled> {
        let (queue, targets) = (self.queue.clone(), self.targets.clone());
        let settling = broker.merging.settle(queue, targets, Change::Reschedule(self.visible));
        let results = broker.until(deadline, settling).await?;
        let changed = self.changed(&results);
        if changed.is_empty() {
            return Ok(self.settled(results, Vec::new()));
        }
        let fetch = Fetch { queue: self.queue.clone(), msg_ids: changed, bytes: self.reply_bytes };
        // The change is made: an error now would deny it.
        let messages = broker.run(fetch, deadline).await.unwrap_or_else(|error| {
            let (queue, error) = (self.queue.as_str(), crate::domain::error::chain(&error));
            tracing::warn!(queue, error, "changed messages could not be shown");
            Vec::new()
        });
        Ok(self.settled(results, messages))
    }

    fn tell(&self, _: &Settled, changes: &mut Changes) {
        match self.visible {
            Settlement::VisibleAfterMillis(millis) => changes.rescheduled_for(&self.queue, millis),
            _ => changes.rescheduled(&self.queue),
        }
    }
}

impl SetVisibilityTimeout {
    /// The ids of the changed messages, if they are asked for.
    fn changed(&self, results: &[ItemResult]) -> Vec<i64> {
        match self.return_messages {
            true => done_ids(&self.targets, results).collect(),
            false => Vec::new(),
        }
    }

    fn settled(&self, results: Vec<ItemResult>, messages: Vec<Message>) -> Settled {
        let receipts = self.targets.done_receipts(&results);
        let messages = messages.into_iter().map(|message| {
            let receipt = receipts.get(&message.msg_id).copied().filter(|receipt| receipt.names(&message));
            (message, receipt)
        });
        let messages = messages.collect();
        Settled { results, messages }
    }
}

/// Shows messages that were changed.
struct Fetch {
    queue: QueueName,
    msg_ids: Vec<i64>,
    bytes: i64,
}

impl OnConnection for Fetch {
    const NAME: &'static str = "fetch";
    type Output = Vec<Message>;

    fn subject(&self) -> Subject<'_> {
        self.queue.as_str().into()
    }

    async fn apply(&self, connection: &mut Connection) -> Result<Vec<Message>> {
        connection.fetch(&self.queue, &self.msg_ids, self.bytes).await
    }
}
