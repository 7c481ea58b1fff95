//! Flow control: the window of `AUTOMATIC`, the credit of `MANUAL`, and streams beside each other.

use std::time::Duration;

use pgmq_grpc::proto::v1::consume_request::Command;
use pgmq_grpc::proto::v1::{ConsumeStart, FlowControl, Message, Ordering, ReadBatchRequest, SettleAction};

use super::{Consumer, Outcome, credit, settle, start, stop};
use crate::harness::{Client, Test, eventually, seconds};
use crate::read_batch::{body_of, ids, waiting_for};

fn manual(queue: &str) -> ConsumeStart {
    ConsumeStart { flow_control: FlowControl::Manual.into(), ..start(queue) }
}

#[tokio::test]
async fn a_window_gives_the_backlog_and_then_what_comes() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["1", "2"]).await;
    let mut consumer = Consumer::start(&test.client, start("orders")).await;
    let backlog = consumer.take(2).await;
    assert_eq!(ids(&backlog), [1, 2]);
    assert_eq!((backlog[0].message.as_str(), backlog[0].read_ct), ("1", 1));
    test.client.send("orders", "3").await;
    assert_eq!(consumer.message().await.message, "3");
    assert_eq!(consumer.heartbeat().await.in_flight, 3);
}

#[tokio::test]
async fn a_client_holds_at_most_its_window() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["{}"; 5]).await;
    let mut consumer =
        Consumer::start(&test.client, ConsumeStart { max_in_flight: 2, ..start("orders") }).await;
    let held = consumer.take(2).await;
    assert_eq!(consumer.heartbeat().await.in_flight, 2);
    assert_eq!(consumer.settle(SettleAction::Delete, &[&held[0]]).await, [Outcome::Done]);
    assert_eq!(consumer.message().await.msg_id, 3);
    assert_eq!(test.client.delete("orders", &[&held[1].receipt]).await, [Outcome::Done]);
    assert_eq!(consumer.message().await.msg_id, 4);
    assert_eq!(consumer.heartbeat().await.in_flight, 2);
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders WHERE read_ct > 0").await, 2);
}

#[tokio::test]
async fn the_end_of_a_visibility_timeout_makes_room() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let short = ConsumeStart { max_in_flight: 1, visibility_timeout: seconds(1.0), ..start("orders") };
    let mut consumer = Consumer::start(&test.client, short).await;
    let first = consumer.message().await;
    let second = consumer.message().await;
    assert_eq!((first.read_ct, second.read_ct), (1, 2));
    assert_eq!(consumer.settle(SettleAction::Delete, &[&first]).await, [Outcome::Stale]);
}

#[tokio::test]
async fn each_message_costs_credit_and_settles_give_none_back() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["{}"; 5]).await;
    let mut consumer = Consumer::start(&test.client, manual("orders")).await;
    assert_eq!(consumer.heartbeat().await.in_flight, 0);
    consumer.send(credit(2));
    let held = consumer.take(2).await;
    assert_eq!(consumer.settle(SettleAction::Delete, &[&held[0], &held[1]]).await, [Outcome::Done; 2]);
    assert_eq!(consumer.heartbeat().await.in_flight, 0);
    consumer.send(credit(1));
    consumer.send(credit(1));
    assert_eq!(ids(&consumer.take(2).await), [3, 4]);
    assert_eq!(consumer.heartbeat().await.in_flight, 2);
}

#[tokio::test]
async fn credit_after_stop_is_ignored() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let mut consumer = Consumer::start(&test.client, manual("orders")).await;
    consumer.send(stop());
    consumer.send(credit(1));
    consumer.stopped(1).await;
    consumer.heartbeat().await;
    consumer.half_close();
    consumer.end().await.status.expect("OK");
    assert_eq!(test.client.read_one("orders").await.read_ct, 1);
}

