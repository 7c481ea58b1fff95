//! Sends of many callers over one stream.

use std::collections::HashMap;

use nix::sys::signal::Signal;
use pgmq_grpc::proto::v1::{ClosingReason, OutgoingMessage, ProduceRequest, ProduceResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::harness::client::outgoing;
use crate::harness::{Client, Gate, PATIENCE, Refusal, Test};

/// An open stream of frames.
pub(crate) struct Stream {
    pub(crate) frames: mpsc::Sender<ProduceRequest>,
    pub(crate) stream_id: String,
    answers: Streaming<ProduceResponse>,
}

pub(crate) fn frame(queue: &str, first_sequence: u64, messages: Vec<OutgoingMessage>) -> ProduceRequest {
    ProduceRequest { queue: queue.to_owned(), first_sequence, messages }
}

fn numbers(count: u64, from: u64) -> Vec<OutgoingMessage> {
    (from..from + count).map(|number| outgoing(&number.to_string())).collect()
}

impl Stream {
    /// Opens a stream and takes its first notice.
    pub(crate) async fn open(client: &Client) -> Self {
        let (frames, receiver) = mpsc::channel(64);
        let answers = client.queue.clone().produce(ReceiverStream::new(receiver)).await.expect("a stream");
        let mut stream = Self { frames, stream_id: String::new(), answers: answers.into_inner() };
        let started = stream.answer().await.started.expect("started comes first");
        assert!(!started.stream_id.is_empty() && !started.replica.is_empty());
        assert_eq!((started.max_in_flight, started.max_frame_messages), (10_000, 1_000));
        assert_eq!(started.max_frame_bytes, 1 << 20);
        stream.stream_id = started.stream_id;
        stream
    }

    pub(crate) async fn give(&self, frame: ProduceRequest) {
        self.frames.send(frame).await.expect("an open stream");
    }

    async fn next(&mut self) -> Option<ProduceResponse> {
        let next = tokio::time::timeout(PATIENCE, self.answers.message()).await.expect("an answer in time");
        next.expect("no error")
    }

    /// Takes what comes next, and notes bodies and ids of an answer to a frame of numbers that rise.
    async fn note_answer(&mut self, answered: &mut HashMap<String, i64>) -> Option<ProduceResponse> {
        let answer = self.next().await?;
        assert!(answer.failures.is_empty(), "{:?}", answer.failures);
        let bodies = (answer.first_sequence..).map(|number| number.to_string());
        answered.extend(bodies.zip(answer.msg_ids.iter().copied()));
        Some(answer)
    }

    async fn failure(&mut self) -> Status {
        let next = tokio::time::timeout(PATIENCE, self.answers.message()).await.expect("an end in time");
        next.expect_err("an error")
    }

    pub(crate) async fn answer(&mut self) -> ProduceResponse {
        self.next().await.expect("an answer")
    }
}

pub(crate) fn reasons(answer: &ProduceResponse) -> Vec<(i32, String, i32)> {
    let failures = answer.failures.iter().map(|failure| {
        let error = failure.error.as_ref().expect("an error");
        let reason = error.reason().as_str_name().trim_start_matches("ERROR_REASON_").to_owned();
        (failure.index, reason, error.code)
    });
    failures.collect()
}

#[tokio::test]
async fn every_message_of_a_frame_gets_its_id_in_order() {
    let test = Test::with_queue("orders").await;
    let mut stream = Stream::open(&test.client).await;
    for first in [0, 300, 600] {
        stream.give(frame("orders", first, numbers(300, first))).await;
    }
    let mut answered = Vec::new();
    for _ in 0..3 {
        let answer = stream.answer().await;
        assert_eq!((answer.msg_ids.len(), answer.failures.len()), (300, 0));
        answered.push((answer.first_sequence, answer.msg_ids));
    }
    answered.sort();
    let msg_ids: Vec<i64> = answered.into_iter().flat_map(|(_, msg_ids)| msg_ids).collect();
    assert!(msg_ids.is_sorted());
    let sql = "SELECT array_agg(msg_id ORDER BY message::text::int) FROM pgmq.q_orders";
    assert_eq!(test.value::<Vec<i64>>(sql).await, msg_ids);
}

#[tokio::test]
async fn frames_with_and_without_deduplication_ids_keep_their_order() {
    let mut test = Test::with_queue("orders").await;
    test.client.create("others").await;
    let mut stream = Stream::open(&test.client).await;
    let frames = stream.frames.clone();
    // Long and short runs of each kind, and frames of both; other queues have their own order.
    let giving = tokio::spawn(async move {
        for first in 0..400_u64 {
            let runs = [first % 2, first / 7 % 2, first / 50 % 2][(first / 100 % 3) as usize];
            let messages = (first * 3..first * 3 + 3).map(|number| {
                let has_id = runs == 1 || first % 11 == 0 && number % 3 == 1;
                let deduplication_id = if has_id { format!("k{number}") } else { String::new() };
                OutgoingMessage { deduplication_id, ..outgoing(&number.to_string()) }
            });
            let queue = if first % 5 == 0 { "others" } else { "orders" };
            frames.send(frame(queue, first * 3, messages.collect())).await.expect("an open stream");
        }
    });
    for _ in 0..400 {
        assert_eq!(reasons(&stream.answer().await), []);
    }
    giving.await.expect("all given");
    for (queue, count) in [("orders", 960), ("others", 240)] {
        let sql = format!("SELECT array_agg(message::text::int ORDER BY msg_id) FROM pgmq.q_{queue}");
        let numbers: Vec<i32> = test.value(&sql).await;
        assert!(numbers.len() == count && numbers.is_sorted(), "{queue}: {numbers:?}");
    }
}

#[tokio::test]
async fn a_change_to_deduplication_ids_stops_no_frames_for_another_queue_and_keeps_its_order() {
    let mut test = Test::with_queue("orders").await;
    test.client.create("others").await;
    let gate = Gate::close(&test, "orders", "INSERT").await;
    let mut stream = Stream::open(&test.client).await;
    let with_id = |number: u64| OutgoingMessage {
        deduplication_id: format!("k{number}"),
        ..outgoing(&number.to_string())
    };
    stream.give(frame("orders", 0, numbers(1, 0))).await;
    gate.arrival(&test, "send").await;
    for number in 1..10 {
        let message = if number % 4 == 0 { outgoing(&number.to_string()) } else { with_id(number) };
        stream.give(frame("orders", number, vec![message])).await;
        stream.give(frame("others", 100 + number, vec![with_id(number)])).await;
    }
    let mut answered = Vec::new();
    for _ in 1..10 {
        let answer = stream.answer().await;
        assert_eq!(reasons(&answer), []);
        answered.push(answer.first_sequence);
    }
    answered.sort_unstable();
    assert_eq!(answered, (101..110).collect::<Vec<_>>(), "while the first of the other queue waits");
    gate.open(&test).await;
    for _ in 0..10 {
        assert_eq!(reasons(&stream.answer().await), []);
    }
    let sql = "SELECT array_agg(message::text::int ORDER BY msg_id) FROM pgmq.q_orders";
    assert_eq!(test.value::<Vec<i32>>(sql).await, (0..10).collect::<Vec<_>>());
}

#[tokio::test]
async fn bad_messages_fail_alone_and_bad_frames_leave_the_stream_alive() {
    let test = Test::with_queue("orders").await;
    let mut stream = Stream::open(&test.client).await;
    let messages = vec![outgoing("1"), outgoing("{"), outgoing("3"), outgoing("")];
    stream.give(frame("orders", 7, messages)).await;
    let answer = stream.answer().await;
    assert_eq!((answer.first_sequence, &answer.msg_ids[..]), (7, &[1, 0, 2, 0][..]));
    let invalid = i32::from(Code::InvalidArgument);
    assert_eq!(
        reasons(&answer),
        [(1, "INVALID_JSON".to_owned(), invalid), (3, "MISSING_FIELD".to_owned(), invalid)]
    );

    let large = vec![outgoing(&format!("\"{}\"", "x".repeat(600_000))); 2];
    for (queue, messages, reason) in [
        ("nowhere", numbers(2, 0), "QUEUE_NOT_FOUND"),
        ("no$where", numbers(2, 0), "INVALID_QUEUE_NAME"),
        ("orders", large, "MESSAGE_TOO_LARGE"),
    ] {
        let count = messages.len();
        stream.give(frame(queue, 0, messages)).await;
        let answer = stream.answer().await;
        assert_eq!(answer.msg_ids, vec![0; count]);
        assert!(reasons(&answer).iter().all(|(_, given, _)| given == reason), "{:?}", answer.failures[0]);
        assert_eq!(answer.failures.len(), count);
        for error in answer.failures.iter().filter_map(|failure| failure.error.as_ref()) {
            assert_eq!((&error.request_id, error.retry_delay), (&stream.stream_id, None));
        }
    }
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 2);
}

