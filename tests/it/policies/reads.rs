//! What policies do to reads that leave something open.

use std::time::Duration;

use pgmq_grpc::proto::v1::{Ordering, QueuePolicy, ReadBatchRequest};
use tokio::time::timeout;

use super::set;
use crate::consume::{self, Consumer};
use crate::harness::{PATIENCE, Refusal, Test, seconds};
use crate::read_batch::{all_of, begin_read, ids, micros, now, until_a_reader_waits};
use crate::read_stream::{Follower, follow};
use crate::transaction::{Open, read};

async fn orders(policy: QueuePolicy) -> Test {
    let mut test = Test::with_queue("orders").await;
    set(&mut test.client, "orders", policy).await;
    test
}

#[tokio::test]
async fn every_way_of_reading_hides_its_messages_for_the_default_timeout() {
    let mut test =
        orders(QueuePolicy { default_visibility_timeout: seconds(77.0), ..Default::default() }).await;
    test.client.send_all("orders", &["1", "2", "3", "4", "5"]).await;
    let mut messages = test.client.read("orders", 1).await;
    let mut stream = Follower::open(
        &test.client,
        pgmq_grpc::proto::v1::ReadRequest { max_in_flight: 1, ..follow("orders") },
    )
    .await;
    assert_eq!(stream.started.visibility_timeout, seconds(77.0));
    messages.push(stream.message().await);
    let start = pgmq_grpc::proto::v1::ConsumeStart { max_in_flight: 1, ..consume::start("orders") };
    let (mut consumer, started) = Consumer::start_and_tell(&test.client, start).await;
    assert_eq!(started.visibility_timeout, seconds(77.0));
    messages.push(consumer.message().await);
    let mut open = Open::begin(&test.client).await;
    messages.push(open.read_one("orders").await);
    open.commit().await;
    for message in &messages {
        let hidden = micros(message.vt.as_ref()) - micros(message.last_read_at.as_ref());
        assert!((76_000_000..=78_000_000).contains(&hidden), "{hidden}");
    }
    let own = ReadBatchRequest { visibility_timeout: seconds(5.0), ..all_of("orders") };
    let message = test.client.read_as(own).await.remove(0);
    let hidden = micros(message.vt.as_ref()) - micros(message.last_read_at.as_ref());
    assert!((4_000_000..=6_000_000).contains(&hidden), "{hidden}");
}

#[tokio::test]
async fn a_read_waits_for_as_long_as_its_queue_has_it_and_not_if_it_says_so() {
    let mut test = orders(QueuePolicy { default_wait: seconds(50.0), ..Default::default() }).await;
    let read_now = ReadBatchRequest { wait: seconds(0.0), ..all_of("orders") };
    let nothing = timeout(PATIENCE, test.client.read_as(read_now)).await.expect("an answer at once");
    assert!(nothing.is_empty());
    let waiting = begin_read(&test, all_of("orders"));
    let since = now(&test).await;
    until_a_reader_waits(&test, &since).await;
    assert!(!waiting.is_finished());
    let sent = test.client.send("orders", "1").await;
    let came = timeout(PATIENCE, waiting).await.expect("an end of the wait").unwrap();
    assert_eq!(ids(&came), [sent]);
}

#[tokio::test]
async fn an_open_transaction_waits_as_well() {
    let test = orders(QueuePolicy { default_wait: seconds(0.3), ..Default::default() }).await;
    let mut open = Open::begin(&test.client).await;
    let begun = std::time::Instant::now();
    open.done(read("orders")).await;
    assert!(begun.elapsed() >= Duration::from_millis(300), "{:?}", begun.elapsed());
    open.commit().await;
}

#[tokio::test]
async fn a_read_that_names_no_order_has_that_of_its_queue() {
    let heads = || QueuePolicy { default_ordering: Ordering::GroupedHead.into(), ..Default::default() };
    let mut test = orders(heads()).await;
    let mut sent = Vec::new();
    for group in ["a", "a", "b", "b"] {
        sent.push(test.client.send_to_group("orders", group, "1").await);
    }
    assert_eq!(ids(&test.client.read_as(all_of("orders")).await), [sent[0], sent[2]]);
    // Heads are taken, so nothing comes before they are settled.
    let mut stream = Follower::open(&test.client, follow("orders")).await;
    let unordered = ReadBatchRequest { ordering: Ordering::Unordered.into(), ..all_of("orders") };
    assert_eq!(ids(&test.client.read_as(unordered).await), [sent[1], sent[3]]);
    let late = test.client.send_to_group("orders", "c", "1").await;
    assert_eq!(stream.message().await.msg_id, late);

    let (mut consumer, _) = Consumer::start_and_tell(&test.client, consume::start("orders")).await;
    let later = test.client.send_to_group("orders", "d", "1").await;
    let came = tokio::select! {
        message = consumer.message() => message,
        message = stream.message() => message,
    };
    assert_eq!(came.msg_id, later);
}

#[tokio::test]
async fn a_condition_and_a_grouped_default_exclude_each_other() {
    let heads = QueuePolicy { default_ordering: Ordering::GroupedHead.into(), ..Default::default() };
    let mut test = orders(heads).await;
    test.client.send("orders", r#"{"a": 1}"#).await;
    let conditional = ReadBatchRequest { conditional: r#"{"a": 1}"#.to_owned(), ..all_of("orders") };
    let status = test.client.queue.read_batch(conditional.clone()).await.unwrap_err();
    Refusal::expect_invalid(&status, "CONFLICTING_FIELDS", "conditional");
    let unordered = ReadBatchRequest { ordering: Ordering::Unordered.into(), ..conditional };
    assert_eq!(test.client.read_as(unordered).await.len(), 1);
}
