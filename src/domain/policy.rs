//! Policies: what holds in a queue where a call leaves it open, and what the servers do there by themselves.

use std::time::Duration;

use super::bounds::{self, MAX_DELAY, MAX_VISIBILITY, MAX_WAIT, VisibilityTimeout};
use super::{Invalid, Kind, Ordering, QueueName, Schedule};

/// The most bytes that a policy may allow a message's body; no server's own limit is larger.
pub const MAX_MESSAGE_BYTES: i32 = 3 * 1024 * 1024;

/// The most reads that a policy may allow a message.
pub const MAX_RECEIVES: i32 = 1_000;

/// The shortest and the longest time for which a deduplication id is remembered.
pub const DEDUPLICATION_WINDOWS: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_hours(168);

/// The shortest and the longest time for which archived messages are kept.
pub const RETENTIONS: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_hours(3_650 * 24);

/// By how much a delay is longer than the one before, unless told otherwise.
const DEFAULT_MULTIPLIER: f64 = 2.0;
const MULTIPLIERS: std::ops::RangeInclusive<f64> = 1.0..=100.0;

/// The policy of one queue. What is none is left to the server's own default.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Policy {
    /// How long a read hides its messages.
    pub default_visibility_timeout: Option<VisibilityTimeout>,
    /// How many milliseconds a sent message stays invisible.
    pub default_delay_ms: Option<i64>,
    /// How many milliseconds a unary read waits.
    pub default_wait_ms: Option<i64>,
    /// The most bytes of a message's body, as Postgres renders it.
    pub max_message_bytes: Option<i32>,
    /// Where messages go that are read again and again.
    pub dead_letter: Option<DeadLetterPolicy>,
    /// How long a released message is hidden.
    pub retry_backoff: Option<RetryBackoff>,
    /// How many milliseconds a deduplication id is remembered.
    pub deduplication_window_ms: Option<i64>,
    /// In which order reads take messages.
    pub default_ordering: Option<Ordering>,
    /// How many milliseconds an archived message is kept; none for ever.
    pub archive_retention_ms: Option<i64>,
}

/// Where messages go that are read again and again and never settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetterPolicy {
    /// The queue that they go to. It existed when the policy was set, and may be gone since.
    pub queue: QueueName,
    /// How often a message is read at most.
    pub max_receives: i32,
}

/// How long released messages are hidden: longer with each time that they were read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryBackoff {
    /// The shortest delay, in milliseconds.
    pub minimum_ms: i64,
    /// The longest delay, in milliseconds; not below the shortest.
    pub maximum_ms: i64,
    /// By how much a delay is longer than the one before; not below 1.
    pub multiplier: f64,
    /// The share of the delay that is drawn at random, from 0 to 1.
    pub jitter: f64,
}

/// A field of a policy, which changes as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the field of its name")]
pub enum PolicyField {
    DefaultVisibilityTimeout,
    DefaultDelay,
    DefaultWait,
    MaxMessageBytes,
    DeadLetter,
    RetryBackoff,
    DeduplicationWindow,
    DefaultOrdering,
    ArchiveRetention,
}

impl PolicyField {
    /// All fields.
    pub const ALL: [Self; 9] = [
        Self::DefaultVisibilityTimeout,
        Self::DefaultDelay,
        Self::DefaultWait,
        Self::MaxMessageBytes,
        Self::DeadLetter,
        Self::RetryBackoff,
        Self::DeduplicationWindow,
        Self::DefaultOrdering,
        Self::ArchiveRetention,
    ];

    /// The field's name in the contract.
    pub fn name(self) -> &'static str {
        match self {
            Self::DefaultVisibilityTimeout => "default_visibility_timeout",
            Self::DefaultDelay => "default_delay",
            Self::DefaultWait => "default_wait",
            Self::MaxMessageBytes => "max_message_bytes",
            Self::DeadLetter => "dead_letter",
            Self::RetryBackoff => "retry_backoff",
            Self::DeduplicationWindow => "deduplication_window",
            Self::DefaultOrdering => "default_ordering",
            Self::ArchiveRetention => "archive_retention",
        }
    }

    /// The field that a path of a field mask names.
    ///
    /// # Errors
    /// `InvalidFieldMask` for anything else.
    pub fn parse(path: &str) -> Result<Self, Invalid> {
        Self::ALL
            .into_iter()
            .find(|field| field.name() == path)
            .ok_or_else(|| Invalid::new(Kind::InvalidFieldMask, format!("{path:?} is no field of a policy")))
    }
}

impl Policy {
    /// Whether it says nothing at all.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// When a sent message becomes visible that does not say it.
    pub fn schedule(&self) -> Schedule {
        self.default_delay_ms.map_or(Schedule::NOW, Schedule::AfterMillis)
    }

