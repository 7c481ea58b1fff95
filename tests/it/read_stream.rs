//! `Read`: the stream that drains a queue and then follows it.

mod ending;
mod opening;
mod size;
mod window;

use std::time::{Duration, Instant};

use pgmq_grpc::proto::v1::{
    Closing, GetQueueRequest, Heartbeat, Message, Ordering, OutgoingMessage, ReadRequest, ReadResponse,
    StreamStarted, outgoing_message,
};
use tonic::{Code, Status, Streaming};

use crate::harness::{Client, PATIENCE, Refusal, Test, seconds};
use crate::read_batch::{ids, now, until_a_reader_waits};

/// An open stream.
pub(crate) struct Follower {
    pub(crate) started: StreamStarted,
    stream: Streaming<ReadResponse>,
}

impl Follower {
    /// Opens a stream and takes its first reply.
    pub(crate) async fn open(client: &Client, request: ReadRequest) -> Self {
        let mut client = client.clone();
        let mut stream = client.queue.read(request).await.expect("a stream").into_inner();
        let first = stream.message().await.expect("a first reply").expect("a first reply");
        let started = first.started.expect("started comes first");
        assert!(first.closing.is_none() && first.heartbeat.is_none() && first.messages.is_empty());
        Self { started, stream }
    }

    /// The next reply; none at an end with OK.
    pub(crate) async fn next(&mut self) -> Option<Result<ReadResponse, Status>> {
        let next = tokio::time::timeout(PATIENCE, self.stream.message()).await;
        next.expect("a reply, a heartbeat or an end").transpose()
    }

    async fn reply(&mut self) -> ReadResponse {
        let reply = self.next().await.expect("no end of the stream").expect("no error");
        assert!(reply.started.is_none() && reply.closing.is_none(), "{reply:?}");
        reply
    }

    /// Exactly so many messages; heartbeats in between do not count.
    pub(crate) async fn messages(&mut self, count: usize) -> Vec<Message> {
        let mut messages = Vec::new();
        let begun = Instant::now();
        while messages.len() < count {
            assert!(begun.elapsed() < PATIENCE, "only {:?} of {count} messages came", ids(&messages));
            messages.extend(self.reply().await.messages);
        }
        assert_eq!(messages.len(), count, "{:?}", ids(&messages));
        messages
    }

    /// The next message, which comes alone.
    pub(crate) async fn message(&mut self) -> Message {
        self.messages(1).await.remove(0)
    }

    /// The next reply, which is a heartbeat.
    pub(crate) async fn heartbeat(&mut self) -> Heartbeat {
        let reply = self.reply().await;
        assert!(reply.messages.is_empty(), "{:?}", ids(&reply.messages));
        reply.heartbeat.expect("a heartbeat")
    }

    /// What comes before the end, and the end.
    pub(crate) async fn end(mut self) -> (Vec<Message>, Option<Closing>, Result<(), Status>) {
        let (mut messages, mut closing) = (Vec::new(), None);
        loop {
            match self.next().await {
                None => return (messages, closing, Ok(())),
                Some(Err(status)) => return (messages, closing, Err(status)),
                Some(Ok(reply)) => {
                    assert!(closing.is_none(), "nothing follows closing: {reply:?}");
                    messages.extend(reply.messages);
                    closing = reply.closing;
                }
            }
        }
    }
}

/// A stream of a queue with heartbeats every second.
pub(crate) fn follow(queue: &str) -> ReadRequest {
    ReadRequest { queue: queue.to_owned(), heartbeat_interval: seconds(1.0), ..Default::default() }
}

#[tokio::test]
async fn a_stream_begins_with_its_settings() {
    let test = Test::with_queue("orders").await;
    let by_default = ReadRequest { queue: "orders".to_owned(), ..Default::default() };
    let started = Follower::open(&test.client, by_default).await.started;
    assert_eq!(started.visibility_timeout, seconds(30.0));
    assert_eq!(started.max_in_flight, 100);
    assert_eq!(started.heartbeat_interval, seconds(25.0));
    assert!(!started.stream_id.is_empty() && !started.replica.is_empty());

    let chosen = ReadRequest { visibility_timeout: seconds(1.5), max_in_flight: 7, ..follow("orders") };
    let second = Follower::open(&test.client, chosen).await.started;
    assert_eq!(second.visibility_timeout, seconds(2.0));
    assert_eq!((second.max_in_flight, second.heartbeat_interval), (7, seconds(1.0)));
    assert_ne!(second.stream_id, started.stream_id);
    assert_eq!(second.replica, started.replica);
}

