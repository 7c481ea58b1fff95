//! What callers are told of messages that others hold: the truth as soon as they are free, and a refusal only to those
//! whose own messages were held for long.

use pgmq_grpc::proto::v1::set_visibility_timeout_request::Visibility;
use pgmq_grpc::proto::v1::{ArchiveRequest, DeleteRequest, ItemResult, Outcome, SetVisibilityTimeoutRequest};
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use crate::harness::{Client, Refusal, Test, eventually, seconds};

type Settling = JoinHandle<Result<Vec<Outcome>, Status>>;

fn outcomes(results: &[ItemResult]) -> Vec<Outcome> {
    results.iter().map(ItemResult::outcome).collect()
}

fn delete(client: &Client, queue: &str, receipts: &[&str]) -> Settling {
    let mut client = client.clone();
    let receipts = receipts.iter().map(|&receipt| receipt.to_owned()).collect();
    let request = DeleteRequest { queue: queue.to_owned(), receipts, msg_ids: vec![] };
    tokio::spawn(async move { Ok(outcomes(&client.queue.delete(request).await?.into_inner().results)) })
}

/// Waits until the server has seen that a queue's rows are locked.
async fn until_seen(test: &Test, queue: &str) {
    let seen = format!(
        "SELECT count(*) FROM pg_stat_activity
         WHERE query LIKE '-- pgmq-grpc: tell%q_{queue}%' AND datname = current_database()"
    );
    eventually("a look at the locked rows", async || (test.value::<i64>(&seen).await > 0).then_some(()))
        .await;
}

async fn expect_busy(settling: Settling, queue: &str) {
    let status = settling.await.unwrap().expect_err("a lock");
    let refusal = Refusal::expect(&status, Code::Aborted, "QUEUE_BUSY");
    assert_eq!(refusal.metadata["queue"], queue);
    assert!(refusal.retry_delay.is_some());
}

#[tokio::test]
async fn a_row_that_is_locked_for_long_takes_nothing_from_those_whose_rows_become_free() {
    let mut test = Test::with_queue("orders").await;
    test.client.create("others").await;
    for queue in ["orders", "others"] {
        test.client.send_all(queue, &["{}"; 2]).await;
    }
    let orders = test.client.read("orders", 2).await;
    let others = test.client.read("others", 2).await;
    let (long, short) = (test.database.connect().await, test.database.connect().await);
    long.batch_execute("BEGIN; SELECT FROM pgmq.q_orders WHERE msg_id = 1 FOR UPDATE").await.unwrap();
    short
        .batch_execute(
            "BEGIN; SELECT FROM pgmq.q_orders WHERE msg_id = 2 FOR UPDATE;
             SELECT FROM pgmq.q_others WHERE msg_id = 1 FOR UPDATE",
        )
        .await
        .unwrap();
    // More callers of the first row than the server has connections.
    let busy: Vec<Settling> =
        (0..20).map(|_| delete(&test.client, "orders", &[&orders[0].receipt])).collect();
    let same_queue = delete(&test.client, "orders", &[&orders[1].receipt]);
    until_seen(&test, "orders").await;
    let other_queue =
        delete(&test.client, "others", &[&others[1].receipt, &others[0].receipt, &others[0].receipt]);
    until_seen(&test, "others").await;
    short.batch_execute("COMMIT").await.unwrap();

    assert_eq!(same_queue.await.unwrap().expect("a delete"), [Outcome::Done]);
    assert_eq!(other_queue.await.unwrap().expect("a delete"), [Outcome::Done; 3]);
    for settling in busy {
        expect_busy(settling, "orders").await;
    }
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 1);
    long.batch_execute("COMMIT").await.unwrap();
    assert_eq!(test.client.delete("orders", &[&orders[0].receipt]).await, [Outcome::Done]);
}

