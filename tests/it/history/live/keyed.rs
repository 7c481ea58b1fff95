//! Callers that use deduplication ids, new ones and old ones, and repeat what was not answered.

use pgmq_grpc::proto::v1::topic_service_client::TopicServiceClient;
use pgmq_grpc::proto::v1::transact_operation::Operation;
use pgmq_grpc::proto::v1::{
    OutgoingMessage, SendBatchRequest, SendBatchResponse, SendRequest, SendResponse, SendTopicRequest,
    SendTopicResponse, TransactRequest,
};
use rand::Rng;

use super::transactions::{operation, transact};
use super::worker::{Asked, Worker};
use super::{KEYED, RESULTS, ROUTING_KEY};
use crate::harness::client::outgoing;
use crate::history::record::{Part, Send};

/// How often a call is repeated whose answer was lost.
const TRIES: usize = 3;

/// A call that may be repeated as it is, with what it does.
#[derive(Clone)]
enum Keyed {
    Send(SendRequest, Vec<Part>),
    SendBatch(SendBatchRequest, Vec<Part>),
    SendTopic(SendTopicRequest, Vec<Part>),
    Transact(TransactRequest, Vec<Part>),
}

/// Sends under keys: one message, a batch, to a topic, and whole transactions.
pub(super) async fn by_keys(mut worker: Worker) {
    let mut transactions: Vec<Keyed> = Vec::new();
    while worker.pause(120).await {
        let call = match worker.random.random_range(0..10) {
            0..4 => send(&mut worker),
            4..6 => send_batch(&mut worker),
            6..8 => send_topic(&mut worker),
            _ => {
                let place = transactions.len().saturating_sub(worker.random.random_range(1..6));
                let known = transactions.get(place).filter(|_| worker.random.random_bool(0.5)).cloned();
                known.unwrap_or_else(|| {
                    let new = send_to_two(&mut worker);
                    transactions.push(new.clone());
                    new
                })
            }
        };
        for _ in 0..TRIES {
            // What was answered is sometimes made again, too.
            let is_enough = call.make(&mut worker).await && !worker.chance(30);
            if is_enough || !worker.pause(100).await {
                break;
            }
        }
    }
}

impl Keyed {
    /// Makes the call, and tells whether it was answered.
    async fn make(&self, worker: &mut Worker) -> bool {
        let mut client = worker.client();
        match self.clone() {
            Self::Send(request, parts) => {
                let call = Asked::new("Send", parts);
                let fill = |response: &SendResponse, call: &mut Asked, _| {
                    acknowledge(call, [(KEYED, response.msg_id, response.deduplicated)]);
                };
                let asked = worker.ask(call, request, async move |request| client.send(request).await, fill);
                asked.await.is_some()
            }
            Self::SendBatch(request, parts) => {
                let call = Asked::whole("SendBatch", parts);
                let fill = |response: &SendBatchResponse, call: &mut Asked, _| {
                    let results = response.results.iter();
                    acknowledge(call, results.map(|result| (KEYED, result.msg_id, result.deduplicated)));
                };
                let asked =
                    worker.ask(call, request, async move |request| client.send_batch(request).await, fill);
                asked.await.is_some()
            }
            Self::SendTopic(request, parts) => {
                let call = Asked::whole("SendTopic", parts);
                let fill = |response: &SendTopicResponse, call: &mut Asked, _| {
                    assert_eq!(response.copies.len(), 2, "a copy for each queue");
                    let copies = response.copies.iter();
                    acknowledge(
                        call,
                        copies.map(|copy| (copy.queue.as_str(), copy.msg_id, copy.deduplicated)),
                    );
                };
                let mut client = TopicServiceClient::new(worker.connection());
                let asked =
                    worker.ask(call, request, async move |request| client.send_topic(request).await, fill);
                asked.await.is_some()
            }
            Self::Transact(request, parts) => transact(worker, request, parts).await,
        }
    }
}

fn keyed(queue: &str, key: String, body: String) -> Send {
    Send { queue: queue.to_owned(), body, key: Some(key), ..Send::default() }
}

fn send(worker: &mut Worker) -> Keyed {
    let (key, body) = worker.key(KEYED);
    let request = SendRequest {
        queue: KEYED.to_owned(),
        message: body.clone(),
        deduplication_id: key.clone(),
        ..Default::default()
    };
    Keyed::Send(request, vec![Part::Send(keyed(KEYED, key, body))])
}

fn send_batch(worker: &mut Worker) -> Keyed {
    let count = worker.random.random_range(1..6);
    let pairs: Vec<(String, String)> = (0..count).map(|_| worker.key(KEYED)).collect();
    let messages =
        pairs.iter().map(|(key, body)| OutgoingMessage { deduplication_id: key.clone(), ..outgoing(body) });
    let request = SendBatchRequest { queue: KEYED.to_owned(), messages: messages.collect() };
    let parts = pairs.into_iter().map(|(key, body)| Part::Send(keyed(KEYED, key, body)));
    Keyed::SendBatch(request, parts.collect())
}

fn send_topic(worker: &mut Worker) -> Keyed {
    let (key, body) = worker.key(ROUTING_KEY);
    let key = format!("topic {key}");
    let request = SendTopicRequest {
        routing_key: ROUTING_KEY.to_owned(),
        message: body.clone(),
        deduplication_id: key.clone(),
        ..Default::default()
    };
    let copies = [KEYED, RESULTS].map(|queue| Part::Send(keyed(queue, key.clone(), body.clone())));
    Keyed::SendTopic(request, copies.to_vec())
}

/// Sends to two queues under a key of the whole.
fn send_to_two(worker: &mut Worker) -> Keyed {
    let sends = [KEYED, RESULTS].map(|queue| Send {
        queue: queue.to_owned(),
        body: worker.body(),
        ..Send::default()
    });
    let operations = sends.iter().map(|send| {
        operation(Operation::Send(SendRequest {
            queue: send.queue.clone(),
            message: send.body.clone(),
            ..Default::default()
        }))
    });
    let deduplication_id = format!("transaction {}", worker.body());
    let request = TransactRequest { operations: operations.collect(), deduplication_id };
    Keyed::Transact(request, sends.into_iter().map(Part::Send).collect())
}

/// Writes ids to the sends of a call, each to the next one of its queue that has none.
pub(super) fn acknowledge<'q>(call: &mut Asked, results: impl IntoIterator<Item = (&'q str, i64, bool)>) {
    for (queue, msg_id, deduplicated) in results {
        let next = call.parts.iter_mut().find_map(|part| match part {
            Part::Send(send) if send.queue == queue && send.msg_id.is_none() => Some(send),
            _ => None,
        });
        let send = next.expect("a send for each result");
        (send.msg_id, send.deduplicated) = (Some(msg_id), deduplicated);
    }
}
