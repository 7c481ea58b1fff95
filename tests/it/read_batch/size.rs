//! Replies have a size: what does not fit waits, and what can never fit stands in nobody's way.

use pgmq_grpc::proto::v1::{Ordering, ReadBatchRequest, ReadBatchResponse};
use prost::Message as _;

use super::{all_of, body_of, ids, waiting_for};
use crate::harness::{Test, client::outgoing};

const REPLY: usize = 3_670_016;

#[tokio::test]
async fn what_does_not_fit_the_reply_is_visible_at_once_and_not_counted() {
    let mut test = Test::with_queue("orders").await;
    for _ in 0..5 {
        test.client.send("orders", &body_of(900 * 1_024)).await;
    }
    let first = test.client.read_as(all_of("orders")).await;
    assert_eq!(ids(&first), [1, 2, 3]);
    let visible = "SELECT count(*) FROM pgmq.q_orders WHERE vt <= clock_timestamp() AND read_ct = 0";
    assert_eq!(test.value::<i64>(visible).await, 2);
    let second = test.client.read_as(all_of("orders")).await;
    assert_eq!(
        second.iter().map(|message| (message.msg_id, message.read_ct)).collect::<Vec<_>>(),
        [(4, 1), (5, 1)]
    );
}

#[tokio::test]
async fn a_reply_of_many_small_messages_keeps_its_size() {
    let mut test = Test::with_queue("orders").await;
    let body = body_of(4_096);
    let request = pgmq_grpc::proto::v1::SendBatchRequest {
        queue: "orders".to_owned(),
        messages: vec![outgoing(&body); 1_000],
    };
    test.client.queue.send_batch(request).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 1_000 {
        let messages = test.client.read_as(all_of("orders")).await;
        assert!(!messages.is_empty());
        assert!(messages.iter().all(|message| message.read_ct == 1));
        seen.extend(ids(&messages));
        let bytes = ReadBatchResponse { messages }.encoded_len();
        assert!(bytes <= REPLY, "{bytes}");
    }
    assert_eq!(seen, (1..=1_000).collect::<Vec<i64>>());
}

#[tokio::test]
async fn a_cut_round_robin_reply_keeps_the_first_turns() {
    let mut test = Test::with_queue("orders").await;
    for group in ["a", "a", "b", "b"] {
        test.client.send_to_group("orders", group, &body_of(1_000_000)).await;
    }
    let turns = || ReadBatchRequest { ordering: Ordering::GroupedRoundRobin.into(), ..all_of("orders") };
    let first = test.client.read_as(turns()).await;
    assert_eq!(ids(&first), [1, 3, 2]);
    // The rest of a group waits for what was read of it.
    test.client.delete("orders", &[&first[1].receipt]).await;
    assert_eq!(ids(&test.client.read_as(turns()).await), [4]);
}

#[tokio::test]
async fn a_message_too_large_for_any_reply_goes_to_the_archive_and_blocks_nothing() {
    let mut test = Test::with_queue("orders").await;
    let large = "SELECT pgmq.send('orders', to_jsonb(repeat('x', 4000000)), '{\"x-trace\": \"t\"}'::jsonb)";
    test.run(large).await;
    test.run("SELECT pgmq.send('orders', to_jsonb(repeat('y', 4000000)))").await;
    let small = test.client.send("orders", r#"{"small": true}"#).await;

    let read = test.client.read_as(all_of("orders")).await;
    assert_eq!(ids(&read), [small], "a read that finds a visible message does not answer empty");
    assert_eq!(read[0].read_ct, 1);
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 1);

    let header = |key: &str, msg_id: i64| {
        format!(
            "SELECT headers -> 'x-pgmq-dead-letter' ->> '{key}' FROM pgmq.a_orders WHERE msg_id = {msg_id}"
        )
    };
    for msg_id in [1, 2] {
        assert_eq!(test.value::<String>(&header("queue", msg_id)).await, "orders");
        assert_eq!(test.value::<String>(&header("msg_id", msg_id)).await, msg_id.to_string());
        assert!(!test.value::<String>(&header("reason", msg_id)).await.is_empty());
        let kept = format!("SELECT octet_length(message::text) FROM pgmq.a_orders WHERE msg_id = {msg_id}");
        assert_eq!(test.value::<i32>(&kept).await, 4_000_002);
    }
    assert_eq!(
        test.value::<String>("SELECT headers ->> 'x-trace' FROM pgmq.a_orders WHERE msg_id = 1").await,
        "t"
    );
}

#[tokio::test]
async fn a_waiting_read_passes_over_what_is_too_large() {
    let mut test = Test::with_queue("orders").await;
    test.run("SELECT pgmq.send('orders', to_jsonb(repeat('x', 4000000)), '[1]'::jsonb)").await;
    let read = super::begin_read(&test, waiting_for("orders"));
    let small = test.client.send("orders", "{}").await;
    assert_eq!(ids(&read.await.unwrap()), [small]);
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.a_orders").await, 1);
}

#[tokio::test]
async fn a_message_that_postgres_cannot_render_goes_to_the_archive_and_blocks_nothing() {
    // Postgres needs some time to find out.
    let mut test = Test::start_with(&["--default-deadline", "10m"]).await;
    test.client.create("orders").await;
    let small = test.client.send("orders", "{}").await;
    // Small as it is stored; more than Postgres can hold as text.
    test.run(
        "SELECT pgmq.send('orders', jsonb_agg('1e131000'::jsonb)) FROM generate_series(1, 9000);
         SELECT pgmq.send('orders', '{}')",
    )
    .await;
    let mut read = Vec::new();
    while read.is_empty() {
        read = test.client.read_as(waiting_for("orders")).await;
    }
    assert_eq!(ids(&read), [small, 3]);
    let archived = "SELECT headers -> 'x-pgmq-dead-letter' ->> 'msg_id' FROM pgmq.a_orders";
    assert_eq!(test.value::<String>(archived).await, "2");
}
