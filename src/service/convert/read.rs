//! Reads and pops on the wire.

use std::time::Duration;

use super::message::{each, known, queue_name};
use super::time::{duration, span, timestamp};
use super::{Fields, FromRequest};
use crate::domain::bounds::{self, MAX_BATCH, VisibilityTimeout};
use crate::domain::{self, ClientRole, Invalid, Kind, Ordering, Policy, QueueName, ReadOrder, Timestamp};
use crate::proto::v1;
use crate::queue::{self, ClosingReason, Handover, Rules, StreamItem, StreamOptions};

const MAX_COUNT: i32 = MAX_BATCH as i32;
const DEFAULT_MAX_IN_FLIGHT: i32 = 100;
const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(25);
const HEARTBEATS: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_mins(10);

/// The fields that say what a read takes, which all kinds of read have. What they leave open is the policy's.
pub(super) fn read_order(
    fields: &mut Fields,
    queue: Option<QueueName>,
    policy: &Policy,
    visibility_timeout: Option<prost_types::Duration>,
    given: i32,
    conditional: String,
) -> Option<ReadOrder> {
    let visibility_timeout = match visibility_timeout {
        None => Some(policy.default_visibility_timeout.unwrap_or(VisibilityTimeout::DEFAULT)),
        Some(given) => fields.take("visibility_timeout", span(given).and_then(VisibilityTimeout::parse)),
    };
    let given = fields.take("ordering", known::<v1::Ordering>(given)).map(ordering);
    let ordering = given.map(|given| given.or(policy.default_ordering).unwrap_or(Ordering::Unordered));
    let conditional = fields.take("conditional", bounds::conditional(conditional));
    let grouped = ordering.is_some_and(|ordering| ordering != Ordering::Unordered);
    if grouped && conditional.as_ref().is_some_and(Option::is_some) {
        let why = match given {
            Some(Some(_)) => "works with UNORDERED only",
            _ => "works with UNORDERED only, and the queue's policy has another default_ordering",
        };
        fields.refuse("conditional", Invalid::new(Kind::ConflictingFields, why));
    }
    Some(ReadOrder {
        queue: queue?,
        visibility_timeout: visibility_timeout?,
        ordering: ordering?,
        conditional: conditional?,
    })
}

/// An ordering, or none where it is left open.
pub(super) fn ordering(given: v1::Ordering) -> Option<Ordering> {
    match given {
        v1::Ordering::Unspecified => None,
        v1::Ordering::Unordered => Some(Ordering::Unordered),
        v1::Ordering::Grouped => Some(Ordering::Grouped),
        v1::Ordering::GroupedRoundRobin => Some(Ordering::GroupedRoundRobin),
        v1::Ordering::GroupedHead => Some(Ordering::GroupedHead),
    }
}

/// How many messages of a stream may be unsettled.
pub(super) fn in_flight_limit(fields: &mut Fields, max_in_flight: i32) -> Option<usize> {
    let limit = bounds::count(max_in_flight, DEFAULT_MAX_IN_FLIGHT, MAX_COUNT);
    fields.take("max_in_flight", limit).and_then(|limit| usize::try_from(limit).ok())
}

/// The longest silence of a stream.
pub(super) fn heartbeat_pause(
    fields: &mut Fields,
    interval: Option<prost_types::Duration>,
) -> Option<Duration> {
    let interval = interval.map_or(Ok(DEFAULT_HEARTBEAT), |interval| {
        span(interval).and_then(|interval| match HEARTBEATS.contains(&interval) {
            true => Ok(interval),
            false => Err(Invalid::new(Kind::InvalidDuration, "must be 1 s to 10 min")),
        })
    });
    fields.take("heartbeat_interval", interval)
}

impl FromRequest<v1::ReadBatchRequest> for queue::ReadBatch {
    const FOLLOWS_POLICY: bool = true;
    const ROLE: Option<ClientRole> = Some(ClientRole::Consumer);

    fn queue(request: &v1::ReadBatchRequest) -> Option<&str> {
        Some(&request.queue)
    }

