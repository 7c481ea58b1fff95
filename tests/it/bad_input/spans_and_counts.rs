//! Spans, moments, counts, lengths of lists and numbers of enums: malformed, or out of their ranges.

use pgmq_grpc::proto::v1::set_visibility_timeout_request::Visibility;
use pgmq_grpc::proto::v1::transact_operation::Operation;
use pgmq_grpc::proto::v1::*;
use prost_types::{Duration, Timestamp};

use super::{Case, check, good_delete, good_message, good_send, refused, transact};
use crate::harness::wire::{Call, call};
use crate::harness::{Test, moment_in};

const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;
const YEAR: i64 = 365 * DAY;

fn orders() -> String {
    "orders".to_owned()
}

fn span(seconds: i64, nanos: i32) -> Duration {
    Duration { seconds, nanos }
}

/// Spans that no field takes.
fn malformed_spans() -> Vec<Duration> {
    vec![
        span(-1, 0),
        span(0, -1),
        span(0, 1_000_000_000),
        span(1, -1),
        span(-1, 1),
        span(1, i32::MIN),
        span(1, i32::MAX),
        span(i64::MIN, 0),
        span(i64::MAX, 999_999_999),
    ]
}

fn set_visibility(visibility: Visibility) -> SetVisibilityTimeoutRequest {
    SetVisibilityTimeoutRequest {
        queue: orders(),
        msg_ids: vec![1],
        visibility: Some(visibility),
        ..Default::default()
    }
}

