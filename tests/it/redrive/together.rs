//! Redrives beside readers and beside each other, on two servers.

use std::collections::BTreeMap;

use pgmq_grpc::proto::v1::{Ordering, Outcome, ReadBatchRequest, ReadRequest, RedriveMessagesRequest};
use tonic::Code;

use super::{length, redrive, redrive_of, redriven, with_dead_letters};
use crate::harness::{Client, Refusal, Server, seconds};
use crate::read_batch::{all_of, begin_read, ids, now, until_a_reader_waits, waiting_for};
use crate::read_stream::{Follower, follow};

#[tokio::test]
async fn a_redrive_wakes_who_waits_here_and_at_another_server() {
    let mut test = with_dead_letters(2).await;
    let other = Server::start_on(&test.database, &[]).await;
    let mut elsewhere = Client::connect(&other).await;
    let since = now(&test).await;
    let read = begin_read(&test, waiting_for("orders"));
    until_a_reader_waits(&test, &since).await;
    let one = |msg_id| RedriveMessagesRequest { msg_ids: vec![msg_id], ..redrive_of("dead") };
    assert_eq!(redrive(&mut elsewhere, one(1)).await, redriven(1, false));
    assert_eq!(ids(&read.await.unwrap()), [1]);

    let mut stream = Follower::open(&test.client, follow("orders")).await;
    assert_eq!(redrive(&mut test.client, one(2)).await, redriven(1, false));
    assert_eq!(stream.message().await.msg_id, 2);
}

#[tokio::test]
async fn redriven_messages_of_a_group_come_in_their_order() {
    let mut test = with_dead_letters(0).await;
    for body in ["1", "2", "3"] {
        test.client.send_to_group("orders", "a", body).await;
    }
    test.run(
        r#"INSERT INTO pgmq.q_dead (vt, message, headers)
             SELECT now(), message, headers || '{"x-pgmq-dead-letter": {"queue": "orders"}}' FROM pgmq.q_orders ORDER BY msg_id;
           TRUNCATE pgmq.q_orders"#,
    )
    .await;
    redrive(&mut test.client, redrive_of("dead")).await;
    let heads = ReadRequest {
        queue: "orders".to_owned(),
        ordering: Ordering::GroupedHead.into(),
        ..Default::default()
    };
    let mut stream = Follower::open(&test.client, heads).await;
    for body in ["1", "2", "3"] {
        let head = stream.message().await;
        assert_eq!((head.message.as_str(), head.headers.as_str()), (body, r#"{"x-pgmq-group": "a"}"#));
        assert_eq!(test.client.delete("orders", &[&head.receipt]).await, [Outcome::Done]);
    }
}

/// Reads and deletes until nothing comes any more, and gives the bodies.
fn consume(mut client: Client, queue: &'static str) -> tokio::task::JoinHandle<Vec<i64>> {
    tokio::spawn(async move {
        let mut consumed = Vec::new();
        loop {
            let request = ReadBatchRequest {
                max_messages: 100,
                wait: seconds(2.0),
                visibility_timeout: seconds(600.0),
                ..all_of(queue)
            };
            let read = client.read_as(request).await;
            if read.is_empty() {
                return consumed;
            }
            let receipts: Vec<&str> = read.iter().map(|message| message.receipt.as_str()).collect();
            let outcomes = client.delete(queue, &receipts).await;
            // Nobody moves what a consumer holds.
            assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Done), "{queue} {outcomes:?}");
            assert!(read.iter().all(|message| message.read_ct == 1));
            consumed.extend(read.into_iter().map(|message| message.message.parse::<i64>().unwrap()));
        }
    })
}

/// Redrives until nothing is left, and counts.
async fn redrive_all(mut client: Client) -> i64 {
    let mut count = 0;
    loop {
        match client.admin.redrive_messages(redrive_of("dead")).await.map(tonic::Response::into_inner) {
            Ok(done) => {
                count += done.moved_count;
                if !done.more {
                    return count;
                }
            }
            // The other redrive has had all that is left for longer than this one waits.
            Err(refused) => drop(Refusal::expect(&refused, Code::Aborted, "QUEUE_BUSY")),
        }
    }
}

#[tokio::test]
async fn redrives_at_two_servers_beside_consumers_of_both_queues_move_each_message_once() {
    const ALL: i64 = 8_000;
    let test = with_dead_letters(ALL).await;
    let other = Server::start_on(&test.database, &[]).await;
    let elsewhere = Client::connect(&other).await;
    let of_dead = [test.client.clone(), elsewhere.clone()].map(|client| consume(client, "dead"));
    let of_orders = [test.client.clone(), elsewhere.clone()].map(|client| consume(client, "orders"));
    let (here, there) = tokio::join!(redrive_all(test.client.clone()), redrive_all(elsewhere));
    let (mut times, mut consumed_dead): (BTreeMap<i64, usize>, i64) = Default::default();
    for consumer in of_dead {
        for body in consumer.await.unwrap() {
            *times.entry(body).or_default() += 1;
            consumed_dead += 1;
        }
    }
    for consumer in of_orders {
        for body in consumer.await.unwrap() {
            *times.entry(body).or_default() += 1;
        }
    }
    // Consumers that waited in vain for a while have ended before the rest came.
    for body in consume(test.client.clone(), "orders").await.unwrap() {
        *times.entry(body).or_default() += 1;
    }
    assert_eq!((here + there + consumed_dead, length(&test, "dead").await), (ALL, 0));
    assert!(times.keys().copied().eq(1..=ALL), "{}", times.len());
    assert!(times.values().all(|&times| times == 1));
}
