//! Several operations in one database transaction: all of them, or none.

use std::collections::{BTreeMap, BTreeSet};

use super::topics::tell_of_copies;
use super::{
    Archive, DeadLetter, Delete, OnConnection, Parted, Release, Send, SendBatch, SendTopic,
    SetVisibilityTimeout, Settled, Targets, transact_record,
};
use crate::domain::message::{ItemResult, Outcome};
use crate::domain::queue::TopicCopy;
use crate::domain::{DeduplicationId, Error, Kind, OutgoingMessage, QueueName, Result, Sent};
use crate::engine::Changes;
use crate::pg::{Connection, Subject};

/// One step of a transaction.
#[derive(Debug)]
#[expect(missing_docs, reason = "each variant holds the operation of its name")]
pub enum TransactOperation {
    Send(Send),
    SendBatch(SendBatch),
    SendTopic(SendTopic),
    Delete(Delete),
    Archive(Archive),
    Release(Release),
    DeadLetter(DeadLetter),
    SetVisibilityTimeout(SetVisibilityTimeout),
}

/// What one step gave.
#[derive(Debug)]
#[expect(missing_docs, reason = "each variant holds the output of the operation of its name")]
pub enum TransactResult {
    Send(Sent),
    SendBatch(Vec<Sent>),
    SendTopic(Vec<TopicCopy>),
    Delete(Vec<ItemResult>),
    Archive(Vec<ItemResult>),
    Release(Parted),
    DeadLetter(Parted),
    SetVisibilityTimeout(Settled),
}

/// Runs operations in order in one transaction. A receipt that is stale or whose message is gone aborts all.
#[derive(Debug)]
pub struct Transact {
    /// The steps, at least one.
    pub operations: Vec<TransactOperation>,
    /// The id under which all of it is applied once.
    pub deduplication_id: Option<DeduplicationId>,
}

/// What a transaction gave.
#[derive(Debug)]
pub struct Transacted {
    /// One result for each operation.
    pub results: Vec<TransactResult>,
    /// An earlier transaction under the same id was applied; these are its results.
    pub deduplicated: bool,
}

impl TransactOperation {
    /// The queue of a step; no name for those of a topic, which are not known before.
    fn queue(&self) -> &str {
        match self {
            Self::Send(send) => send.queue.as_str(),
            Self::SendBatch(batch) => batch.queue.as_str(),
            Self::SendTopic(_) => "",
            Self::Delete(delete) => delete.queue.as_str(),
            Self::Archive(archive) => archive.queue.as_str(),
            Self::Release(release) => release.queue.as_str(),
            Self::DeadLetter(dead_letter) => dead_letter.queue.as_str(),
            Self::SetVisibilityTimeout(set) => set.queue.as_str(),
        }
    }
}

impl OnConnection for Transact {
    const NAME: &'static str = "transact";
    type Output = Transacted;

    /// All that it names: whichever of them it waits for, that one's share is what it has.
    fn subject(&self) -> Subject<'_> {
        let queues: BTreeSet<&str> = self.operations.iter().map(TransactOperation::queue).collect();
        Subject::Queues(queues.into_iter().collect())
    }

    fn held_bytes(&self) -> usize {
        let bytes = self.operations.iter().map(|operation| match operation {
            TransactOperation::Send(send) => send.message.held_bytes(),
            TransactOperation::SendBatch(batch) => OnConnection::held_bytes(batch),
            TransactOperation::SendTopic(send) => OnConnection::held_bytes(send),
            TransactOperation::Delete(_)
            | TransactOperation::Archive(_)
            | TransactOperation::Release(_)
            | TransactOperation::DeadLetter(_)
            | TransactOperation::SetVisibilityTimeout(_) => 0,
        });
        bytes.sum()
    }

    async fn apply(&self, connection: &mut Connection) -> Result<Transacted> {
        match self.is_keyed() {
            true => connection.begin_keyed().await?,
            false => connection.begin().await?,
        }
        let transacted = self.apply_once(connection).await;
        connection.conclude(transacted, self.deduplication_id.is_some()).await
    }

    fn tell(&self, transacted: &Transacted, changes: &mut Changes) {
        if transacted.deduplicated {
            return;
        }
        for (operation, result) in self.operations.iter().zip(&transacted.results) {
            operation.tell(result, changes);
        }
    }

    fn undone(&self, changes: &mut Changes) {
        self.touched().into_keys().for_each(|queue| changes.read(queue));
    }
}

