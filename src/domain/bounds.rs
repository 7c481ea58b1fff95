//! Spans and counts with their limits. Over-limit values are refused, never clamped.

use std::time::Duration;

use super::{Invalid, Kind, Timestamp};

/// The longest visibility timeout and release delay.
pub const MAX_VISIBILITY: Duration = Duration::from_hours(12);

/// The furthest that a message can be scheduled ahead.
pub const MAX_DELAY: Duration = Duration::from_hours(365 * 24);

/// The longest wait of a unary read.
pub const MAX_WAIT: Duration = Duration::from_secs(50);

/// The most items of a batch, a read or a settle.
pub const MAX_BATCH: usize = 1_000;

/// The most operations of one transaction.
pub const MAX_OPERATIONS: usize = 256;

/// The most bytes of message text in one reply.
pub const MAX_REPLY_BYTES: i64 = 3_670_016;

/// The most bytes of message text in one message of a stream.
pub const MAX_STREAM_BATCH_BYTES: i64 = 1_048_576;

/// Limits that the server's operator sets.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The most bytes that a message's body may take as Postgres renders it.
    pub max_message_bytes: usize,
}

/// How long a read hides its messages: 1 s to 12 h in whole seconds, which is what pgmq takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VisibilityTimeout(i32);

impl VisibilityTimeout {
    /// What a read uses unless told otherwise.
    pub const DEFAULT: Self = Self(30);

    /// Takes a span and rounds it up to whole seconds.
    ///
    /// # Errors
    /// `InvalidDuration` for zero and for more than 12 h.
    pub fn parse(span: Duration) -> Result<Self, Invalid> {
        if span.is_zero() {
            return Err(duration("must be above zero"));
        }
        let seconds = span.as_secs() + u64::from(span.subsec_nanos() > 0);
        match i32::try_from(seconds) {
            Ok(seconds) if span <= MAX_VISIBILITY => Ok(Self(seconds)),
            _ => Err(duration("must be at most 12 h")),
        }
    }

    /// Whole seconds.
    pub fn seconds(self) -> i32 {
        self.0
    }

    /// The span.
    pub fn span(self) -> Duration {
        Duration::from_secs(u64::from(self.0.unsigned_abs()))
    }
}

/// The most bytes of a read's condition.
pub const MAX_CONDITIONAL_BYTES: usize = 64 * 1024;

/// Takes the condition of a read: JSON text that a body must contain; none for no text.
///
/// # Errors
/// `InvalidConditional` for what is no JSON or too large.
pub fn conditional(text: String) -> Result<Option<String>, Invalid> {
    if text.is_empty() {
        return Ok(None);
    }
    let refuse = |why: String| Invalid::new(Kind::InvalidConditional, why);
    let scanned =
        super::json::scan(&text).map_err(|error| refuse(error.to_string()).with("position", error.offset))?;
    if scanned.rendered_bytes > MAX_CONDITIONAL_BYTES {
        return Err(refuse(format!(
            "may take {MAX_CONDITIONAL_BYTES} bytes; this takes {}",
            scanned.rendered_bytes
        )));
    }
    Ok(Some(text))
}

/// Takes a span of at most `limit` and gives it in milliseconds, rounded up.
///
/// # Errors
/// `InvalidDuration` above the limit.
pub fn millis(span: Duration, limit: Duration) -> Result<i64, Invalid> {
    if span > limit {
        return Err(duration(format!("must be at most {}", words(limit))));
    }
    i64::try_from(span.as_nanos().div_ceil(1_000_000)).map_err(|_| duration("is too long"))
}

/// Takes a wait of at most 50 s.
///
/// # Errors
/// `InvalidDuration` above that.
pub fn wait(span: Duration) -> Result<Duration, Invalid> {
    if span > MAX_WAIT {
        return Err(duration(format!("must be at most {}", words(MAX_WAIT))));
    }
    Ok(span)
}

/// Takes a moment at most `ahead` from now; any past moment is fine.
///
/// # Errors
/// `InvalidTimestamp` beyond that.
pub fn moment(at: Timestamp, ahead: Duration) -> Result<Timestamp, Invalid> {
    if at > Timestamp::now().after(ahead) {
        return Err(Invalid::new(
            Kind::InvalidTimestamp,
            format!("must be at most {} from now", words(ahead)),
        ));
    }
    Ok(at)
}

