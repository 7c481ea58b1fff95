//! Plain SQL users of the same queue: they and we see the same messages and respect each other's timeouts.

use pgmq_grpc::proto::v1::{Outcome, ReadRequest};

use crate::harness::Test;
use crate::read_batch::{all_of, ids, micros, waiting_for};
use crate::read_stream::Follower;
use crate::settle::{archive, outcomes, release};

#[tokio::test]
async fn what_plain_sql_sends_we_read() {
    let mut test = Test::with_queue("orders").await;
    test.run(
        "SELECT pgmq.send('orders', '{\"n\": 1}');
         SELECT pgmq.send_batch('orders', ARRAY['2', '3']::jsonb[]);
         SELECT pgmq.send('orders', '4', '{\"x-pgmq-group\": \"a\"}'::jsonb, 0)",
    )
    .await;
    let read = test.client.read_as(all_of("orders")).await;
    let bodies: Vec<&str> = read.iter().map(|message| message.message.as_str()).collect();
    assert_eq!(bodies, [r#"{"n": 1}"#, "2", "3", "4"]);
    assert_eq!(read[3].headers, r#"{"x-pgmq-group": "a"}"#);
}

#[tokio::test]
async fn what_we_send_plain_sql_reads() {
    let mut test = Test::with_queue("orders").await;
    let sent = test.client.send("orders", r#"{"n":1}"#).await;
    assert_eq!(test.value::<i64>("SELECT msg_id FROM pgmq.read('orders', 30, 1)").await, sent);
    assert!(test.client.read("orders", 1).await.is_empty());
    test.client.send("orders", "2").await;
    assert_eq!(test.value::<String>("SELECT message::text FROM pgmq.pop('orders')").await, "2");
}

#[tokio::test]
async fn plain_sql_does_not_get_what_we_hold() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["1", "2"]).await;
    test.client.read_one("orders").await;
    let read = test.value::<i64>("SELECT msg_id FROM pgmq.read('orders', 30, 10)").await;
    assert_eq!(read, 2);
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.read('orders', 30, 10)").await, 0);
}

#[tokio::test]
async fn what_plain_sql_settled_is_not_found() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["1", "2", "3"]).await;
    let read = test.client.read_as(all_of("orders")).await;
    let receipts: Vec<&str> = read.iter().map(|message| message.receipt.as_str()).collect();
    test.run("SELECT pgmq.delete('orders', 1); SELECT pgmq.archive('orders', 2)").await;
    assert_eq!(
        test.client.delete("orders", &receipts).await,
        [Outcome::NotFound, Outcome::NotFound, Outcome::Done]
    );
    assert_eq!(test.value::<i64>("SELECT msg_id FROM pgmq.a_orders").await, 2);
}

#[tokio::test]
async fn a_read_by_plain_sql_makes_our_receipt_stale() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let held = test.client.read_one("orders").await;
    test.run("SELECT pgmq.set_vt('orders', 1, 0); SELECT pgmq.read('orders', 30, 1)").await;
    assert_eq!(test.client.delete("orders", &[&held.receipt]).await, [Outcome::Stale]);
    assert_eq!(archive(&mut test.client, "orders", &[&held.receipt]).await, [Outcome::Stale]);
    let released = release(&mut test.client, "orders", &[&held.receipt], None).await;
    assert_eq!(outcomes(&released), [Outcome::Stale]);
    assert!(test.value::<bool>("SELECT pgmq.delete('orders', 1)").await);
}

#[tokio::test]
async fn a_timeout_set_by_plain_sql_leaves_our_receipt_valid() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let held = test.client.read_one("orders").await;
    test.run("SELECT pgmq.set_vt('orders', 1, 3600)").await;
    assert_eq!(test.client.delete("orders", &[&held.receipt]).await, [Outcome::Done]);
}

