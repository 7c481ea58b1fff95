//! Replays beside readers and beside each other, on two servers.

use std::collections::BTreeMap;

use pgmq_grpc::proto::v1::{ArchiveFilter, Ordering, Outcome, ReadBatchRequest, ReadRequest};
use tonic::Code;

use super::{archive_of, replay, replay_of, replayed};
use crate::browse::archive::archived_ids;
use crate::harness::{Client, Refusal, Server, Test, seconds};
use crate::read_batch::{all_of, begin_read, ids, now, until_a_reader_waits, waiting_for};
use crate::read_stream::{Follower, follow};

#[tokio::test]
async fn a_replay_wakes_who_waits_here_and_at_another_server() {
    let mut test = archive_of(2).await;
    let other = Server::start_on(&test.database, &[]).await;
    let mut elsewhere = Client::connect(&other).await;
    let since = now(&test).await;
    let read = begin_read(&test, waiting_for("orders"));
    until_a_reader_waits(&test, &since).await;
    let one = |msg_id| pgmq_grpc::proto::v1::ReplayArchivedMessagesRequest {
        filter: Some(ArchiveFilter { msg_ids: vec![msg_id], ..Default::default() }),
        ..replay_of("orders")
    };
    assert_eq!(replay(&mut elsewhere, one(1)).await, replayed(1, false));
    assert_eq!(ids(&read.await.unwrap()), [3]);

    let mut stream = Follower::open(&test.client, follow("orders")).await;
    assert_eq!(replay(&mut test.client, one(2)).await, replayed(1, false));
    assert_eq!(stream.message().await.msg_id, 4);
}

#[tokio::test]
async fn replayed_messages_of_a_group_come_in_their_order() {
    let mut test = Test::with_queue("orders").await;
    for body in ["1", "2", "3"] {
        test.client.send_to_group("orders", "a", body).await;
    }
    test.run("SELECT pgmq.archive('orders', ARRAY[2, 3, 1])").await;
    replay(&mut test.client, replay_of("orders")).await;
    let heads = ReadRequest {
        queue: "orders".to_owned(),
        ordering: Ordering::GroupedHead.into(),
        ..Default::default()
    };
    let mut stream = Follower::open(&test.client, heads).await;
    for body in ["1", "2", "3"] {
        let head = stream.message().await;
        assert_eq!(head.message, body);
        assert_eq!(test.client.delete("orders", &[&head.receipt]).await, [Outcome::Done]);
    }
}

/// Replays until nothing is left, and counts.
async fn replay_all(mut client: Client) -> i64 {
    let mut count = 0;
    loop {
        match client
            .admin
            .replay_archived_messages(replay_of("orders"))
            .await
            .map(tonic::Response::into_inner)
        {
            Ok(done) => {
                count += done.replayed_count;
                if !done.more {
                    return count;
                }
            }
            // The other replay has had all that is left for longer than this one waits.
            Err(refused) => drop(Refusal::expect(&refused, Code::Aborted, "QUEUE_BUSY")),
        }
    }
}

#[tokio::test]
async fn replays_at_two_servers_beside_consumers_move_each_message_once() {
    const ALL: i64 = 6_000;
    let mut test = archive_of(ALL).await;
    let other = Server::start_on(&test.database, &[]).await;
    let elsewhere = Client::connect(&other).await;
    let consumers = [test.client.clone(), elsewhere.clone()].map(|mut client| {
        tokio::spawn(async move {
            let mut consumed = Vec::new();
            loop {
                let request = ReadBatchRequest {
                    max_messages: 200,
                    wait: seconds(2.0),
                    visibility_timeout: seconds(600.0),
                    ..all_of("orders")
                };
                let read = client.read_as(request).await;
                if read.is_empty() {
                    return consumed;
                }
                let receipts: Vec<&str> = read.iter().map(|message| message.receipt.as_str()).collect();
                let outcomes = client.delete("orders", &receipts).await;
                assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Done));
                assert!(read.iter().all(|message| message.read_ct == 1 && message.msg_id > ALL));
                consumed.extend(read.into_iter().map(|message| message.message.parse::<i64>().unwrap()));
            }
        })
    });
    let (here, there) = tokio::join!(replay_all(test.client.clone()), replay_all(elsewhere));
    assert_eq!(here + there, ALL);
    let mut times: BTreeMap<i64, usize> = BTreeMap::new();
    for consumer in consumers {
        for body in consumer.await.unwrap() {
            *times.entry(body).or_default() += 1;
        }
    }
    // A consumer that waited in vain for a while has ended before the rest came.
    loop {
        let left = test.client.read_as(all_of("orders")).await;
        if left.is_empty() {
            break;
        }
        for message in left {
            *times.entry(message.message.parse().unwrap()).or_default() += 1;
        }
    }
    assert!(times.keys().copied().eq(1..=ALL), "{}", times.len());
    assert!(times.values().all(|&times| times == 1));
    assert!(archived_ids(&mut test.client, "orders", ArchiveFilter::default()).await.is_empty());
}