    fn parse(request: v1::ReadBatchRequest, rules: &Rules, fields: &mut Fields) -> Option<Self> {
        let v1::ReadBatchRequest { queue, visibility_timeout, conditional, ordering, max_messages, wait } =
            request;
        let queue = queue_name(fields, queue);
        let policy = rules.policy_of_named(queue.as_ref());
        let order = read_order(fields, queue, &policy, visibility_timeout, ordering, conditional);
        let count = fields.take("max_messages", bounds::count(max_messages, 1, MAX_COUNT));
        let wait = wait.map_or(Ok(policy.wait()), |wait| span(wait).and_then(bounds::wait));
        let wait = fields.take("wait", wait);
        Some(Self { order: order?, count: count?, wait: wait? })
    }
}

impl From<Handover> for v1::ReadBatchResponse {
    fn from(read: Handover) -> Self {
        Self { messages: each(read.hand_over()) }
    }
}

impl From<Vec<domain::Delivery>> for v1::ReadBatchResponse {
    fn from(read: Vec<domain::Delivery>) -> Self {
        Self { messages: each(read) }
    }
}

impl FromRequest<v1::ReadRequest> for StreamOptions {
    const FOLLOWS_POLICY: bool = true;

    fn queue(request: &v1::ReadRequest) -> Option<&str> {
        Some(&request.queue)
    }

    fn parse(request: v1::ReadRequest, rules: &Rules, fields: &mut Fields) -> Option<Self> {
        let v1::ReadRequest {
            queue,
            visibility_timeout,
            conditional,
            ordering,
            max_in_flight,
            heartbeat_interval,
            max_messages,
        } = request;
        let queue = queue_name(fields, queue);
        let policy = rules.policy_of_named(queue.as_ref());
        let order = read_order(fields, queue, &policy, visibility_timeout, ordering, conditional);
        let max_in_flight = in_flight_limit(fields, max_in_flight);
        let max_messages = fields.take("max_messages", bounds::count_or_endless(max_messages));
        let heartbeat_interval = heartbeat_pause(fields, heartbeat_interval);
        Some(Self {
            order: order?,
            max_in_flight: max_in_flight?,
            max_messages: max_messages?,
            heartbeat_interval: heartbeat_interval?,
        })
    }
}

/// One item of a stream as a reply. Its messages are the client's from here on.
pub(in crate::service) fn stream_response(item: StreamItem) -> v1::ReadResponse {
    match item {
        StreamItem::Messages(read) => {
            v1::ReadResponse { messages: each(read.hand_over()), ..Default::default() }
        }
        StreamItem::Heartbeat { in_flight } => {
            v1::ReadResponse { heartbeat: Some(heartbeat(in_flight)), ..Default::default() }
        }
        StreamItem::Closing { reason, retry_delay } => {
            v1::ReadResponse { closing: Some(closing(reason, retry_delay)), ..Default::default() }
        }
    }
}

/// A sign of life.
pub(in crate::service) fn heartbeat(in_flight: usize) -> v1::Heartbeat {
    v1::Heartbeat {
        server_time: Some(timestamp(Timestamp::now())),
        in_flight: i32::try_from(in_flight).unwrap_or(i32::MAX),
    }
}

/// The notice of a planned end.
pub(in crate::service) fn closing(reason: ClosingReason, retry_delay: Duration) -> v1::Closing {
    let reason = match reason {
        ClosingReason::Draining => v1::ClosingReason::Draining,
        ClosingReason::StreamAge => v1::ClosingReason::StreamAge,
        ClosingReason::QueueDropped => v1::ClosingReason::QueueDropped,
    };
    v1::Closing { reason: reason.into(), retry_delay: duration(retry_delay), settle_grace: None }
}

impl FromRequest<v1::PopRequest> for queue::Pop {
    const ROLE: Option<ClientRole> = Some(ClientRole::Consumer);

    fn queue(request: &v1::PopRequest) -> Option<&str> {
        Some(&request.queue)
    }

    fn parse(request: v1::PopRequest, _: &Rules, fields: &mut Fields) -> Option<Self> {
        let queue = queue_name(fields, request.queue);
        let count = fields.take("max_messages", bounds::count(request.max_messages, 1, MAX_COUNT));
        Some(Self { queue: queue?, count: count? })
    }
}

impl From<Vec<domain::Message>> for v1::PopResponse {
    fn from(messages: Vec<domain::Message>) -> Self {
        Self { messages: each(messages) }
    }
}
