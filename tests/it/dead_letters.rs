//! Dead letters: messages that go aside after so many hand-overs, on request, or because nobody could read them.

mod backoff;
mod counting;
mod kills;
mod kinds;
mod locks;
mod missing;
mod reading;
mod replicas;
mod settling;
mod transacting;
mod unreadable;

use pgmq_grpc::proto::v1::{
    DeadLetterPolicy, DeadLetterRequest, GetQueueMetricsRequest, ItemResult, Message, QueuePolicy,
    ReadBatchRequest,
};
use tonic::Status;

use crate::harness::{Client, Test};
use crate::policies::{create, set};
use crate::read_batch::all_of;

/// A policy of so many hand-overs, with the dead-letter queue `failed`.
pub(crate) fn at_most(max_receives: i32) -> QueuePolicy {
    let dead_letter = Some(DeadLetterPolicy { queue: "failed".to_owned(), max_receives });
    QueuePolicy { dead_letter, ..Default::default() }
}

/// A queue `orders` whose messages are handed over at most so often, and its dead-letter queue `failed`.
pub(crate) async fn orders(max_receives: i32) -> Test {
    let mut test = Test::start().await;
    test.client.create("failed").await;
    create(&mut test.client, "orders", Some(at_most(max_receives))).await.unwrap();
    test
}

/// Makes all that is hidden in a queue visible, as the end of its visibility timeout does.
async fn expire(test: &Test, queue: &str) {
    test.run(&format!("UPDATE pgmq.q_{queue} SET vt = clock_timestamp() - interval '1 second'")).await;
}

/// How many messages a queue has.
async fn count(test: &Test, queue: &str) -> i64 {
    test.value(&format!("SELECT count(*) FROM pgmq.q_{queue}")).await
}

/// A value of the header of the one dead letter in `failed`.
async fn header(test: &Test, key: &str) -> String {
    test.value(&format!("SELECT headers -> 'x-pgmq-dead-letter' ->> '{key}' FROM pgmq.q_failed")).await
}

/// The bodies of the dead letters in `failed`, sorted.
async fn dead(test: &Test) -> Vec<String> {
    test.value("SELECT coalesce(array_agg(message::text ORDER BY message::text), '{}') FROM pgmq.q_failed")
        .await
}

pub(crate) async fn try_dead_letter(
    client: &mut Client,
    queue: &str,
    receipts: &[&str],
    reason: &str,
) -> Result<Vec<ItemResult>, Status> {
    let receipts = receipts.iter().map(|&receipt| receipt.to_owned()).collect();
    let request = DeadLetterRequest { queue: queue.to_owned(), receipts, reason: reason.to_owned() };
    Ok(client.queue.dead_letter(request).await?.into_inner().results)
}

async fn dead_letter(client: &mut Client, queue: &str, receipts: &[&str], reason: &str) -> Vec<ItemResult> {
    try_dead_letter(client, queue, receipts, reason).await.expect("a dead letter")
}

/// How many dead letters of a queue this server has moved.
async fn moved(client: &mut Client, queue: &str) -> i64 {
    let request = GetQueueMetricsRequest { queue: queue.to_owned(), include_archive: false };
    let metrics = client.queue.get_queue_metrics(request).await.expect("metrics").into_inner();
    metrics.metrics.expect("metrics").dead_lettered_count
}

/// Reads everything of a queue once.
async fn read_all(test: &mut Test, queue: &str) -> Vec<Message> {
    test.client.read_as(ReadBatchRequest { max_messages: 100, ..all_of(queue) }).await
}

/// Changes how often messages of `orders` are handed over at most.
async fn set_at_most(test: &mut Test, max_receives: i32) {
    set(&mut test.client, "orders", at_most(max_receives)).await;
}