#[tokio::test]
async fn a_stream_gives_the_backlog_and_then_what_comes() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["1", "2", "3"]).await;
    let mut stream = Follower::open(&test.client, follow("orders")).await;
    let backlog = stream.messages(3).await;
    assert_eq!(ids(&backlog), [1, 2, 3]);
    assert_eq!((backlog[0].message.as_str(), backlog[0].read_ct), ("1", 1));
    for body in ["4", "5"] {
        let sent = test.client.send("orders", body).await;
        let message = stream.message().await;
        assert_eq!((message.msg_id, message.message.as_str()), (sent, body));
        assert!(!message.receipt.is_empty());
    }
}

#[tokio::test]
async fn a_send_wakes_a_stream() {
    let mut test = Test::with_queue("orders").await;
    let mut stream = Follower::open(&test.client, follow("orders")).await;
    let mut fastest = Duration::MAX;
    for _ in 0..5 {
        let since = now(&test).await;
        until_a_reader_waits(&test, &since).await;
        let begun = Instant::now();
        test.client.send("orders", "{}").await;
        stream.message().await;
        fastest = fastest.min(begun.elapsed());
    }
    assert!(fastest < Duration::from_millis(400), "{fastest:?}");
}

#[tokio::test]
async fn a_stream_gives_delayed_messages_when_they_fall_due() {
    let mut test = Test::with_queue("orders").await;
    let mut stream = Follower::open(&test.client, follow("orders")).await;
    let delayed = |delay_s: f64| OutgoingMessage {
        message: "{}".to_owned(),
        schedule: seconds(delay_s).map(outgoing_message::Schedule::Delay),
        ..Default::default()
    };
    let request = pgmq_grpc::proto::v1::SendBatchRequest {
        queue: "orders".to_owned(),
        messages: vec![delayed(1.2), delayed(0.3)],
    };
    test.client.queue.send_batch(request).await.unwrap();
    let mut came = vec![stream.message().await.msg_id];
    came.push(stream.message().await.msg_id);
    assert_eq!(came, [2, 1]);
}

#[tokio::test]
async fn an_unsettled_message_comes_to_the_stream_again_after_its_visibility_timeout() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let request = ReadRequest { visibility_timeout: seconds(1.0), ..follow("orders") };
    let mut stream = Follower::open(&test.client, request).await;
    for read_ct in 1..=3 {
        assert_eq!(stream.message().await.read_ct, read_ct);
    }
}

#[tokio::test]
async fn a_silent_stream_gives_heartbeats() {
    let mut test = Test::with_queue("orders").await;
    let begun = Instant::now();
    let mut stream = Follower::open(&test.client, follow("orders")).await;
    let first = stream.heartbeat().await;
    let second = stream.heartbeat().await;
    assert!(begun.elapsed() >= Duration::from_millis(1_900));
    assert_eq!((first.in_flight, second.in_flight), (0, 0));
    assert!(second.server_time.unwrap().seconds >= first.server_time.unwrap().seconds);
    test.client.send("orders", "{}").await;
    let message = stream.message().await;
    assert_eq!(stream.heartbeat().await.in_flight, 1);
    test.client.delete("orders", &[&message.receipt]).await;
    assert_eq!(stream.heartbeat().await.in_flight, 0);
}

#[tokio::test]
async fn a_stream_of_group_heads_keeps_the_order_of_each_group() {
    let mut test = Test::with_queue("orders").await;
    for group in ["a", "a", "b", "a", "b"] {
        test.client.send_to_group("orders", group, "{}").await;
    }
    let request = ReadRequest { ordering: Ordering::GroupedHead.into(), ..follow("orders") };
    let mut stream = Follower::open(&test.client, request).await;
    let heads = stream.messages(2).await;
    assert_eq!(ids(&heads), [1, 3]);
    test.client.delete("orders", &[&heads[1].receipt]).await;
    assert_eq!(stream.message().await.msg_id, 5);
    test.client.delete("orders", &[&heads[0].receipt]).await;
    assert_eq!(stream.message().await.msg_id, 2);
    stream.heartbeat().await;
}

