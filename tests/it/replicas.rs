//! Two servers on one database behave as one.

use std::collections::HashSet;

use pgmq_grpc::proto::v1::{DropQueueRequest, GetQueueRequest, Outcome, ReadBatchRequest, ReadRequest};
use tonic::Code;

use crate::harness::{Client, Refusal, Server, Test, seconds};
use crate::read_batch::{all_of, begin_read, ids, now, until_a_reader_waits, waiting_for};
use crate::read_stream::Follower;

/// A test with a queue `orders`, and a client of a second server on the same database.
async fn pair() -> (Test, Server, Client) {
    let test = Test::with_queue("orders").await;
    let other = Server::start_on(&test.database, &[]).await;
    let elsewhere = Client::connect(&other).await;
    (test, other, elsewhere)
}

#[tokio::test]
async fn a_send_to_one_replica_reaches_a_read_that_waits_at_another() {
    let (test, _other, mut elsewhere) = pair().await;
    let read = begin_read(&test, waiting_for("orders"));
    let since = now(&test).await;
    until_a_reader_waits(&test, &since).await;
    let sent = elsewhere.send("orders", "{}").await;
    assert_eq!(ids(&read.await.unwrap()), [sent]);
}

#[tokio::test]
async fn a_send_to_one_replica_reaches_a_stream_at_another() {
    let (test, _other, mut elsewhere) = pair().await;
    let request = ReadRequest { queue: "orders".to_owned(), ..Default::default() };
    let mut stream = Follower::open(&test.client, request).await;
    for _ in 0..3 {
        let sent = elsewhere.send("orders", "{}").await;
        assert_eq!(stream.message().await.msg_id, sent);
    }
}

#[tokio::test]
async fn a_head_settled_at_one_replica_lets_its_group_go_on_at_another() {
    let (mut test, _other, mut elsewhere) = pair().await;
    for _ in 0..3 {
        test.client.send_to_group("orders", "a", "{}").await;
    }
    let heads = ReadRequest {
        queue: "orders".to_owned(),
        ordering: pgmq_grpc::proto::v1::Ordering::GroupedHead.into(),
        ..Default::default()
    };
    let mut stream = Follower::open(&test.client, heads).await;
    for msg_id in 1..=3 {
        let head = stream.message().await;
        assert_eq!(head.msg_id, msg_id);
        assert_eq!(elsewhere.delete("orders", &[&head.receipt]).await, [Outcome::Done]);
    }
}

#[tokio::test]
async fn a_receipt_is_stale_after_a_read_at_another_replica() {
    let (mut test, _other, mut elsewhere) = pair().await;
    test.client.send("orders", "{}").await;
    let first = test.client.read_one("orders").await;
    crate::settle::release(&mut elsewhere, "orders", &[&first.receipt], None).await;
    let second = elsewhere.read_one("orders").await;
    assert_eq!(test.client.delete("orders", &[&first.receipt]).await, [Outcome::Stale]);
    assert_eq!(test.client.delete("orders", &[&second.receipt]).await, [Outcome::Done]);
    assert_eq!(elsewhere.delete("orders", &[&second.receipt]).await, [Outcome::NotFound]);
}

#[tokio::test]
async fn readers_at_two_replicas_never_hold_the_same_message() {
    let (mut test, other, _elsewhere) = pair().await;
    let sent = test.client.send_all("orders", &["{}"; 500]).await;
    let mut readers = Vec::new();
    for number in 0..6 {
        let server = if number % 2 == 0 { &test.server } else { &other };
        let mut client = Client::connect(server).await;
        readers.push(tokio::spawn(async move {
            let mut read = Vec::new();
            loop {
                let request = ReadBatchRequest {
                    max_messages: 11,
                    wait: seconds(0.5),
                    visibility_timeout: seconds(600.0),
                    ..all_of("orders")
                };
                match client.read_as(request).await {
                    none if none.is_empty() => return read,
                    some => read.extend(ids(&some)),
                }
            }
        }));
    }
    let mut read = Vec::new();
    for reader in readers {
        read.extend(reader.await.unwrap());
    }
    assert_eq!(read.len(), sent.len());
    assert_eq!(read.into_iter().collect::<HashSet<_>>(), sent.into_iter().collect());
}

#[tokio::test]
async fn streams_at_two_replicas_share_a_queue() {
    let (mut test, _other, elsewhere) = pair().await;
    let sent = test.client.send_all("orders", &["{}"; 20]).await;
    let request = ReadRequest { queue: "orders".to_owned(), max_in_flight: 10, ..Default::default() };
    let mut here = Follower::open(&test.client, request.clone()).await;
    let mut there = Follower::open(&elsewhere, request).await;
    let mut read = ids(&here.messages(10).await);
    read.extend(ids(&there.messages(10).await));
    read.sort_unstable();
    assert_eq!(read, sent);
}

#[tokio::test]
async fn both_replicas_see_queues_come_and_go() {
    let (mut test, _other, mut elsewhere) = pair().await;
    let get = || GetQueueRequest { queue: "orders".to_owned() };
    let id_of = async |client: &mut Client| {
        client.queue.get_queue(get()).await.map(|answer| answer.into_inner().queue.expect("a queue").id)
    };
    elsewhere.send("orders", "{}").await;
    let old = id_of(&mut elsewhere).await.unwrap();
    assert_eq!(id_of(&mut test.client).await.unwrap(), old);

    test.client.queue.drop_queue(DropQueueRequest { queue: "orders".to_owned() }).await.unwrap();
    let refused = id_of(&mut elsewhere).await.unwrap_err();
    Refusal::expect(&refused, Code::NotFound, "QUEUE_NOT_FOUND");
    // The other replica has used the queue before and must not trust its memory.
    let refused = elsewhere.queue.read_batch(all_of("orders")).await.unwrap_err();
    Refusal::expect(&refused, Code::NotFound, "QUEUE_NOT_FOUND");
    let send = pgmq_grpc::proto::v1::SendRequest {
        queue: "orders".to_owned(),
        message: "{}".to_owned(),
        ..Default::default()
    };
    let refused = elsewhere.queue.send(send).await.unwrap_err();
    Refusal::expect(&refused, Code::NotFound, "QUEUE_NOT_FOUND");

    test.client.create("orders").await;
    assert_ne!(id_of(&mut elsewhere).await.unwrap(), old);
    let sent = elsewhere.send("orders", "{}").await;
    assert_eq!(test.client.read_one("orders").await.msg_id, sent);
}

#[tokio::test]
async fn a_replica_that_goes_leaves_the_other_at_work() {
    let (mut test, other, mut elsewhere) = pair().await;
    test.client.send_all("orders", &["1", "2"]).await;
    let held = elsewhere.read_one("orders").await;
    drop(other);
    assert_eq!(test.client.read_one("orders").await.msg_id, 2);
    assert_eq!(test.client.delete("orders", &[&held.receipt]).await, [Outcome::Done]);
}
