//! `auto_extend`: messages of a living client stay hidden, and those of a silent one do not.

use pgmq_grpc::proto::v1::{ConsumeStart, Message, ReadBatchRequest, SettleAction};

use super::{Consumer, Outcome, alive, extend, start};
use crate::harness::{Client, Test, eventually, seconds};
use crate::read_batch::{body_of, ids, micros, waiting_for};

fn extending(queue: &str) -> ConsumeStart {
    ConsumeStart { visibility_timeout: seconds(2.0), auto_extend: true, ..start(queue) }
}

/// A queue of one message, and a stream that holds it and extends.
async fn holding(start: ConsumeStart) -> (Test, Consumer, Message) {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let mut consumer = Consumer::start(&test.client, start).await;
    let held = consumer.message().await;
    (test, consumer, held)
}

async fn now(test: &Test) -> i64 {
    test.value("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint").await
}

async fn vt(test: &Test) -> i64 {
    test.value("SELECT (extract(epoch FROM vt) * 1000000)::bigint FROM pgmq.q_orders").await
}

#[tokio::test]
async fn a_message_stays_with_a_living_client_beyond_its_timeout() {
    let (mut test, mut consumer, held) = holding(extending("orders")).await;
    // Three timeouts by the database's clock.
    let until = micros(held.vt.as_ref()) + 4_000_000;
    while now(&test).await < until {
        consumer.send(alive());
        assert_eq!(consumer.heartbeat().await.in_flight, 1);
    }
    let other = ReadBatchRequest { wait: None, ..waiting_for("orders") };
    assert!(test.client.read_as(other).await.is_empty());
    assert_eq!(consumer.settle(SettleAction::Delete, &[&held]).await, [Outcome::Done]);
}

#[tokio::test]
async fn a_silent_clients_message_comes_back_and_a_sign_of_life_keeps_the_next() {
    let (test, mut consumer, held) = holding(extending("orders")).await;
    // Two heartbeat intervals of two seconds in all, and what was extended by then.
    let again = consumer.message().await;
    assert_eq!((again.msg_id, again.read_ct), (held.msg_id, 2));
    assert!(micros(again.last_read_at.as_ref()) >= micros(held.vt.as_ref()));
    let first = micros(again.vt.as_ref());
    eventually("an extension", async || {
        consumer.send(alive());
        (vt(&test).await > first).then_some(())
    })
    .await;
    assert_eq!(consumer.settle(SettleAction::Delete, &[&held]).await, [Outcome::Stale]);
}

#[tokio::test]
async fn nothing_is_extended_beyond_the_longest_extension() {
    let longest = ConsumeStart { max_extension: seconds(3.0), ..extending("orders") };
    let (test, mut consumer, held) = holding(longest).await;
    let delivered = micros(held.last_read_at.as_ref());
    let mut latest = micros(held.vt.as_ref());
    loop {
        consumer.send(alive());
        let (vt, now) = (vt(&test).await, now(&test).await);
        latest = latest.max(vt);
        if vt <= now || !consumer.messages.is_empty() {
            break;
        }
        let request_id = consumer.send(super::settle_receipts(SettleAction::Delete, vec!["x".to_owned()]));
        consumer.error(request_id).await;
    }
    // Counted from when the server had it, which is a little after the database's read.
    assert!(latest > micros(held.vt.as_ref()), "it was extended once");
    let again = consumer.message().await;
    assert_eq!(again.read_ct, 2);
    assert!(micros(again.last_read_at.as_ref()) >= delivered + 2_000_000);
}

#[tokio::test]
async fn a_locked_row_takes_nothing_from_the_other_messages_of_its_stream() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["{}"; 2]).await;
    let mut consumer = Consumer::start(&test.client, extending("orders")).await;
    let held = consumer.take(2).await;
    let other = test.database.connect().await;
    other.batch_execute("BEGIN; SELECT FROM pgmq.q_orders WHERE msg_id = 1 FOR UPDATE").await.unwrap();
    let until = micros(held[1].vt.as_ref()) + 4_000_000;
    while now(&test).await < until {
        consumer.send(alive());
        consumer.heartbeat().await;
    }
    // Three timeouts later the one is still the client's, and nobody gets the other while it is locked.
    assert_eq!(consumer.settle(SettleAction::Delete, &[&held[1]]).await, [Outcome::Done]);
    other.batch_execute("ROLLBACK").await.unwrap();
    let again = consumer.message().await;
    assert_eq!((again.msg_id, again.read_ct), (1, 2));
}

