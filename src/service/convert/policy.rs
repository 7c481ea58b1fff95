//! Policies on the wire.

use std::time::Duration;

use super::message::{known, queue_name};
use super::read::ordering;
use super::time::{duration, span};
use super::{Fields, FromRequest};
use crate::domain::bounds::{self, VisibilityTimeout};
use crate::domain::policy::{
    self, DeadLetterPolicy, MAX_MESSAGE_BYTES, MAX_RECEIVES, Policy, PolicyField, RetryBackoff,
};
use crate::domain::{DescribedQueue, Invalid, Kind, Ordering, QueueName};
use crate::proto::v1;
use crate::queue::{self, Rules};

/// Takes those fields of a policy that are named, below `policy.`; the others are not looked at.
pub(super) fn policy(
    fields: &mut Fields,
    of: Option<&QueueName>,
    given: v1::QueuePolicy,
    named: &[PolicyField],
) -> Option<Policy> {
    fields.within("policy.", |fields| {
        let mut taken = Policy::default();
        // All are checked, so that all that are wrong are named.
        let good: Vec<Option<()>> =
            named.iter().map(|field| take(fields, of, &given, *field, &mut taken)).collect();
        good.into_iter().collect::<Option<Vec<()>>>().map(|_| taken)
    })
}

fn take(
    fields: &mut Fields,
    of: Option<&QueueName>,
    given: &v1::QueuePolicy,
    field: PolicyField,
    taken: &mut Policy,
) -> Option<()> {
    let name = field.name();
    match field {
        PolicyField::DefaultVisibilityTimeout => {
            let timeout = given.default_visibility_timeout;
            taken.default_visibility_timeout =
                optional_span(fields, name, timeout, VisibilityTimeout::parse)?;
        }
        PolicyField::DefaultDelay => {
            taken.default_delay_ms = optional_span(fields, name, given.default_delay, policy::default_delay)?;
        }
        PolicyField::DefaultWait => {
            taken.default_wait_ms = optional_span(fields, name, given.default_wait, policy::default_wait)?;
        }
        PolicyField::MaxMessageBytes => {
            let limit = given.max_message_bytes.map(|limit| bounds::positive(limit, MAX_MESSAGE_BYTES));
            taken.max_message_bytes = fields.take(name, limit.transpose())?;
        }
        PolicyField::DeadLetter => {
            taken.dead_letter = match &given.dead_letter {
                None => None,
                Some(given) => Some(fields.within("dead_letter.", |fields| dead_letter(fields, of, given))?),
            };
        }
        PolicyField::RetryBackoff => {
            taken.retry_backoff = match given.retry_backoff {
                None => None,
                Some(given) => Some(fields.within("retry_backoff.", |fields| retry_backoff(fields, given))?),
            };
        }
        PolicyField::DeduplicationWindow => {
            let window = given.deduplication_window;
            taken.deduplication_window_ms =
                optional_span(fields, name, window, policy::deduplication_window)?;
        }
        PolicyField::DefaultOrdering => {
            taken.default_ordering =
                fields.take(name, known::<v1::Ordering>(given.default_ordering)).map(ordering)?;
        }
        PolicyField::ArchiveRetention => {
            let retention = given.archive_retention;
            taken.archive_retention_ms = optional_span(fields, name, retention, policy::archive_retention)?;
        }
    }
    Some(())
}

fn optional_span<T>(
    fields: &mut Fields,
    field: &str,
    given: Option<prost_types::Duration>,
    parse: impl FnOnce(Duration) -> Result<T, Invalid>,
) -> Option<Option<T>> {
    fields.take(field, given.map(|given| span(given).and_then(parse)).transpose())
}

fn dead_letter(
    fields: &mut Fields,
    of: Option<&QueueName>,
    given: &v1::DeadLetterPolicy,
) -> Option<DeadLetterPolicy> {
    let queue = fields.take("queue", DeadLetterPolicy::parse_queue(given.queue.clone(), of));
    let max_receives = fields.take("max_receives", bounds::positive(given.max_receives, MAX_RECEIVES));
    Some(DeadLetterPolicy { queue: queue?, max_receives: max_receives? })
}

