//! Transactions: too few and too many operations, and receipts that undo everything.

use pgmq_grpc::proto::v1::transact_operation::Operation;
use pgmq_grpc::proto::v1::*;
use tonic::Code;

use super::receipts::never_given;
use super::{check, contents, good_delete, good_message, good_send, refused, transact};
use crate::harness::wire::call;
use crate::harness::{Refusal, Test};

fn delete_by(receipts: &[&str]) -> Operation {
    let receipts = receipts.iter().map(|&receipt| receipt.to_owned()).collect();
    Operation::Delete(DeleteRequest { queue: "orders".to_owned(), receipts, msg_ids: vec![] })
}

#[tokio::test]
async fn a_transaction_has_at_most_256_operations_and_1000_items() {
    let test = Test::with_queue("orders").await;
    let sends = |count| vec![Operation::Send(good_send()); count];
    let ids = |count: usize| {
        Operation::Delete(DeleteRequest { msg_ids: (1..).take(count).collect(), ..good_delete() })
    };
    let batch = |count| {
        let messages = vec![good_message(); count];
        Operation::SendBatch(SendBatchRequest { queue: "orders".to_owned(), messages })
    };
    let too_many_items = [
        vec![ids(500), ids(501)],
        vec![batch(1_000), Operation::Send(good_send())],
        vec![batch(600), ids(401)],
        vec![ids(1_001)],
    ];
    let mut cases =
        vec![refused(call(transact(sends(257))), "INVALID_COUNT", "operations").with("limit", 256)];
    for operations in too_many_items {
        cases.push(refused(call(transact(operations)), "INVALID_COUNT", "operations").with("limit", 1_000));
    }
    check(&test, cases).await;
    call(transact(sends(256))).make(&test.client.channel).await.unwrap();
    call(transact([batch(500), ids(500)])).make(&test.client.channel).await.unwrap();
}

#[tokio::test]
async fn the_path_of_a_bad_field_leads_through_its_operation() {
    let test = Test::with_queue("orders").await;
    let set =
        SetVisibilityTimeoutRequest { queue: "orders".to_owned(), msg_ids: vec![1], ..Default::default() };
    let release = ReleaseRequest { queue: "orders".to_owned(), receipts: vec![], delay: None };
    let send = |message: &str| Operation::Send(SendRequest { message: message.to_owned(), ..good_send() });
    let request = transact([
        send("{"),
        send("1"),
        Operation::SetVisibilityTimeout(set),
        Operation::Release(release),
        delete_by(&["x", &never_given("orders"), "y"]),
    ]);
    let before = contents(&test).await;
    let status = call(request).make(&test.client.channel).await.unwrap_err();
    let refusal = Refusal::expect(&status, Code::InvalidArgument, "INVALID_JSON");
    assert_eq!(
        refusal.fields,
        [
            "operations[0].send.message",
            "operations[2].set_visibility_timeout.visibility_timeout",
            "operations[3].release.receipts",
            "operations[4].delete.receipts[0]",
            "operations[4].delete.receipts[2]",
        ]
    );
    assert_eq!(contents(&test).await, before);
}

#[tokio::test]
async fn a_receipt_of_a_message_that_is_gone_undoes_everything() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["1", "2"]).await;
    let read = test.client.read("orders", 2).await;
    test.client.delete("orders", &[&read[1].receipt]).await;
    let before = contents(&test).await;
    let request = transact([Operation::Send(good_send()), delete_by(&[&read[0].receipt, &read[1].receipt])]);
    let status = call(request).make(&test.client.channel).await.unwrap_err();
    let refusal = Refusal::expect(&status, Code::FailedPrecondition, "RECEIPT_NOT_FOUND");
    assert_eq!((&*refusal.metadata["operation_index"], &*refusal.metadata["item_index"]), ("1", "1"));
    assert_eq!(contents(&test).await, before);
}

#[tokio::test]
async fn a_receipt_of_a_message_that_somebody_else_has_read_undoes_everything() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "1").await;
    let old = test.client.read_one("orders").await.receipt;
    test.run("UPDATE pgmq.q_orders SET vt = now()").await;
    test.client.read_one("orders").await;
    let before = contents(&test).await;
    let request = transact([Operation::Send(good_send()), Operation::Send(good_send()), delete_by(&[&old])]);
    let status = call(request).make(&test.client.channel).await.unwrap_err();
    let refusal = Refusal::expect(&status, Code::FailedPrecondition, "STALE_RECEIPT");
    assert_eq!((&*refusal.metadata["operation_index"], &*refusal.metadata["item_index"]), ("2", "0"));
    assert_eq!(contents(&test).await, before);
}

#[tokio::test]
async fn an_unknown_queue_in_a_later_operation_undoes_the_earlier_ones() {
    let test = Test::with_queue("orders").await;
    let before = contents(&test).await;
    let lost = SendRequest { queue: "nowhere".to_owned(), ..good_send() };
    let request = transact([Operation::Send(good_send()), Operation::Send(lost)]);
    let status = call(request).make(&test.client.channel).await.unwrap_err();
    let refusal = Refusal::expect(&status, Code::NotFound, "QUEUE_NOT_FOUND");
    assert_eq!(refusal.metadata["queue"], "nowhere");
    assert_eq!(contents(&test).await, before);
}

#[tokio::test]
async fn an_id_that_is_not_found_undoes_nothing() {
    let test = Test::with_queue("orders").await;
    let gone = DeleteRequest { msg_ids: vec![77], ..good_delete() };
    call(transact([Operation::Send(good_send()), Operation::Delete(gone)]))
        .make(&test.client.channel)
        .await
        .unwrap();
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 1);
}
