//! A long run: one producer, five consumers, and every message seen exactly once.

use std::collections::HashSet;
use std::time::Instant;

use pgmq_grpc::proto::v1::{Outcome, ReadBatchRequest, SendBatchRequest};

use crate::harness::client::outgoing;
use crate::harness::{Client, Test, seconds};

const CONSUMERS: usize = 5;
const BATCH: usize = 500;

#[expect(clippy::disallowed_methods, reason = "the suite is set up by the environment")]
fn messages() -> usize {
    std::env::var("PGMQ_GRPC_TEST_MESSAGES")
        .map_or(10_000, |count| count.parse().expect("a number of messages"))
}

async fn produce(mut client: Client, count: usize) -> Vec<i64> {
    let mut sent = Vec::with_capacity(count);
    while sent.len() < count {
        let batch = BATCH.min(count - sent.len());
        let bodies = (0..batch).map(|index| outgoing(&format!("{{\"number\": {}}}", sent.len() + index)));
        let request = SendBatchRequest { queue: "work".to_owned(), messages: bodies.collect() };
        let answer = client.queue.send_batch(request).await.expect("a batch").into_inner();
        sent.extend(answer.results.iter().map(|result| result.msg_id));
    }
    sent
}

/// Reads and deletes until nothing has come for three seconds.
async fn consume(mut client: Client) -> Vec<i64> {
    let mut seen = Vec::new();
    loop {
        let request = ReadBatchRequest {
            queue: "work".to_owned(),
            visibility_timeout: seconds(30.0),
            max_messages: 200,
            wait: seconds(3.0),
            ..Default::default()
        };
        let read = client.read_as(request).await;
        if read.is_empty() {
            return seen;
        }
        let receipts: Vec<&str> = read.iter().map(|message| message.receipt.as_str()).collect();
        let outcomes = client.delete("work", &receipts).await;
        let settled = read.iter().zip(outcomes).filter(|(_, outcome)| *outcome == Outcome::Done);
        seen.extend(settled.map(|(message, _)| message.msg_id));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_of_a_long_run_is_seen_exactly_once() {
    let count = messages();
    let test = Test::with_queue("work").await;
    let begun = Instant::now();
    let consumers: Vec<_> = (0..CONSUMERS).map(|_| tokio::spawn(consume(test.client.clone()))).collect();
    let sent = tokio::spawn(produce(test.client.clone(), count)).await.unwrap();
    let produced = begun.elapsed();
    let mut seen = Vec::with_capacity(count);
    for consumer in consumers {
        seen.extend(consumer.await.unwrap());
    }
    let consumed = begun.elapsed().saturating_sub(std::time::Duration::from_secs(3));

    assert_eq!(sent.len(), count);
    assert_eq!(seen.len(), count);
    assert_eq!(seen.into_iter().collect::<HashSet<_>>(), sent.into_iter().collect());
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_work").await, 0);
    eprintln!(
        "{count} messages: {:.0} sent a second, {:.0} read and deleted a second by {CONSUMERS} consumers",
        count as f64 / produced.as_secs_f64(),
        count as f64 / consumed.as_secs_f64(),
    );
}
