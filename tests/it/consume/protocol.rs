//! The order of commands, and how a stream begins and ends by its client.

use std::time::Duration;

use pgmq_grpc::proto::v1::consume_request::Command;
use pgmq_grpc::proto::v1::{ConsumeStart, FlowControl, Ordering, SettleAction};
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use super::{Consumer, alive, credit, extend, settle, start, stop};
use crate::harness::{Refusal, Test, seconds};

async fn status_after(test: &Test, commands: Vec<Option<Command>>) -> Status {
    let mut consumer = Consumer::open(&test.client).await;
    for command in commands {
        consumer.send_as(1, command);
    }
    let end = consumer.end().await;
    assert!(end.messages.is_empty());
    end.status.expect_err("an error")
}

#[tokio::test]
async fn a_stream_begins_with_its_settings() {
    let test = Test::with_queue("orders").await;
    let by_default = ConsumeStart { queue: "orders".to_owned(), ..Default::default() };
    let (_open, started) = Consumer::start_and_tell(&test.client, by_default).await;
    assert_eq!(started.visibility_timeout, seconds(30.0));
    assert_eq!((started.max_in_flight, started.heartbeat_interval), (100, seconds(25.0)));
    assert!(!started.stream_id.is_empty() && !started.replica.is_empty());

    let chosen = ConsumeStart { visibility_timeout: seconds(1.5), max_in_flight: 7, ..start("orders") };
    let (_open, second) = Consumer::start_and_tell(&test.client, chosen).await;
    assert_eq!(second.visibility_timeout, seconds(2.0));
    assert_eq!((second.max_in_flight, second.heartbeat_interval), (7, seconds(1.0)));
    assert_ne!(second.stream_id, started.stream_id);
}

#[tokio::test]
async fn commands_where_they_do_not_belong_end_the_stream() {
    let test = Test::with_queue("orders").await;
    let begin = || Some(Command::Start(start("orders")));
    let again = Some(Command::Start(ConsumeStart::default()));
    let cases = [
        vec![Some(stop())],
        vec![Some(alive())],
        vec![Some(credit(1))],
        vec![Some(settle(SettleAction::Delete, &[]))],
        vec![Some(extend(&[], None))],
        vec![None],
        vec![begin(), begin()],
        vec![begin(), again],
        vec![begin(), Some(stop()), begin()],
        vec![begin(), None],
        vec![begin(), Some(credit(1))],
        vec![begin(), Some(stop()), Some(credit(1))],
    ];
    for commands in cases {
        let text = format!("{commands:?}");
        let status = status_after(&test, commands).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{text}: {status:?}");
        Refusal::expect(&status, Code::InvalidArgument, "STREAM_PROTOCOL");
    }
}

#[tokio::test]
async fn a_bad_start_ends_the_stream_and_names_its_fields() {
    let test = Test::with_queue("orders").await;
    let cases = [
        (ConsumeStart::default(), "MISSING_FIELD", "start.queue"),
        (ConsumeStart { max_in_flight: 1_001, ..start("orders") }, "INVALID_COUNT", "start.max_in_flight"),
        (
            ConsumeStart { visibility_timeout: seconds(0.0), ..start("orders") },
            "INVALID_DURATION",
            "start.visibility_timeout",
        ),
        (
            ConsumeStart { heartbeat_interval: seconds(0.5), ..start("orders") },
            "INVALID_DURATION",
            "start.heartbeat_interval",
        ),
        (ConsumeStart { flow_control: 9, ..start("orders") }, "INVALID_ENUM", "start.flow_control"),
        (ConsumeStart { ordering: 9, ..start("orders") }, "INVALID_ENUM", "start.ordering"),
        (
            ConsumeStart { max_extension: seconds(9.0), ..start("orders") },
            "CONFLICTING_FIELDS",
            "start.max_extension",
        ),
        (
            ConsumeStart { auto_extend: true, max_extension: seconds(0.0), ..start("orders") },
            "INVALID_DURATION",
            "start.max_extension",
        ),
        (
            ConsumeStart {
                conditional: "{}".to_owned(),
                ordering: Ordering::GroupedHead.into(),
                ..start("orders")
            },
            "CONFLICTING_FIELDS",
            "start.conditional",
        ),
    ];
    for (bad, reason, field) in cases {
        let status = status_after(&test, vec![Some(Command::Start(bad))]).await;
        let refusal = Refusal::expect(&status, Code::InvalidArgument, reason);
        assert_eq!(refusal.metadata.get("field").map(String::as_str), Some(field), "{status:?}");
    }
    let missing = status_after(&test, vec![Some(Command::Start(start("nowhere")))]).await;
    Refusal::expect(&missing, Code::NotFound, "QUEUE_NOT_FOUND");
}

