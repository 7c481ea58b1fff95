//! Moments as Postgres keeps them, and deadlines as a caller sets them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// A moment in microseconds since 1970-01-01 UTC, the precision of Postgres' `timestamptz`.
///
/// `i64::MAX` and `i64::MIN` are Postgres' `infinity` and `-infinity`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The moment that many microseconds after (or before) 1970-01-01 UTC.
    pub fn from_unix_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since 1970-01-01 UTC.
    pub fn unix_micros(self) -> i64 {
        self.0
    }

    /// This machine's clock.
    pub fn now() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX))
    }

    /// The moment a span earlier, saturating at `-infinity`.
    #[must_use]
    pub fn before(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(span.as_micros()).unwrap_or(i64::MAX)))
    }

    /// The moment a span later, saturating at `infinity`.
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(span.as_micros()).unwrap_or(i64::MAX)))
    }
}

/// The moment at which a caller stops waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// The deadline a span from now.
    pub fn within(span: Duration) -> Self {
        let now = Instant::now();
        // A span too long for the clock is as good as a year.
        Self(now.checked_add(span).unwrap_or(now + Duration::from_hours(365 * 24)))
    }

    /// The moment itself.
    pub fn instant(self) -> Instant {
        self.0
    }

    /// What is left; zero once it has passed.
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// The earlier of this deadline and one a span from now.
    #[must_use]
    pub fn at_most(self, span: Duration) -> Self {
        self.min(Self::within(span))
    }
}
