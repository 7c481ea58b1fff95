//! How streams end, planned or not, and what becomes of their messages.

use std::time::Duration;

use nix::sys::signal::Signal;
use pgmq_grpc::proto::v1::{ClosingReason, DropQueueRequest, Outcome, ReadRequest};
use tonic::{Code, Request, Status};

use super::{Follower, follow};
use crate::harness::{Client, Refusal, Server, Test, seconds};
use crate::read_batch::{all_of, ids};

async fn drop_orders(test: &mut Test) {
    test.client.queue.drop_queue(DropQueueRequest { queue: "orders".to_owned() }).await.unwrap();
}

/// Checks the end of a stream whose queue was dropped.
async fn expect_dropped(stream: Follower) {
    let (_, closing, end) = stream.end().await;
    let closing = closing.expect("closing before the end");
    assert_eq!(closing.reason(), ClosingReason::QueueDropped);
    let status: Status = end.unwrap_err();
    let refusal = Refusal::expect(&status, Code::NotFound, "QUEUE_NOT_FOUND");
    assert_eq!(refusal.metadata.get("queue").map(String::as_str), Some("orders"));
}

#[tokio::test]
async fn a_stream_ends_after_its_number_of_messages() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["{}"; 5]).await;
    let request = ReadRequest { max_messages: 3, ..follow("orders") };
    let (messages, closing, end) = Follower::open(&test.client, request).await.end().await;
    assert_eq!(ids(&messages), [1, 2, 3]);
    assert!(closing.is_none());
    end.unwrap();
    assert_eq!(test.client.delete("orders", &[&messages[0].receipt]).await, [Outcome::Done]);
    let unread = "SELECT count(*) FROM pgmq.q_orders WHERE read_ct = 0 AND vt <= clock_timestamp()";
    assert_eq!(test.value::<i64>(unread).await, 2);
}

#[tokio::test]
async fn a_number_of_messages_beyond_the_window_needs_settles() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["{}"; 5]).await;
    let request = ReadRequest { max_messages: 3, max_in_flight: 2, ..follow("orders") };
    let mut stream = Follower::open(&test.client, request).await;
    let held = stream.messages(2).await;
    test.client.delete("orders", &[&held[0].receipt]).await;
    let (messages, _, end) = stream.end().await;
    assert_eq!(ids(&messages), [3]);
    end.unwrap();
}

#[tokio::test]
async fn a_draining_server_closes_its_streams_and_ends() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let mut busy = Follower::open(&test.client, follow("orders")).await;
    let held = busy.message().await;
    let full = ReadRequest { max_in_flight: 1, ..follow("orders") };
    let idle = Follower::open(&test.client, full).await;
    test.server.signal(Signal::SIGTERM);
    for stream in [busy, idle] {
        let (messages, closing, end) = stream.end().await;
        assert!(messages.is_empty());
        let closing = closing.expect("closing before the end");
        assert_eq!(closing.reason(), ClosingReason::Draining);
        let delay = Duration::try_from(closing.retry_delay.unwrap()).unwrap();
        assert!(!delay.is_zero(), "{delay:?}");
        end.unwrap();
    }
    let Test { database, server, client, .. } = test;
    drop(client);
    let (status, log) = server.exit().await;
    assert!(status.success(), "{status}: {log}");
    // What was delivered is still the client's, and another server settles it.
    let next = Server::start_on(&database, &[]).await;
    let mut client = Client::connect(&next).await;
    assert!(client.read("orders", 1).await.is_empty());
    assert_eq!(client.delete("orders", &[&held.receipt]).await, [Outcome::Done]);
}

#[tokio::test]
async fn an_old_stream_is_closed_and_can_be_opened_again() {
    let test = Test::of_short_lives("orders", &[]).await;
    let mut client = test.fresh_client().await;
    client.send("orders", "{}").await;
    let full = ReadRequest { max_in_flight: 1, ..follow("orders") };
    let (messages, closing, end) = Follower::open(&client, full).await.end().await;
    assert_eq!(ids(&messages), [1]);
    let closing = closing.expect("closing before the end");
    assert_eq!(closing.reason(), ClosingReason::StreamAge);
    assert!(closing.retry_delay.is_some());
    end.unwrap();
    let mut client = test.fresh_client().await;
    let sent = client.send("orders", "{}").await;
    let (messages, closing, _) = Follower::open(&client, follow("orders")).await.end().await;
    assert_eq!(ids(&messages), [sent]);
    assert_eq!(closing.unwrap().reason(), ClosingReason::StreamAge);
}