#[tokio::test]
async fn a_frame_of_too_many_messages_ends_the_stream_after_all_answers() {
    let test = Test::with_queue("orders").await;
    let mut stream = Stream::open(&test.client).await;
    stream.give(frame("orders", 0, numbers(3, 0))).await;
    stream.give(frame("orders", 3, numbers(1_001, 3))).await;
    assert_eq!(stream.answer().await.msg_ids, [1, 2, 3]);
    let status = stream.failure().await;
    let refusal = Refusal::expect(&status, Code::InvalidArgument, "INVALID_COUNT");
    assert_eq!(refusal.fields, ["messages"]);
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 3);
}

#[tokio::test]
async fn a_closed_side_gets_all_its_answers_and_an_end_with_ok() {
    let test = Test::with_queue("orders").await;
    let mut stream = Stream::open(&test.client).await;
    for first in 0..20 {
        stream.give(frame("orders", first, numbers(1, first))).await;
    }
    drop(std::mem::replace(&mut stream.frames, mpsc::channel(1).0));
    let mut answered = Vec::new();
    while let Some(answer) = stream.next().await {
        answered.push(answer.first_sequence);
    }
    answered.sort_unstable();
    assert_eq!(answered, (0..20).collect::<Vec<_>>());
}

#[tokio::test]
async fn more_than_the_server_holds_waits_in_the_stream_and_keeps_its_order() {
    let test = Test::start_with(&["--max-waiting-messages", "1000"]).await;
    test.client.clone().create("orders").await;
    let gate = Gate::close(&test, "orders", "INSERT").await;
    let mut stream = Stream::open(&test.client).await;
    let frames = stream.frames.clone();
    let giving = tokio::spawn(async move {
        for first in (0..15_000).step_by(500) {
            frames.send(frame("orders", first, numbers(500, first))).await.expect("an open stream");
        }
    });
    gate.arrival(&test, "send").await;
    gate.open(&test).await;
    let mut messages = 0;
    while messages < 15_000 {
        let answer = stream.answer().await;
        assert!(answer.failures.is_empty());
        messages += answer.msg_ids.len();
    }
    giving.await.expect("all given");
    let right = "SELECT bool_and(message::text::bigint = msg_id - 1) FROM pgmq.q_orders";
    assert!(test.value::<bool>(right).await);
}

