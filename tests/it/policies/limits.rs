//! What a policy may not say.

use pgmq_grpc::proto::v1::{DeadLetterPolicy, QueuePolicy, RetryBackoff, SendRequest, UpdateQueueRequest};
use prost_types::{Duration, FieldMask};
use tonic::Code;

use super::updating::orders;
use super::{change, create, full, policy_of, set, try_set};
use crate::harness::{Refusal, seconds};
use crate::read_batch::body_of;
use crate::settle::release;

fn policy(change: impl FnOnce(&mut QueuePolicy)) -> QueuePolicy {
    let mut policy = QueuePolicy::default();
    change(&mut policy);
    policy
}

fn backoff(change: impl FnOnce(&mut RetryBackoff)) -> QueuePolicy {
    let mut backoff = full().retry_backoff.expect("a backoff");
    change(&mut backoff);
    policy(|policy| policy.retry_backoff = Some(backoff))
}

fn dead_letters(queue: &str, max_receives: i32) -> QueuePolicy {
    let queue = queue.to_owned();
    policy(|policy| policy.dead_letter = Some(DeadLetterPolicy { queue, max_receives }))
}

/// The largest value of each field, which is taken.
fn largest() -> QueuePolicy {
    QueuePolicy {
        default_visibility_timeout: seconds(12.0 * 3_600.0),
        default_delay: seconds(365.0 * 86_400.0),
        default_wait: seconds(50.0),
        max_message_bytes: Some(3_145_728),
        dead_letter: Some(DeadLetterPolicy { queue: "failed".to_owned(), max_receives: 1_000 }),
        retry_backoff: Some(RetryBackoff {
            minimum: seconds(12.0 * 3_600.0),
            maximum: seconds(12.0 * 3_600.0),
            multiplier: 100.0,
            jitter: 1.0,
        }),
        deduplication_window: seconds(168.0 * 3_600.0),
        archive_retention: seconds(3_650.0 * 86_400.0),
        ..full()
    }
}

fn smallest() -> QueuePolicy {
    QueuePolicy {
        default_visibility_timeout: seconds(1.0),
        default_delay: seconds(0.0),
        default_wait: seconds(0.0),
        max_message_bytes: Some(1),
        dead_letter: Some(DeadLetterPolicy { queue: "failed".to_owned(), max_receives: 1 }),
        retry_backoff: Some(RetryBackoff {
            minimum: seconds(0.001),
            maximum: seconds(0.001),
            multiplier: 1.0,
            jitter: 0.0,
        }),
        deduplication_window: seconds(0.1),
        archive_retention: seconds(1.0),
        ..full()
    }
}

#[tokio::test]
async fn the_ends_of_each_range_are_taken() {
    let mut test = orders().await;
    for policy in [largest(), smallest()] {
        assert_eq!(set(&mut test.client, "orders", policy.clone()).await, policy);
    }
    let standard = set(&mut test.client, "orders", backoff(|backoff| backoff.multiplier = 0.0)).await;
    assert_eq!(standard.retry_backoff.map(|backoff| backoff.multiplier), Some(2.0));
}

#[tokio::test]
async fn the_largest_values_do_what_they_say() {
    let mut test = orders().await;
    let mut policy = largest();
    policy.retry_backoff.iter_mut().for_each(|backoff| backoff.jitter = 0.0);
    set(&mut test.client, "orders", policy).await;
    let sized = |bytes: usize| SendRequest {
        queue: "orders".to_owned(),
        message: body_of(bytes - 2),
        group: "a".to_owned(),
        deduplication_id: "id".to_owned(),
        ..Default::default()
    };
    let refused = test.client.queue.send(sized(3_145_729)).await.unwrap_err();
    Refusal::expect_invalid(&refused, "MESSAGE_TOO_LARGE", "message");
    test.client.queue.send(sized(3_145_728)).await.unwrap();
    let spans = "SELECT ARRAY[extract(epoch FROM q.vt - q.enqueued_at), extract(epoch FROM d.expires_at - q.enqueued_at)]::float8[]
        FROM pgmq.q_orders AS q JOIN pgmq_grpc.deduplication AS d USING (msg_id)";
    let spans: Vec<f64> = test.value(spans).await;
    assert_eq!(hours(&spans), [365 * 24, 168]);

    test.run("UPDATE pgmq.q_orders SET vt = now(), read_ct = 998").await;
    let hidden = "SELECT ARRAY[extract(epoch FROM vt - clock_timestamp())]::float8[] FROM pgmq.q_orders";
    let held = test.client.read_one("orders").await;
    assert_eq!((held.read_ct, held.message.len()), (999, 3_145_728));
    assert_eq!(hours(&test.value::<Vec<f64>>(hidden).await), [12]);
    test.run("UPDATE pgmq.q_orders SET vt = now()").await;
    release(&mut test.client, "orders", &[&held.receipt], None).await;
    assert_eq!(hours(&test.value::<Vec<f64>>(hidden).await), [12]);

    test.run("UPDATE pgmq.q_orders SET vt = now()").await;
    let held = test.client.read_one("orders").await;
    release(&mut test.client, "orders", &[&held.receipt], None).await;
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 0);
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_failed").await, 1);
}