    /// How long a unary read waits that does not say it.
    pub fn wait(&self) -> Duration {
        Duration::from_millis(self.default_wait_ms.unwrap_or(0).unsigned_abs())
    }

    /// Whether it makes a difference for a message that is sent, but for deduplication.
    pub fn concerns_sends(&self) -> bool {
        self.default_delay_ms.is_some() || self.max_message_bytes.is_some()
    }

    /// The fields that are set.
    pub fn set_fields(&self) -> Vec<PolicyField> {
        PolicyField::ALL.into_iter().filter(|field| self.differs(&Self::default(), *field)).collect()
    }

    /// The first field in which two policies differ.
    pub fn first_difference(&self, other: &Self) -> Option<PolicyField> {
        PolicyField::ALL.into_iter().find(|field| self.differs(other, *field))
    }

    fn differs(&self, other: &Self, field: PolicyField) -> bool {
        match field {
            PolicyField::DefaultVisibilityTimeout => {
                self.default_visibility_timeout != other.default_visibility_timeout
            }
            PolicyField::DefaultDelay => self.default_delay_ms != other.default_delay_ms,
            PolicyField::DefaultWait => self.default_wait_ms != other.default_wait_ms,
            PolicyField::MaxMessageBytes => self.max_message_bytes != other.max_message_bytes,
            PolicyField::DeadLetter => self.dead_letter != other.dead_letter,
            PolicyField::RetryBackoff => self.retry_backoff != other.retry_backoff,
            PolicyField::DeduplicationWindow => self.deduplication_window_ms != other.deduplication_window_ms,
            PolicyField::DefaultOrdering => self.default_ordering != other.default_ordering,
            PolicyField::ArchiveRetention => self.archive_retention_ms != other.archive_retention_ms,
        }
    }
}

/// Takes a default delay, and gives it in milliseconds.
///
/// # Errors
/// `InvalidDuration` above 365 days.
pub fn default_delay(span: Duration) -> Result<i64, Invalid> {
    bounds::millis(span, MAX_DELAY)
}

/// Takes a default wait, and gives it in milliseconds.
///
/// # Errors
/// `InvalidDuration` above 50 s.
pub fn default_wait(span: Duration) -> Result<i64, Invalid> {
    bounds::millis(span, MAX_WAIT)
}

/// Takes a deduplication window, and gives it in milliseconds.
///
/// # Errors
/// `InvalidDuration` below 100 ms and above 168 h.
pub fn deduplication_window(span: Duration) -> Result<i64, Invalid> {
    match DEDUPLICATION_WINDOWS.contains(&span) {
        true => bounds::millis(span, *DEDUPLICATION_WINDOWS.end()),
        false => Err(Invalid::new(Kind::InvalidDuration, "must be 100 ms to 168 h")),
    }
}

/// Takes a retention of archived messages, and gives it in milliseconds.
///
/// # Errors
/// `InvalidDuration` below 1 s and above 3,650 days.
pub fn archive_retention(span: Duration) -> Result<i64, Invalid> {
    match RETENTIONS.contains(&span) {
        true => bounds::millis(span, *RETENTIONS.end()),
        false => Err(Invalid::new(Kind::InvalidDuration, "must be 1 s to 3650 days")),
    }
}

impl DeadLetterPolicy {
    /// Takes the dead-letter queue of a queue, which must be another one.
    ///
    /// # Errors
    /// `InvalidQueueName`, `MissingField`; `InvalidPolicy` for the same queue, or one that would share its table.
    pub fn parse_queue(name: String, of: Option<&QueueName>) -> Result<QueueName, Invalid> {
        let queue = QueueName::try_from(name)?;
        // pgmq folds the names of tables.
        let is_same = |of: &QueueName| of.as_str().to_lowercase() == queue.as_str().to_lowercase();
        if of.is_some_and(is_same) {
            return Err(Invalid::new(Kind::InvalidPolicy, "a queue cannot be its own dead-letter queue"));
        }
        Ok(queue)
    }
}

impl RetryBackoff {
    /// Takes one limit of the delays, and gives it in milliseconds.
    ///
    /// # Errors
    /// `MissingField`; `InvalidDuration` for zero and for more than 12 h.
    pub fn parse_limit(span: Option<Duration>) -> Result<i64, Invalid> {
        let span = span.ok_or_else(|| Invalid::new(Kind::MissingField, "a span is needed"))?;
        let span = bounds::positive_span(span, MAX_VISIBILITY)?;
        bounds::millis(span, MAX_VISIBILITY)
    }