#[tokio::test]
async fn a_round_robin_stream_takes_turns() {
    let mut test = Test::with_queue("orders").await;
    for group in ["a", "a", "b", "b"] {
        test.client.send_to_group("orders", group, "{}").await;
    }
    let request = ReadRequest { ordering: Ordering::GroupedRoundRobin.into(), ..follow("orders") };
    let mut stream = Follower::open(&test.client, request).await;
    assert_eq!(ids(&stream.messages(4).await), [1, 3, 2, 4]);
}

#[tokio::test]
async fn a_grouped_stream_takes_one_group_before_the_next() {
    let mut test = Test::with_queue("orders").await;
    for group in ["a", "b", "a", "b"] {
        test.client.send_to_group("orders", group, "{}").await;
    }
    let request = ReadRequest { ordering: Ordering::Grouped.into(), max_in_flight: 2, ..follow("orders") };
    let mut stream = Follower::open(&test.client, request).await;
    let first = stream.messages(2).await;
    assert_eq!(ids(&first), [1, 3]);
    test.client.delete("orders", &[&first[0].receipt, &first[1].receipt]).await;
    assert_eq!(ids(&stream.messages(2).await), [2, 4]);
}

#[tokio::test]
async fn a_conditional_stream_gives_only_bodies_that_contain_the_condition() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &[r#"{"kind": "a"}"#, r#"{"kind": "b"}"#]).await;
    let request = ReadRequest { conditional: r#"{"kind": "b"}"#.to_owned(), ..follow("orders") };
    let mut stream = Follower::open(&test.client, request).await;
    assert_eq!(stream.message().await.msg_id, 2);
    test.client.send_all("orders", &[r#"{"kind": "a"}"#, r#"{"kind": "b", "n": 1}"#]).await;
    assert_eq!(stream.message().await.msg_id, 4);
    assert_eq!(ids(&test.client.read("orders", 10).await), [1, 3]);
}

#[tokio::test]
async fn two_streams_share_a_queue() {
    let mut test = Test::with_queue("orders").await;
    let sent = test.client.send_all("orders", &["{}"; 20]).await;
    let request = ReadRequest { max_in_flight: 10, ..follow("orders") };
    let mut first = Follower::open(&test.client, request.clone()).await;
    let mut second = Follower::open(&test.client, request).await;
    let mut read = ids(&first.messages(10).await);
    read.extend(ids(&second.messages(10).await));
    read.sort_unstable();
    assert_eq!(read, sent);
}

#[tokio::test]
async fn a_refused_stream_is_an_error_of_the_call_itself() {
    let mut test = Test::with_queue("orders").await;
    let unknown = test.client.queue.read(follow("nowhere")).await.unwrap_err();
    Refusal::expect(&unknown, Code::NotFound, "QUEUE_NOT_FOUND");
    let orders = || follow("orders");
    let cases = [
        (follow(""), "MISSING_FIELD", "queue"),
        (ReadRequest { max_in_flight: 1_001, ..orders() }, "INVALID_COUNT", "max_in_flight"),
        (ReadRequest { max_messages: -1, ..orders() }, "INVALID_COUNT", "max_messages"),
        (
            ReadRequest { visibility_timeout: seconds(0.0), ..orders() },
            "INVALID_DURATION",
            "visibility_timeout",
        ),
        (
            ReadRequest { heartbeat_interval: seconds(0.5), ..orders() },
            "INVALID_DURATION",
            "heartbeat_interval",
        ),
        (
            ReadRequest { heartbeat_interval: seconds(601.0), ..orders() },
            "INVALID_DURATION",
            "heartbeat_interval",
        ),
        (ReadRequest { conditional: "{".to_owned(), ..orders() }, "INVALID_CONDITIONAL", "conditional"),
        (ReadRequest { ordering: 99, ..orders() }, "INVALID_ENUM", "ordering"),
        (
            ReadRequest {
                conditional: "{\"a\": 1}".to_owned(),
                ordering: Ordering::GroupedHead.into(),
                ..orders()
            },
            "CONFLICTING_FIELDS",
            "conditional",
        ),
    ];
    for (request, reason, field) in cases {
        let refused = test.client.queue.read(request).await.unwrap_err();
        Refusal::expect_invalid(&refused, reason, field);
    }
    let mut mismatch = tonic::Request::new(orders());
    mismatch.metadata_mut().insert("pgmq-queue", "other".parse().unwrap());
    let refused = test.client.queue.read(mismatch).await.unwrap_err();
    Refusal::expect_invalid(&refused, "METADATA_MISMATCH", "queue");
    test.client.queue.get_queue(GetQueueRequest { queue: "orders".to_owned() }).await.unwrap();
}