#[tokio::test]
async fn a_timeout_set_by_plain_sql_counts_for_our_reads() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    test.run("SELECT pgmq.set_vt('orders', 1, 3600)").await;
    assert!(test.client.read("orders", 1).await.is_empty());
    test.run("SELECT pgmq.set_vt('orders', 1, 1)").await;
    let due = "SELECT (extract(epoch FROM vt) * 1000000)::bigint FROM pgmq.q_orders";
    let due = test.value::<i64>(due).await;
    let read = test.client.read_as(waiting_for("orders")).await;
    assert_eq!(ids(&read), [1]);
    assert!(micros(read[0].last_read_at.as_ref()) >= due);
}

#[tokio::test]
async fn a_send_is_seen_only_after_the_commit_of_plain_sql() {
    let mut test = Test::with_queue("orders").await;
    let sender = test.database.connect().await;
    sender.batch_execute("BEGIN; SELECT pgmq.send('orders', '{}')").await.unwrap();
    assert!(test.client.read("orders", 1).await.is_empty());
    let after = test.client.send("orders", "{}").await;
    assert_eq!(test.client.read_one("orders").await.msg_id, after);
    sender.batch_execute("COMMIT").await.unwrap();
    assert_eq!(test.client.read_as(waiting_for("orders")).await[0].msg_id, after - 1);
}

#[tokio::test]
async fn a_row_that_plain_sql_holds_is_passed_over_by_reads() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["1", "2"]).await;
    test.run("BEGIN; SELECT msg_id FROM pgmq.q_orders WHERE msg_id = 1 FOR UPDATE").await;
    assert_eq!(ids(&test.client.read("orders", 2).await), [2]);
    test.run("COMMIT").await;
    assert_eq!(ids(&test.client.read_as(waiting_for("orders")).await), [1]);
}

#[tokio::test]
async fn a_row_that_plain_sql_holds_for_long_makes_its_settle_busy_and_changes_nothing() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let held = test.client.read_one("orders").await;
    test.run("BEGIN; SELECT msg_id FROM pgmq.q_orders WHERE msg_id = 1 FOR UPDATE").await;
    let request = pgmq_grpc::proto::v1::DeleteRequest {
        queue: "orders".to_owned(),
        receipts: vec![held.receipt.clone()],
        ..Default::default()
    };
    let refused = test.client.queue.delete(request).await.unwrap_err();
    let refusal = crate::harness::Refusal::expect(&refused, tonic::Code::Aborted, "QUEUE_BUSY");
    assert_eq!(refusal.metadata.get("queue").map(String::as_str), Some("orders"));
    assert!(refusal.retry_delay.is_some());
    test.run("COMMIT").await;
    assert_eq!(test.client.delete("orders", &[&held.receipt]).await, [Outcome::Done]);
}

#[tokio::test]
async fn a_stream_follows_what_plain_sql_sends_and_settles() {
    let test = Test::with_queue("orders").await;
    let request = ReadRequest { queue: "orders".to_owned(), max_in_flight: 1, ..Default::default() };
    let mut stream = Follower::open(&test.client, request).await;
    for msg_id in 1..=3_i64 {
        assert_eq!(test.value::<i64>("SELECT pgmq.send('orders', '{}')").await, msg_id);
        assert_eq!(stream.message().await.msg_id, msg_id);
        assert!(test.value::<bool>(&format!("SELECT pgmq.delete('orders', {msg_id})")).await);
    }
}

#[tokio::test]
async fn a_queue_purged_by_plain_sql_is_empty_for_us() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["1", "2"]).await;
    let held = test.client.read_one("orders").await;
    test.run("SELECT pgmq.purge_queue('orders')").await;
    assert!(test.client.read("orders", 10).await.is_empty());
    assert_eq!(test.client.delete("orders", &[&held.receipt]).await, [Outcome::NotFound]);
}

#[tokio::test]
async fn a_queue_with_insert_notifications_works_as_any_other() {
    let mut test = Test::with_queue("orders").await;
    test.run("SELECT pgmq.enable_notify_insert('orders', 0)").await;
    for _ in 0..3 {
        let sent = test.client.send("orders", "{}").await;
        let read = test.client.read_one("orders").await;
        assert_eq!(read.msg_id, sent);
        assert_eq!(test.client.delete("orders", &[&read.receipt]).await, [Outcome::Done]);
    }
}
