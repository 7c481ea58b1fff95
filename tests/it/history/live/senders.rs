//! Callers that send: one message, a batch, a group's next, with a delay, or one that the table refuses.

use pgmq_grpc::proto::v1::send_request::Schedule;
use pgmq_grpc::proto::v1::{OutgoingMessage, SendBatchRequest, SendRequest, SendResponse};
use rand::Rng;

use super::worker::{Asked, Worker};
use super::{DOOMED, GROUPS, ORDERS};
use crate::harness::seconds;
use crate::history::record::{Part, Send};

/// So many FIFO groups there are.
const GROUP_COUNT: u32 = 25;

/// Sends one message after the other to two queues.
pub(super) async fn one_by_one(mut worker: Worker) {
    while worker.pause(40).await {
        let grouped = worker.chance(35);
        let mut send = Send {
            queue: if grouped { GROUPS } else { ORDERS }.to_owned(),
            body: worker.body(),
            group: grouped.then(|| group(&mut worker)),
            ..Send::default()
        };
        if !grouped && worker.chance(10) {
            send.delay = i64::from(worker.random.random_range(1..1_500)) * 1_000;
        } else if !grouped && worker.chance(5) {
            send.body = format!("\"{DOOMED} {}", send.body.trim_start_matches('"'));
            send.doomed = true;
        }
        send_one(&mut worker, send).await;
        if worker.chance(1) {
            worker.disconnect();
        }
    }
}

/// The name of some group.
pub(super) fn group(worker: &mut Worker) -> String {
    format!("group {}", worker.random.random_range(0..GROUP_COUNT))
}

/// Makes one unary send.
pub(super) async fn send_one(worker: &mut Worker, send: Send) {
    let request = SendRequest {
        queue: send.queue.clone(),
        message: send.body.clone(),
        group: send.group.clone().unwrap_or_default(),
        schedule: delay(send.delay).map(Schedule::Delay),
        ..Default::default()
    };
    let mut client = worker.client();
    let call = Asked::new("Send", vec![Part::Send(send)]);
    let fill =
        |response: &SendResponse, call: &mut Asked, _| acknowledge(&mut call.parts, &[response.msg_id]);
    worker.ask(call, request, async move |request| client.send(request).await, fill).await;
}

/// A delay as the wire has it; none for none.
fn delay(micros: i64) -> Option<prost_types::Duration> {
    (micros > 0).then(|| seconds(micros as f64 / 1e6).expect("a delay"))
}

/// Writes ids to the sends of a call, in order.
pub(super) fn acknowledge(parts: &mut [Part], msg_ids: &[i64]) {
    let sends = parts.iter_mut().filter_map(|part| match part {
        Part::Send(send) => Some(send),
        _ => None,
    });
    for (send, &msg_id) in sends.zip(msg_ids) {
        send.msg_id = Some(msg_id);
    }
}

/// Sends batches.
pub(super) async fn in_batches(mut worker: Worker) {
    while worker.pause(150).await {
        let grouped = worker.chance(35);
        let queue = if grouped { GROUPS } else { ORDERS };
        let count = worker.random.random_range(1..15);
        let sends: Vec<Send> = (0..count)
            .map(|_| Send {
                queue: queue.to_owned(),
                body: worker.body(),
                group: grouped.then(|| group(&mut worker)),
                ..Send::default()
            })
            .collect();
        send_batch(&mut worker, queue, sends).await;
    }
}

/// Makes one send of several messages to a queue.
pub(super) async fn send_batch(worker: &mut Worker, queue: &str, sends: Vec<Send>) {
    let messages = sends.iter().map(|send| OutgoingMessage {
        message: send.body.clone(),
        group: send.group.clone().unwrap_or_default(),
        ..Default::default()
    });
    let request = SendBatchRequest { queue: queue.to_owned(), messages: messages.collect() };
    let mut client = worker.client();
    let call = Asked::whole("SendBatch", sends.into_iter().map(Part::Send).collect());
    worker
        .ask(
            call,
            request,
            async move |request| client.send_batch(request).await,
            |response, call, _| {
                let ids: Vec<i64> = response.results.iter().map(|result| result.msg_id).collect();
                acknowledge(&mut call.parts, &ids);
            },
        )
        .await;
}
