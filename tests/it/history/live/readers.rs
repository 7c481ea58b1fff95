//! Callers that read, and what they do with what they hold.

use std::time::{Duration, Instant};

use pgmq_grpc::proto::v1::{
    ArchiveRequest, ArchiveResponse, DeadLetterRequest, DeadLetterResponse, DeleteRequest, DeleteResponse,
    ItemResult, Message, Ordering, PopRequest, ReadBatchRequest, ReadRequest, ReleaseRequest,
    ReleaseResponse, SetVisibilityTimeoutRequest, SetVisibilityTimeoutResponse,
    set_visibility_timeout_request::Visibility,
};
use rand::Rng;

use super::worker::{Asked, Worker, delivery, micros, outcome, verdict};
use super::{GROUPS, ORDERS, POPS};
use crate::harness::seconds;
use crate::history::record::{Action, Micros, Outcome, Part, Read, Settle, Target, Verdict};

/// How messages are read from a queue.
pub(super) fn reading(queue: &str) -> Read {
    Read { queue: queue.to_owned(), heads: queue == GROUPS, takes_any: queue != GROUPS, ..Read::default() }
}

/// In which order messages are read from a queue: what the policy says is sometimes left to it.
pub(super) fn ordering(worker: &mut Worker, queue: &str) -> i32 {
    let ordering = match queue {
        _ if worker.chance(50) => Ordering::Unspecified,
        GROUPS => Ordering::GroupedHead,
        _ => Ordering::Unordered,
    };
    ordering.into()
}

/// Messages that a caller will use too late.
#[derive(Default)]
pub(super) struct Late(Vec<(Instant, String, Vec<Message>)>);

/// Reads batches and settles them.
pub(super) async fn by_batches(mut worker: Worker) {
    let mut late = Late::default();
    while worker.pause(30).await {
        let queue = if worker.chance(40) { GROUPS } else { ORDERS };
        let wait = worker.millis(1_500).as_secs_f64();
        let (count, hidden) = (worker.random.random_range(1..25), worker.random.random_range(1..4));
        let messages = read(&mut worker, queue, count, f64::from(hidden), wait).await;
        settle(&mut worker, queue, messages, &mut late).await;
        if worker.chance(1) {
            worker.disconnect();
        }
    }
}

/// Makes one unary read.
pub(super) async fn read(
    worker: &mut Worker,
    queue: &str,
    count: i32,
    hidden: f64,
    wait: f64,
) -> Vec<Message> {
    read_for(worker, queue, count, seconds(hidden), seconds(wait)).await
}

/// Makes one that leaves it to the queue's policy how long the messages are hidden.
pub(super) async fn read_by_policy(worker: &mut Worker, queue: &str, count: i32, wait: f64) -> Vec<Message> {
    read_for(worker, queue, count, None, seconds(wait)).await
}

/// Makes one that leaves it to the queue's policy how long it waits.
pub(super) async fn wait_by_policy(
    worker: &mut Worker,
    queue: &str,
    count: i32,
    hidden: f64,
) -> Vec<Message> {
    read_for(worker, queue, count, seconds(hidden), None).await
}

async fn read_for(
    worker: &mut Worker,
    queue: &str,
    count: i32,
    visibility_timeout: Option<prost_types::Duration>,
    wait: Option<prost_types::Duration>,
) -> Vec<Message> {
    let read =
        Read { by_policy: visibility_timeout.is_none(), waits_by_policy: wait.is_none(), ..reading(queue) };
    let request = ReadBatchRequest {
        queue: queue.to_owned(),
        max_messages: count,
        visibility_timeout,
        wait,
        ordering: ordering(worker, queue),
        ..Default::default()
    };
    let mut client = worker.client();
    let call = Asked::new("ReadBatch", vec![Part::Read(read)]);
    let answer = worker.ask(
        call,
        request,
        async move |request| client.read_batch(request).await,
        |response, call, now| deliver(&mut call.parts, &response.messages, now),
    );
    answer.await.map(|response| response.messages).unwrap_or_default()
}

/// Writes deliveries to the last read of a call.
pub(super) fn deliver(parts: &mut [Part], messages: &[Message], now: Micros) {
    if let Some(Part::Read(read)) = parts.last_mut() {
        read.deliveries.extend(messages.iter().map(|message| delivery(message, now)));
    }
}

