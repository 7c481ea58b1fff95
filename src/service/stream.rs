//! What all streams share.

use std::time::Duration;

use super::RequestId;
use crate::proto::v1::StreamStarted;
use crate::queue::Started;

/// The time that a stream without a deadline has: none ends it.
pub(super) const NO_DEADLINE: Duration = Duration::from_hours(10 * 365 * 24);

/// The first notice of a stream.
pub(super) fn stream_started(request_id: &RequestId, replica: &str, started: Started) -> StreamStarted {
    let Started { visibility_timeout, max_in_flight, heartbeat_interval, has_retry_backoff } = started;
    StreamStarted {
        stream_id: request_id.to_string(),
        replica: replica.to_owned(),
        visibility_timeout: prost_types::Duration::try_from(visibility_timeout).ok(),
        max_in_flight: i32::try_from(max_in_flight).unwrap_or(i32::MAX),
        heartbeat_interval: prost_types::Duration::try_from(heartbeat_interval).ok(),
        has_retry_backoff,
    }
}