    /// Takes a backoff of limits that are good by themselves. A multiplier of 0 means 2.
    ///
    /// # Errors
    /// `InvalidPolicy`, each with its field.
    pub fn parse(
        minimum_ms: i64,
        maximum_ms: i64,
        multiplier: f64,
        jitter: f64,
    ) -> Result<Self, Vec<(&'static str, Invalid)>> {
        let refuse = |why: &str| Invalid::new(Kind::InvalidPolicy, why);
        let mut refused = Vec::new();
        if maximum_ms < minimum_ms {
            refused.push(("maximum", refuse("must not be below the minimum")));
        }
        let multiplier = if multiplier == 0.0 { DEFAULT_MULTIPLIER } else { multiplier };
        if !MULTIPLIERS.contains(&multiplier) {
            refused.push(("multiplier", refuse("must be 1 to 100; 0 means 2")));
        }
        if !(0.0..=1.0).contains(&jitter) {
            refused.push(("jitter", refuse("must be 0 to 1")));
        }
        match refused.is_empty() {
            true => Ok(Self { minimum_ms, maximum_ms, multiplier, jitter }),
            false => Err(refused),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_has_a_name_of_its_own() {
        for field in PolicyField::ALL {
            assert_eq!(PolicyField::parse(field.name()), Ok(field));
        }
        for path in ["", "policy.default_delay", "dead_letter.queue", "defaultDelay", "*"] {
            assert_eq!(PolicyField::parse(path).map_err(|invalid| invalid.kind), Err(Kind::InvalidFieldMask));
        }
    }

    #[test]
    fn a_policy_differs_in_what_is_set() {
        let policy =
            Policy { default_delay_ms: Some(0), archive_retention_ms: Some(1_000), ..Policy::default() };
        assert_eq!(policy.set_fields(), [PolicyField::DefaultDelay, PolicyField::ArchiveRetention]);
        assert_eq!(policy.first_difference(&Policy::default()), Some(PolicyField::DefaultDelay));
        assert_eq!(policy.first_difference(&policy), None);
        assert!(Policy::default().is_empty() && !policy.is_empty());
    }

    #[test]
    fn a_backoff_has_its_numbers_in_range() {
        let fields = |minimum_ms, maximum_ms, multiplier, jitter| {
            let refused = RetryBackoff::parse(minimum_ms, maximum_ms, multiplier, jitter).err();
            refused.into_iter().flatten().map(|(field, _)| field).collect::<Vec<_>>()
        };
        assert_eq!(fields(1, 1, 1.0, 0.0), Vec::<&str>::new());
        assert_eq!(fields(1, 1, 100.0, 1.0), Vec::<&str>::new());
        assert_eq!(fields(2, 1, 100.1, -0.1), ["maximum", "multiplier", "jitter"]);
        for number in [f64::NAN, f64::INFINITY, -1.0] {
            assert_eq!(fields(1, 1, number, number), ["multiplier", "jitter"], "{number}");
        }
        assert_eq!(RetryBackoff::parse(1, 2, 0.0, 0.0).map(|backoff| backoff.multiplier), Ok(2.0));
    }

    #[test]
    fn spans_have_limits() {
        let millisecond = Duration::from_millis(1);
        assert_eq!(deduplication_window(Duration::from_millis(100)), Ok(100));
        assert!(deduplication_window(Duration::from_millis(99)).is_err());
        assert!(deduplication_window(*DEDUPLICATION_WINDOWS.end() + millisecond).is_err());
        assert_eq!(archive_retention(Duration::from_secs(1)), Ok(1_000));
        assert!(archive_retention(Duration::from_millis(999)).is_err());
        assert!(archive_retention(*RETENTIONS.end() + millisecond).is_err());
        assert!(RetryBackoff::parse_limit(Some(Duration::ZERO)).is_err());
        assert_eq!(RetryBackoff::parse_limit(Some(Duration::from_nanos(1))), Ok(1));
        assert!(RetryBackoff::parse_limit(Some(MAX_VISIBILITY + millisecond)).is_err());
    }

    #[test]
    fn a_queue_is_not_its_own_dead_letter_queue() {
        let queue = |name: &str| QueueName::try_from(name.to_owned()).expect("a good name");
        let parse = |name: &str| {
            DeadLetterPolicy::parse_queue(name.to_owned(), Some(&queue("orders")))
                .map_err(|refused| refused.kind)
        };
        assert_eq!(parse("failed"), Ok(queue("failed")));
        assert_eq!(parse("orders"), Err(Kind::InvalidPolicy));
        assert_eq!(parse("Orders"), Err(Kind::InvalidPolicy));
        assert_eq!(parse(""), Err(Kind::MissingField));
    }
}
