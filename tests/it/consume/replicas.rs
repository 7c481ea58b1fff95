//! Streams on several servers of one database.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Instant;

use pgmq_grpc::proto::v1::{ConsumeStart, Message, Ordering, ReadRequest, SettleAction};

use super::{Consumer, Outcome, start};
use crate::harness::{Client, PATIENCE, Server, Test, seconds};
use crate::read_batch::ids;
use crate::read_stream::{Follower, follow};

#[tokio::test]
async fn a_settle_at_another_replica_makes_room() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["{}"; 3]).await;
    let one = ConsumeStart { max_in_flight: 1, ..start("orders") };
    let mut here = Consumer::start(&test.client, one).await;
    let held = here.message().await;
    let other = Server::start_on(&test.database, &[]).await;
    let elsewhere = Client::connect(&other).await;
    let mut there = Consumer::start(&elsewhere, ConsumeStart { max_in_flight: 1, ..start("orders") }).await;
    assert_eq!(ids(&[there.message().await]), [2]);

    assert_eq!(there.settle(SettleAction::Delete, &[&held]).await, [Outcome::Done]);
    assert_eq!(here.message().await.msg_id, 3);
    assert_eq!(here.settle(SettleAction::Delete, &[&held]).await, [Outcome::NotFound]);
    assert_eq!(here.heartbeat().await.in_flight, 1);
}

const GROUPS: usize = 4;
const OF_A_GROUP: u64 = 8;

/// What was delivered and settled of each group, as all consumers of a test see it.
#[derive(Default)]
struct Ledger(Mutex<Book>);

#[derive(Default)]
struct Book {
    /// The number of the message that may be delivered; those before it are settled, or are about to be.
    heads: HashMap<String, u64>,
    deliveries: usize,
}

/// What a consumer does with a message.
enum Fate {
    /// It is settled.
    Settled,
    /// Its visibility timeout ends.
    Forgotten,
    /// Its consumer goes away.
    Cancelled,
}

impl Ledger {
    fn delivered(&self, message: &Message) -> Fate {
        let (group, number) = place(message);
        let mut book = self.0.lock().unwrap();
        book.deliveries += 1;
        let deliveries = book.deliveries;
        let head = book.heads.entry(group.clone()).or_default();
        assert!(number <= *head, "message {number} of {group} came while {head} was there");
        match deliveries % 5 {
            0 => Fate::Cancelled,
            1 => Fate::Forgotten,
            _ => {
                *head = (*head).max(number + 1);
                Fate::Settled
            }
        }
    }

    fn is_done(&self) -> bool {
        let book = self.0.lock().unwrap();
        // A settle that came too late left the last ones there: they are not looked for.
        book.heads.len() == GROUPS && book.heads.values().all(|head| *head == OF_A_GROUP)
    }
}

fn place(message: &Message) -> (String, u64) {
    let body: serde_json::Value = serde_json::from_str(&message.message).unwrap();
    (body["group"].as_str().unwrap().to_owned(), body["number"].as_u64().unwrap())
}

/// Reads by streams that are cancelled now and then, and settles by calls.
async fn read_heads(mut client: Client, ledger: &Ledger, until: Instant) {
    while !ledger.is_done() {
        let request = ReadRequest {
            ordering: Ordering::GroupedHead.into(),
            visibility_timeout: seconds(2.0),
            max_in_flight: 3,
            ..follow("orders")
        };
        let mut stream = Follower::open(&client, request).await;
        'stream: while !ledger.is_done() {
            assert!(Instant::now() < until, "it takes too long");
            for message in stream.next().await.expect("no end").expect("no error").messages {
                match ledger.delivered(&message) {
                    Fate::Settled => {
                        client.delete("orders", &[&message.receipt]).await;
                    }
                    Fate::Forgotten => {}
                    Fate::Cancelled => break 'stream,
                }
            }
        }
    }
}

/// The same by streams that settle by themselves.
async fn consume_heads(client: Client, ledger: &Ledger, until: Instant) {
    while !ledger.is_done() {
        let begin = ConsumeStart {
            ordering: Ordering::GroupedHead.into(),
            visibility_timeout: seconds(2.0),
            max_in_flight: 3,
            ..start("orders")
        };
        let mut stream = Consumer::start(&client, begin).await;
        'stream: while !ledger.is_done() {
            assert!(Instant::now() < until, "it takes too long");
            let reply = stream.reply().await.expect("no end").expect("no error");
            stream.keep(reply);
            for message in std::mem::take(&mut stream.messages) {
                match ledger.delivered(&message) {
                    Fate::Settled => {
                        stream.settle(SettleAction::Delete, &[&message]).await;
                    }
                    Fate::Forgotten => {}
                    Fate::Cancelled => break 'stream,
                }
            }
        }
    }
}

#[tokio::test]
async fn the_order_of_a_group_outlasts_cancels_and_timeouts_on_two_replicas() {
    let mut test = Test::with_queue("orders").await;
    let other = Server::start_on(&test.database, &[]).await;
    let elsewhere = Client::connect(&other).await;
    for number in 0..OF_A_GROUP {
        for group in 0..GROUPS {
            let body = format!(r#"{{"group": "g{group}", "number": {number}}}"#);
            test.client.send_to_group("orders", &format!("g{group}"), &body).await;
        }
    }

    let (ledger, until) = (Ledger::default(), Instant::now() + 4 * PATIENCE);
    tokio::join!(
        read_heads(test.client.clone(), &ledger, until),
        read_heads(elsewhere.clone(), &ledger, until),
        consume_heads(test.client.clone(), &ledger, until),
        consume_heads(elsewhere, &ledger, until),
    );

    let deliveries = ledger.0.lock().unwrap().deliveries;
    assert!(deliveries > GROUPS * usize::try_from(OF_A_GROUP).unwrap(), "{deliveries}");
}