impl Transact {
    /// Whether it has a deduplication id, or one of the messages that it sends.
    fn is_keyed(&self) -> bool {
        let mut messages = self.operations.iter().flat_map(TransactOperation::messages);
        self.deduplication_id.is_some() || messages.any(|message| message.deduplication_id().is_some())
    }

    async fn apply_once(&self, connection: &mut Connection) -> Result<Transacted> {
        let Some(id) = &self.deduplication_id else {
            let results = self.apply_in_transaction(connection).await?;
            return Ok(Transacted { results, deduplicated: false });
        };
        let content = transact_record::content(&self.operations);
        if let Some(kept) = connection.claim_transaction(id, &content).await? {
            return Ok(Transacted { results: transact_record::decode(&kept)?, deduplicated: true });
        }
        let results = self.apply_in_transaction(connection).await?;
        let sent_to: Vec<&str> = self.sent_to(&results).into_iter().collect();
        connection.keep_results(id, &transact_record::encode(&results)?, &sent_to).await?;
        Ok(Transacted { results, deduplicated: false })
    }

    /// Locks everything first, rows and then keys, each in the order in which everybody locks them.
    async fn apply_in_transaction(&self, connection: &mut Connection) -> Result<Vec<TransactResult>> {
        for (queue, msg_ids) in self.touched() {
            connection.lock_rows(queue, &msg_ids).await?;
        }
        self.lock_keys(connection).await?;
        let mut results = Vec::with_capacity(self.operations.len());
        for (index, operation) in self.operations.iter().enumerate() {
            let result = operation.apply(connection).await;
            results.push(result.map_err(|error| error.with("operation_index", index.to_string()))?);
        }
        Ok(results)
    }

    async fn lock_keys(&self, connection: &mut Connection) -> Result<()> {
        let mut keys: Vec<(QueueName, &DeduplicationId)> = Vec::new();
        for operation in &self.operations {
            match operation {
                TransactOperation::Send(Send { queue, message }) => {
                    keys.extend(message.deduplication_id().map(|id| (queue.clone(), id)));
                }
                TransactOperation::SendBatch(SendBatch { queue, messages }) => {
                    let ids = messages.iter().filter_map(OutgoingMessage::deduplication_id);
                    keys.extend(ids.map(|id| (queue.clone(), id)));
                }
                TransactOperation::SendTopic(SendTopic { routing_key, message, .. }) => {
                    if let Some(id) = message.deduplication_id() {
                        let queues = connection.matching_queues(routing_key).await?;
                        keys.extend(queues.into_iter().map(|queue| (queue, id)));
                    }
                }
                _ => {}
            }
        }
        connection.lock_keys(keys.iter().map(|(queue, id)| (queue, *id))).await
    }

    /// The queues that hold the messages which the results name. What was settled elsewhere stays settled, whatever becomes
    /// of its queue.
    fn sent_to<'a>(&'a self, results: &'a [TransactResult]) -> BTreeSet<&'a str> {
        let mut queues = BTreeSet::new();
        for (operation, result) in self.operations.iter().zip(results) {
            match (operation, result) {
                (TransactOperation::Send(Send { queue, .. }), _)
                | (TransactOperation::SendBatch(SendBatch { queue, .. }), _) => {
                    queues.insert(queue.as_str());
                }
                (_, TransactResult::SendTopic(copies)) => {
                    queues.extend(copies.iter().map(|copy| copy.queue.as_str()));
                }
                _ => {}
            }
        }
        queues
    }

    /// The messages that are settled, by queue, in the order in which every transaction locks them.
    fn touched(&self) -> BTreeMap<&QueueName, Vec<i64>> {
        let mut touched: BTreeMap<&QueueName, Vec<i64>> = BTreeMap::new();
        for (queue, targets) in self.operations.iter().filter_map(TransactOperation::targets) {
            touched.entry(queue).or_default().extend(targets.msg_ids());
        }
        touched
    }
}

