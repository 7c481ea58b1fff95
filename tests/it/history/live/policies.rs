//! An operator who changes the policies of queues that are in use.

use pgmq_grpc::proto::v1::admin_service_client::AdminServiceClient;
use pgmq_grpc::proto::v1::{
    DeadLetterPolicy, Ordering, QueuePolicy, RetryBackoff, UpdateQueueRequest, UpdateQueueResponse,
};
use prost_types::FieldMask;
use rand::Rng;

use super::worker::{Asked, Worker};
use super::{BURIED, BURIED_GROUPS, ELSEWHERE, FLEETING, KEYED, WORN};
use crate::harness::seconds;
use crate::history::operators::{Backoff, Policy, Update};
use crate::history::record::{Micros, Part};

/// The fields that are changed, together.
const FIELDS: [&str; 8] = [
    "default_visibility_timeout",
    "default_delay",
    "default_wait",
    "max_message_bytes",
    "retry_backoff",
    "dead_letter",
    "deduplication_window",
    "archive_retention",
];

/// The queues whose policies are changed.
pub(super) const QUEUES: [&str; 4] = [WORN, FLEETING, KEYED, ELSEWHERE];

const SECOND: Micros = 1_000_000;

/// Gives queues one policy after the other.
pub(super) async fn change(mut worker: Worker) {
    worker.impatience = 4;
    while worker.pause(2_000).await {
        let queue =
            if worker.chance(40) { WORN } else { QUEUES[worker.random.random_range(0..QUEUES.len())] };
        let policy = some_policy(&mut worker, queue);
        let update_mask = FieldMask { paths: FIELDS.map(str::to_owned).to_vec() };
        let request = UpdateQueueRequest {
            queue: queue.to_owned(),
            policy: Some(on_the_wire(&policy)),
            update_mask: Some(update_mask),
        };
        let mut client = AdminServiceClient::new(worker.connection());
        let expected = on_the_wire(&policy);
        let fill = |response: &UpdateQueueResponse, _: &mut Asked, _| {
            let queue = response.queue.as_ref().expect("a queue");
            assert_eq!(queue.policy.clone().unwrap_or_default(), expected, "the policy of {}", queue.name);
        };
        let part = Part::Update(Update { queue: queue.to_owned(), policy });
        let call = Asked::new("UpdateQueue", vec![part]);
        worker.ask(call, request, async move |request| client.update_queue(request).await, fill).await;
    }
}

/// A policy for one of the queues that have some.
pub(super) fn some_policy(worker: &mut Worker, queue: &str) -> Policy {
    let random = &mut worker.random;
    let nothing = Policy::default();
    match queue {
        FLEETING => {
            let retention = [None, Some(2 * SECOND), Some(2 * SECOND), Some(3 * SECOND)];
            let max_bytes = [None, Some(60), Some(80), Some(100)];
            let (retention, max_bytes) =
                (retention[random.random_range(0..4)], max_bytes[random.random_range(0..4)]);
            return Policy { retention, max_bytes, ..nothing };
        }
        KEYED => {
            let windows = [None, Some(SECOND / 2), Some(4 * SECOND)];
            return Policy { window: windows[random.random_range(0..3)], ..nothing };
        }
        ELSEWHERE => {
            let waits = [0, SECOND / 2, 2 * SECOND, 9 * SECOND];
            return Policy { wait: waits[random.random_range(0..4)], ..nothing };
        }
        _ => {}
    }
    let backoff = Backoff {
        minimum: random.random_range(300..700) * 1_000,
        maximum: random.random_range(700..2_500) * 1_000,
        multiplier: f64::from(random.random_range(2..7)) / 2.0,
        jitter: f64::from(random.random_range(0..3)) / 4.0,
    };
    Policy {
        visibility: Some(random.random_range(1..4) * SECOND),
        delay: [0, 0, 300_000, 700_000][random.random_range(0..4)],
        backoff: Some(backoff).filter(|_| random.random_bool(0.8)),
        max_receives: Some(random.random_range(2..5)).filter(|_| random.random_bool(0.9)),
        ..nothing
    }
}

/// The same as the wire has it.
pub(super) fn on_the_wire(policy: &Policy) -> QueuePolicy {
    let span = |micros: Micros| seconds(micros as f64 / 1e6).expect("a span");
    QueuePolicy {
        default_visibility_timeout: policy.visibility.map(span),
        default_delay: Some(span(policy.delay)).filter(|_| policy.delay > 0),
        default_wait: Some(span(policy.wait)).filter(|_| policy.wait > 0),
        max_message_bytes: policy.max_bytes.map(|bytes| i32::try_from(bytes).expect("a small number")),
        retry_backoff: policy.backoff.map(|backoff| RetryBackoff {
            minimum: Some(span(backoff.minimum)),
            maximum: Some(span(backoff.maximum)),
            multiplier: backoff.multiplier,
            jitter: backoff.jitter,
        }),
        dead_letter: policy
            .max_receives
            .map(|max_receives| DeadLetterPolicy { queue: BURIED.to_owned(), max_receives }),
        deduplication_window: policy.window.map(span),
        archive_retention: policy.retention.map(span),
        ..Default::default()
    }
}

/// The policy of the queue of groups, which stays: only heads, and each a few times.
pub(super) fn of_groups() -> (Policy, QueuePolicy) {
    let max_receives = 4;
    let dead_letter = DeadLetterPolicy { queue: BURIED_GROUPS.to_owned(), max_receives };
    let wire = QueuePolicy {
        default_ordering: Ordering::GroupedHead.into(),
        dead_letter: Some(dead_letter),
        ..Default::default()
    };
    (Policy { max_receives: Some(max_receives), ..Policy::default() }, wire)
}
