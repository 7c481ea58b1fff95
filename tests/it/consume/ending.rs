//! How streams end that their clients did not end, and what becomes of what they hold.

use std::time::Duration;

use nix::sys::signal::Signal;
use pgmq_grpc::proto::v1::{ClosingReason, ConsumeStart, DropQueueRequest, SettleAction};
use tonic::Code;

use super::{Consumer, Outcome, settle, start};
use crate::harness::{Client, OwnPostgres, Refusal, Server, Test, eventually, seconds};
use crate::read_batch::{ids, waiting_for};

#[tokio::test]
async fn a_draining_server_serves_settles_until_nothing_is_held() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["{}"; 2]).await;
    let mut consumer = Consumer::start(&test.client, start("orders")).await;
    let held = consumer.take(2).await;
    // Behind the first one's messages, so that it gets none of them.
    let idle = Consumer::start(&test.client, start("orders")).await;
    let unstarted = Consumer::open(&test.client).await;
    test.server.signal(Signal::SIGTERM);

    let closing = consumer.closing().await;
    assert_eq!(closing.reason(), ClosingReason::Draining);
    assert_eq!(closing.settle_grace, seconds(10.0));
    assert!(closing.retry_delay.is_some());
    assert_eq!(consumer.settle(SettleAction::Delete, &[&held[0]]).await, [Outcome::Done]);
    let last = consumer.send(settle(SettleAction::Archive, &[&held[1]]));
    let end = consumer.end().await;
    end.status.expect("OK");
    assert_eq!(end.results.iter().map(|result| result.request_id).collect::<Vec<_>>(), [last]);

    let end = idle.end().await;
    assert!(end.closing.is_some() && end.status.is_ok());
    Refusal::expect(&unstarted.end().await.status.expect_err("an error"), Code::Unavailable, "DRAINING");
    let Test { database, server, client, .. } = test;
    drop(client);
    let (status, log) = server.exit().await;
    assert!(status.success(), "{status}: {log}");
    let sql = database.connect().await;
    let left = sql.query_one("SELECT count(*) FROM pgmq.q_orders", &[]).await.unwrap();
    assert_eq!(left.get::<_, i64>(0), 0);
}

#[tokio::test]
async fn a_grace_that_nobody_uses_ends() {
    let test = Test::of_short_lives("orders", &["--drain-timeout", "2s"]).await;
    let mut client = test.fresh_client().await;
    client.send("orders", "{}").await;
    let mut consumer = Consumer::start(&client, start("orders")).await;
    let held = consumer.message().await;
    let closing = consumer.closing().await;
    assert_eq!((closing.reason(), closing.settle_grace), (ClosingReason::StreamAge, seconds(1.0)));
    let end = consumer.end().await;
    end.status.expect("OK");
    assert!(end.messages.is_empty());
    assert_eq!(test.fresh_client().await.delete("orders", &[&held.receipt]).await, [Outcome::Done]);
}

#[tokio::test]
async fn a_stream_ends_when_its_queue_is_dropped() {
    for full in [false, true] {
        let mut test = Test::with_queue("orders").await;
        test.client.send_all("orders", &["1", "2"]).await;
        let max_in_flight = if full { 1 } else { 10 };
        let mut consumer =
            Consumer::start(&test.client, ConsumeStart { max_in_flight, ..start("orders") }).await;
        consumer.take(max_in_flight.min(2) as usize).await;
        test.client.queue.drop_queue(DropQueueRequest { queue: "orders".to_owned() }).await.unwrap();
        let end = consumer.end().await;
        assert_eq!(end.closing.expect("closing").reason(), ClosingReason::QueueDropped);
        Refusal::expect(&end.status.expect_err("an error"), Code::NotFound, "QUEUE_NOT_FOUND");
    }
}

