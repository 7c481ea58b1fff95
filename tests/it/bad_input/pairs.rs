//! Fields of which exactly one is needed: none of them, or both.

use pgmq_grpc::proto::v1::create_fifo_index_request::Target;
use pgmq_grpc::proto::v1::set_visibility_timeout_request::Visibility;
use pgmq_grpc::proto::v1::transact_operation::Operation;
use pgmq_grpc::proto::v1::validate_name_request::Name;
use pgmq_grpc::proto::v1::*;

use super::receipts::never_given;
use super::{Case, check, good_send, refused, transact};
use crate::harness::wire::call;
use crate::harness::{Test, seconds};

/// All settles that take ids or receipts, with these.
fn settles(msg_ids: &[i64], receipts: &[String], reason: &'static str) -> Vec<Case> {
    let (queue, msg_ids, receipts) = ("orders".to_owned(), msg_ids.to_vec(), receipts.to_vec());
    let delete = DeleteRequest { queue: queue.clone(), msg_ids: msg_ids.clone(), receipts: receipts.clone() };
    let archive =
        ArchiveRequest { queue: queue.clone(), msg_ids: msg_ids.clone(), receipts: receipts.clone() };
    let set = SetVisibilityTimeoutRequest {
        queue,
        msg_ids,
        receipts,
        visibility: seconds(5.0).map(Visibility::VisibilityTimeout),
        return_messages: true,
    };
    let within = |operation| call(transact([Operation::Send(good_send()), operation]));
    vec![
        refused(call(delete.clone()), reason, "receipts"),
        refused(call(archive.clone()), reason, "receipts"),
        refused(call(set.clone()), reason, "receipts"),
        refused(within(Operation::Delete(delete)), reason, "operations[1].delete.receipts"),
        refused(within(Operation::Archive(archive)), reason, "operations[1].archive.receipts"),
        refused(
            within(Operation::SetVisibilityTimeout(set)),
            reason,
            "operations[1].set_visibility_timeout.receipts",
        ),
    ]
}

#[tokio::test]
async fn a_settle_names_ids_or_receipts_and_not_both() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let receipt = test.client.read_one("orders").await.receipt;
    check(&test, settles(&[], &[], "MISSING_FIELD")).await;
    check(&test, settles(&[1], &[receipt], "CONFLICTING_FIELDS")).await;
}

#[tokio::test]
async fn a_oneof_without_a_choice_is_refused() {
    let test = Test::with_queue("orders").await;
    let set = SetVisibilityTimeoutRequest {
        queue: "orders".to_owned(),
        receipts: vec![never_given("orders")],
        ..Default::default()
    };
    let unset = TransactRequest { operations: vec![TransactOperation::default()], ..Default::default() };
    let index = |target| call(CreateFifoIndexRequest { target });
    let name = |name| call(ValidateNameRequest { name });
    let cases = [
        refused(call(set), "MISSING_FIELD", "visibility_timeout"),
        refused(call(unset), "MISSING_FIELD", "operations[0].operation"),
        refused(index(None), "MISSING_FIELD", "target"),
        refused(index(Some(Target::AllQueues(false))), "MISSING_FIELD", "target"),
        refused(index(Some(Target::Queue(String::new()))), "MISSING_FIELD", "queue"),
        refused(name(None), "MISSING_FIELD", "name"),
        refused(name(Some(Name::RoutingKey(String::new()))), "MISSING_FIELD", "routing_key"),
        refused(name(Some(Name::Pattern(String::new()))), "MISSING_FIELD", "pattern"),
    ];
    check(&test, cases).await;
}