fn hours(seconds: &[f64]) -> Vec<i64> {
    seconds.iter().map(|seconds| (seconds / 3_600.0).round() as i64).collect()
}

#[tokio::test]
async fn a_value_out_of_its_range_is_refused_with_its_field_wherever_it_is_given() {
    let mut test = orders().await;
    set(&mut test.client, "orders", full()).await;
    let negative = || Some(Duration { seconds: -1, nanos: 0 });
    for (bad, reason, field) in [
        (
            policy(|p| p.default_visibility_timeout = seconds(0.0)),
            "INVALID_DURATION",
            "default_visibility_timeout",
        ),
        (
            policy(|p| p.default_visibility_timeout = seconds(43_200.5)),
            "INVALID_DURATION",
            "default_visibility_timeout",
        ),
        (policy(|p| p.default_delay = negative()), "INVALID_DURATION", "default_delay"),
        (policy(|p| p.default_delay = seconds(365.0 * 86_400.0 + 0.5)), "INVALID_DURATION", "default_delay"),
        (policy(|p| p.default_wait = negative()), "INVALID_DURATION", "default_wait"),
        (policy(|p| p.default_wait = seconds(50.5)), "INVALID_DURATION", "default_wait"),
        (policy(|p| p.max_message_bytes = Some(0)), "INVALID_COUNT", "max_message_bytes"),
        (policy(|p| p.max_message_bytes = Some(-1)), "INVALID_COUNT", "max_message_bytes"),
        (policy(|p| p.max_message_bytes = Some(3_145_729)), "INVALID_COUNT", "max_message_bytes"),
        (dead_letters("", 1), "MISSING_FIELD", "dead_letter.queue"),
        (dead_letters("a;b", 1), "INVALID_QUEUE_NAME", "dead_letter.queue"),
        (dead_letters("orders", 1), "INVALID_POLICY", "dead_letter.queue"),
        (dead_letters("Orders", 1), "INVALID_POLICY", "dead_letter.queue"),
        (dead_letters("failed", 0), "INVALID_COUNT", "dead_letter.max_receives"),
        (dead_letters("failed", 1_001), "INVALID_COUNT", "dead_letter.max_receives"),
        (backoff(|b| b.minimum = None), "MISSING_FIELD", "retry_backoff.minimum"),
        (backoff(|b| b.minimum = seconds(0.0)), "INVALID_DURATION", "retry_backoff.minimum"),
        (backoff(|b| b.maximum = None), "MISSING_FIELD", "retry_backoff.maximum"),
        (backoff(|b| b.maximum = seconds(43_200.5)), "INVALID_DURATION", "retry_backoff.maximum"),
        (backoff(|b| b.maximum = seconds(0.5)), "INVALID_POLICY", "retry_backoff.maximum"),
        (backoff(|b| b.multiplier = 0.5), "INVALID_POLICY", "retry_backoff.multiplier"),
        (backoff(|b| b.multiplier = 100.5), "INVALID_POLICY", "retry_backoff.multiplier"),
        (backoff(|b| b.multiplier = f64::NAN), "INVALID_POLICY", "retry_backoff.multiplier"),
        (backoff(|b| b.jitter = -0.1), "INVALID_POLICY", "retry_backoff.jitter"),
        (backoff(|b| b.jitter = 1.1), "INVALID_POLICY", "retry_backoff.jitter"),
        (policy(|p| p.deduplication_window = seconds(0.0)), "INVALID_DURATION", "deduplication_window"),
        (
            policy(|p| p.deduplication_window = seconds(168.0 * 3_600.0 + 0.5)),
            "INVALID_DURATION",
            "deduplication_window",
        ),
        (policy(|p| p.default_ordering = 99), "INVALID_ENUM", "default_ordering"),
        (policy(|p| p.archive_retention = seconds(0.5)), "INVALID_DURATION", "archive_retention"),
        (
            policy(|p| p.archive_retention = seconds(3_650.0 * 86_400.0 + 0.5)),
            "INVALID_DURATION",
            "archive_retention",
        ),
    ] {
        let field = format!("policy.{field}");
        let status = try_set(&mut test.client, "orders", bad.clone()).await.expect_err(&field);
        Refusal::expect_invalid(&status, reason, &field);
        let status = create(&mut test.client, "orders", Some(bad)).await.expect_err(&field);
        Refusal::expect_invalid(&status, reason, &field);
    }
    assert_eq!(policy_of(&mut test.client, "orders").await, Some(full()));
}