#[tokio::test]
async fn a_draining_server_says_so_and_answers_what_it_has_taken() {
    let test = Test::with_queue("orders").await;
    let gate = Gate::close(&test, "orders", "INSERT").await;
    let mut stream = Stream::open(&test.client).await;
    stream.give(frame("orders", 0, numbers(5, 0))).await;
    gate.arrival(&test, "send").await;
    test.server.signal(Signal::SIGTERM);
    let closing = stream.answer().await.closing.expect("the notice of the end");
    assert_eq!(closing.reason(), ClosingReason::Draining);
    assert!(closing.retry_delay.is_some());
    gate.open(&test).await;
    let answer = stream.answer().await;
    assert_eq!(answer.msg_ids, [1, 2, 3, 4, 5]);
    assert!(stream.next().await.is_none());
    let (status, _) = test.server.exit().await;
    assert!(status.success());
}

#[tokio::test]
async fn frames_under_way_at_a_drain_are_answered_before_the_stream_ends() {
    let test = Test::with_queue("orders").await;
    let mut streams = Vec::new();
    for number in 0..4 {
        let stream = Stream::open(&test.fresh_client().await).await;
        let frames = stream.frames.clone();
        // Frames as long as the server takes them.
        let giving = tokio::spawn(async move {
            for first in (number * 1_000_000..).step_by(20) {
                if frames.send(frame("orders", first, numbers(20, first))).await.is_err() {
                    return;
                }
            }
        });
        streams.push((stream, giving));
    }
    let mut answered = HashMap::new();
    for (stream, _) in &mut streams {
        stream.note_answer(&mut answered).await;
    }
    test.server.signal(Signal::SIGTERM);
    for (mut stream, giving) in streams {
        let mut closing = None;
        while let Some(answer) = stream.note_answer(&mut answered).await {
            closing = closing.or(answer.closing);
        }
        assert_eq!(closing.expect("a notice of the end").reason(), ClosingReason::Draining);
        giving.abort();
    }
    let (status, log) = test.server.exit().await;
    assert!(status.success(), "{log}");
    let rows = test.sql.query("SELECT msg_id, message::text FROM pgmq.q_orders", &[]).await.unwrap();
    let stored = rows.iter().map(|row| (row.get::<_, String>(1), row.get::<_, i64>(0)));
    assert_eq!(stored.collect::<HashMap<_, _>>(), answered);
}

#[tokio::test]
async fn after_a_lost_connection_each_message_is_unknown_and_the_stream_goes_on() {
    let test = Test::with_queue("orders").await;
    let gate = Gate::close(&test, "orders", "INSERT").await;
    let mut stream = Stream::open(&test.client).await;
    stream.give(frame("orders", 0, numbers(3, 0))).await;
    let backend = gate.arrival(&test, "send").await;
    gate.terminate(&test, backend).await;
    let answer = stream.answer().await;
    let unknown = |index| (index, "OUTCOME_UNKNOWN".to_owned(), i32::from(Code::Unknown));
    assert_eq!(reasons(&answer), [unknown(0), unknown(1), unknown(2)]);
    gate.open(&test).await;
    stream.give(frame("orders", 3, numbers(1, 3))).await;
    assert!(stream.answer().await.failures.is_empty());
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 1);
}

#[tokio::test]
async fn a_stream_of_some_age_is_asked_to_end() {
    let test = Test::of_short_lives("orders", &[]).await;
    let mut stream = Stream::open(&test.fresh_client().await).await;
    let closing = stream.answer().await.closing.expect("the notice of the end");
    assert_eq!(closing.reason(), ClosingReason::StreamAge);
    assert!(stream.next().await.is_none());
}
