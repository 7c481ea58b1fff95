//! Releases: when messages become visible again by their queue's policy, and which go to its dead-letter queue instead.

use std::sync::Arc;

use rand::Rng;

use super::merged::Change;
use super::settle::distinct;
use super::{Broker, OnConnection, Targets};
use crate::domain::dead_letter::{Cause, SetAside};
use crate::domain::message::{ItemResult, Outcome};
use crate::domain::{Deadline, Error, Kind, QueueName, Receipt, Result};
use crate::engine::Changes;
use crate::pg::{Connection, Policies};

/// What becomes of deliveries that are released.
pub(super) struct Released {
    /// After how many milliseconds each is visible.
    pub(super) delays_ms: Vec<i64>,
    /// The places of those that were handed over as often as the policy allows, in order.
    pub(super) worn_out: Vec<usize>,
    /// Where these go; none if there are none.
    pub(super) dead_letter_queue: Option<QueueName>,
}

impl Released {
    /// By the policy of their queue, as far as a caller has left it open.
    pub(super) fn by(
        policies: &Policies,
        queue: &QueueName,
        receipts: &[Receipt],
        delay_ms: Option<i64>,
    ) -> Self {
        let policy = policies.policy_of(queue);
        let delay_of = |receipt: &Receipt| match (delay_ms, &policy.retry_backoff) {
            (Some(delay_ms), _) => delay_ms,
            (None, Some(backoff)) => backoff.delay_ms(receipt.read_ct(), rand::rng().random()),
            (None, None) => 0,
        };
        let dead_letters = policy.dead_letter.as_ref().and_then(|_| policies.dead_letters_of(queue));
        let mut worn_out = Vec::new();
        if let Some(dead_letters) = &dead_letters {
            let all = receipts.iter().enumerate();
            let often = all.filter(|(_, receipt)| receipt.read_ct() >= dead_letters.max_receives);
            worn_out.extend(often.map(|(place, _)| place));
        }
        Self {
            delays_ms: receipts.iter().map(delay_of).collect(),
            dead_letter_queue: dead_letters.filter(|_| !worn_out.is_empty()).map(|policy| policy.queue),
            worn_out,
        }
    }
}

/// Whether a dead-letter queue that the policy names cannot be used, so that its queue goes on as if it had none.
pub(super) fn is_nowhere_to_go(error: &Error) -> bool {
    matches!(error.kind(), Kind::DeadLetterQueueMissing | Kind::DeadLetterChain)
}

/// Makes messages visible again, now or later (`pgmq.set_vt`); those that were handed over as often as the queue's policy
/// allows go to its dead-letter queue.
#[derive(Debug, Clone)]
pub struct Release {
    /// The queue.
    pub queue: QueueName,
    /// Which deliveries.
    pub receipts: Vec<Receipt>,
    /// When they become visible, in milliseconds from now; none as the queue's policy says.
    pub delay_ms: Option<i64>,
}

/// What became of deliveries that were released or went aside.
#[derive(Debug)]
pub struct Parted {
    /// Each delivery's outcome.
    pub results: Vec<ItemResult>,
    /// Those released of which those who wait have not heard, and after how many milliseconds each is visible.
    released: Vec<(Receipt, i64)>,
    /// What went aside and those who wait have not heard of.
    set_aside: Option<SetAside>,
}

impl Parted {
    /// What those who wait have heard of, or need not hear.
    pub(super) fn told(results: Vec<ItemResult>) -> Self {
        Self { results, released: Vec::new(), set_aside: None }
    }

    fn tell(&self, queue: &QueueName, changes: &mut Changes) {
        changes.released(queue, self.released.iter().copied());
        self.set_aside.iter().for_each(|aside| changes.set_aside(queue, aside));
    }
}

impl OnConnection for Release {
    const NAME: &'static str = "release";
    type Output = Parted;