#[tokio::test]
async fn all_wrong_fields_are_named() {
    let mut test = orders().await;
    let bad = QueuePolicy {
        default_delay: seconds(1e9),
        max_message_bytes: Some(0),
        retry_backoff: Some(RetryBackoff { multiplier: 0.1, jitter: 2.0, ..Default::default() }),
        ..Default::default()
    };
    let status = try_set(&mut test.client, "orders", bad).await.unwrap_err();
    let refusal = Refusal::expect(&status, Code::InvalidArgument, "INVALID_DURATION");
    let expected = [
        "policy.default_delay",
        "policy.max_message_bytes",
        "policy.retry_backoff.minimum",
        "policy.retry_backoff.maximum",
        "policy.retry_backoff.multiplier",
        "policy.retry_backoff.jitter",
    ];
    assert_eq!(refusal.fields, expected);
}

#[tokio::test]
async fn a_mask_names_whole_fields_of_a_policy() {
    let mut test = orders().await;
    for path in
        ["", "*", "policy", "policy.default_delay", "dead_letter.queue", "defaultDelay", "no_such_field"]
    {
        let changed = change(&mut test.client, "orders", Some(full()), &["default_wait", path]).await;
        Refusal::expect_invalid(&changed.expect_err(path), "INVALID_FIELD_MASK", "update_mask");
    }
    assert_eq!(policy_of(&mut test.client, "orders").await, None);
    // Twice is once, and what is not named is not looked at.
    let bad_elsewhere = QueuePolicy { max_message_bytes: Some(-1), ..full() };
    let paths = ["default_delay", "default_delay"];
    let changed = change(&mut test.client, "orders", Some(bad_elsewhere), &paths).await.unwrap();
    assert_eq!(changed, QueuePolicy { default_delay: full().default_delay, ..Default::default() });
}

#[tokio::test]
async fn a_change_names_a_field_and_a_queue() {
    let mut test = orders().await;
    let nothing = UpdateQueueRequest { queue: "orders".to_owned(), ..Default::default() };
    for request in [
        nothing.clone(),
        UpdateQueueRequest { policy: Some(QueuePolicy::default()), ..nothing.clone() },
        UpdateQueueRequest { update_mask: Some(FieldMask::default()), ..nothing.clone() },
    ] {
        let status = test.client.admin.update_queue(request).await.unwrap_err();
        Refusal::expect_invalid(&status, "MISSING_FIELD", "policy");
    }
    for (queue, reason) in [("", "MISSING_FIELD"), ("a;b", "INVALID_QUEUE_NAME")] {
        let status = try_set(&mut test.client, queue, full()).await.unwrap_err();
        Refusal::expect_invalid(&status, reason, "queue");
    }
    let status = try_set(&mut test.client, "missing", full()).await.unwrap_err();
    let refusal = Refusal::expect(&status, Code::NotFound, "QUEUE_NOT_FOUND");
    assert_eq!(refusal.metadata["queue"], "missing");
}

#[tokio::test]
async fn the_table_refuses_what_a_call_would_have_refused() {
    let test = orders().await;
    for (column, value) in [
        ("default_visibility_timeout_s", "0"),
        ("default_visibility_timeout_s", "43201"),
        ("default_delay_ms", "-1"),
        ("default_delay_ms", "31536000001"),
        ("default_wait_ms", "50001"),
        ("max_message_bytes", "3145729"),
        ("dead_letter_queue", "'failed'"),
        ("dead_letter_max_receives", "5"),
        ("retry_backoff_minimum_ms", "5"),
        ("deduplication_window_ms", "99"),
        ("deduplication_window_ms", "604800001"),
        ("default_ordering", "'sideways'"),
        ("archive_retention_ms", "999"),
        ("archive_retention_ms", "315360000001"),
    ] {
        let insert = format!(
            "INSERT INTO pgmq_grpc.queue_policy (queue_name, queue_created_at, {column})
             SELECT queue_name, created_at, {value} FROM pgmq.meta WHERE queue_name = 'orders'"
        );
        let refused = test.sql.batch_execute(&insert).await.expect_err(column);
        let code = refused.code().map(|code| code.code().to_owned());
        assert_eq!(code.as_deref(), Some("23514"), "{column} {value}: {refused:?}");
    }
}
