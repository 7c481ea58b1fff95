//! Many readers and deleters at once, with timeouts too short for their work, and a checker of what they were told.

use std::collections::{HashMap, HashSet};

use pgmq_grpc::proto::v1::set_visibility_timeout_request::Visibility;
use pgmq_grpc::proto::v1::{Message, Outcome, ReadBatchRequest, SetVisibilityTimeoutRequest};

use super::archive;
use crate::harness::{Client, Server, Test, eventually, seconds};
use crate::read_batch::micros;

const MESSAGES: usize = 200;
const CONSUMERS: usize = 6;

/// What names a delivery.
type Delivery = (i64, i32, i64, i64);

/// What the consumers saw and were told.
#[derive(Default)]
struct Record {
    delivered: Vec<Delivery>,
    settled: Vec<(Delivery, Outcome)>,
}

fn delivery(message: &Message) -> Delivery {
    let (enqueued_at, last_read_at) = (message.enqueued_at.as_ref(), message.last_read_at.as_ref());
    (message.msg_id, message.read_ct, micros(enqueued_at), micros(last_read_at))
}

/// Reads, and settles every other batch only after the next read, when others may have read it again.
async fn consume(mut client: Client, number: usize) -> Record {
    let mut record = Record::default();
    let mut late: Vec<Message> = Vec::new();
    for round in number.. {
        let request = ReadBatchRequest {
            queue: "orders".to_owned(),
            visibility_timeout: seconds(1.0),
            max_messages: 7,
            wait: seconds(1.5),
            ..Default::default()
        };
        let read = client.read_as(request).await;
        record.delivered.extend(read.iter().map(delivery));
        if read.is_empty() && late.is_empty() {
            break;
        }
        let mut held = std::mem::take(&mut late);
        match round.is_multiple_of(2) {
            true => held.extend(read),
            false => late = read,
        }
        if held.is_empty() {
            continue;
        }
        let receipts: Vec<&str> = held.iter().map(|message| message.receipt.as_str()).collect();
        let outcomes = match number % 2 {
            0 => client.delete("orders", &receipts).await,
            _ => archive(&mut client, "orders", &receipts).await,
        };
        record.settled.extend(held.iter().map(delivery).zip(outcomes));
    }
    record
}

/// Ends visibility timeouts before their time, as if every consumer were slow.
async fn hurry(mut client: Client) {
    let everything: Vec<i64> = (1..=i64::try_from(MESSAGES).unwrap()).collect();
    loop {
        let request = SetVisibilityTimeoutRequest {
            queue: "orders".to_owned(),
            msg_ids: everything.clone(),
            visibility: seconds(0.0).map(Visibility::VisibilityTimeout),
            ..Default::default()
        };
        client.queue.set_visibility_timeout(request).await.unwrap();
    }
}

#[tokio::test]
async fn racing_consumers_are_told_the_truth_about_every_delivery() {
    let mut test = Test::with_queue("orders").await;
    let other = Server::start_on(&test.database, &[]).await;
    test.client.send_all("orders", &["{}"; MESSAGES]).await;
    let mut consumers = Vec::new();
    for number in 0..CONSUMERS {
        let server = if number < CONSUMERS / 2 { &test.server } else { &other };
        consumers.push(tokio::spawn(consume(Client::connect(server).await, number)));
    }
    let hurrying = tokio::spawn(hurry(test.client.clone()));
    let (mut delivered, mut settled) = (Vec::new(), Vec::new());
    for consumer in consumers {
        let record = consumer.await.unwrap();
        delivered.extend(record.delivered);
        settled.extend(record.settled);
    }
    eventually("an empty queue", async || {
        (test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await == 0).then_some(())
    })
    .await;
    hurrying.abort();

    // One delivery reaches one call.
    let distinct: HashSet<&Delivery> = delivered.iter().collect();
    assert_eq!(distinct.len(), delivered.len());
    let mut newest: HashMap<i64, i64> = HashMap::new();
    for &(msg_id, _, _, last_read_at) in &delivered {
        let newest = newest.entry(msg_id).or_default();
        *newest = last_read_at.max(*newest);
    }
    assert_eq!(newest.len(), MESSAGES);
    let mut done: HashMap<i64, u32> = HashMap::new();
    for &((msg_id, _, _, last_read_at), outcome) in &settled {
        match outcome {
            // One end a message, by its newest delivery.
            Outcome::Done => {
                *done.entry(msg_id).or_default() += 1;
                assert_eq!(last_read_at, newest[&msg_id], "message {msg_id} was settled by an old delivery");
            }
            // Stale only if a newer delivery exists.
            Outcome::Stale => {
                assert!(last_read_at < newest[&msg_id], "message {msg_id} had no newer delivery");
            }
            Outcome::NotFound => {}
            Outcome::Unspecified => panic!("no outcome"),
        }
    }
    assert_eq!(done.len(), MESSAGES);
    assert!(done.values().all(|&times| times == 1), "{done:?}");
    let stale = settled.iter().filter(|(_, outcome)| *outcome == Outcome::Stale).count();
    eprintln!("{} deliveries of {MESSAGES} messages, {stale} stale settles", delivered.len());
}
