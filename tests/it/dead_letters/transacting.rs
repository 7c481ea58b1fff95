//! Dead letters in transactions: with everything else, or not at all.

use pgmq_grpc::proto::v1::open_transaction_request::Command;
use pgmq_grpc::proto::v1::open_transaction_response::Reply;
use pgmq_grpc::proto::v1::transact_operation::Operation;
use pgmq_grpc::proto::v1::transact_result::Result as Done;
use pgmq_grpc::proto::v1::{
    DeadLetterRequest, Outcome, ReadBatchRequest, ReleaseRequest, SendRequest, TransactOperation,
    TransactRequest, TransactResponse,
};
use tonic::{Code, Status};

use super::{count, dead, expire, header, moved, orders, read_all};
use crate::harness::{Client, Refusal, Test};
use crate::read_batch::{all_of, begin_read, waiting_for};
use crate::settle::{outcomes, texts};
use crate::transaction::Open;

fn release(receipts: &[&str]) -> ReleaseRequest {
    ReleaseRequest { queue: "orders".into(), receipts: texts(receipts), delay: None }
}

fn dead_letter(receipts: &[&str]) -> DeadLetterRequest {
    DeadLetterRequest { queue: "orders".into(), receipts: texts(receipts), reason: "bad".into() }
}

fn send(queue: &str) -> SendRequest {
    SendRequest { queue: queue.to_owned(), message: r#""result""#.into(), ..Default::default() }
}

async fn transact(
    client: &mut Client,
    id: &str,
    operations: Vec<Operation>,
) -> Result<TransactResponse, Status> {
    let operations = operations.into_iter().map(|operation| TransactOperation { operation: Some(operation) });
    let request = TransactRequest { operations: operations.collect(), deduplication_id: id.to_owned() };
    client.queue.transact(request).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn a_transaction_moves_dead_letters_with_the_rest_and_wakes_their_readers() {
    let mut test = orders(2).await;
    for body in ["1", "2", "3"] {
        test.client.send("orders", body).await;
    }
    test.run("UPDATE pgmq.q_orders SET read_ct = 1 WHERE msg_id = 2").await;
    let held = read_all(&mut test, "orders").await;
    let letters = begin_read(&test, waiting_for("failed"));
    let both = release(&[&held[1].receipt, &held[2].receipt, &held[1].receipt]);
    let operations = vec![
        Operation::DeadLetter(dead_letter(&[&held[0].receipt])),
        Operation::Release(both),
        Operation::Send(send("orders")),
    ];
    let done = transact(&mut test.client, "once", operations.clone()).await.unwrap();
    let results: Vec<Done> = done.results.iter().map(|result| result.result.clone().unwrap()).collect();
    let [Done::DeadLetter(dead_lettered), Done::Release(released), Done::Send(_)] = results.as_slice() else {
        panic!("{results:?}");
    };
    assert_eq!(outcomes(&dead_lettered.results), [Outcome::Done]);
    assert_eq!(outcomes(&released.results), [Outcome::Done; 3]);
    assert_eq!(dead(&test).await, ["1", "2"]);
    assert_eq!(letters.await.unwrap().len(), 2);
    assert_eq!(count(&test, "orders").await, 2);
    // A repeat gives the same and does nothing.
    let again = transact(&mut test.client, "once", operations).await.unwrap();
    assert!(again.deduplicated);
    assert_eq!(again.results, done.results);
    assert_eq!(count(&test, "failed").await, 2);
    assert_eq!(moved(&mut test.client, "orders").await, 2);
}

#[tokio::test]
async fn a_transaction_that_fails_moves_nothing() {
    let mut test = orders(1).await;
    test.client.send("orders", "{}").await;
    let held = test.client.read_one("orders").await;
    let gone = release(&[&held.receipt]);
    for operation in [Operation::DeadLetter(dead_letter(&[&held.receipt])), Operation::Release(gone)] {
        let operations = vec![operation, Operation::Send(send("missing"))];
        let status = transact(&mut test.client, "", operations).await.unwrap_err();
        Refusal::expect(&status, Code::NotFound, "QUEUE_NOT_FOUND");
        assert_eq!((count(&test, "orders").await, count(&test, "failed").await), (1, 0));
    }
    test.client.delete("orders", &[&held.receipt]).await;
    let operations =
        vec![Operation::Send(send("failed")), Operation::DeadLetter(dead_letter(&[&held.receipt]))];
    let status = transact(&mut test.client, "", operations).await.unwrap_err();
    let refusal = Refusal::expect(&status, Code::FailedPrecondition, "RECEIPT_NOT_FOUND");
    assert_eq!(refusal.metadata["operation_index"], "1");
    assert_eq!(count(&test, "failed").await, 0);
    assert_eq!(moved(&mut test.client, "orders").await, 0);
}

#[tokio::test]
async fn a_transaction_without_a_dead_letter_queue_is_refused_as_a_whole() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let held = test.client.read_one("orders").await;
    let operations =
        vec![Operation::Send(send("orders")), Operation::DeadLetter(dead_letter(&[&held.receipt]))];
    let status = transact(&mut test.client, "", operations).await.unwrap_err();
    let refusal = Refusal::expect(&status, Code::FailedPrecondition, "DEAD_LETTER_QUEUE_MISSING");
    assert_eq!(refusal.metadata["operation_index"], "1");
    assert_eq!(count(&test, "orders").await, 1);
}

#[tokio::test]
async fn a_missing_dead_letter_queue_lets_a_transactions_release_go_on() {
    let mut test = orders(1).await;
    test.client.send("orders", "{}").await;
    let held = test.client.read_one("orders").await;
    test.run("SELECT pgmq.drop_queue('failed')").await;
    let operations = vec![Operation::Release(release(&[&held.receipt])), Operation::Send(send("orders"))];
    transact(&mut test.client, "", operations).await.unwrap();
    assert_eq!(read_all(&mut test, "orders").await.len(), 2);
}

#[tokio::test]
async fn an_open_transaction_sets_aside_as_any_read_does() {
    let mut test = orders(1).await;
    test.client.send("orders", r#""worn out""#).await;
    test.client.send("orders", r#""fresh""#).await;
    test.run("UPDATE pgmq.q_orders SET read_ct = 1 WHERE msg_id = 1").await;

    let mut open = Open::begin(&test.client).await;
    assert_eq!(open.read_one("orders").await.message, r#""fresh""#);
    assert_eq!(count(&test, "failed").await, 0, "nobody sees it before the commit");
    drop(open);
    crate::harness::eventually("the rollback", async || {
        let free = "SELECT count(*) FROM (SELECT FROM pgmq.q_orders FOR UPDATE SKIP LOCKED) AS q";
        (test.value::<i64>(free).await == 2).then_some(())
    })
    .await;
    assert_eq!((count(&test, "orders").await, count(&test, "failed").await), (2, 0));
    assert_eq!(moved(&mut test.client, "orders").await, 0);

    let mut open = Open::begin(&test.client).await;
    let fresh = open.read_one("orders").await;
    let reply = open.done(Command::DeadLetter(dead_letter(&[&fresh.receipt]))).await;
    let Reply::DeadLetter(settled) = reply else { panic!("{reply:?}") };
    assert_eq!(outcomes(&settled.results), [Outcome::Done]);
    open.commit().await;
    assert_eq!(dead(&test).await, [r#""fresh""#, r#""worn out""#]);
    assert_eq!(moved(&mut test.client, "orders").await, 2);
}

#[tokio::test]
async fn an_open_transaction_outlives_a_missing_dead_letter_queue() {
    let mut test = orders(1).await;
    test.client.send("orders", "{}").await;
    let held = test.client.read_one("orders").await;
    expire(&test, "orders").await;
    test.run("DROP TABLE pgmq.q_failed").await;

    let mut open = Open::begin(&test.client).await;
    let request = ReadBatchRequest { max_messages: 10, ..all_of("orders") };
    let reply = open.done(Command::ReadBatch(request)).await;
    let Reply::ReadBatch(read) = reply else { panic!("{reply:?}") };
    assert_eq!(read.messages[0].read_ct, 2, "it is handed over all the same");
    let reply = open.done(Command::Release(release(&[&read.messages[0].receipt]))).await;
    let Reply::Release(released) = reply else { panic!("{reply:?}") };
    assert_eq!(outcomes(&released.results), [Outcome::Done]);
    open.commit().await;
    assert_eq!(test.client.delete("orders", &[&held.receipt]).await, [Outcome::Stale]);
    assert_eq!(read_all(&mut test, "orders").await.len(), 1);
}

#[tokio::test]
async fn the_dead_letter_of_a_transaction_says_how_often_it_was_handed_over() {
    let mut test = orders(2).await;
    test.client.send("orders", "{}").await;
    test.client.read_one("orders").await;
    expire(&test, "orders").await;
    let held = test.client.read_one("orders").await;
    transact(&mut test.client, "", vec![Operation::Release(release(&[&held.receipt]))]).await.unwrap();
    assert_eq!(
        (header(&test, "read_ct").await, header(&test, "reason").await),
        ("2".into(), "max_receives".into())
    );
}
