//! Queues, their kinds and their measures.

use std::time::Duration;

use super::{Error, Invalid, Kind, Policy, QueueName, Timestamp};

/// How a queue is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueKind {
    /// A plain, durable table.
    Standard,
    /// An unlogged table: faster, emptied by a crash of the database.
    Unlogged,
    /// A table partitioned by pg_partman.
    Partitioned,
}

impl QueueKind {
    /// The kind as a word for sentences.
    pub fn word(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Unlogged => "unlogged",
            Self::Partitioned => "partitioned",
        }
    }

    /// The kind as the contract names it, for values in errors.
    pub fn name_in_contract(self) -> &'static str {
        match self {
            Self::Standard => "QUEUE_KIND_STANDARD",
            Self::Unlogged => "QUEUE_KIND_UNLOGGED",
            Self::Partitioned => "QUEUE_KIND_PARTITIONED",
        }
    }
}

/// How a queue's table is laid out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum QueueLayout {
    /// For speed: no index on `vt`, room in the pages, vacuumed early.
    #[default]
    Tuned,
    /// As pgmq makes it.
    Pgmq,
}

/// A queue as `pgmq.meta` lists it.
#[derive(Debug, Clone)]
pub struct Queue {
    /// The table's object id, new whenever the table is made anew; 0 if the table is missing.
    pub id: i64,
    /// The exact name.
    pub name: String,
    /// How it is stored.
    pub kind: QueueKind,
    /// When it was made; tells one incarnation of a name from the next.
    pub created_at: Timestamp,
    /// How its table is laid out; none if the table is missing.
    pub layout: Option<QueueLayout>,
}

/// A queue with its policy.
#[derive(Debug, Clone)]
pub struct DescribedQueue {
    /// The queue.
    pub queue: Queue,
    /// Its policy, as it is stored; an empty one if it has none.
    pub policy: Policy,
}

/// How a partitioned queue or archive is cut (pg_partman's settings).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partitioning {
    /// A count of messages such as `10000`, or a span of time such as `1 day`.
    pub interval: String,
    /// How much is kept, in the interval's own unit.
    pub retention: String,
    /// How many partitions are made ahead.
    pub premake: i32,
}

impl Partitioning {
    /// pgmq's own default interval.
    pub const DEFAULT_INTERVAL: &str = "10000";
    /// pgmq's own default retention.
    pub const DEFAULT_RETENTION: &str = "100000";
    /// pgmq's own default of partitions made ahead.
    pub const DEFAULT_PREMAKE: i32 = 4;

    /// Fills what is empty with pgmq's defaults and refuses what pg_partman could not read.
    ///
    /// # Errors
    /// `InvalidPartitioning` where a text is neither a positive count nor words of a time span, where interval
    /// and retention have different units, or where `premake` is out of 1..=100.
    pub fn parse(interval: String, retention: String, premake: i32) -> Result<Self, Invalid> {
        let or_default =
            |text: String, default: &str| if text.is_empty() { default.to_owned() } else { text };
        let interval = or_default(interval, Self::DEFAULT_INTERVAL);
        let retention_default = if is_count(&interval) { Self::DEFAULT_RETENTION } else { "10 days" };
        let retention = or_default(retention, retention_default);
        let premake = if premake == 0 { Self::DEFAULT_PREMAKE } else { premake };
        for (what, text) in [("interval", &interval), ("retention", &retention)] {
            if !is_count(text) && !looks_like_a_span(text) {
                return Err(Invalid::new(
                    Kind::InvalidPartitioning,
                    format!("{what} must be a positive count such as \"10000\" or a span such as \"1 day\""),
                ));
            }
        }
        if is_count(&interval) != is_count(&retention) {
            return Err(Invalid::new(
                Kind::InvalidPartitioning,
                "interval and retention must both be counts or both be spans of time",
            ));
        }
        if !(1..=100).contains(&premake) {
            return Err(Invalid::new(Kind::InvalidPartitioning, "premake must be 1 to 100"));
        }
        Ok(Self { interval, retention, premake })
    }
}

