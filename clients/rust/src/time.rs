//! Spans and moments: the standard library's outside, protobuf's on the wire.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// As good as for ever, and no clock fails at it.
const A_YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// A span for the wire. What no span of the wire can hold becomes one that the server refuses.
pub(crate) fn span(duration: Duration) -> prost_types::Duration {
    duration.try_into().unwrap_or(prost_types::Duration { seconds: i64::MAX, nanos: 0 })
}

pub(crate) fn duration(span: Option<prost_types::Duration>) -> Option<Duration> {
    span.and_then(|span| span.try_into().ok())
}

pub(crate) fn moment(timestamp: Option<prost_types::Timestamp>) -> Option<SystemTime> {
    timestamp.and_then(|timestamp| timestamp.try_into().ok())
}

/// The moment that is so far away.
pub(crate) fn in_time(limit: Duration) -> Instant {
    Instant::now() + limit.min(A_YEAR)
}

/// Pauses between attempts: each up to twice as long as the one before, at random so that not all come at once.
#[derive(Debug)]
pub(crate) struct Pauses {
    next: Duration,
    longest: Duration,
}

impl Pauses {
    pub(crate) fn up_to(longest: Duration) -> Self {
        Self { next: Duration::from_millis(100), longest }
    }

    /// The next pause, which is not shorter than what the server asked for.
    pub(crate) fn next(&mut self, asked: Option<Duration>) -> Duration {
        let pause = self.next.mul_f64(rand::random_range(0.5..1.0));
        self.next = (self.next * 2).min(self.longest);
        asked.map_or(pause, |asked| asked.max(pause))
    }

    pub(crate) fn reset(&mut self) {
        *self = Self::up_to(self.longest);
    }
}