    async fn apply(&self, connection: &mut Connection) -> Result<Parted> {
        let (receipts, places) = distinct(&self.receipts);
        let policies = connection.policies();
        let Released { delays_ms, worn_out, dead_letter_queue } =
            Released::by(&policies, &self.queue, &receipts, self.delay_ms);
        let mut results: Vec<Option<ItemResult>> = vec![None; receipts.len()];
        let mut set_aside = None;
        if let Some(to) = dead_letter_queue {
            let dead: Vec<Receipt> = worn_out.iter().map(|&place| receipts[place]).collect();
            let cause = Cause::MaxReceives;
            match connection.dead_letter_or_tell(&self.queue, &to, &dead, &cause).await {
                Ok(buried) => {
                    let msg_ids = done(&dead, &buried).map(|receipt| receipt.msg_id()).collect();
                    set_aside = Some(SetAside { to: Some(to), msg_ids });
                    worn_out.iter().zip(buried).for_each(|(&place, result)| results[place] = Some(result));
                }
                Err(error) if is_nowhere_to_go(&error) => Connection::warn_of_missing(&self.queue, &to),
                Err(error) => return Err(error),
            }
        }
        let others: Vec<usize> = (0..receipts.len()).filter(|&place| results[place].is_none()).collect();
        let mut released = Vec::new();
        if !others.is_empty() {
            let wanted: Vec<Receipt> = others.iter().map(|&place| receipts[place]).collect();
            let delays_ms: Vec<i64> = others.iter().map(|&place| delays_ms[place]).collect();
            let outcomes = connection.release_or_tell(&self.queue, &wanted, &delays_ms).await?;
            let each = wanted.into_iter().zip(delays_ms).zip(&outcomes);
            let done = each.filter(|(_, result)| result.outcome == Outcome::Done);
            released.extend(done.map(|(released, _)| released));
            others.iter().zip(outcomes).for_each(|(&place, result)| results[place] = Some(result));
        }
        let results: Vec<ItemResult> = results.into_iter().flatten().collect();
        let results = places.into_iter().map(|place| results[place]).collect();
        Ok(Parted { results, released, set_aside })
    }

    async fn call(self, broker: &Arc<Broker>, deadline: Deadline) -> Result<Parted> {
        let (targets, change) =
            (Targets::Receipts(self.receipts), Change::Release { delay_ms: self.delay_ms });
        let results = broker.until(deadline, broker.merging.settle(self.queue, targets, change)).await?;
        Ok(Parted::told(results))
    }

    fn tell(&self, output: &Parted, changes: &mut Changes) {
        output.tell(&self.queue, changes);
    }
}

/// Moves messages to the queue's dead-letter queue.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// The queue.
    pub queue: QueueName,
    /// Which deliveries.
    pub receipts: Vec<Receipt>,
    /// Why.
    pub cause: Cause,
}

impl OnConnection for DeadLetter {
    const NAME: &'static str = "dead_letter";
    type Output = Parted;

    async fn apply(&self, connection: &mut Connection) -> Result<Parted> {
        let (receipts, places) = distinct(&self.receipts);
        let to = connection.dead_letter_queue(&self.queue).await?;
        let results = connection.dead_letter_or_tell(&self.queue, &to, &receipts, &self.cause).await?;
        let msg_ids = done(&receipts, &results).map(|receipt| receipt.msg_id()).collect();
        let set_aside = Some(SetAside { to: Some(to), msg_ids });
        let results = places.into_iter().map(|place| results[place]).collect();
        Ok(Parted { set_aside, ..Parted::told(results) })
    }

    async fn call(self, broker: &Arc<Broker>, deadline: Deadline) -> Result<Parted> {
        let (targets, change) = (Targets::Receipts(self.receipts), Change::DeadLetter(self.cause));
        let results = broker.until(deadline, broker.merging.settle(self.queue, targets, change)).await?;
        Ok(Parted::told(results))
    }

    fn tell(&self, output: &Parted, changes: &mut Changes) {
        output.tell(&self.queue, changes);
    }
}

/// The deliveries that were settled.
fn done<'a>(receipts: &'a [Receipt], results: &'a [ItemResult]) -> impl Iterator<Item = Receipt> + 'a {
    let each = receipts.iter().zip(results);
    each.filter(|(_, result)| result.outcome == Outcome::Done).map(|(receipt, _)| *receipt)
}
