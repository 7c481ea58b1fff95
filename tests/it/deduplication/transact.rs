//! Transactions with deduplication ids: applied once, and their results given again.

use std::time::Instant;

use pgmq_grpc::proto::v1::transact_operation::Operation;
use pgmq_grpc::proto::v1::{
    DeleteRequest, SendBatchRequest, SetVisibilityTimeoutRequest, TransactOperation, TransactRequest,
    TransactResponse, set_visibility_timeout_request::Visibility,
};
use tokio::task::JoinSet;
use tonic::{Code, Status};

use super::{bodies, expect_reused, item, keyed, send};
use crate::harness::client::outgoing;
use crate::harness::{Client, PATIENCE, Refusal, Server, Test, seconds};

pub(super) fn transaction(id: &str, operations: Vec<Operation>) -> TransactRequest {
    let operations = operations.into_iter().map(|operation| TransactOperation { operation: Some(operation) });
    TransactRequest { operations: operations.collect(), deduplication_id: id.to_owned() }
}

pub(super) async fn apply(client: &mut Client, request: TransactRequest) -> Result<TransactResponse, Status> {
    Ok(client.queue.transact(request).await?.into_inner())
}

/// Repeats while others hold the keys for longer than the server waits, as a client does; nothing else is forgiven.
pub(super) async fn apply_patiently(client: &mut Client, request: TransactRequest) -> TransactResponse {
    let started = Instant::now();
    loop {
        match apply(client, request.clone()).await {
            Ok(answer) => return answer,
            Err(status) => busy(&status, started),
        }
    }
}

/// The same for a batch.
async fn send_patiently(client: &mut Client, request: SendBatchRequest) {
    let started = Instant::now();
    while let Err(status) = client.queue.send_batch(request.clone()).await {
        busy(&status, started);
    }
}

fn busy(status: &Status, since: Instant) {
    Refusal::expect(status, Code::Aborted, "QUEUE_BUSY");
    assert!(since.elapsed() < PATIENCE, "busy for too long");
}

fn delete(receipt: &str) -> Operation {
    let receipts = vec![receipt.to_owned()];
    Operation::Delete(DeleteRequest { queue: "orders".to_owned(), receipts, ..Default::default() })
}

pub(super) fn batch(messages: &[&str]) -> Operation {
    let messages = messages.iter().map(|message| outgoing(message)).collect();
    Operation::SendBatch(SendBatchRequest { queue: "results".to_owned(), messages })
}

pub(super) async fn with_two_queues() -> Test {
    let mut test = Test::with_queue("orders").await;
    test.client.create("results").await;
    test
}

#[tokio::test]
async fn a_repeated_transaction_is_applied_once_and_gives_the_same_results() {
    let mut test = with_two_queues().await;
    test.client.send_all("orders", &["1", "2"]).await;
    let read = test.client.read("orders", 2).await;
    let hide = SetVisibilityTimeoutRequest {
        queue: "orders".to_owned(),
        receipts: vec![read[1].receipt.clone()],
        visibility: Some(Visibility::VisibilityTimeout(seconds(60.0).unwrap())),
        ..Default::default()
    };
    let request = transaction(
        "t1",
        vec![delete(&read[0].receipt), batch(&["1", "2"]), Operation::SetVisibilityTimeout(hide)],
    );
    let first = apply(&mut test.client, request.clone()).await.unwrap();
    assert!(!first.deduplicated);

    let other = Server::start_on(&test.database, &[]).await;
    for mut client in [test.client.clone(), Client::connect(&other).await] {
        let again = apply(&mut client, request.clone()).await.unwrap();
        assert_eq!(again, TransactResponse { deduplicated: true, ..first.clone() });
    }
    assert_eq!(bodies(&test, "results").await, ["1", "2"]);
    assert_eq!(bodies(&test, "orders").await, ["2"]);
}