/// Follows a queue by streams, each for a while.
pub(super) async fn by_stream(mut worker: Worker) {
    let mut late = Late::default();
    while worker.pause(100).await {
        let queue = if worker.chance(40) { GROUPS } else { ORDERS };
        let request = ReadRequest {
            queue: queue.to_owned(),
            visibility_timeout: seconds(f64::from(worker.random.random_range(1..4))),
            ordering: ordering(&mut worker, queue),
            max_in_flight: worker.random.random_range(1..40),
            max_messages: if worker.chance(40) { worker.random.random_range(1..8) } else { 0 },
            heartbeat_interval: seconds(1.0),
            ..Default::default()
        };
        let longest = if request.max_messages > 0 { Duration::from_secs(10) } else { worker.millis(4_000) };
        let until = Instant::now() + longest;
        let asked = worker.run.now();
        let mut read = Read { stream: true, takes_any: false, ..reading(queue) };
        let mut client = worker.client();
        let mut result = Verdict::Unknown("left".to_owned());
        match client.read(request).await {
            Err(status) => result = verdict(&status, false),
            Ok(stream) => {
                let mut stream = stream.into_inner();
                while !worker.is_over() && Instant::now() < until {
                    let left = until.saturating_duration_since(Instant::now());
                    let Ok(reply) = tokio::time::timeout(left, stream.message()).await else { break };
                    let now = worker.run.now();
                    match reply {
                        Ok(None) => {
                            result = Verdict::Done;
                            break;
                        }
                        Ok(Some(reply)) => {
                            read.deliveries
                                .extend(reply.messages.iter().map(|message| delivery(message, now)));
                            settle(&mut worker, queue, reply.messages, &mut late).await;
                        }
                        Err(_) => break,
                    }
                }
            }
        }
        // A stream that ends with an error has delivered all the same.
        if !read.deliveries.is_empty() && result != Verdict::Done {
            result = Verdict::Unknown("broken or left".to_owned());
        }
        worker.record(Asked::new("Read", vec![Part::Read(read)]), asked, result);
    }
}

/// Sends to a queue of its own and takes from it at most once.
pub(super) async fn by_pops(mut worker: Worker) {
    worker.impatience = 2;
    while worker.pause(120).await {
        let send = crate::history::record::Send {
            queue: POPS.to_owned(),
            body: worker.body(),
            ..Default::default()
        };
        super::senders::send_one(&mut worker, send).await;
        let request = PopRequest { queue: POPS.to_owned(), max_messages: worker.random.random_range(1..4) };
        let mut client = worker.client();
        let call = Asked::new("Pop", vec![Part::Read(Read { pops: true, ..reading(POPS) })]);
        worker
            .ask(
                call,
                request,
                async move |request| client.pop(request).await,
                |response, call, now| deliver(&mut call.parts, &response.messages, now),
            )
            .await;
    }
}

/// Does with messages what callers do: mostly deletes them, in one call or several, and sometimes too late.
pub(super) async fn settle(worker: &mut Worker, queue: &str, messages: Vec<Message>, late: &mut Late) {
    let mut piles: [Vec<Message>; 8] = Default::default();
    for message in messages {
        let pile = match worker.random.random_range(0..100) {
            0..70 => 0,
            70..78 => 1,
            78..84 => 2,
            84..88 => 3,
            88..91 => 4,
            91..95 => 5,
            95..97 => 6,
            _ => 7,
        };
        piles[pile].push(message);
    }
    let [deleted, archived, released, hidden, by_id, used_late, twice, _forgotten] = piles;
    delete(worker, queue, &deleted, false).await;
    let aside = if queue == GROUPS { Action::DeadLetter } else { Action::Archive };
    settle_as(worker, queue, queue, aside, &archived).await;
    settle_as(worker, queue, queue, Action::Hide, &released).await;
    hide(worker, queue, &hidden).await;
    delete(worker, queue, &by_id, true).await;
    delete(worker, queue, &twice, false).await;
    delete(worker, queue, &twice, false).await;
    if !used_late.is_empty() {
        late.0.push((Instant::now() + Duration::from_secs(2), queue.to_owned(), used_late));
    }
    let due = late.0.iter().position(|(due, _, _)| *due < Instant::now());
    if let Some(place) = due {
        let (_, queue, messages) = late.0.swap_remove(place);
        match worker.random.random_range(0..3) {
            0 => drop(settle_as(worker, &queue, &queue, Action::Archive, &messages).await),
            1 => hide(worker, &queue, &messages).await,
            _ => delete(worker, &queue, &messages, false).await,
        }
    }
}

/// Settles of deliveries, not answered yet.
pub(super) fn settles(queue: &str, action: Action, messages: &[Message], by_id: bool) -> Vec<Part> {
    let part = |message: &Message| {
        let target = if by_id { Target::Id(message.msg_id) } else { delivery(message, 0).receipt() };
        let queue = queue.to_owned();
        Part::Settle(Settle { queue, action, target, by_policy: false, outcome: None, vt: None })
    };
    messages.iter().map(part).collect()
}

/// Leaves it to the queue's policy how long messages are hidden.
pub(super) fn leave_to_policy(parts: &mut [Part]) {
    for part in parts {
        if let Part::Settle(settle) = part {
            settle.by_policy = true;
        }
    }
}

