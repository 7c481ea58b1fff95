//! Transactions on the wire.

use super::{Fields, FromRequest};
use crate::domain::bounds::{MAX_BATCH, MAX_OPERATIONS, MAX_REPLY_BYTES, length};
use crate::domain::{ClientRole, Invalid, Kind};
use crate::proto::v1;
use crate::proto::v1::transact_operation::Operation;
use crate::proto::v1::transact_result::Result as Reply;
use crate::queue::{self, Rules, Transact, TransactOperation, TransactResult, Transacted};

impl FromRequest<v1::TransactRequest> for Transact {
    const FOLLOWS_POLICY: bool = true;

    fn uses(request: &v1::TransactRequest, uses: &mut dyn FnMut(ClientRole, &str)) {
        for operation in request.operations.iter().filter_map(|given| given.operation.as_ref()) {
            match operation {
                Operation::Send(request) => queue::Send::uses(request, uses),
                Operation::SendBatch(request) => queue::SendBatch::uses(request, uses),
                Operation::SendTopic(request) => queue::SendTopic::uses(request, uses),
                Operation::Delete(request) => queue::Delete::uses(request, uses),
                Operation::Archive(request) => queue::Archive::uses(request, uses),
                Operation::Release(request) => queue::Release::uses(request, uses),
                Operation::DeadLetter(request) => queue::DeadLetter::uses(request, uses),
                Operation::SetVisibilityTimeout(request) => {
                    queue::SetVisibilityTimeout::uses(request, uses);
                }
            }
        }
    }

    fn parse(request: v1::TransactRequest, rules: &Rules, fields: &mut Fields) -> Option<Self> {
        fields.take("operations", length(request.operations.len(), MAX_OPERATIONS))?;
        let items: usize =
            request.operations.iter().filter_map(|given| given.operation.as_ref()).map(items).sum();
        if items > MAX_BATCH {
            let description =
                format!("all operations together take at most {MAX_BATCH} items; these have {items}");
            fields
                .refuse("operations", Invalid::new(Kind::InvalidCount, description).with("limit", MAX_BATCH));
            return None;
        }
        let parsed: Vec<Option<TransactOperation>> = request
            .operations
            .into_iter()
            .enumerate()
            .map(|(index, given)| {
                fields.within(&format!("operations[{index}]."), |fields| operation(given, rules, fields))
            })
            .collect();
        let id = fields.deduplication_id(request.deduplication_id);
        let mut operations: Vec<TransactOperation> = parsed.into_iter().collect::<Option<_>>()?;
        share_reply(&mut operations);
        Some(Self { operations, deduplication_id: id? })
    }
}

/// All operations answer in one reply, so those that give messages share it.
fn share_reply(operations: &mut [TransactOperation]) {
    let giving = operations.iter_mut().filter_map(|operation| match operation {
        TransactOperation::SetVisibilityTimeout(set) if set.return_messages => Some(&mut set.reply_bytes),
        _ => None,
    });
    let mut shares: Vec<&mut i64> = giving.collect();
    let share = MAX_REPLY_BYTES / i64::try_from(shares.len()).unwrap_or(1).max(1);
    for bytes in &mut shares {
        **bytes = share;
    }
}

/// How many messages an operation sends or settles.
fn items(operation: &Operation) -> usize {
    match operation {
        Operation::Send(_) | Operation::SendTopic(_) => 1,
        Operation::SendBatch(send) => send.messages.len(),
        Operation::Delete(delete) => delete.msg_ids.len() + delete.receipts.len(),
        Operation::Archive(archive) => archive.msg_ids.len() + archive.receipts.len(),
        Operation::Release(release) => release.receipts.len(),
        Operation::DeadLetter(dead) => dead.receipts.len(),
        Operation::SetVisibilityTimeout(set) => set.msg_ids.len() + set.receipts.len(),
    }
}

fn operation(given: v1::TransactOperation, rules: &Rules, fields: &mut Fields) -> Option<TransactOperation> {
    let Some(given) = given.operation else {
        fields.refuse("operation", Invalid::new(Kind::MissingField, "an operation is needed"));
        return None;
    };
    match given {
        Operation::Send(request) => fields
            .within("send.", |fields| FromRequest::parse(request, rules, fields))
            .map(TransactOperation::Send),
        Operation::SendBatch(request) => fields
            .within("send_batch.", |fields| FromRequest::parse(request, rules, fields))
            .map(TransactOperation::SendBatch),
        Operation::SendTopic(request) => fields
            .within("send_topic.", |fields| FromRequest::parse(request, rules, fields))
            .map(TransactOperation::SendTopic),
        Operation::Delete(request) => fields
            .within("delete.", |fields| FromRequest::parse(request, rules, fields))
            .map(TransactOperation::Delete),
        Operation::Archive(request) => fields
            .within("archive.", |fields| FromRequest::parse(request, rules, fields))
            .map(TransactOperation::Archive),
        Operation::Release(request) => fields
            .within("release.", |fields| FromRequest::parse(request, rules, fields))
            .map(TransactOperation::Release),
        Operation::DeadLetter(request) => fields
            .within("dead_letter.", |fields| FromRequest::parse(request, rules, fields))
            .map(TransactOperation::DeadLetter),
        Operation::SetVisibilityTimeout(request) => fields
            .within("set_visibility_timeout.", |fields| FromRequest::parse(request, rules, fields))
            .map(TransactOperation::SetVisibilityTimeout),
    }
}

impl From<Transacted> for v1::TransactResponse {
    fn from(transacted: Transacted) -> Self {
        let results = transacted.results.into_iter().map(v1::TransactResult::from).collect();
        Self { results, deduplicated: transacted.deduplicated }
    }
}

impl From<TransactResult> for v1::TransactResult {
    fn from(result: TransactResult) -> Self {
        let reply = match result {
            TransactResult::Send(output) => Reply::Send(output.into()),
            TransactResult::SendBatch(output) => Reply::SendBatch(output.into()),
            TransactResult::SendTopic(output) => Reply::SendTopic(output.into()),
            TransactResult::Delete(output) => Reply::Delete(output.into()),
            TransactResult::Archive(output) => Reply::Archive(output.into()),
            TransactResult::Release(output) => Reply::Release(output.into()),
            TransactResult::DeadLetter(output) => Reply::DeadLetter(output.into()),
            TransactResult::SetVisibilityTimeout(output) => Reply::SetVisibilityTimeout(output.into()),
        };
        Self { result: Some(reply) }
    }
}
