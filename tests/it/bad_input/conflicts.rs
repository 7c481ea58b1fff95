//! Locks of others.

use std::time::{Duration, Instant};

use pgmq_grpc::proto::v1::transact_operation::Operation;
use pgmq_grpc::proto::v1::*;
use tonic::Code;

use super::{good_delete, good_send, transact};
use crate::harness::wire::{Call, call};
use crate::harness::{Refusal, Test, eventually};

/// How long a call waits for a lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// A refusal for a lock that was held for too long.
async fn expect_busy(test: &Test, call: Call) -> Refusal {
    let started = Instant::now();
    let Err(status) = call.make(&test.client.channel).await else { panic!("not refused: {}", call.text) };
    let waited = started.elapsed();
    let refusal = Refusal::expect(&status, Code::Aborted, "QUEUE_BUSY");
    assert!(refusal.retry_delay.is_some(), "{}: {refusal:?}", call.text);
    assert_eq!(refusal.metadata.get("queue").map(String::as_str), Some("orders"), "{}", call.text);
    assert!(waited >= LOCK_TIMEOUT && waited < 3 * LOCK_TIMEOUT, "{}: after {waited:?}", call.text);
    refusal
}

#[tokio::test]
async fn a_locked_message_makes_a_settle_busy_while_the_others_are_settled() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["1", "2", "3"]).await;
    let read = test.client.read("orders", 3).await;
    let receipts: Vec<String> = read.iter().map(|message| message.receipt.clone()).collect();
    test.run("BEGIN; SELECT FROM pgmq.q_orders WHERE msg_id = 2 FOR UPDATE").await;
    let request = DeleteRequest { queue: "orders".to_owned(), receipts, msg_ids: vec![] };
    let refusal = expect_busy(&test, call(request.clone())).await;
    assert!(!refusal.message.contains("nothing was applied"), "{refusal:?}");
    let left = "SELECT array_agg(msg_id) FROM pgmq.q_orders";
    assert_eq!(test.value::<Vec<i64>>(left).await, [2]);

    // Repeating it is safe, and does the rest.
    test.run("COMMIT").await;
    let results = test.client.queue.delete(request).await.unwrap().into_inner().results;
    let outcomes: Vec<Outcome> = results.iter().map(ItemResult::outcome).collect();
    assert_eq!(outcomes, [Outcome::NotFound, Outcome::Done, Outcome::NotFound]);
}

#[tokio::test]
async fn a_locked_message_makes_a_transaction_busy_and_nothing_is_done() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["1", "2"]).await;
    test.run("BEGIN; SELECT FROM pgmq.q_orders WHERE msg_id = 2 FOR UPDATE").await;
    let delete = DeleteRequest { msg_ids: vec![1, 2], ..good_delete() };
    let transaction = transact([Operation::Send(good_send()), Operation::Delete(delete)]);
    let refusal = expect_busy(&test, call(transaction)).await;
    assert!(refusal.message.contains("nothing was applied"), "{refusal:?}");
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 2);
}

#[tokio::test]
async fn a_locked_message_makes_a_settle_by_id_busy_and_the_others_are_settled() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["1", "2"]).await;
    test.run("BEGIN; SELECT FROM pgmq.q_orders WHERE msg_id = 2 FOR UPDATE").await;
    let refusal = expect_busy(&test, call(DeleteRequest { msg_ids: vec![1, 2], ..good_delete() })).await;
    assert!(!refusal.message.contains("nothing was applied"), "{refusal:?}");
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 1);
    let refusal = expect_busy(&test, call(DeleteRequest { msg_ids: vec![2], ..good_delete() })).await;
    assert!(refusal.message.contains("nothing was applied"), "{refusal:?}");
}

#[tokio::test]
async fn an_open_transaction_makes_dropping_and_emptying_busy() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "1").await;
    test.run("BEGIN; SELECT FROM pgmq.q_orders").await;
    expect_busy(&test, call(PurgeQueueRequest { queue: "orders".to_owned() })).await;
    expect_busy(&test, call(DropQueueRequest { queue: "orders".to_owned() })).await;
    test.run("COMMIT").await;
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 1);
    test.client.queue.purge_queue(PurgeQueueRequest { queue: "orders".to_owned() }).await.unwrap();
}

