//! `ReadBatch`: what it takes, in which order, how long it waits, and what becomes of what does not arrive.

mod order;
mod size;
mod waiting;

use pgmq_grpc::proto::v1::{Message, Ordering, Outcome, ReadBatchRequest};
use tokio::task::JoinHandle;

use crate::harness::{Test, eventually, seconds};

/// A read of up to a thousand messages.
pub(crate) fn all_of(queue: &str) -> ReadBatchRequest {
    ReadBatchRequest { queue: queue.to_owned(), max_messages: 1_000, ..Default::default() }
}

/// A read that waits for a first message.
pub(crate) fn waiting_for(queue: &str) -> ReadBatchRequest {
    ReadBatchRequest { wait: seconds(25.0), ..all_of(queue) }
}

/// Begins a read and does not wait for its answer.
pub(crate) fn begin_read(test: &Test, request: ReadBatchRequest) -> JoinHandle<Vec<Message>> {
    let mut client = test.client.clone();
    tokio::spawn(async move { client.read_as(request).await })
}

/// The database's clock.
pub(crate) async fn now(test: &Test) -> String {
    test.value("SELECT clock_timestamp()::text").await
}

/// Waits until a reader has looked since a moment and found nothing, so that it waits now.
pub(crate) async fn until_a_reader_waits(test: &Test, since: &str) {
    let looked = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle'
         AND query ~ 'pgmq-grpc: (next_visible|look_around)' AND state_change > '{since}' AND pid <> pg_backend_pid()"
    );
    eventually("a waiting reader", async || (test.value::<i64>(&looked).await > 0).then_some(())).await;
}

/// The ids of messages, in their order.
pub(crate) fn ids(messages: &[Message]) -> Vec<i64> {
    messages.iter().map(|message| message.msg_id).collect()
}

/// A moment in microseconds.
pub(crate) fn micros(moment: Option<&prost_types::Timestamp>) -> i64 {
    let moment = moment.expect("a moment");
    moment.seconds * 1_000_000 + i64::from(moment.nanos) / 1_000
}

/// A body of about so many bytes.
pub(crate) fn body_of(bytes: usize) -> String {
    format!("\"{}\"", "x".repeat(bytes))
}

#[tokio::test]
async fn a_message_that_was_read_is_hidden_from_others() {
    let mut test = Test::with_queue("orders").await;
    let sent = test.client.send("orders", r#"{"n": 1}"#).await;
    let read = test.client.read_one("orders").await;
    assert_eq!((read.msg_id, read.read_ct, read.message.as_str()), (sent, 1, r#"{"n": 1}"#));
    assert!(!read.receipt.is_empty());
    assert!(test.client.read("orders", 10).await.is_empty());
}

#[tokio::test]
async fn a_read_hides_for_30_seconds_unless_told_otherwise() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["1", "2"]).await;
    let by_default = test.client.read_one("orders").await;
    let rounded_up = ReadBatchRequest { visibility_timeout: seconds(59.1), ..all_of("orders") };
    let rounded_up = test.client.read_as(rounded_up).await.remove(0);
    for (message, hidden_s) in [(by_default, 30), (rounded_up, 60)] {
        let hidden = micros(message.vt.as_ref()) - micros(message.last_read_at.as_ref());
        assert_eq!((hidden + 500_000) / 1_000_000, hidden_s, "{message:?}");
    }
}

#[tokio::test]
async fn an_unsettled_message_returns_after_its_visibility_timeout() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let shortest = ReadBatchRequest { visibility_timeout: seconds(0.001), ..all_of("orders") };
    let first = test.client.read_as(shortest).await.remove(0);
    let second = test.client.read_as(waiting_for("orders")).await.remove(0);
    assert_eq!((second.msg_id, second.read_ct), (first.msg_id, 2));
    assert_ne!(second.receipt, first.receipt);
    assert!(micros(second.last_read_at.as_ref()) >= micros(first.vt.as_ref()));
    assert_eq!(second.enqueued_at, first.enqueued_at);
}

#[tokio::test]
async fn a_read_takes_at_most_as_many_messages_as_it_asks_for() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["1", "2", "3", "4", "5", "6"]).await;
    let by_default = ReadBatchRequest { queue: "orders".to_owned(), ..Default::default() };
    assert_eq!(ids(&test.client.read_as(by_default).await), [1]);
    assert_eq!(ids(&test.client.read("orders", 3).await), [2, 3, 4]);
    assert_eq!(ids(&test.client.read("orders", 1_000).await), [5, 6]);
    assert!(test.client.read("orders", 1_000).await.is_empty());
}

#[tokio::test]
async fn a_read_shows_the_message_as_postgres_has_it() {
    let mut test = Test::with_queue("orders").await;
    test.run(
        "SELECT pgmq.send('orders', '{\"b\":1.50,\"a\":[null]}', '{\"x-trace\":\"t\"}'::jsonb);
         SELECT pgmq.send('orders', NULL::jsonb)",
    )
    .await;
    let read = test.client.read("orders", 10).await;
    assert_eq!(read[0].message, r#"{"a": [null], "b": 1.50}"#);
    assert_eq!(read[0].headers, r#"{"x-trace": "t"}"#);
    assert_eq!((read[1].message.as_str(), read[1].headers.as_str()), ("", ""));
    let row =
        "SELECT (extract(epoch FROM enqueued_at) * 1000000)::bigint FROM pgmq.q_orders WHERE msg_id = 1";
    assert_eq!(micros(read[0].enqueued_at.as_ref()), test.value::<i64>(row).await);
    let row = "SELECT (extract(epoch FROM vt) * 1000000)::bigint FROM pgmq.q_orders WHERE msg_id = 1";
    assert_eq!(micros(read[0].vt.as_ref()), test.value::<i64>(row).await);
}

#[tokio::test]
async fn a_message_that_was_read_as_often_as_can_be_counted_is_in_nobodys_way() {
    let mut test = Test::with_queue("orders").await;
    let ways = [
        (Ordering::Unordered, ""),
        (Ordering::Unordered, r#"{"all": true}"#),
        (Ordering::Grouped, ""),
        (Ordering::GroupedRoundRobin, ""),
        (Ordering::GroupedHead, ""),
    ];
    for (ordering, conditional) in ways {
        let way = format!("{ordering:?} {conditional}");
        test.run(
            r#"INSERT INTO pgmq.q_orders (read_ct, vt, message, headers)
               VALUES (2147483647, clock_timestamp(), '{"n": 1, "all": true}', '{"x-pgmq-group": "a"}')"#,
        )
        .await;
        test.client.send_to_group("orders", "b", r#"{"n": 2, "all": true}"#).await;
        let request = ReadBatchRequest {
            ordering: ordering.into(),
            conditional: conditional.to_owned(),
            visibility_timeout: seconds(1.0),
            ..all_of("orders")
        };
        let read = test.client.read_as(request.clone()).await;
        let counts: Vec<i32> = read.iter().map(|message| message.read_ct).collect();
        assert_eq!(counts, [i32::MAX, 1], "{way}");

        // It counts no further, and comes again like any other.
        let request = ReadBatchRequest { wait: seconds(20.0), ..request };
        let again = test.client.read_as(request).await;
        assert_eq!((again[0].msg_id, again[0].read_ct), (read[0].msg_id, i32::MAX), "{way}");
        assert_eq!(test.client.delete("orders", &[&again[0].receipt]).await, [Outcome::Done], "{way}");
        assert_eq!(test.client.delete("orders", &[&read[0].receipt]).await, [Outcome::NotFound], "{way}");
        test.run("TRUNCATE pgmq.q_orders").await;
    }
}
