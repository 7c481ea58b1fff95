//! Policies of queues: given at creation, changed, listed, and what they do.

mod dead_letters;
mod kills;
mod limits;
mod reads;
mod replicas;
mod retention;
mod sends;
mod updating;

use pgmq_grpc::proto::v1::{
    CreateQueueRequest, CreateQueueResponse, DeadLetterPolicy, GetQueueRequest, Ordering, QueuePolicy,
    RetryBackoff, UpdateQueueRequest,
};
use prost_types::FieldMask;
use tonic::Status;

use crate::harness::{Client, seconds};

/// A policy with every field, none of which is a default. Its dead-letter queue is `failed`.
pub(crate) fn full() -> QueuePolicy {
    QueuePolicy {
        default_visibility_timeout: seconds(45.0),
        default_delay: seconds(2.5),
        default_wait: seconds(1.0),
        max_message_bytes: Some(100),
        dead_letter: dead_letter("failed"),
        retry_backoff: Some(RetryBackoff {
            minimum: seconds(1.0),
            maximum: seconds(60.0),
            multiplier: 3.0,
            jitter: 0.25,
        }),
        deduplication_window: seconds(10.0),
        default_ordering: Ordering::GroupedHead.into(),
        archive_retention: seconds(3_600.0),
    }
}

/// The names of all fields.
pub(crate) const FIELDS: [&str; 9] = [
    "default_visibility_timeout",
    "default_delay",
    "default_wait",
    "max_message_bytes",
    "dead_letter",
    "retry_backoff",
    "deduplication_window",
    "default_ordering",
    "archive_retention",
];

pub(crate) fn dead_letter(queue: &str) -> Option<DeadLetterPolicy> {
    Some(DeadLetterPolicy { queue: queue.to_owned(), max_receives: 5 })
}

/// The request that sets what is set in a policy.
pub(crate) fn setting(queue: &str, policy: QueuePolicy) -> UpdateQueueRequest {
    UpdateQueueRequest { queue: queue.to_owned(), policy: Some(policy), update_mask: None }
}

/// Sets what is set in a policy, and gives the whole policy.
pub(crate) async fn set(client: &mut Client, queue: &str, policy: QueuePolicy) -> QueuePolicy {
    try_set(client, queue, policy).await.expect("a changed policy")
}

pub(crate) async fn try_set(
    client: &mut Client,
    queue: &str,
    policy: QueuePolicy,
) -> Result<QueuePolicy, Status> {
    let updated = client.admin.update_queue(setting(queue, policy)).await?.into_inner();
    Ok(updated.queue.expect("a queue").policy.unwrap_or_default())
}

/// Changes the named fields to what they are in a policy, and gives the whole policy.
pub(crate) async fn change(
    client: &mut Client,
    queue: &str,
    policy: Option<QueuePolicy>,
    paths: &[&str],
) -> Result<QueuePolicy, Status> {
    let paths = paths.iter().map(|&path| path.to_owned()).collect();
    let request =
        UpdateQueueRequest { queue: queue.to_owned(), policy, update_mask: Some(FieldMask { paths }) };
    let updated = client.admin.update_queue(request).await?.into_inner();
    Ok(updated.queue.expect("a queue").policy.unwrap_or_default())
}

/// Clears the named fields.
pub(crate) async fn clear(client: &mut Client, queue: &str, paths: &[&str]) -> QueuePolicy {
    change(client, queue, None, paths).await.expect("a changed policy")
}

/// The policy of a queue as `GetQueue` tells it.
pub(crate) async fn policy_of(client: &mut Client, queue: &str) -> Option<QueuePolicy> {
    let request = GetQueueRequest { queue: queue.to_owned() };
    client.queue.get_queue(request).await.expect("a queue").into_inner().queue.expect("a queue").policy
}

/// Creates a queue with a policy.
pub(crate) async fn create(
    client: &mut Client,
    queue: &str,
    policy: Option<QueuePolicy>,
) -> Result<CreateQueueResponse, Status> {
    let request = CreateQueueRequest { queue: queue.to_owned(), policy, ..Default::default() };
    client.queue.create_queue(request).await.map(tonic::Response::into_inner)
}