impl TransactOperation {
    async fn apply(&self, connection: &mut Connection) -> Result<TransactResult> {
        let result = match self {
            Self::Send(send) => TransactResult::Send(send.apply(connection).await?),
            Self::SendBatch(send) => TransactResult::SendBatch(send.apply(connection).await?),
            Self::SendTopic(send) => TransactResult::SendTopic(send.apply(connection).await?),
            Self::Delete(delete) => TransactResult::Delete(delete.apply(connection).await?),
            Self::Archive(archive) => TransactResult::Archive(archive.apply(connection).await?),
            Self::Release(release) => TransactResult::Release(release.apply(connection).await?),
            Self::DeadLetter(dead) => TransactResult::DeadLetter(dead.apply(connection).await?),
            Self::SetVisibilityTimeout(set) => {
                TransactResult::SetVisibilityTimeout(set.apply(connection).await?)
            }
        };
        let results: &[ItemResult] = match &result {
            TransactResult::Delete(results) | TransactResult::Archive(results) => results,
            TransactResult::Release(parted) | TransactResult::DeadLetter(parted) => &parted.results,
            TransactResult::SetVisibilityTimeout(settled) => &settled.results,
            TransactResult::Send(_) | TransactResult::SendBatch(_) | TransactResult::SendTopic(_) => &[],
        };
        if let Some((_, Targets::Receipts(_))) = self.targets() {
            refuse_unsettled(results)?;
        }
        Ok(result)
    }

    fn messages(&self) -> &[OutgoingMessage] {
        match self {
            Self::Send(Send { message, .. }) | Self::SendTopic(SendTopic { message, .. }) => {
                std::slice::from_ref(message)
            }
            Self::SendBatch(SendBatch { messages, .. }) => messages,
            Self::Delete(_)
            | Self::Archive(_)
            | Self::Release(_)
            | Self::DeadLetter(_)
            | Self::SetVisibilityTimeout(_) => &[],
        }
    }

    fn targets(&self) -> Option<(&QueueName, Targets)> {
        match self {
            Self::Delete(Delete { queue, targets })
            | Self::Archive(Archive { queue, targets })
            | Self::SetVisibilityTimeout(SetVisibilityTimeout { queue, targets, .. }) => {
                Some((queue, targets.clone()))
            }
            Self::Release(Release { queue, receipts, .. })
            | Self::DeadLetter(DeadLetter { queue, receipts, .. }) => {
                Some((queue, Targets::Receipts(receipts.clone())))
            }
            Self::Send(_) | Self::SendBatch(_) | Self::SendTopic(_) => None,
        }
    }

    fn tell(&self, result: &TransactResult, changes: &mut Changes) {
        match (self, result) {
            (Self::Send(send), TransactResult::Send(output)) => send.tell(output, changes),
            (Self::SendBatch(send), TransactResult::SendBatch(output)) => send.tell(output, changes),
            (Self::Delete(delete), TransactResult::Delete(output)) => delete.tell(output, changes),
            (Self::Archive(archive), TransactResult::Archive(output)) => archive.tell(output, changes),
            (Self::Release(release), TransactResult::Release(output)) => release.tell(output, changes),
            (Self::DeadLetter(dead), TransactResult::DeadLetter(output)) => dead.tell(output, changes),
            (Self::SetVisibilityTimeout(set), TransactResult::SetVisibilityTimeout(output)) => {
                set.tell(output, changes);
            }
            (_, TransactResult::SendTopic(copies)) => tell_of_copies(copies, changes),
            _ => {}
        }
    }
}

fn refuse_unsettled(results: &[ItemResult]) -> Result<()> {
    for (index, result) in results.iter().enumerate() {
        let (kind, what) = match result.outcome {
            Outcome::Done => continue,
            Outcome::Stale => (Kind::StaleReceipt, "another read has taken the message since"),
            Outcome::NotFound => (Kind::ReceiptNotFound, "the message is gone"),
        };
        return Err(Error::new(
            kind,
            format!("receipt {index}: {what}; nothing of the transaction was applied"),
        )
        .with("item_index", index.to_string()));
    }
    Ok(())
}