#[tokio::test]
async fn bad_credit_ends_the_stream() {
    let test = Test::with_queue("orders").await;
    let manual = || ConsumeStart { flow_control: FlowControl::Manual.into(), ..start("orders") };
    for count in [0, -1, 1_001] {
        let commands = vec![Some(Command::Start(manual())), Some(credit(count))];
        let status = status_after(&test, commands).await;
        let refusal = Refusal::expect(&status, Code::InvalidArgument, "INVALID_COUNT");
        assert_eq!(refusal.metadata.get("field").map(String::as_str), Some("credit.messages"));
    }
    let commands = vec![Some(Command::Start(manual())), Some(credit(1_000)), Some(credit(1))];
    let status = status_after(&test, commands).await;
    Refusal::expect(&status, Code::InvalidArgument, "STREAM_PROTOCOL");
}

#[tokio::test]
async fn the_metadata_must_name_the_same_queue() {
    let test = Test::with_queue("orders").await;
    let mut consumer = Consumer::open_with(&test.client, |call| {
        call.metadata_mut().insert("pgmq-queue", MetadataValue::from_static("bills"));
    })
    .await;
    consumer.send(Command::Start(start("orders")));
    let status = consumer.end().await.status.expect_err("an error");
    Refusal::expect(&status, Code::InvalidArgument, "METADATA_MISMATCH");
}

#[tokio::test]
async fn an_error_comes_after_the_results_that_were_due() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let mut consumer = Consumer::start(&test.client, start("orders")).await;
    let held = consumer.message().await;
    let request_id = consumer.send(settle(SettleAction::Delete, &[&held]));
    consumer.send(Command::Start(start("orders")));
    let end = consumer.end().await;
    assert_eq!(end.results.iter().map(|result| result.request_id).collect::<Vec<_>>(), [request_id]);
    Refusal::expect(&end.status.expect_err("an error"), Code::InvalidArgument, "STREAM_PROTOCOL");
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 0);
}

#[tokio::test]
async fn a_half_close_gives_the_results_that_are_due_and_ends_well() {
    let mut test = Test::with_queue("orders").await;
    let mut unused = Consumer::open(&test.client).await;
    unused.half_close();
    unused.end().await.status.expect("OK");

    test.client.send_all("orders", &["{}"; 30]).await;
    let mut consumer = Consumer::start(&test.client, start("orders")).await;
    let held = consumer.take(30).await;
    let sent: Vec<u64> =
        held.iter().map(|message| consumer.send(settle(SettleAction::Archive, &[message]))).collect();
    consumer.half_close();
    let end = consumer.end().await;
    end.status.expect("OK");
    let mut answered: Vec<u64> = end.results.iter().map(|result| result.request_id).collect();
    answered.sort_unstable();
    assert_eq!(answered, sent);
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.a_orders").await, 30);
}

#[tokio::test]
async fn a_stopped_stream_gives_no_message_and_still_settles() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let mut consumer = Consumer::start(&test.client, start("orders")).await;
    let held = consumer.message().await;
    consumer.send(stop());
    consumer.stopped(1).await;
    test.client.send("orders", "{}").await;
    consumer.send(stop());
    consumer.stopped(2).await;
    consumer.heartbeat().await;
    assert_eq!(consumer.settle(SettleAction::Delete, &[&held]).await, [super::Outcome::Done]);
    assert_eq!(test.client.read_one("orders").await.read_ct, 1);
    consumer.half_close();
    consumer.end().await.status.expect("OK");
}

#[tokio::test]
async fn a_stream_ends_at_its_callers_deadline() {
    let test = Test::with_queue("orders").await;
    let mut consumer =
        Consumer::open_with(&test.client, |call| call.set_timeout(Duration::from_secs(3))).await;
    consumer.send(Command::Start(start("orders")));
    let status = consumer.end().await.status.expect_err("an error");
    Refusal::expect(&status, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
}
