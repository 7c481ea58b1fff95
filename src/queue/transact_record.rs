//! A transaction as its deduplication id keeps it: what it was, and what it gave.

use serde::{Deserialize, Serialize};

use super::{
    Archive, DeadLetter, Delete, Parted, Release, Send, SendBatch, SendTopic, SetVisibilityTimeout, Settled,
    Targets, TransactOperation, TransactResult,
};
use crate::domain::json::quote;
use crate::domain::message::{ItemResult, Outcome};
use crate::domain::queue::TopicCopy;
use crate::domain::{DeduplicationId, Error, OutgoingMessage, QueueName, Receipt, Result, Sent, Timestamp};

/// What a transaction does, as JSON: operations with their queues, keys, bodies, ids and receipts. What a send does not
/// compare either is left out: headers and times.
pub(super) fn content(operations: &[TransactOperation]) -> String {
    let texts: Vec<String> = operations.iter().map(content_of).collect();
    format!("[{}]", texts.join(","))
}

fn content_of(operation: &TransactOperation) -> String {
    let bodies = |messages: &[OutgoingMessage]| {
        let each = messages.iter().map(|message| {
            let id = message.deduplication_id().map(DeduplicationId::as_str).unwrap_or_default();
            format!("[{},{}]", message.message(), quote(id))
        });
        format!("[{}]", each.collect::<Vec<_>>().join(","))
    };
    let receipts = |receipts: &[Receipt]| {
        let each = receipts.iter().map(|receipt| quote(&receipt.encode()));
        format!("[{}]", each.collect::<Vec<_>>().join(","))
    };
    let targets = |targets: &Targets| match targets {
        Targets::Ids(msg_ids) => {
            format!("[{}]", msg_ids.iter().map(i64::to_string).collect::<Vec<_>>().join(","))
        }
        Targets::Receipts(given) => receipts(given),
    };
    let (name, address, items) = match operation {
        TransactOperation::Send(Send { queue, message }) => {
            ("send", queue.as_str(), bodies(std::slice::from_ref(message)))
        }
        TransactOperation::SendBatch(SendBatch { queue, messages }) => {
            ("send_batch", queue.as_str(), bodies(messages))
        }
        TransactOperation::SendTopic(SendTopic { routing_key, message, .. }) => {
            ("send_topic", routing_key.as_str(), bodies(std::slice::from_ref(message)))
        }
        TransactOperation::Delete(Delete { queue, targets: given }) => {
            ("delete", queue.as_str(), targets(given))
        }
        TransactOperation::Archive(Archive { queue, targets: given }) => {
            ("archive", queue.as_str(), targets(given))
        }
        TransactOperation::Release(Release { queue, receipts: given, .. }) => {
            ("release", queue.as_str(), receipts(given))
        }
        TransactOperation::DeadLetter(DeadLetter { queue, receipts: given, .. }) => {
            ("dead_letter", queue.as_str(), receipts(given))
        }
        TransactOperation::SetVisibilityTimeout(SetVisibilityTimeout { queue, targets: given, .. }) => {
            ("set_visibility_timeout", queue.as_str(), targets(given))
        }
    };
    format!("[{},{},{items}]", quote(name), quote(address))
}

/// One operation's result as it is stored. Servers of several versions read it: names stay, and fields are only added.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Record {
    Send(SentRecord),
    SendBatch(Vec<SentRecord>),
    SendTopic(Vec<CopyRecord>),
    Delete(Vec<ItemRecord>),
    Archive(Vec<ItemRecord>),
    Release(Vec<ItemRecord>),
    DeadLetter(Vec<ItemRecord>),
    SetVisibilityTimeout(Vec<ItemRecord>),
}

#[derive(Serialize, Deserialize)]
struct SentRecord {
    msg_id: i64,
    #[serde(default)]
    deduplicated: bool,
}

#[derive(Serialize, Deserialize)]
struct CopyRecord {
    queue: String,
    msg_id: i64,
    #[serde(default)]
    message_index: i32,
    #[serde(default)]
    deduplicated: bool,
}