fn retry_backoff(fields: &mut Fields, given: v1::RetryBackoff) -> Option<RetryBackoff> {
    let limit = |given: Option<prost_types::Duration>| {
        given.map(span).transpose().and_then(RetryBackoff::parse_limit)
    };
    let minimum_ms = fields.take("minimum", limit(given.minimum));
    let maximum_ms = fields.take("maximum", limit(given.maximum));
    // Limits that are refused already contradict nothing; the numbers are still worth checking.
    let limits = minimum_ms.zip(maximum_ms);
    let (minimum, maximum) = limits.unwrap_or((1, 1));
    let backoff = RetryBackoff::parse(minimum, maximum, given.multiplier, given.jitter);
    fields.take_all(backoff).filter(|_| limits.is_some())
}

impl From<Policy> for v1::QueuePolicy {
    fn from(policy: Policy) -> Self {
        let millis = |millis: Option<i64>| {
            millis.and_then(|millis| duration(Duration::from_millis(millis.unsigned_abs())))
        };
        let ordering = match policy.default_ordering {
            None => v1::Ordering::Unspecified,
            Some(Ordering::Unordered) => v1::Ordering::Unordered,
            Some(Ordering::Grouped) => v1::Ordering::Grouped,
            Some(Ordering::GroupedRoundRobin) => v1::Ordering::GroupedRoundRobin,
            Some(Ordering::GroupedHead) => v1::Ordering::GroupedHead,
        };
        Self {
            default_visibility_timeout: policy
                .default_visibility_timeout
                .and_then(|timeout| duration(timeout.span())),
            default_delay: millis(policy.default_delay_ms),
            default_wait: millis(policy.default_wait_ms),
            max_message_bytes: policy.max_message_bytes,
            dead_letter: policy.dead_letter.map(|dead_letter| v1::DeadLetterPolicy {
                queue: dead_letter.queue.to_string(),
                max_receives: dead_letter.max_receives,
            }),
            retry_backoff: policy.retry_backoff.map(|backoff| v1::RetryBackoff {
                minimum: millis(Some(backoff.minimum_ms)),
                maximum: millis(Some(backoff.maximum_ms)),
                multiplier: backoff.multiplier,
                jitter: backoff.jitter,
            }),
            deduplication_window: millis(policy.deduplication_window_ms),
            default_ordering: ordering.into(),
            archive_retention: millis(policy.archive_retention_ms),
        }
    }
}

impl FromRequest<v1::UpdateQueueRequest> for queue::UpdateQueue {
    fn queue(request: &v1::UpdateQueueRequest) -> Option<&str> {
        Some(&request.queue)
    }

    fn parse(request: v1::UpdateQueueRequest, _: &Rules, fields: &mut Fields) -> Option<Self> {
        let queue = queue_name(fields, request.queue);
        let given = request.policy.unwrap_or_default();
        let paths = request.update_mask.map(|mask| mask.paths).unwrap_or_default();
        let named = match paths.is_empty() {
            true => Some(set_fields(&given)),
            false => mask(fields, &paths),
        }?;
        if named.is_empty() {
            fields.refuse("policy", Invalid::new(Kind::MissingField, "name a field, here or in update_mask"));
        }
        let policy = policy(fields, queue.as_ref(), given, &named);
        Some(Self { queue: queue?, policy: policy?, fields: named })
    }
}

fn mask(fields: &mut Fields, paths: &[String]) -> Option<Vec<PolicyField>> {
    let mut named = Vec::new();
    let mut all_known = true;
    for path in paths {
        match fields.take("update_mask", PolicyField::parse(path)) {
            Some(field) if !named.contains(&field) => named.push(field),
            Some(_) => {}
            None => all_known = false,
        }
    }
    all_known.then_some(named)
}

/// The fields that a request sets, be their values good or not.
fn set_fields(given: &v1::QueuePolicy) -> Vec<PolicyField> {
    let is_set = |field: &PolicyField| match field {
        PolicyField::DefaultVisibilityTimeout => given.default_visibility_timeout.is_some(),
        PolicyField::DefaultDelay => given.default_delay.is_some(),
        PolicyField::DefaultWait => given.default_wait.is_some(),
        PolicyField::MaxMessageBytes => given.max_message_bytes.is_some(),
        PolicyField::DeadLetter => given.dead_letter.is_some(),
        PolicyField::RetryBackoff => given.retry_backoff.is_some(),
        PolicyField::DeduplicationWindow => given.deduplication_window.is_some(),
        PolicyField::DefaultOrdering => given.default_ordering != 0,
        PolicyField::ArchiveRetention => given.archive_retention.is_some(),
    };
    PolicyField::ALL.into_iter().filter(is_set).collect()
}

impl From<DescribedQueue> for v1::UpdateQueueResponse {
    fn from(queue: DescribedQueue) -> Self {
        Self { queue: Some(queue.into()) }
    }
}