#[tokio::test]
async fn a_released_message_is_not_extended() {
    let (mut test, mut consumer, held) = holding(extending("orders")).await;
    consumer.send(super::stop());
    consumer.stopped(1).await;
    for _ in 0..3 {
        consumer.send(alive());
        consumer.heartbeat().await;
    }
    assert_eq!(consumer.settle(SettleAction::Release, &[&held]).await, [Outcome::Done]);
    let mut other = Client::connect(&test.server).await;
    let read = other.read_as(waiting_for("orders")).await;
    assert_eq!((ids(&read), read[0].read_ct), (vec![held.msg_id], 2));
    test.client.delete("orders", &[&read[0].receipt]).await;
}

#[tokio::test]
async fn an_extension_does_not_cut_short_a_longer_one() {
    let (test, mut consumer, held) = holding(extending("orders")).await;
    let request_id = consumer.send(extend(&[&held], Some(3_600.0)));
    let extended = consumer.items(request_id).await;
    for _ in 0..4 {
        consumer.send(alive());
        consumer.heartbeat().await;
    }
    assert_eq!(vt(&test).await, micros(extended[0].vt.as_ref()));
}

#[tokio::test]
async fn without_it_a_message_comes_back() {
    let (_test, mut consumer, held) =
        holding(ConsumeStart { auto_extend: false, ..extending("orders") }).await;
    loop {
        consumer.send(alive());
        consumer
            .until("a reply", |this| {
                this.heartbeats.pop().map(drop).or((!this.messages.is_empty()).then_some(()))
            })
            .await;
        if let Some(again) = consumer.messages.pop() {
            assert_eq!((again.msg_id, again.read_ct), (held.msg_id, 2));
            return;
        }
    }
}

#[tokio::test]
async fn what_a_living_client_does_not_take_goes_back_and_is_not_extended() {
    let mut test = Test::with_queue("orders").await;
    for _ in 0..6 {
        test.client.send("orders", &body_of(900_000)).await;
    }
    let stalled = Client::connect_hesitantly(&test.server).await;
    let start = ConsumeStart { visibility_timeout: seconds(10.0), ..extending("orders") };
    let mut consumer = Consumer::start(&stalled, start).await;
    let taken = consumer.messages.len();
    let read = "SELECT count(*) FROM pgmq.q_orders WHERE read_ct = 1";
    let on_their_way = eventually("messages on their way", async || {
        consumer.send(alive());
        Some(test.value::<i64>(read).await).filter(|count| *count >= 3)
    })
    .await;
    // What the transport has is the client's, and stays so; what waited behind it has gone back.
    let extended =
        "SELECT count(*) FROM pgmq.q_orders WHERE read_ct = 1 AND vt > last_read_at + interval '11 s'";
    let back = "SELECT count(*) FROM pgmq.q_orders WHERE read_ct = 0 AND vt <= clock_timestamp()";
    let kept = eventually("the give-back", async || {
        consumer.send(alive());
        let (extended, back) = (test.value::<i64>(extended).await, test.value::<i64>(back).await);
        (extended + back == 6 && extended < on_their_way).then_some(extended)
    })
    .await;
    assert!(kept > 0, "{kept}");

    consumer.until("the others", |this| (this.messages.len() >= 6 - taken).then_some(())).await;
    assert!(consumer.messages.iter().all(|message| message.read_ct == 1), "{:?}", ids(&consumer.messages));
    let messages: Vec<Message> = consumer.messages.clone();
    let held: Vec<&Message> = messages.iter().collect();
    assert_eq!(consumer.settle(SettleAction::Delete, &held).await, vec![Outcome::Done; held.len()]);
}