#[tokio::test]
async fn another_transaction_under_the_same_id_is_refused() {
    let mut test = with_two_queues().await;
    apply(&mut test.client, transaction("t1", vec![batch(&["1.0"])])).await.unwrap();
    // A number is the same however it is written; a transaction's id is not a message's.
    assert!(apply(&mut test.client, transaction("t1", vec![batch(&["1"])])).await.unwrap().deduplicated);
    assert!(!send(&mut test.client, keyed("results", "t1", "9")).await.unwrap().deduplicated);

    for other in [vec![batch(&["2"])], vec![batch(&["1"]), batch(&["1"])], vec![batch(&["1", "1"])]] {
        expect_reused(&apply(&mut test.client, transaction("t1", other)).await.unwrap_err());
    }
    assert_eq!(bodies(&test, "results").await, ["1.0", "9"]);
}

#[tokio::test]
async fn a_transaction_that_fails_leaves_its_id_free() {
    let mut test = with_two_queues().await;
    test.client.send("orders", "1").await;
    let receipt = test.client.read_one("orders").await.receipt;
    test.client.delete("orders", &[&receipt]).await;

    let request = transaction("t1", vec![batch(&["1"]), delete(&receipt)]);
    let status = apply(&mut test.client, request).await.unwrap_err();
    Refusal::expect(&status, Code::FailedPrecondition, "RECEIPT_NOT_FOUND");
    assert!(!apply(&mut test.client, transaction("t1", vec![batch(&["2"])])).await.unwrap().deduplicated);
    assert_eq!(bodies(&test, "results").await, ["2"]);
}

#[tokio::test]
async fn one_transaction_wins_among_many_at_once() {
    let test = with_two_queues().await;
    let other = Server::start_on(&test.database, &[]).await;
    let elsewhere = Client::connect(&other).await;
    let mut callers = JoinSet::new();
    for n in 0..12 {
        let mut client = if n % 2 == 0 { test.client.clone() } else { elsewhere.clone() };
        callers.spawn(async move {
            let request = transaction("t1", vec![batch(&["1", "2"]), batch(&["3"])]);
            apply_patiently(&mut client, request).await
        });
    }
    let answers = callers.join_all().await;

    assert_eq!(answers.iter().filter(|answer| !answer.deduplicated).count(), 1);
    assert!(answers.iter().all(|answer| answer.results == answers[0].results));
    assert_eq!(bodies(&test, "results").await, ["1", "2", "3"]);
}

#[tokio::test]
async fn ids_of_messages_count_inside_a_transaction_and_do_not_collide_with_batches() {
    let mut test = with_two_queues().await;
    send(&mut test.client, keyed("orders", "k1", "1")).await.unwrap();
    let answer = apply(
        &mut test.client,
        transaction(
            "",
            vec![
                Operation::Send(keyed("orders", "k2", "2")),
                Operation::Send(keyed("orders", "k1", "1")),
                Operation::Send(keyed("orders", "k2", "2")),
            ],
        ),
    )
    .await
    .unwrap();
    assert!(!answer.deduplicated);
    assert_eq!(bodies(&test, "orders").await, ["1", "2"]);

    // Both take the same keys, in opposite order as their callers wrote them.
    let mut callers = JoinSet::new();
    for n in 0..20 {
        let mut client = test.client.clone();
        callers.spawn(async move {
            let keys: Vec<String> = (0..8).map(|key| format!("x{key}")).collect();
            if n % 2 == 0 {
                let sends = keys.iter().rev().map(|key| Operation::Send(keyed("orders", key, "0")));
                let request = transaction("", sends.collect());
                apply_patiently(&mut client, request).await;
            } else {
                let messages = keys.iter().map(|key| item(key, "0")).collect();
                let request = SendBatchRequest { queue: "orders".to_owned(), messages };
                send_patiently(&mut client, request).await;
            }
        });
    }
    callers.join_all().await;
    assert_eq!(bodies(&test, "orders").await.len(), 10);
    assert_eq!(
        test.value::<i64>("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").await,
        0
    );
}