#[tokio::test]
async fn what_a_cancelled_stream_was_not_given_is_visible_at_once() {
    let mut test = Test::with_queue("orders").await;
    let large = body_of(100_000);
    for _ in 0..4 {
        test.client.send_all("orders", &[large.as_str(); 10]).await;
    }
    // Its transport takes far less than all of them, and nobody reads them.
    let stalled = Client::connect_hesitantly(&test.server).await;
    let greedy = ConsumeStart { max_in_flight: 1_000, visibility_timeout: seconds(600.0), ..start("orders") };
    let stuck = Consumer::start(&stalled, greedy).await;
    let taken = "SELECT count(*) FROM pgmq.q_orders WHERE read_ct > 0";
    eventually("a read", async || (test.value::<i64>(taken).await > 0).then_some(())).await;
    drop(stuck);
    let uncounted = "SELECT count(*) FROM pgmq.q_orders WHERE read_ct = 0 AND vt <= clock_timestamp()";
    let held = "SELECT count(*) FROM pgmq.q_orders WHERE read_ct = 1 AND vt > clock_timestamp()";
    eventually("a give-back", async || {
        let (back, held) = (test.value::<i64>(uncounted).await, test.value::<i64>(held).await);
        (back + held == 40 && back > 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_a_client_did_not_take_goes_back_at_its_deadline() {
    let mut test = Test::with_queue("orders").await;
    for _ in 0..6 {
        test.client.send("orders", &body_of(900_000)).await;
    }
    let stalled = Client::connect_hesitantly(&test.server).await;
    let mut stuck = Consumer::open_with(&stalled, |call| call.set_timeout(Duration::from_secs(8))).await;
    // It is the end that gives back, and not the time for which messages may wait.
    stuck.send(Command::Start(ConsumeStart { visibility_timeout: seconds(600.0), ..start("orders") }));
    let read = "SELECT count(*) FROM pgmq.q_orders WHERE read_ct = 1";
    eventually("three messages on their way", async || (test.value::<i64>(read).await == 3).then_some(()))
        .await;
    let given_back = "SELECT count(*) FROM pgmq.q_orders WHERE read_ct = 0 AND vt <= clock_timestamp()";
    eventually("the give-back", async || (test.value::<i64>(given_back).await == 4).then_some(())).await;
    drop(stuck);
}

#[tokio::test]
async fn a_slow_stream_holds_nothing_back_from_others() {
    let mut test = Test::with_queue("orders").await;
    let large = body_of(200_000);
    let other = Client::connect(&test.server).await;
    let timeout = seconds(4.0);
    let slow = ConsumeStart { max_in_flight: 1_000, visibility_timeout: timeout, ..start("orders") };
    let stuck = Consumer::start(&other, slow).await;
    for _ in 0..6 {
        test.client.send_all("orders", &[large.as_str(); 10]).await;
    }
    let mut consumer = Consumer::start(&test.client, start("orders")).await;
    let mut seen = std::collections::HashSet::new();
    while seen.len() < 60 {
        consumer.until("a message", |this| (!this.messages.is_empty()).then_some(())).await;
        let messages = std::mem::take(&mut consumer.messages);
        let held: Vec<&Message> = messages.iter().collect();
        consumer.settle(SettleAction::Delete, &held).await;
        seen.extend(ids(&messages));
    }
    drop(stuck);
}

#[tokio::test]
async fn two_streams_share_and_see_each_message_once() {
    let mut test = Test::with_queue("orders").await;
    let mut streams = Vec::new();
    for _ in 0..2 {
        streams
            .push(Consumer::start(&test.client, ConsumeStart { max_in_flight: 5, ..start("orders") }).await);
    }
    test.client.send_all("orders", &["{}"; 40]).await;
    let seen = std::sync::Mutex::new(Vec::new());
    let work = streams.into_iter().map(async |mut stream| {
        let mut own = 0;
        while seen.lock().unwrap().len() < 40 {
            let Some(Ok(reply)) = stream.reply().await else { panic!("no end") };
            stream.keep(reply);
            let messages = std::mem::take(&mut stream.messages);
            assert!(messages.len() <= 5);
            own += messages.len();
            seen.lock().unwrap().extend(ids(&messages));
            for message in &messages {
                stream.send(settle(SettleAction::Delete, &[message]));
            }
        }
        own
    });
    let shares = futures_util::future::join_all(work).await;
    let mut seen = seen.into_inner().unwrap();
    seen.sort_unstable();
    assert_eq!(seen, (1..=40).collect::<Vec<i64>>());
    assert!(shares.iter().all(|share| *share > 0), "{shares:?}");
}

#[tokio::test]
async fn a_group_gives_its_next_message_when_its_head_is_settled() {
    let mut test = Test::with_queue("orders").await;
    for (group, body) in [("a", "1"), ("a", "2"), ("b", "3"), ("a", "4")] {
        test.client.send_to_group("orders", group, body).await;
    }
    let heads = ConsumeStart { ordering: Ordering::GroupedHead.into(), ..start("orders") };
    let mut consumer = Consumer::start(&test.client, heads).await;
    let first = consumer.take(2).await;
    assert_eq!(ids(&first), [1, 3]);
    consumer.heartbeat().await;
    for next in [2, 4] {
        let held = if next == 2 { first[0].clone() } else { consumer.messages.remove(0) };
        assert_eq!(consumer.settle(SettleAction::Delete, &[&held]).await, [Outcome::Done]);
        consumer.until("the next head", |this| (!this.messages.is_empty()).then_some(())).await;
        assert_eq!(ids(&consumer.messages), [next]);
    }
    let other = ReadBatchRequest { wait: None, ..waiting_for("orders") };
    assert!(test.client.read_as(other).await.is_empty());
}
