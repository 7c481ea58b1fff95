//! Bodies, headers, groups and conditions: what is no JSON that the queue can hold.

use pgmq_grpc::proto::v1::transact_operation::Operation;
use pgmq_grpc::proto::v1::*;

use super::{Case, check, good_message, good_send, refused, transact};
use crate::harness::Test;
use crate::harness::wire::call;

const MIB: usize = 1 << 20;
const HEADERS_LIMIT: usize = 64 << 10;

/// Texts that are no JSON for a queue, and the byte at which each goes wrong.
fn bad_json() -> Vec<(String, usize)> {
    let deep = |levels| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    let texts = [
        ("{", 1),
        ("}", 0),
        ("[1,]", 3),
        (r#"{"a" 1}"#, 5),
        (r#"{"a":1,}"#, 7),
        (r#"{'a':1}"#, 1),
        ("nul", 0),
        ("NaN", 0),
        ("Infinity", 0),
        ("True", 0),
        ("01", 0),
        ("1.", 0),
        ("+1", 0),
        (".5", 0),
        ("-", 0),
        ("1 2", 2),
        ("{} x", 3),
        ("  ", 2),
        ("\u{feff}{}", 0),
        ("\u{a0}1", 0),
        ("// 1", 0),
        (r#""abc"#, 0),
        ("\"a\nb\"", 2),
        ("\"a\0b\"", 2),
        ("{}\0", 2),
        (r#""\x41""#, 1),
        (r#"{"a":"x\u0000"}"#, 7),
        (r#"{"\u0000":1}"#, 2),
        (r#""\ud800""#, 1),
        (r#""ü\udc00""#, 3),
        ("1e1001", 0),
        ("[0, 1e1000]", 4),
        ("1e-1001", 0),
        ("-1e99999999999999999999", 0),
        ("1e-99999999999999999999", 0),
    ];
    let mut texts: Vec<(String, usize)> = texts.map(|(text, at)| (text.to_owned(), at)).to_vec();
    texts.push((deep(65), 64));
    texts.push((deep(100_000), 64));
    texts.push((format!("{}1{}", r#"{"a":"#.repeat(65), "}".repeat(65)), 64 * 5));
    texts.push(("9".repeat(1_001), 0));
    texts.push((format!("0.{}", "0".repeat(1_000)), 0));
    texts
}

#[tokio::test]
async fn a_body_that_is_no_json_is_refused_with_its_position() {
    let test = Test::with_queue("orders").await;
    let cases = bad_json().into_iter().map(|(message, at)| {
        let request = SendRequest { message, ..good_send() };
        refused(call(request), "INVALID_JSON", "message").with("position", at)
    });
    check(&test, cases).await;
}

#[tokio::test]
async fn headers_that_are_no_json_object_are_refused() {
    let test = Test::with_queue("orders").await;
    let no_objects = ["null", "[]", "1", r#""a""#, "true", r#"[{"a":1}]"#].map(str::to_owned);
    let texts = bad_json().into_iter().map(|(text, _)| text).chain(no_objects);
    let cases = texts.map(|headers| {
        let request = SendRequest { headers, ..good_send() };
        refused(call(request), "INVALID_HEADERS", "headers")
    });
    check(&test, cases).await;
}

#[tokio::test]
async fn a_condition_that_is_no_json_is_refused() {
    let test = Test::with_queue("orders").await;
    let texts = bad_json().into_iter().map(|(text, _)| text).chain([quoted(HEADERS_LIMIT + 1)]);
    let cases = texts.flat_map(|conditional| {
        let queue = "orders".to_owned();
        let batch =
            ReadBatchRequest { queue: queue.clone(), conditional: conditional.clone(), ..Default::default() };
        let stream = ReadRequest { queue, conditional, ..Default::default() };
        [call(batch), call(stream)].map(|call| refused(call, "INVALID_CONDITIONAL", "conditional"))
    });
    check(&test, cases).await;
}

#[tokio::test]
async fn a_condition_works_with_unordered_reads_only() {
    let test = Test::with_queue("orders").await;
    let grouped = [Ordering::Grouped, Ordering::GroupedRoundRobin, Ordering::GroupedHead];
    let cases = grouped.into_iter().flat_map(|ordering| {
        let (queue, conditional) = ("orders".to_owned(), r#"{"a":1}"#.to_owned());
        let ordering = ordering.into();
        let batch = ReadBatchRequest {
            queue: queue.clone(),
            conditional: conditional.clone(),
            ordering,
            ..Default::default()
        };
        let stream = ReadRequest { queue, conditional, ordering, ..Default::default() };
        [call(batch), call(stream)].map(|call| refused(call, "CONFLICTING_FIELDS", "conditional"))
    });
    check(&test, cases).await;
}

#[tokio::test]
async fn an_empty_body_is_refused_wherever_one_is_sent() {
    let test = Test::with_queue("orders").await;
    check(&test, everywhere(String::new(), String::new(), "", "MISSING_FIELD", "message")).await;
}

#[tokio::test]
async fn bad_texts_are_refused_wherever_they_are_sent() {
    let test = Test::with_queue("orders").await;
    let (good, bad) = (|| "{}".to_owned(), || "{".to_owned());
    check(&test, everywhere(bad(), String::new(), "", "INVALID_JSON", "message")).await;
    check(&test, everywhere(good(), bad(), "", "INVALID_HEADERS", "headers")).await;
    check(&test, everywhere(good(), "[]".to_owned(), "", "INVALID_HEADERS", "headers")).await;
    check(&test, everywhere(good(), String::new(), "a\0b", "INVALID_GROUP", "group")).await;
    check(&test, everywhere(quoted(MIB + 1), String::new(), "", "MESSAGE_TOO_LARGE", "message")).await;
}

/// A message with these texts in every RPC that sends, as the second one of a batch.
fn everywhere(message: String, headers: String, group: &str, reason: &'static str, field: &str) -> Vec<Case> {
    let send = || SendRequest {
        message: message.clone(),
        headers: headers.clone(),
        group: group.to_owned(),
        ..good_send()
    };
    let messages = || {
        let bad = OutgoingMessage {
            message: message.clone(),
            headers: headers.clone(),
            group: group.to_owned(),
            schedule: None,
            ..Default::default()
        };
        vec![good_message(), bad]
    };
    let send_batch = || SendBatchRequest { queue: "orders".to_owned(), messages: messages() };
    let send_topic = || SendTopicRequest {
        routing_key: "a.b".to_owned(),
        message: message.clone(),
        headers: headers.clone(),
        group: group.to_owned(),
        ..Default::default()
    };
    let send_topic_batch =
        SendTopicBatchRequest { routing_key: "a.b".to_owned(), messages: messages(), ..Default::default() };
    let transaction = [
        Operation::Send(good_send()),
        Operation::SendBatch(send_batch()),
        Operation::SendTopic(send_topic()),
    ];
    vec![
        refused(call(send()), reason, field),
        refused(call(send_batch()), reason, format!("messages[1].{field}")),
        refused(call(send_topic()), reason, field),
        refused(call(send_topic_batch), reason, format!("messages[1].{field}")),
        refused(call(transact([Operation::Send(send())])), reason, format!("operations[0].send.{field}")),
        refused(
            call(transact(transaction[..2].to_vec())),
            reason,
            format!("operations[1].send_batch.messages[1].{field}"),
        ),
        refused(
            call(transact([transaction[0].clone(), transaction[2].clone()])),
            reason,
            format!("operations[1].send_topic.{field}"),
        ),
    ]
}

#[tokio::test]
async fn a_body_may_be_as_large_as_the_limit_and_no_larger_as_postgres_renders_it() {
    let test = Test::with_queue("orders").await;
    let too_large = [quoted(MIB + 1), ones(MIB / 3 + 1), format!("[{}0]", "1e900,".repeat(1_200))];
    let cases = too_large.into_iter().map(|message| {
        let request = SendRequest { message, ..good_send() };
        refused(call(request), "MESSAGE_TOO_LARGE", "message").with("limit", MIB)
    });
    check(&test, cases).await;
    for message in [quoted(MIB), format!("{}{}", " ".repeat(MIB), quoted(MIB)), ones(MIB / 3)] {
        let request = SendRequest { message, ..good_send() };
        call(request).make(&test.client.channel).await.unwrap();
    }
    let longest = test.value::<i32>("SELECT max(length(message::text)) FROM pgmq.q_orders").await;
    assert_eq!(longest, i32::try_from(MIB).unwrap());
}

#[tokio::test]
async fn the_operator_sets_the_limit_of_bodies() {
    let mut test = Test::start_with(&["--max-message-bytes", "1000"]).await;
    test.client.create("orders").await;
    let request = SendRequest { message: quoted(1_001), ..good_send() };
    let case = refused(call(request), "MESSAGE_TOO_LARGE", "message").with("limit", 1_000);
    check(&test, [case]).await;
    test.client.send("orders", &quoted(1_000)).await;
}

#[tokio::test]
async fn headers_may_take_64_kib_and_no_more() {
    let test = Test::with_queue("orders").await;
    let headers = |bytes: usize| format!(r#"{{"a": {}}}"#, quoted(bytes - r#"{"a": }"#.len()));
    let request = SendRequest { headers: headers(HEADERS_LIMIT + 1), ..good_send() };
    check(&test, [refused(call(request), "INVALID_HEADERS", "headers")]).await;
    let request = SendRequest { headers: headers(HEADERS_LIMIT), ..good_send() };
    call(request).make(&test.client.channel).await.unwrap();
    let length = test.value::<i32>("SELECT length(headers::text) FROM pgmq.q_orders").await;
    assert_eq!(length, i32::try_from(HEADERS_LIMIT).unwrap());
}

#[tokio::test]
async fn a_group_is_short_and_the_same_in_the_headers() {
    let test = Test::with_queue("orders").await;
    let with = |group: &str, headers: &str| {
        call(SendRequest { group: group.to_owned(), headers: headers.to_owned(), ..good_send() })
    };
    let (long, long_in_bytes) = ("g".repeat(257), "ü".repeat(129));
    let cases = [
        with(&long, ""),
        with(&long_in_bytes, ""),
        with("a\0", ""),
        with("a", r#"{"x-pgmq-group":"b"}"#),
        with("a", r#"{"x-pgmq-group":"A"}"#),
        with("a", r#"{"x-pgmq-group":""}"#),
        with("1", r#"{"x-pgmq-group":1}"#),
        with("a", r#"{"x-pgmq-group":null}"#),
        with("a", r#"{"x-pgmq-group":{"x-pgmq-group":"a"}}"#),
        with("a", r#"{"x-pgmq-group":"a","x-pgmq-group":"b"}"#),
        with("a", r#"{"x-pgmq-\u0067roup":"b"}"#),
    ];
    check(&test, cases.map(|call| refused(call, "INVALID_GROUP", "group"))).await;
    for good in [
        with(&"g".repeat(256), ""),
        with("a", r#"{"x-pgmq-group":"a"}"#),
        with("a", r#"{"x-pgmq-group":"b","x-pgmq-group":"\u0061"}"#),
        with("a", r#"{"nested":{"x-pgmq-group":"b"}}"#),
        with("quote\"back\\slash\nü", "{}"),
    ] {
        good.make(&test.client.channel).await.unwrap();
    }
}

/// JSON text of exactly so many bytes: one string.
fn quoted(bytes: usize) -> String {
    format!("\"{}\"", "a".repeat(bytes - 2))
}

/// An array that Postgres renders in three bytes an item: `[1, 1]`.
fn ones(items: usize) -> String {
    format!("[{}]", vec!["1"; items].join(","))
}