fn is_count(text: &str) -> bool {
    text.parse::<i32>().is_ok_and(|count| count > 0) && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Words such as `1 day` or `2 hours 30 minutes`: pairs of a positive number and a unit.
fn looks_like_a_span(text: &str) -> bool {
    const UNITS: [&str; 7] = ["second", "minute", "hour", "day", "week", "month", "year"];
    let is_unit = |unit: &str| UNITS.contains(&unit.strip_suffix('s').unwrap_or(unit));
    let words: Vec<&str> = text.split_whitespace().collect();
    let pairs = words.chunks(2);
    !words.is_empty()
        && pairs.into_iter().all(|pair| match pair {
            [number, unit] => {
                number.parse::<u32>().is_ok_and(|number| (1..=100_000).contains(&number))
                    && is_unit(&unit.to_ascii_lowercase())
            }
            _ => false,
        })
}

/// How many messages of a queue were moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MoveCounts {
    /// Out of it, into a dead-letter queue.
    pub dead_lettered: u64,
    /// Into it, out of a dead-letter queue.
    pub redriven: u64,
    /// Into it, out of an archive.
    pub replayed: u64,
}

impl std::ops::AddAssign for MoveCounts {
    fn add_assign(&mut self, more: Self) {
        self.dead_lettered += more.dead_lettered;
        self.redriven += more.redriven;
        self.replayed += more.replayed;
    }
}

/// The measures of one queue: those of `pgmq.metrics` and the split of what is not visible.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Messages in the queue.
    pub queue_length: i64,
    /// Messages that a read would give now.
    pub visible_length: i64,
    /// Invisible messages that have been read.
    pub in_flight_length: i64,
    /// Invisible messages that have never been read.
    pub delayed_length: i64,
    /// Age of the newest message; none in an empty queue.
    pub newest_message_age: Option<Duration>,
    /// Age of the oldest message; none in an empty queue.
    pub oldest_message_age: Option<Duration>,
    /// Age of the oldest message that a read would give now; none if there is none.
    pub oldest_visible_message_age: Option<Duration>,
    /// Messages ever sent.
    pub total_messages: i64,
    /// Planner's estimate of messages in the default partitions; partitioned queues on pgmq 1.13 only.
    pub default_partition_length: Option<i64>,
    /// Messages in the archive, if asked for.
    pub archive_length: Option<i64>,
    /// When this was measured, by the database's clock.
    pub scraped_at: Timestamp,
    /// When the queue was made.
    pub created_at: Timestamp,
    /// How many messages this server has moved.
    pub moved: MoveCounts,
}

/// One queue's place in a list of measures: what was measured, or why it could not be.
#[derive(Debug)]
pub struct MeasuredQueue {
    /// The exact name.
    pub name: String,
    /// The measures.
    pub measured: Result<Metrics, Error>,
}

/// A topic binding as `pgmq.topic_bindings` lists it.
#[derive(Debug, Clone)]
pub struct TopicBinding {
    /// The pattern.
    pub pattern: String,
    /// The queue that gets a copy.
    pub queue: String,
    /// When it was bound.
    pub bound_at: Timestamp,
    /// The regular expression that pgmq made of the pattern.
    pub compiled_regex: String,
}

/// One copy that a topic send made.
#[derive(Debug, Clone)]
pub struct TopicCopy {
    /// The queue that holds the copy.
    pub queue: QueueName,
    /// The copy's id there.
    pub msg_id: i64,
    /// Which message of the call it is, from 0.
    pub message_index: i32,
    /// An earlier send under the same deduplication id has stored it.
    pub deduplicated: bool,
}

/// The insert notifications of one queue.
#[derive(Debug, Clone)]
pub struct NotificationSettings {
    /// The queue.
    pub queue: String,
    /// The least time between two notifications; zero for none.
    pub throttle_interval: Duration,
    /// When the last one was sent; none if never.
    pub last_notified_at: Option<Timestamp>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitioning_takes_counts_or_spans_but_not_both() {
        let parse = |interval: &str, retention: &str| {
            Partitioning::parse(interval.to_owned(), retention.to_owned(), 0)
        };
        assert_eq!(parse("", "").map(|parsed| parsed.retention), Ok("100000".to_owned()));
        assert!(parse("1 day", "7 days").is_ok());
        assert!(parse("2 hours 30 minutes", "").is_ok());
        for (interval, retention) in [
            ("0", ""),
            ("-5", ""),
            ("1 day", "100"),
            ("day", ""),
            ("1 dayss", ""),
            ("1 day; drop", ""),
            ("99999999999", ""),
        ] {
            assert!(parse(interval, retention).is_err(), "{interval} {retention}");
        }
        assert!(Partitioning::parse(String::new(), String::new(), -1).is_err());
    }
}