#[tokio::test]
async fn who_waits_for_a_locked_row_is_told_what_has_become_of_it() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["{}"; 4]).await;
    let read = test.client.read("orders", 4).await;
    let other = test.database.connect().await;
    let changes = "BEGIN;
        UPDATE pgmq.q_orders SET read_ct = read_ct + 1, last_read_at = clock_timestamp() WHERE msg_id = 1;
        DELETE FROM pgmq.q_orders WHERE msg_id = 2;
        SELECT FROM pgmq.q_orders WHERE msg_id = 3 FOR UPDATE";
    other.batch_execute(changes).await.unwrap();
    let receipts: Vec<String> = read.iter().map(|message| message.receipt.clone()).collect();
    let archiving = tokio::spawn({
        let (mut client, receipts) = (test.client.clone(), receipts);
        let request = ArchiveRequest { queue: "orders".to_owned(), receipts, msg_ids: vec![] };
        async move { client.queue.archive(request).await }
    });
    let hiding = tokio::spawn({
        let mut client = test.client.clone();
        let request = SetVisibilityTimeoutRequest {
            queue: "orders".to_owned(),
            msg_ids: vec![1, 2],
            visibility: seconds(1_000.0).map(Visibility::VisibilityTimeout),
            ..Default::default()
        };
        async move { client.queue.set_visibility_timeout(request).await }
    });
    until_seen(&test, "orders").await;
    let by_id = "SELECT count(*) FROM pg_stat_activity
        WHERE query LIKE '-- pgmq-grpc: tell_by_id%' AND datname = current_database()";
    eventually("a look by id", async || (test.value::<i64>(by_id).await > 0).then_some(())).await;
    other.batch_execute("COMMIT").await.unwrap();

    let archived = archiving.await.unwrap().expect("an archive").into_inner().results;
    assert_eq!(outcomes(&archived), [Outcome::Stale, Outcome::NotFound, Outcome::Done, Outcome::Done]);
    let hidden = hiding.await.unwrap().expect("a change").into_inner().results;
    assert_eq!(outcomes(&hidden), [Outcome::Done, Outcome::NotFound]);
    let left = "SELECT array_agg(msg_id) FROM pgmq.q_orders WHERE vt > now() + interval '900 seconds'";
    assert_eq!(test.value::<Vec<i64>>(left).await, [1]);
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.a_orders").await, 2);
}

#[tokio::test]
async fn who_is_refused_for_a_locked_row_is_told_that_the_rest_is_settled() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["{}"; 2]).await;
    let read = test.client.read("orders", 2).await;
    test.run("BEGIN; SELECT FROM pgmq.q_orders WHERE msg_id = 1 FOR UPDATE").await;
    let status = delete(&test.client, "orders", &[&read[0].receipt, &read[1].receipt]).await.unwrap();
    let refusal = Refusal::expect(&status.expect_err("a lock"), Code::Aborted, "QUEUE_BUSY");
    assert!(refusal.message.contains("the rest is settled"), "{}", refusal.message);
    assert_eq!(test.value::<i64>("SELECT msg_id FROM pgmq.q_orders").await, 1);
    test.run("COMMIT").await;
    let again = test.client.delete("orders", &[&read[0].receipt, &read[1].receipt]).await;
    assert_eq!(again, [Outcome::Done, Outcome::NotFound]);
}

#[tokio::test]
async fn who_waits_for_a_locked_row_has_an_answer_before_the_server_ends() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let read = test.client.read_one("orders").await;
    let other = test.database.connect().await;
    other.batch_execute("BEGIN; SELECT FROM pgmq.q_orders FOR UPDATE").await.unwrap();
    let settling = delete(&test.client, "orders", &[&read.receipt]);
    until_seen(&test, "orders").await;
    test.server.signal(nix::sys::signal::Signal::SIGTERM);
    eventually("the drain", async || test.server.log().contains("draining").then_some(())).await;
    other.batch_execute("COMMIT").await.unwrap();
    assert_eq!(settling.await.unwrap().expect("a delete"), [Outcome::Done]);
    let (status, log) = test.server.exit().await;
    assert_eq!(status.code(), Some(0), "{log}");
}