#[tokio::test]
async fn a_locked_table_makes_every_use_of_it_busy() {
    let test = Test::with_queue("orders").await;
    let queue = || "orders".to_owned();
    test.run("BEGIN; LOCK TABLE pgmq.q_orders").await;
    let calls = [
        call(good_send()),
        call(ReadBatchRequest { queue: queue(), ..Default::default() }),
        call(PopRequest { queue: queue(), max_messages: 1 }),
        call(GetQueueMetricsRequest { queue: queue(), include_archive: false }),
        call(EnableNotificationsRequest { queue: queue(), throttle_interval: None }),
        call(CreateFifoIndexRequest { target: Some(create_fifo_index_request::Target::Queue(queue())) }),
    ];
    futures_util::future::join_all(calls.map(|call| expect_busy(&test, call))).await;
}

#[tokio::test]
async fn a_queue_that_somebody_else_makes_or_drops_right_now_is_busy() {
    let test = Test::with_queue("orders").await;
    test.run("BEGIN; SELECT pg_advisory_xact_lock(hashtext('pgmq.queue_orders'))").await;
    expect_busy(&test, call(CreateQueueRequest { queue: "orders".to_owned(), ..Default::default() })).await;
}

#[tokio::test]
async fn callers_do_not_notice_a_lock_that_is_given_back_in_time() {
    let test = Test::with_queue("orders").await;
    test.run("BEGIN; LOCK TABLE pgmq.q_orders").await;
    let channel = test.client.channel.clone();
    let sent = tokio::spawn(async move { call(good_send()).make(&channel).await });
    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'pgmq.q_orders'::regclass";
    eventually("a waiting send", async || (test.value::<i64>(waits).await == 1).then_some(())).await;
    test.run("COMMIT").await;
    sent.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_deadlock_that_never_ends_is_a_conflict_after_three_tries() {
    let mut test = Test::with_queue("orders").await;
    // Raised by a rule of the user's, because a real one cannot be had three times on demand.
    test.run(
        "CREATE SEQUENCE tries; CREATE FUNCTION collide() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN PERFORM nextval('tries'); RAISE SQLSTATE '40P01'; END $$;
         CREATE TRIGGER collide BEFORE INSERT ON pgmq.q_orders FOR EACH ROW EXECUTE FUNCTION collide()",
    )
    .await;
    let status = test.client.queue.send(good_send()).await.unwrap_err();
    Refusal::expect(&status, Code::Aborted, "CONFLICT");
    assert_eq!(test.value::<i64>("SELECT last_value FROM tries").await, 3);
}

#[tokio::test]
async fn calls_that_may_be_repeated_may_also_be_made_at_once() {
    let test = Test::with_queue("orders").await;
    let queue = || "orders".to_owned();
    let pattern = || "logs.*".to_owned();
    let index = |target| call(CreateFifoIndexRequest { target: Some(target) });
    for call in [
        call(CreateQueueRequest { queue: "new".to_owned(), ..Default::default() }),
        index(create_fifo_index_request::Target::Queue(queue())),
        index(create_fifo_index_request::Target::AllQueues(true)),
        call(EnableNotificationsRequest { queue: queue(), throttle_interval: None }),
        call(UpdateNotificationsRequest { queue: queue(), throttle_interval: None }),
        call(DisableNotificationsRequest { queue: queue() }),
        call(BindTopicRequest { pattern: pattern(), queue: queue() }),
        call(UnbindTopicRequest { pattern: pattern(), queue: queue() }),
    ] {
        let answers = (0..8).map(|_| call.make(&test.client.channel));
        for answer in futures_util::future::join_all(answers).await {
            if let Err(status) = answer {
                // CONFLICT or QUEUE_BUSY, by how they met.
                assert_eq!(Refusal::of(&status).code, Code::Aborted, "{}: {status:?}", call.text);
            }
        }
    }
}