/// A field of a span: how to fill it, its path, and spans just out of its range.
type SpanField = (fn(Duration) -> Call, &'static str, Vec<Duration>);

fn span_fields() -> Vec<SpanField> {
    vec![
        (
            |span| call(SendRequest { schedule: Some(send_request::Schedule::Delay(span)), ..good_send() }),
            "delay",
            vec![span(YEAR, 1), span(YEAR + 1, 0)],
        ),
        (
            |span| {
                let schedule = Some(outgoing_message::Schedule::Delay(span));
                let messages = vec![good_message(), OutgoingMessage { schedule, ..good_message() }];
                call(SendBatchRequest { queue: orders(), messages })
            },
            "messages[1].delay",
            vec![span(YEAR, 1)],
        ),
        (
            |span| {
                let schedule = Some(send_topic_request::Schedule::Delay(span));
                let (routing_key, message) = ("a.b".to_owned(), "{}".to_owned());
                call(SendTopicRequest { routing_key, message, schedule, ..Default::default() })
            },
            "delay",
            vec![span(YEAR, 1)],
        ),
        (
            |span| {
                let schedule = Some(outgoing_message::Schedule::Delay(span));
                let messages = vec![OutgoingMessage { schedule, ..good_message() }];
                call(SendTopicBatchRequest { routing_key: "a".to_owned(), messages, ..Default::default() })
            },
            "messages[0].delay",
            vec![span(YEAR, 1)],
        ),
        (
            |span| {
                let visibility_timeout = Some(span);
                call(ReadBatchRequest { queue: orders(), visibility_timeout, ..Default::default() })
            },
            "visibility_timeout",
            vec![span(0, 0), span(12 * HOUR, 1), span(12 * HOUR + 1, 0)],
        ),
        (
            |span| call(ReadBatchRequest { queue: orders(), wait: Some(span), ..Default::default() }),
            "wait",
            vec![span(50, 1), span(51, 0)],
        ),
        (
            |span| {
                let visibility_timeout = Some(span);
                call(ReadRequest { queue: orders(), visibility_timeout, ..Default::default() })
            },
            "visibility_timeout",
            vec![span(0, 0), span(12 * HOUR, 1)],
        ),
        (
            |span| {
                let heartbeat_interval = Some(span);
                call(ReadRequest { queue: orders(), heartbeat_interval, ..Default::default() })
            },
            "heartbeat_interval",
            vec![span(0, 0), span(0, 999_999_999), span(600, 1)],
        ),
        (
            |span| {
                let receipts = vec![super::receipts::never_given("orders")];
                call(ReleaseRequest { queue: orders(), receipts, delay: Some(span) })
            },
            "delay",
            vec![span(12 * HOUR, 1)],
        ),
        (
            |span| call(set_visibility(Visibility::VisibilityTimeout(span))),
            "visibility_timeout",
            vec![span(12 * HOUR, 1)],
        ),
        (
            |span| {
                let set = set_visibility(Visibility::VisibilityTimeout(span));
                call(transact([Operation::Send(good_send()), Operation::SetVisibilityTimeout(set)]))
            },
            "operations[1].set_visibility_timeout.visibility_timeout",
            vec![span(12 * HOUR, 1)],
        ),
        (
            |span| call(EnableNotificationsRequest { queue: orders(), throttle_interval: Some(span) }),
            "throttle_interval",
            vec![span(DAY, 1)],
        ),
        (
            |span| call(UpdateNotificationsRequest { queue: orders(), throttle_interval: Some(span) }),
            "throttle_interval",
            vec![span(DAY, 1)],
        ),
    ]
}

#[tokio::test]
async fn spans_are_refused_when_malformed_or_out_of_range() {
    let test = Test::with_queue("orders").await;
    for (with, field, out_of_range) in span_fields() {
        let spans = malformed_spans().into_iter().chain(out_of_range);
        check(&test, spans.map(|span| refused(with(span), "INVALID_DURATION", field))).await;
    }
}

#[tokio::test]
async fn moments_are_refused_when_malformed_or_too_far_ahead() {
    let test = Test::with_queue("orders").await;
    let at = |seconds, nanos| Timestamp { seconds, nanos };
    let malformed = [
        at(0, -1),
        at(0, 1_000_000_000),
        at(0, i32::MIN),
        at(-62_135_596_801, 0),
        at(253_402_300_800, 0),
        at(i64::MIN, 0),
        at(i64::MAX, 999_999_999),
    ];
    type CallAt = fn(Timestamp) -> Call;
    let by_time: [(CallAt, &str); 3] = [
        (
            |at| {
                let filter = ArchiveFilter { archived_after: Some(at), ..Default::default() };
                call(ListArchivedMessagesRequest {
                    queue: orders(),
                    filter: Some(filter),
                    ..Default::default()
                })
            },
            "filter.archived_after",
        ),
        (
            |at| {
                let filter = ArchiveFilter { archived_before: Some(at), ..Default::default() };
                call(DeleteArchivedMessagesRequest { queue: orders(), filter: Some(filter), max_messages: 0 })
            },
            "filter.archived_before",
        ),
        (
            |at| {
                let filter = ArchiveFilter { archived_before: Some(at), ..Default::default() };
                call(ReplayArchivedMessagesRequest {
                    queue: orders(),
                    filter: Some(filter),
                    ..Default::default()
                })
            },
            "filter.archived_before",
        ),
    ];
    for (with, field) in by_time {
        check(&test, malformed.map(|at| refused(with(at), "INVALID_TIMESTAMP", field))).await;
    }
    let fields: [(CallAt, &str, i64); 4] = [
        (
            |at| call(SendRequest { schedule: Some(send_request::Schedule::VisibleAt(at)), ..good_send() }),
            "visible_at",
            YEAR,
        ),
        (
            |at| {
                let schedule = Some(outgoing_message::Schedule::VisibleAt(at));
                let messages = vec![OutgoingMessage { schedule, ..good_message() }];
                call(SendBatchRequest { queue: orders(), messages })
            },
            "messages[0].visible_at",
            YEAR,
        ),
        (
            |at| {
                let schedule = Some(send_topic_request::Schedule::VisibleAt(at));
                let (routing_key, message) = ("a.b".to_owned(), "{}".to_owned());
                call(SendTopicRequest { routing_key, message, schedule, ..Default::default() })
            },
            "visible_at",
            YEAR,
        ),
        (|at| call(set_visibility(Visibility::VisibleAt(at))), "visible_at", 12 * HOUR),
    ];
    for (with, field, limit) in fields {
        let moments = malformed.into_iter().chain([moment_in(limit + 60)]);
        check(&test, moments.map(|at| refused(with(at), "INVALID_TIMESTAMP", field))).await;
        with(moment_in(limit - 60)).make(&test.client.channel).await.unwrap();
        with(Timestamp { seconds: -62_135_596_800, nanos: 0 }).make(&test.client.channel).await.unwrap();
    }
}

#[tokio::test]
async fn a_span_of_time_that_ends_before_it_begins_is_refused() {
    let test = Test::with_queue("orders").await;
    let (after, before) = (moment_in(0), moment_in(-1));
    let cases = [(after, before), (before, before)].into_iter().flat_map(|(after, before)| {
        let times = (Some(after), Some(before));
        let filter = || {
            Some(ArchiveFilter { archived_after: times.0, archived_before: times.1, ..Default::default() })
        };
        [
            call(ListArchivedMessagesRequest { queue: orders(), filter: filter(), ..Default::default() }),
            call(DeleteArchivedMessagesRequest { queue: orders(), filter: filter(), max_messages: 0 }),
            call(ReplayArchivedMessagesRequest { queue: orders(), filter: filter(), ..Default::default() }),
        ]
    });
    check(&test, cases.map(|call| refused(call, "INVALID_TIMESTAMP", "filter.archived_before"))).await;
}

#[tokio::test]
async fn counts_are_refused_when_negative_or_over_their_limit() {
    let test = Test::with_queue("orders").await;
    let read_batch =
        |max_messages| call(ReadBatchRequest { queue: orders(), max_messages, ..Default::default() });
    let in_flight =
        |max_in_flight| call(ReadRequest { queue: orders(), max_in_flight, ..Default::default() });
    let read = |max_messages| call(ReadRequest { queue: orders(), max_messages, ..Default::default() });
    let pop = |max_messages| call(PopRequest { queue: orders(), max_messages });
    let convert = |leading_partition| {
        call(ConvertArchivePartitionedRequest { queue: orders(), leading_partition, ..Default::default() })
    };
    let mut cases = Vec::new();
    for bad in [-1, i32::MIN, 1_001, i32::MAX] {
        cases.push(refused(read_batch(bad), "INVALID_COUNT", "max_messages").with("limit", 1_000));
        cases.push(refused(in_flight(bad), "INVALID_COUNT", "max_in_flight").with("limit", 1_000));
        cases.push(refused(pop(bad), "INVALID_COUNT", "max_messages").with("limit", 1_000));
    }
    for max_messages in [-1, i32::MIN, 1_000_001, i32::MAX] {
        let delete = DeleteArchivedMessagesRequest { queue: orders(), filter: None, max_messages };
        let replay = ReplayArchivedMessagesRequest { queue: orders(), max_messages, ..Default::default() };
        let redrive =
            RedriveMessagesRequest { dead_letter_queue: orders(), max_messages, ..Default::default() };
        for call in [call(delete), call(replay), call(redrive)] {
            cases.push(refused(call, "INVALID_COUNT", "max_messages").with("limit", 1_000_000));
        }
    }
    for bad in [-1, i32::MIN] {
        cases.push(refused(read(bad), "INVALID_COUNT", "max_messages").with("limit", i32::MAX));
        cases.push(refused(convert(bad), "INVALID_COUNT", "leading_partition").with("limit", i32::MAX));
        cases.extend(lists(bad).map(|call| refused(call, "INVALID_COUNT", "page_size").with("limit", 1_000)));
    }
    check(&test, cases).await;
    // The one value that is clamped.
    for call in lists(i32::MAX) {
        call.make(&test.client.channel).await.unwrap();
    }
}

fn lists(page_size: i32) -> [Call; 7] {
    [
        call(ListMessagesRequest { queue: orders(), page_size, ..Default::default() }),
        call(ListArchivedMessagesRequest { queue: orders(), page_size, ..Default::default() }),
        call(ListQueuesRequest { page_size, ..Default::default() }),
        call(ListQueueMetricsRequest { page_size, ..Default::default() }),
        call(ListTopicBindingsRequest { page_size, ..Default::default() }),
        call(ListNotificationsRequest { page_size, ..Default::default() }),
        call(ListClientsRequest { page_size, ..Default::default() }),
    ]
}

/// Calls with a list of so many items, each with the list's field.
fn lists_of_items(items: usize) -> Vec<(Call, &'static str)> {
    let messages = || vec![good_message(); items];
    let msg_ids: Vec<i64> = (1..).take(items).collect();
    let receipts = || vec![super::receipts::never_given("orders"); items];
    let filter = Some(ArchiveFilter { msg_ids: msg_ids.clone(), ..Default::default() });
    vec![
        (call(SendBatchRequest { queue: orders(), messages: messages() }), "messages"),
        (
            call(SendTopicBatchRequest {
                routing_key: "a".to_owned(),
                messages: messages(),
                ..Default::default()
            }),
            "messages",
        ),
        (call(ReleaseRequest { queue: orders(), receipts: receipts(), delay: None }), "receipts"),
        (call(DeleteRequest { queue: orders(), receipts: receipts(), msg_ids: vec![] }), "receipts"),
        (call(ArchiveRequest { queue: orders(), receipts: receipts(), msg_ids: vec![] }), "receipts"),
        (call(DeleteRequest { msg_ids: msg_ids.clone(), ..good_delete() }), "msg_ids"),
        (call(ArchiveRequest { queue: orders(), msg_ids: msg_ids.clone(), receipts: vec![] }), "msg_ids"),
        (
            call(ListMessagesRequest { queue: orders(), msg_ids: msg_ids.clone(), ..Default::default() }),
            "msg_ids",
        ),
        (
            call(ListArchivedMessagesRequest {
                queue: orders(),
                filter: filter.clone(),
                ..Default::default()
            }),
            "filter.msg_ids",
        ),
        (
            call(DeleteArchivedMessagesRequest { queue: orders(), filter: filter.clone(), max_messages: 0 }),
            "filter.msg_ids",
        ),
        (
            call(ReplayArchivedMessagesRequest { queue: orders(), filter, ..Default::default() }),
            "filter.msg_ids",
        ),
        (
            call(RedriveMessagesRequest {
                dead_letter_queue: orders(),
                msg_ids: msg_ids.clone(),
                ..Default::default()
            }),
            "msg_ids",
        ),
        (
            call(SetVisibilityTimeoutRequest {
                msg_ids,
                ..set_visibility(Visibility::VisibilityTimeout(span(1, 0)))
            }),
            "msg_ids",
        ),
    ]
}

#[tokio::test]
async fn a_list_with_more_than_1000_items_is_refused() {
    let test = Test::with_queue("orders").await;
    let cases = lists_of_items(1_001);
    let cases =
        cases.into_iter().map(|(call, field)| refused(call, "INVALID_COUNT", field).with("limit", 1_000));
    check(&test, cases).await;
    for (call, _) in lists_of_items(1_000) {
        call.make(&test.client.channel).await.unwrap_or_else(|status| panic!("{}: {status:?}", call.text));
    }
}

#[tokio::test]
async fn a_required_list_without_items_is_refused() {
    let test = Test::with_queue("orders").await;
    let cases = lists_of_items(0).into_iter().take(3);
    let mut cases: Vec<Case> = cases.map(|(call, field)| refused(call, "MISSING_FIELD", field)).collect();
    cases.push(refused(call(TransactRequest::default()), "MISSING_FIELD", "operations"));
    check(&test, cases).await;
}

#[tokio::test]
async fn numbers_of_enums_that_nobody_knows_are_refused() {
    let test = Test::with_queue("orders").await;
    let mut cases = Vec::new();
    for number in [-1, 5, 99, i32::MIN, i32::MAX] {
        let create = CreateQueueRequest { queue: "new".to_owned(), kind: number, ..Default::default() };
        let batch = ReadBatchRequest { queue: orders(), ordering: number, ..Default::default() };
        let stream = ReadRequest { queue: orders(), ordering: number, ..Default::default() };
        cases.push(refused(call(create), "INVALID_ENUM", "kind"));
        cases.push(refused(call(batch), "INVALID_ENUM", "ordering"));
        cases.push(refused(call(stream), "INVALID_ENUM", "ordering"));
        let list = ListMessagesRequest { queue: orders(), state: number, ..Default::default() };
        cases.push(refused(call(list), "INVALID_ENUM", "state"));
    }
    check(&test, cases).await;
}

#[tokio::test]
async fn partitioning_is_refused_for_other_kinds_and_when_malformed() {
    let test = Test::with_queue("orders").await;
    let cut = |interval: &str, retention: &str, premake| Partitioning {
        interval: interval.to_owned(),
        retention: retention.to_owned(),
        premake,
    };
    let create = |kind: QueueKind, partitioning| {
        let partitioning = Some(partitioning);
        call(CreateQueueRequest {
            queue: "new".to_owned(),
            kind: kind.into(),
            partitioning,
            ..Default::default()
        })
    };
    let mut cases = Vec::new();
    for kind in [QueueKind::Unspecified, QueueKind::Standard, QueueKind::Unlogged] {
        cases.push(refused(create(kind, cut("", "", 0)), "INVALID_PARTITIONING", "partitioning"));
    }
    for (interval, retention) in [
        ("0", ""),
        ("-1", ""),
        ("1.5", ""),
        ("99999999999", ""),
        ("soon", ""),
        ("1 day'; DROP TABLE pgmq.meta", ""),
        ("1 fortnight", ""),
        ("", "0"),
        ("", "1 day"),
        ("1 day", "100"),
        ("1 day", "later"),
        ("1\0", ""),
    ] {
        let partitioning = cut(interval, retention, 0);
        let convert = ConvertArchivePartitionedRequest {
            queue: orders(),
            partitioning: Some(partitioning.clone()),
            ..Default::default()
        };
        cases.push(refused(
            create(QueueKind::Partitioned, partitioning),
            "INVALID_PARTITIONING",
            "partitioning",
        ));
        cases.push(refused(call(convert), "INVALID_PARTITIONING", "partitioning"));
    }
    for premake in [-1, 101, i32::MAX] {
        let create = create(QueueKind::Partitioned, cut("", "", premake));
        cases.push(refused(create, "INVALID_PARTITIONING", "partitioning"));
    }
    let convert = ConvertArchivePartitionedRequest {
        queue: orders(),
        partitioning: Some(cut("", "", 4)),
        ..Default::default()
    };
    cases.push(refused(call(convert), "INVALID_PARTITIONING", "partitioning.premake"));
    check(&test, cases).await;
}