#[tokio::test]
async fn a_stream_ends_when_its_queue_is_dropped() {
    let mut test = Test::with_queue("orders").await;
    let stream = Follower::open(&test.client, follow("orders")).await;
    drop_orders(&mut test).await;
    expect_dropped(stream).await;
}

#[tokio::test]
async fn a_stream_with_a_full_window_ends_when_its_queue_is_dropped() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["1", "2"]).await;
    let mut stream = Follower::open(&test.client, ReadRequest { max_in_flight: 1, ..follow("orders") }).await;
    stream.message().await;
    drop_orders(&mut test).await;
    expect_dropped(stream).await;
}

#[tokio::test]
async fn a_stream_ends_when_plain_sql_drops_its_queue() {
    let test = Test::with_queue("orders").await;
    let stream = Follower::open(&test.client, follow("orders")).await;
    test.run("SELECT pgmq.drop_queue('orders')").await;
    expect_dropped(stream).await;
}

#[tokio::test]
async fn a_stream_does_not_follow_a_queue_that_was_made_anew() {
    let mut test = Test::with_queue("orders").await;
    let stream = Follower::open(&test.client, follow("orders")).await;
    test.run("BEGIN; SELECT pgmq.drop_queue('orders'); SELECT pgmq.create('orders'); COMMIT").await;
    test.client.send("orders", "{}").await;
    expect_dropped(stream).await;
    // Nothing of the new queue was taken by the old stream.
    let read = test.client.read_as(crate::read_batch::waiting_for("orders")).await;
    assert_eq!((read[0].msg_id, read[0].read_ct), (1, 1));
    let mut again = Follower::open(&test.client, follow("orders")).await;
    test.client.send("orders", "{}").await;
    assert_eq!(again.message().await.msg_id, 2);
}

#[tokio::test]
async fn a_stream_ends_at_its_callers_deadline() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let mut request = Request::new(ReadRequest { max_in_flight: 1, ..follow("orders") });
    request.set_timeout(Duration::from_secs(3));
    let mut stream = test.client.queue.read(request).await.unwrap().into_inner();
    let mut messages = Vec::new();
    let status = loop {
        match stream.message().await {
            Ok(reply) => messages.extend(reply.expect("an error at the end").messages),
            Err(status) => break status,
        }
    };
    assert_eq!(ids(&messages), [1]);
    Refusal::expect(&status, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
}

#[tokio::test]
async fn a_cancelled_stream_keeps_what_it_delivered_and_takes_nothing_more() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let mut stream = Follower::open(&test.client, follow("orders")).await;
    let held = stream.message().await;
    drop(stream);
    let sent = test.client.send("orders", "{}").await;
    let read = test.client.read_as(crate::read_batch::waiting_for("orders")).await;
    assert_eq!((read[0].msg_id, read[0].read_ct), (sent, 1));
    assert!(test.client.read_as(all_of("orders")).await.is_empty());
    assert_eq!(test.client.delete("orders", &[&held.receipt]).await, [Outcome::Done]);
}

#[tokio::test]
async fn a_stream_outlives_its_database_connections() {
    let mut test = Test::with_queue("orders").await;
    let mut stream = Follower::open(&test.client, follow("orders")).await;
    test.client.send("orders", "{}").await;
    stream.message().await;
    test.database.terminate_connections().await;
    test.sql = test.database.connect().await;
    test.run("SELECT pgmq.send('orders', '{}')").await;
    assert_eq!(stream.message().await.msg_id, 2);
    let visible = ReadRequest { visibility_timeout: seconds(5.0), ..follow("orders") };
    drop(Follower::open(&test.client, visible).await);
}