#[derive(Serialize, Deserialize)]
struct ItemRecord {
    outcome: OutcomeRecord,
    #[serde(default)]
    vt_micros: Option<i64>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum OutcomeRecord {
    Done,
    NotFound,
    Stale,
}

/// The results as JSON. Messages that were returned are left out: their bodies would have to be kept for the window.
///
/// # Errors
/// `Internal`; it cannot happen for values that exist.
pub(super) fn encode(results: &[TransactResult]) -> Result<String> {
    let records: Vec<Record> = results.iter().map(record).collect();
    serde_json::to_string(&records).map_err(Error::internal)
}

/// The results of JSON that [`encode`] has made, perhaps in another server.
///
/// # Errors
/// `Internal` for what a much newer server has written.
pub(super) fn decode(text: &str) -> Result<Vec<TransactResult>> {
    let records: Vec<Record> = serde_json::from_str(text).map_err(Error::internal)?;
    records.into_iter().map(result).collect()
}

fn record(result: &TransactResult) -> Record {
    let sent = |sent: &Sent| SentRecord { msg_id: sent.msg_id, deduplicated: sent.deduplicated };
    let items = |results: &[ItemResult]| results.iter().map(item_record).collect();
    match result {
        TransactResult::Send(output) => Record::Send(sent(output)),
        TransactResult::SendBatch(output) => Record::SendBatch(output.iter().map(sent).collect()),
        TransactResult::SendTopic(copies) => {
            let copy = |copy: &TopicCopy| CopyRecord {
                queue: copy.queue.to_string(),
                msg_id: copy.msg_id,
                message_index: copy.message_index,
                deduplicated: copy.deduplicated,
            };
            Record::SendTopic(copies.iter().map(copy).collect())
        }
        TransactResult::Delete(results) => Record::Delete(items(results)),
        TransactResult::Archive(results) => Record::Archive(items(results)),
        TransactResult::Release(parted) => Record::Release(items(&parted.results)),
        TransactResult::DeadLetter(parted) => Record::DeadLetter(items(&parted.results)),
        TransactResult::SetVisibilityTimeout(settled) => {
            Record::SetVisibilityTimeout(items(&settled.results))
        }
    }
}

fn item_record(result: &ItemResult) -> ItemRecord {
    let outcome = match result.outcome {
        Outcome::Done => OutcomeRecord::Done,
        Outcome::NotFound => OutcomeRecord::NotFound,
        Outcome::Stale => OutcomeRecord::Stale,
    };
    ItemRecord { outcome, vt_micros: result.vt.map(Timestamp::unix_micros) }
}

fn result(record: Record) -> Result<TransactResult> {
    let sent = |sent: SentRecord| Sent { msg_id: sent.msg_id, deduplicated: sent.deduplicated };
    let items = |records: Vec<ItemRecord>| records.into_iter().map(item_result).collect::<Vec<_>>();
    Ok(match record {
        Record::Send(output) => TransactResult::Send(sent(output)),
        Record::SendBatch(output) => TransactResult::SendBatch(output.into_iter().map(sent).collect()),
        Record::SendTopic(copies) => {
            TransactResult::SendTopic(copies.into_iter().map(topic_copy).collect::<Result<_>>()?)
        }
        Record::Delete(records) => TransactResult::Delete(items(records)),
        Record::Archive(records) => TransactResult::Archive(items(records)),
        Record::Release(records) => TransactResult::Release(Parted::told(items(records))),
        Record::DeadLetter(records) => TransactResult::DeadLetter(Parted::told(items(records))),
        Record::SetVisibilityTimeout(records) => {
            TransactResult::SetVisibilityTimeout(Settled { results: items(records), messages: Vec::new() })
        }
    })
}

fn topic_copy(record: CopyRecord) -> Result<TopicCopy> {
    let queue = QueueName::try_from(record.queue).map_err(|invalid| Error::internal(invalid.description))?;
    Ok(TopicCopy {
        queue,
        msg_id: record.msg_id,
        message_index: record.message_index,
        deduplicated: record.deduplicated,
    })
}

fn item_result(record: ItemRecord) -> ItemResult {
    let outcome = match record.outcome {
        OutcomeRecord::Done => Outcome::Done,
        OutcomeRecord::NotFound => Outcome::NotFound,
        OutcomeRecord::Stale => Outcome::Stale,
    };
    ItemResult { outcome, vt: record.vt_micros.map(Timestamp::from_unix_micros) }
}