/// Writes results to the settles of a call, in order.
pub(super) fn answer(parts: &mut [Part], results: &[ItemResult]) {
    let settles = parts.iter_mut().filter_map(|part| match part {
        Part::Settle(settle) => Some(settle),
        _ => None,
    });
    for (settle, result) in settles.zip(results) {
        settle.outcome = outcome(result.outcome());
        settle.vt = result.vt.map(|vt| micros(Some(vt)));
        // A release that tells no time has moved its message to the dead-letter queue.
        if settle.action == Action::Hide && settle.outcome == Some(Outcome::Done) && settle.vt.is_none() {
            settle.action = Action::DeadLetter;
        }
    }
}

pub(super) fn receipts(messages: &[Message]) -> Vec<String> {
    messages.iter().map(|message| message.receipt.clone()).collect()
}

/// Deletes messages by their receipts, or by their ids.
pub(super) async fn delete(worker: &mut Worker, queue: &str, messages: &[Message], by_id: bool) {
    if messages.is_empty() {
        return;
    }
    let mut request = DeleteRequest { queue: queue.to_owned(), ..Default::default() };
    match by_id {
        true => request.msg_ids = messages.iter().map(|message| message.msg_id).collect(),
        false => request.receipts = receipts(messages),
    }
    let mut client = worker.client();
    let call = Asked::new("Delete", settles(queue, Action::Delete, messages, by_id));
    let fill = |response: &DeleteResponse, call: &mut Asked, _| {
        answer(&mut call.parts, &response.results);
    };
    worker.ask(call, request, async move |request| client.delete(request).await, fill).await;
}

/// Settles messages by receipts of a queue that histories call otherwise; none if the answer was not certain.
pub(super) async fn settle_as(
    worker: &mut Worker,
    queue: &str,
    label: &str,
    action: Action,
    messages: &[Message],
) -> Option<()> {
    if messages.is_empty() {
        return Some(());
    }
    let (receipts, queue) = (receipts(messages), queue.to_owned());
    let mut parts = settles(label, action, messages, false);
    let mut client = worker.client();
    match action {
        Action::Delete => {
            let request = DeleteRequest { queue, receipts, ..Default::default() };
            let call = Asked::new("Delete", parts);
            let fill = |response: &DeleteResponse, call: &mut Asked, _| {
                answer(&mut call.parts, &response.results);
            };
            let asked = worker.ask(call, request, async move |request| client.delete(request).await, fill);
            asked.await.map(drop)
        }
        Action::Archive => {
            let request = ArchiveRequest { queue, receipts, ..Default::default() };
            let call = Asked::new("Archive", parts);
            let fill = |response: &ArchiveResponse, call: &mut Asked, _| {
                answer(&mut call.parts, &response.results);
            };
            let asked = worker.ask(call, request, async move |request| client.archive(request).await, fill);
            asked.await.map(drop)
        }
        Action::DeadLetter => {
            let request = DeadLetterRequest { queue, receipts, reason: "asked for".to_owned() };
            let call = Asked::new("DeadLetter", parts);
            let fill = |response: &DeadLetterResponse, call: &mut Asked, _| {
                answer(&mut call.parts, &response.results);
            };
            let asked =
                worker.ask(call, request, async move |request| client.dead_letter(request).await, fill);
            asked.await.map(drop)
        }
        Action::Hide | Action::Extend | Action::GiveBack => {
            let mut request =
                ReleaseRequest { queue, receipts, delay: seconds(worker.millis(800).as_secs_f64()) };
            if worker.chance(40) {
                request.delay = None;
                leave_to_policy(&mut parts);
            }
            let call = Asked::new("Release", parts);
            let fill = |response: &ReleaseResponse, call: &mut Asked, _| {
                answer(&mut call.parts, &response.results);
            };
            let asked = worker.ask(call, request, async move |request| client.release(request).await, fill);
            asked.await.map(drop)
        }
    }
}

async fn hide(worker: &mut Worker, queue: &str, messages: &[Message]) {
    if messages.is_empty() {
        return;
    }
    let span = seconds(worker.millis(4_000).as_secs_f64()).expect("a span");
    let request = SetVisibilityTimeoutRequest {
        queue: queue.to_owned(),
        receipts: receipts(messages),
        visibility: Some(Visibility::VisibilityTimeout(span)),
        ..Default::default()
    };
    let mut client = worker.client();
    let call = Asked::new("SetVisibilityTimeout", settles(queue, Action::Hide, messages, false));
    let fill = |response: &SetVisibilityTimeoutResponse, call: &mut Asked, _| {
        answer(&mut call.parts, &response.results);
    };
    worker.ask(call, request, async move |request| client.set_visibility_timeout(request).await, fill).await;
}