#[tokio::test]
async fn a_client_that_vanishes_keeps_what_it_was_given_and_takes_nothing_more() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["1", "2"]).await;
    let other = Client::connect(&test.server).await;
    let mut consumer = Consumer::start(&other, start("orders")).await;
    let held = consumer.take(2).await;
    assert_eq!(consumer.settle(SettleAction::Delete, &[&held[0]]).await, [Outcome::Done]);
    drop((consumer, other));
    let sent = test.client.send("orders", "3").await;
    let read = test.client.read_as(waiting_for("orders")).await;
    assert_eq!((ids(&read), read[0].read_ct), (vec![sent], 1));
    assert_eq!(test.client.delete("orders", &[&held[1].receipt]).await, [Outcome::Done]);
}

#[tokio::test]
async fn old_streams_are_closed_and_told_to_come_back_one_after_the_other() {
    let test = Test::of_short_lives("orders", &[]).await;
    let mut client = test.fresh_client().await;
    client.send("orders", "{}").await;
    let mut consumer = Consumer::start(&client, start("orders")).await;
    let held = consumer.message().await;
    let closing = consumer.closing().await;
    assert_eq!(closing.reason(), ClosingReason::StreamAge);
    // What is held can still be settled, and then it ends.
    assert_eq!(consumer.settle(SettleAction::Delete, &[&held]).await, [Outcome::Done]);
    consumer.end().await.status.unwrap();

    let client = test.fresh_client().await;
    let opened = (0..20).map(|_| Consumer::start(&client, start("orders")));
    let opened = futures_util::future::join_all(opened).await;
    let closings = opened.into_iter().map(Consumer::end);
    let delays = futures_util::future::join_all(closings).await.into_iter().map(|end| {
        end.status.unwrap();
        let delay = end.closing.expect("closing before the end").retry_delay.expect("a delay");
        delay.seconds * 1_000 + i64::from(delay.nanos) / 1_000_000
    });
    let delays: std::collections::BTreeSet<i64> = delays.collect();
    assert!(delays.len() > 5, "{delays:?}");
    assert!(delays.iter().all(|delay| (100..=2_000).contains(delay)), "{delays:?}");
}

#[tokio::test]
async fn a_stream_outlives_its_database_connections() {
    let mut test = Test::with_queue("orders").await;
    let mut consumer = Consumer::start(&test.client, start("orders")).await;
    test.client.send("orders", "{}").await;
    let held = consumer.message().await;
    test.database.terminate_connections().await;
    test.sql = test.database.connect().await;
    test.run("SELECT pgmq.send('orders', '{}')").await;
    assert_eq!(consumer.message().await.msg_id, 2);
    eventually("a settle", async || {
        let request_id = consumer.send(settle(SettleAction::Delete, &[&held]));
        let result = consumer.result(request_id).await;
        let outcome = result.results.first()?.outcome();
        assert!([Outcome::Done, Outcome::NotFound].contains(&outcome));
        Some(())
    })
    .await;
}

#[tokio::test]
async fn a_stream_outlives_a_restart_of_its_database() {
    let mut postgres = OwnPostgres::start().await;
    let mut server = Server::start(&["--database-url", &postgres.url]).await;
    server.expect_errors();
    let mut client = Client::connect(&server).await;
    client.create("orders").await;
    client.send("orders", "1").await;
    let mut consumer = Consumer::start(&client, start("orders")).await;
    let held = consumer.message().await;

    postgres.stop().await;
    let meanwhile = consumer.send(settle(SettleAction::Delete, &[&held]));
    let result = consumer.result(meanwhile).await;
    assert!(result.error.is_some(), "{result:?}");
    postgres.start_again().await;

    eventually("a settle", async || {
        let request_id = consumer.send(settle(SettleAction::Delete, &[&held]));
        let result = consumer.result(request_id).await;
        (result.results.first()?.outcome() == Outcome::Done).then_some(())
    })
    .await;
    let sql = postgres.connect().await;
    sql.batch_execute("SELECT pgmq.send('orders', '2')").await.unwrap();
    assert_eq!(consumer.message().await.message, "2");
    tokio::time::timeout(Duration::from_secs(30), consumer.heartbeat()).await.expect("a heartbeat");
}
