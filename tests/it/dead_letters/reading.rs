//! A message that was handed over often enough goes aside when it would be read once more.

use pgmq_grpc::proto::v1::{
    ConsumeStart, Message, Ordering, Outcome, PopRequest, QueuePolicy, ReadBatchRequest, ReadRequest,
};

use super::{at_most, count, dead, expire, header, moved, orders, read_all, set_at_most};
use crate::consume::Consumer;
use crate::harness::{Client, Server, Test, eventually};
use crate::policies::{change, create, set};
use crate::read_batch::{all_of, ids, waiting_for};
use crate::settle::outcomes;

#[tokio::test]
async fn a_message_is_handed_over_as_often_as_allowed_and_then_goes_aside() {
    let mut test = orders(3).await;
    let sent = test.client.send("orders", r#"{"total": 1}"#).await;
    let mut receipts = Vec::new();
    for time in 1..=3 {
        let read = test.client.read_one("orders").await;
        assert_eq!((read.msg_id, read.read_ct), (sent, time));
        receipts.push(read.receipt);
        assert_eq!(count(&test, "failed").await, 0, "after {time} hand-overs");
        expire(&test, "orders").await;
    }
    let enqueued_at: String = test.value("SELECT to_jsonb(enqueued_at) #>> '{}' FROM pgmq.q_orders").await;
    assert!(read_all(&mut test, "orders").await.is_empty());
    assert_eq!((count(&test, "orders").await, count(&test, "failed").await), (0, 1));
    assert_eq!(header(&test, "queue").await, "orders");
    assert_eq!(header(&test, "msg_id").await, sent.to_string());
    assert_eq!(header(&test, "read_ct").await, "3");
    assert_eq!(header(&test, "enqueued_at").await, enqueued_at);
    assert_eq!(header(&test, "reason").await, "max_receives");

    // There it is a new message, which no old receipt names.
    let letter = test.client.read_one("failed").await;
    assert_eq!((letter.read_ct, letter.message.as_str()), (1, r#"{"total": 1}"#));
    for receipt in &receipts {
        assert_eq!(test.client.delete("orders", &[receipt]).await, [Outcome::NotFound]);
    }
    assert_eq!(moved(&mut test.client, "orders").await, 1);
    assert_eq!(test.client.delete("failed", &[&letter.receipt]).await, [Outcome::Done]);
}

#[tokio::test]
async fn the_dead_letter_keeps_its_headers_and_its_group() {
    let mut test = orders(1).await;
    test.client.send_to_group("orders", "customer-1", "{}").await;
    test.client.read_one("orders").await;
    expire(&test, "orders").await;
    assert!(read_all(&mut test, "orders").await.is_empty());
    let group: String = test.value("SELECT headers ->> 'x-pgmq-group' FROM pgmq.q_failed").await;
    assert_eq!(group, "customer-1");
}

#[tokio::test]
async fn headers_that_are_no_object_do_not_keep_a_message() {
    let mut test = orders(1).await;
    test.run("SELECT pgmq.send('orders', '1', '[1]'::jsonb); SELECT pgmq.send('orders', '2')").await;
    assert_eq!(read_all(&mut test, "orders").await.len(), 2);
    expire(&test, "orders").await;
    assert!(read_all(&mut test, "orders").await.is_empty());
    assert_eq!(dead(&test).await, ["1", "2"]);
}

#[tokio::test]
async fn what_comes_after_dead_letters_is_read_at_once() {
    let mut test = orders(1).await;
    for _ in 0..5 {
        test.client.send("orders", r#""worn out""#).await;
    }
    assert_eq!(read_all(&mut test, "orders").await.len(), 5);
    expire(&test, "orders").await;
    let fresh = test.client.send("orders", r#""fresh""#).await;
    // A read without a wait, which takes one message only.
    assert_eq!(ids(&test.client.read("orders", 1).await), [fresh]);
    assert_eq!(count(&test, "failed").await, 5);
}

#[tokio::test]
async fn more_dead_letters_than_one_read_takes_go_at_once() {
    let mut test = orders(1).await;
    test.run(
        "SELECT pgmq.send('orders', to_jsonb(n)) FROM generate_series(1, 2500) AS n;
        UPDATE pgmq.q_orders SET read_ct = 1",
    )
    .await;
    let fresh = test.client.send("orders", "{}").await;
    assert_eq!(ids(&test.client.read("orders", 10).await), [fresh]);
    assert_eq!(count(&test, "failed").await, 2_500);
    assert_eq!(moved(&mut test.client, "orders").await, 2_500);
}

#[tokio::test]
async fn every_order_of_reading_sets_aside() {
    for ordering in
        [Ordering::Unordered, Ordering::Grouped, Ordering::GroupedRoundRobin, Ordering::GroupedHead]
    {
        let mut test = orders(1).await;
        for (group, body) in [("a", "1"), ("a", "2"), ("b", "3"), ("b", "4")] {
            test.client.send_to_group("orders", group, body).await;
        }
        // The head of each group was handed over before.
        test.run("UPDATE pgmq.q_orders SET read_ct = 1 WHERE msg_id IN (1, 3)").await;
        let request = || ReadBatchRequest { ordering: ordering.into(), max_messages: 10, ..all_of("orders") };
        assert_eq!(ids(&test.client.read_as(request()).await), [2, 4], "{ordering:?}");
        assert_eq!(dead(&test).await, ["1", "3"], "{ordering:?}");
    }
}

#[tokio::test]
async fn a_conditional_read_sets_aside_what_it_would_have_read() {
    let mut test = orders(1).await;
    for body in [r#"{"kind": "a"}"#, r#"{"kind": "b"}"#] {
        test.client.send("orders", body).await;
    }
    test.run("UPDATE pgmq.q_orders SET read_ct = 1").await;
    let conditional = r#"{"kind": "b"}"#.to_owned();
    assert!(test.client.read_as(ReadBatchRequest { conditional, ..all_of("orders") }).await.is_empty());
    assert_eq!(dead(&test).await, [r#"{"kind": "b"}"#]);
}

/// Reads the messages of a group one after the other, failing each as often as is allowed: none comes before the one
/// ahead of it is gone.
#[tokio::test]
async fn a_group_goes_on_in_order_around_its_dead_letters() {
    let mut test = orders(2).await;
    for body in ["1", "2", "3"] {
        test.client.send_to_group("orders", "a", body).await;
    }
    let start =
        ConsumeStart { queue: "orders".into(), ordering: Ordering::GroupedHead.into(), ..Default::default() };
    let mut consumer = Consumer::start(&test.client, start).await;
    let mut seen = Vec::new();
    for _ in 0..6 {
        let message = consumer.message().await;
        seen.push(message.message);
        expire(&test, "orders").await;
    }
    assert_eq!(seen, ["1", "1", "2", "2", "3", "3"]);
    eventually("the last dead letter", async || (dead(&test).await.len() == 3).then_some(())).await;
}

#[tokio::test]
async fn streams_set_aside_and_wake_the_readers_of_the_dead_letter_queue() {
    let mut test = orders(1).await;
    test.client.send("orders", r#""first""#).await;
    let mut failed = test
        .client
        .queue
        .read(ReadRequest { queue: "failed".into(), ..Default::default() })
        .await
        .unwrap()
        .into_inner();
    assert!(failed.message().await.unwrap().unwrap().started.is_some());
    let mut reading = test
        .client
        .queue
        .read(ReadRequest { queue: "orders".into(), ..Default::default() })
        .await
        .unwrap()
        .into_inner();
    let mut read: Vec<Message> = Vec::new();
    while read.is_empty() {
        read.extend(reading.message().await.unwrap().unwrap().messages);
    }
    expire(&test, "orders").await;
    let letter = loop {
        if let Some(letter) = failed.message().await.unwrap().unwrap().messages.pop() {
            break letter;
        }
    };
    assert_eq!(letter.message, r#""first""#);
    assert_eq!(count(&test, "orders").await, 0);
}

#[tokio::test]
async fn readers_on_another_replica_hear_of_dead_letters() {
    let mut test = orders(1).await;
    let other = Server::start_on(&test.database, &[]).await;
    let mut elsewhere = Client::connect(&other).await;
    test.client.send("orders", "{}").await;
    test.client.read_one("orders").await;
    expire(&test, "orders").await;
    let reading = tokio::spawn(async move { elsewhere.read_as(waiting_for("failed")).await });
    assert!(read_all(&mut test, "orders").await.is_empty());
    assert_eq!(reading.await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_did_not_fit_a_reply_does_not_count() {
    let mut test = orders(1).await;
    let large = format!("\"{}\"", "x".repeat(1_000_000));
    for _ in 0..4 {
        test.client.send("orders", &large).await;
    }
    // The last one is read and given back, however often it does not fit.
    for _ in 0..3 {
        let read = read_all(&mut test, "orders").await;
        assert_eq!(ids(&read), [1, 2, 3]);
        test.run("UPDATE pgmq.q_orders SET vt = clock_timestamp(), read_ct = 0 WHERE msg_id < 4").await;
    }
    test.run("DELETE FROM pgmq.q_orders WHERE msg_id < 4").await;
    let read = read_all(&mut test, "orders").await;
    assert_eq!((ids(&read), read[0].read_ct), (vec![4], 1));
    assert_eq!(count(&test, "failed").await, 0);
}

#[tokio::test]
async fn a_lower_limit_holds_for_what_was_read_before() {
    let mut test = orders(5).await;
    test.client.send("orders", "{}").await;
    for _ in 0..3 {
        test.client.read_one("orders").await;
        expire(&test, "orders").await;
    }
    set_at_most(&mut test, 2).await;
    assert!(read_all(&mut test, "orders").await.is_empty());
    assert_eq!(header(&test, "read_ct").await, "3");

    // And without a policy nothing goes aside.
    change(&mut test.client, "orders", None, &["dead_letter"]).await.unwrap();
    test.client.send("orders", "{}").await;
    test.run("UPDATE pgmq.q_orders SET read_ct = 1000").await;
    assert_eq!(read_all(&mut test, "orders").await.len(), 1);
}

#[tokio::test]
async fn pop_hands_a_message_over_once_more() {
    let mut test = orders(1).await;
    test.client.send("orders", "{}").await;
    test.client.read_one("orders").await;
    expire(&test, "orders").await;
    let popped = test.client.queue.pop(PopRequest { queue: "orders".into(), max_messages: 1 }).await.unwrap();
    assert_eq!(popped.into_inner().messages.len(), 1);
    assert_eq!((count(&test, "orders").await, count(&test, "failed").await), (0, 0));
}

#[tokio::test]
async fn counts_are_of_this_incarnation_and_of_each_queue() {
    let mut test = orders(1).await;
    create(&mut test.client, "others", Some(at_most(1))).await.unwrap();
    test.client.send("orders", "{}").await;
    test.client.send("others", "{}").await;
    test.run("UPDATE pgmq.q_orders SET read_ct = 1; UPDATE pgmq.q_others SET read_ct = 1").await;
    assert!(read_all(&mut test, "orders").await.is_empty());
    assert!(read_all(&mut test, "others").await.is_empty());
    for queue in ["orders", "others"] {
        assert_eq!(moved(&mut test.client, queue).await, 1);
    }
    let drop = pgmq_grpc::proto::v1::DropQueueRequest { queue: "orders".into() };
    test.client.queue.drop_queue(drop).await.unwrap();
    test.client.create("orders").await;
    assert_eq!(moved(&mut test.client, "orders").await, 0);
    assert_eq!(moved(&mut test.client, "others").await, 1);
}

/// A policy given later concerns what is there already.
#[tokio::test]
async fn a_policy_that_comes_later_holds_at_once() {
    let mut test = Test::with_queue("orders").await;
    test.client.create("failed").await;
    test.client.send("orders", "{}").await;
    let held = test.client.read_one("orders").await;
    set(&mut test.client, "orders", QueuePolicy { ..at_most(1) }).await;
    let released = crate::settle::release(&mut test.client, "orders", &[&held.receipt], None).await;
    assert_eq!(outcomes(&released), [Outcome::Done]);
    assert_eq!((count(&test, "orders").await, count(&test, "failed").await), (0, 1));
}
