//! Moves beside readers and beside each other, on two servers.

use std::collections::BTreeMap;

use pgmq_grpc::proto::v1::{Ordering, Outcome, ReadBatchRequest, ReadRequest};

use super::Move;
use crate::harness::{Client, seconds};
use crate::read_batch::{all_of, begin_read, now, until_a_reader_waits, waiting_for};
use crate::read_stream::{Follower, follow};

#[tokio::test]
async fn a_move_wakes_who_waits_here_and_at_another_server() {
    for kind in Move::BOTH {
        let test = kind.of(2).await;
        let (_other, elsewhere) = test.another().await;
        let since = now(&test).await;
        let read = begin_read(&test, waiting_for("orders"));
        until_a_reader_waits(&test, &since).await;
        assert_eq!(kind.some(elsewhere, vec![1], 0).await.unwrap(), (1, false), "{kind:?}");
        assert_eq!(read.await.unwrap()[0].message, "1", "{kind:?}");

        let mut stream = Follower::open(&test.client, follow("orders")).await;
        assert_eq!(kind.some(test.client.clone(), vec![2], 0).await.unwrap(), (1, false), "{kind:?}");
        assert_eq!(stream.message().await.message, "2", "{kind:?}");
    }
}

#[tokio::test]
async fn moved_messages_of_a_group_come_in_their_order() {
    for kind in Move::BOTH {
        let mut test = kind.of(0).await;
        for body in ["1", "2", "3"] {
            test.client.send_to_group("orders", "a", body).await;
        }
        test.run(match kind {
            Move::Replay => "SELECT pgmq.archive('orders', ARRAY[2, 3, 1])",
            Move::Redrive => {
                r#"INSERT INTO pgmq.q_dead (vt, message, headers)
                     SELECT now(), message, headers || '{"x-pgmq-dead-letter": {"queue": "orders"}}'
                     FROM pgmq.q_orders ORDER BY msg_id;
                   TRUNCATE pgmq.q_orders"#
            }
        })
        .await;
        assert_eq!(kind.all(&test.client).await, 3);
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

#[tokio::test]
async fn moves_at_two_servers_beside_consumers_move_each_message_once() {
    const ALL: i64 = 8_000;
    for kind in Move::BOTH {
        let test = kind.of(ALL).await;
        let (_other, elsewhere) = test.another().await;
        let both = || [test.client.clone(), elsewhere.clone()];
        // What is dead-lettered can be consumed as well; what is archived cannot.
        let of_dead: Vec<_> = match kind {
            Move::Replay => vec![],
            Move::Redrive => both().map(|client| consume(client, "dead")).into(),
        };
        let of_orders = both().map(|client| consume(client, "orders"));
        let (here, there) = tokio::join!(kind.all(&test.client), kind.all(&elsewhere));
        let mut times: BTreeMap<i64, usize> = BTreeMap::new();
        let mut count = |bodies: Vec<i64>| {
            bodies.iter().for_each(|body| *times.entry(*body).or_default() += 1);
            i64::try_from(bodies.len()).unwrap()
        };
        let mut left_dead = 0;
        for consumer in of_dead {
            left_dead += count(consumer.await.unwrap());
        }
        for consumer in of_orders {
            count(consumer.await.unwrap());
        }
        // Consumers that waited in vain for a while have ended before the rest came.
        count(consume(test.client.clone(), "orders").await.unwrap());
        assert_eq!(here + there + left_dead, ALL, "{kind:?}");
        assert!(times.keys().copied().eq(1..=ALL), "{kind:?}: {}", times.len());
        assert!(times.values().all(|&times| times == 1), "{kind:?}");
        assert!(crate::replay::bodies(&test, kind.source()).await.is_empty(), "{kind:?}");
    }
}