/// Takes a count of 1 to `limit`; 0 stands for the default.
///
/// # Errors
/// `InvalidCount` for negative and over-limit counts.
pub fn count(value: i32, default: i32, limit: i32) -> Result<i32, Invalid> {
    match value {
        0 => Ok(default),
        1.. if value <= limit => Ok(value),
        _ => Err(Invalid::new(Kind::InvalidCount, format!("must be 1 to {limit}; 0 means {default}"))
            .with("limit", limit)),
    }
}

/// Takes a count of 1 to `limit`, without a default.
///
/// # Errors
/// `InvalidCount` for any other.
pub fn positive(value: i32, limit: i32) -> Result<i32, Invalid> {
    match value {
        1.. if value <= limit => Ok(value),
        _ => Err(Invalid::new(Kind::InvalidCount, format!("must be 1 to {limit}")).with("limit", limit)),
    }
}

/// Takes a span above zero and of at most `limit`.
///
/// # Errors
/// `InvalidDuration` for any other.
pub fn positive_span(span: Duration, limit: Duration) -> Result<Duration, Invalid> {
    if span.is_zero() || span > limit {
        return Err(duration(format!("must be above zero and at most {}", words(limit))));
    }
    Ok(span)
}

/// Takes a count that has no limit; 0 means no end.
///
/// # Errors
/// `InvalidCount` for negative counts.
pub fn count_or_endless(value: i32) -> Result<Option<usize>, Invalid> {
    match usize::try_from(value) {
        Ok(count) => Ok(Some(count).filter(|&count| count > 0)),
        Err(_) => {
            Err(Invalid::new(Kind::InvalidCount, "must not be negative; 0 means no end")
                .with("limit", i32::MAX))
        }
    }
}

/// Checks that a list has 1 to `limit` items.
///
/// # Errors
/// `MissingField` for none, `InvalidCount` for too many.
pub fn length(items: usize, limit: usize) -> Result<(), Invalid> {
    match items {
        0 => Err(Invalid::new(Kind::MissingField, "at least one is needed")),
        _ if items <= limit => Ok(()),
        _ => Err(Invalid::new(Kind::InvalidCount, format!("at most {limit} are taken; these are {items}"))
            .with("limit", limit)),
    }
}

fn duration(description: impl Into<String>) -> Invalid {
    Invalid::new(Kind::InvalidDuration, description)
}

/// A span in the largest unit that gives a whole number.
fn words(span: Duration) -> String {
    match span.as_secs() {
        seconds if seconds % 86_400 == 0 && seconds > 86_400 => format!("{} days", seconds / 86_400),
        seconds if seconds % 3_600 == 0 => format!("{} h", seconds / 3_600),
        seconds => format!("{seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visibility_timeouts_round_up_to_seconds() {
        let seconds = |span| VisibilityTimeout::parse(span).map(VisibilityTimeout::seconds);
        assert_eq!(seconds(Duration::from_millis(1)), Ok(1));
        assert_eq!(seconds(Duration::from_millis(1_001)), Ok(2));
        assert_eq!(seconds(MAX_VISIBILITY), Ok(43_200));
        assert!(seconds(Duration::ZERO).is_err());
        assert!(seconds(MAX_VISIBILITY + Duration::from_nanos(1)).is_err());
    }

    #[test]
    fn milliseconds_round_up() {
        assert_eq!(millis(Duration::from_nanos(1_000_001), MAX_DELAY), Ok(2));
        assert_eq!(millis(Duration::ZERO, MAX_DELAY), Ok(0));
        assert!(millis(MAX_DELAY + Duration::from_nanos(1), MAX_DELAY).is_err());
    }

    #[test]
    fn counts_and_lengths_have_limits() {
        assert_eq!(count(0, 1, 1_000), Ok(1));
        assert_eq!(count(1_000, 1, 1_000), Ok(1_000));
        assert!(count(1_001, 1, 1_000).is_err());
        assert!(count(-1, 1, 1_000).is_err());
        assert_eq!(positive(1_000, 1_000), Ok(1_000));
        assert!(positive(0, 1_000).is_err());
        assert!(positive(1_001, 1_000).is_err());
        assert!(length(0, 5).is_err());
        assert!(length(5, 5).is_ok());
        assert!(length(6, 5).is_err());
    }
}
