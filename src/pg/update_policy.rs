//! Changes of policies.

use tokio_postgres::types::Type;

use super::database::{Connection, Parameter};
use super::policies::{policy_of_queue, word_of};
use super::row::column;
use super::statement::{Effect, Statement};
use crate::domain::bounds::VisibilityTimeout;
use crate::domain::policy::{Policy, PolicyField};
use crate::domain::{Error, Kind, QueueName, Result};

/// Whoever sets a dead-letter queue waits for others who do, or two at once could make a ring that neither sees.
const LOCK_DEAD_LETTERS: Statement = Statement::new(
    "lock_dead_letters",
    Effect::Reads,
    "-- pgmq-grpc: lock_dead_letters
SELECT pg_advisory_xact_lock(8102083524853886833)",
);

/// `$1` queue, `$2` its dead-letter queue. Only policies of queues that are there count.
const CHECK_DEAD_LETTER: Statement = Statement::new(
    "check_dead_letter",
    Effect::Reads,
    concat!(
        "-- pgmq-grpc: check_dead_letter
SELECT EXISTS (SELECT FROM pgmq.meta AS m WHERE m.queue_name = $2::text) AS is_there,
  (SELECT p.dead_letter_queue FROM pgmq_grpc.queue_policy AS p JOIN pgmq.meta AS m ON ",
        policy_of_queue!(),
        "
   WHERE p.queue_name = $2::text COLLATE \"C\") AS goes_on_to,
  (SELECT min(p.queue_name) FROM pgmq_grpc.queue_policy AS p JOIN pgmq.meta AS m ON ",
        policy_of_queue!(),
        "
   WHERE p.dead_letter_queue = $1::text COLLATE \"C\" AND p.queue_name <> $1::text COLLATE \"C\") AS comes_from"
    ),
);

/// `$1` queue, then the values, which are NULL for all fields that stay. No row: there is no such queue. `{changes}` takes over
/// those of the fields that change.
const UPDATE: &str = "-- pgmq-grpc: update_policy
INSERT INTO pgmq_grpc.queue_policy AS p (queue_name, queue_created_at, default_visibility_timeout_s, default_delay_ms,
  default_wait_ms, max_message_bytes, dead_letter_queue, dead_letter_max_receives, retry_backoff_minimum_ms,
  retry_backoff_maximum_ms, retry_backoff_multiplier, retry_backoff_jitter, deduplication_window_ms, default_ordering,
  archive_retention_ms)
SELECT m.queue_name, m.created_at, $2::integer, $3::bigint, $4::bigint, $5::integer, $6::text, $7::integer, $8::bigint,
  $9::bigint, $10::double precision, $11::double precision, $12::bigint, $13::text, $14::bigint
FROM pgmq.meta AS m WHERE m.queue_name = $1::text
ON CONFLICT (queue_name, queue_created_at) DO UPDATE SET {changes}
RETURNING p.queue_name";

impl Connection {
    /// Gives fields of a queue's policy, at least one, the values that they have in `changed`, or clears them; `changed` has
    /// no others. In the open transaction, because its locks must last until the commit.
    ///
    /// # Errors
    /// `QueueNotFound`; `DeadLetterQueueMissing`, `DeadLetterChain`; `PgmqVersionUnsupported` for an ordering that this pgmq
    /// lacks; `PgmqNotInstalled` where the schema `pgmq_grpc` is missing.
    pub async fn update_policy(
        &mut self,
        queue: &QueueName,
        changed: &Policy,
        fields: &[PolicyField],
    ) -> Result<()> {
        self.require_schema().await?;
        if let Some(ordering) = changed.default_ordering {
            self.check_ordering(ordering).await?;
        }
        if let Some(dead_letter) = &changed.dead_letter {
            self.check_dead_letter(queue, &dead_letter.queue).await?;
        }
        let columns = fields.iter().flat_map(|field| columns_of(*field));
        let changes: Vec<String> = columns.map(|column| format!("{column} = excluded.{column}")).collect();
        let mut statement = Statement::new("update_policy", Effect::Repeatable, UPDATE);
        statement.text = UPDATE.replace("{changes}", &changes.join(", ")).into();
        let dead_letter = changed.dead_letter.as_ref();
        let backoff = changed.retry_backoff;
        let parameters: [Parameter<'_>; 14] = [
            (&queue.as_str(), Type::TEXT),
            (&changed.default_visibility_timeout.map(VisibilityTimeout::seconds), Type::INT4),
            (&changed.default_delay_ms, Type::INT8),
            (&changed.default_wait_ms, Type::INT8),
            (&changed.max_message_bytes, Type::INT4),
            (&dead_letter.map(|dead_letter| dead_letter.queue.as_str()), Type::TEXT),
            (&dead_letter.map(|dead_letter| dead_letter.max_receives), Type::INT4),
            (&backoff.map(|backoff| backoff.minimum_ms), Type::INT8),
            (&backoff.map(|backoff| backoff.maximum_ms), Type::INT8),
            (&backoff.map(|backoff| backoff.multiplier), Type::FLOAT8),
            (&backoff.map(|backoff| backoff.jitter), Type::FLOAT8),
            (&changed.deduplication_window_ms, Type::INT8),
            (&changed.default_ordering.map(word_of), Type::TEXT),
            (&changed.archive_retention_ms, Type::INT8),
        ];
        let updated = self.query(&statement, &parameters).await;
        match updated.map_err(|error| self.missing(queue, error))?.is_empty() {
            true => Err(Error::queue_not_found(queue.as_str())),
            false => Ok(()),
        }
    }

    /// Checks that dead letters of a queue would end in another: it is there, and hands none on; nor do others hand theirs to
    /// this queue. It stays so until the transaction ends.
    async fn check_dead_letter(&mut self, queue: &QueueName, dead_letter_queue: &QueueName) -> Result<()> {
        let locked = self.query(&LOCK_DEAD_LETTERS, &[]).await;
        locked.map_err(|error| self.missing(queue, error))?;
        let (from, to) = (queue.as_str(), dead_letter_queue.as_str());
        // Its snapshot is from after the lock.
        let rows = self.query(&CHECK_DEAD_LETTER, &[(&from, Type::TEXT), (&to, Type::TEXT)]).await?;
        let row = rows.first().ok_or_else(|| Error::internal("a check of dead letters gave no row"))?;
        if !column::<bool>(row, "is_there")? {
            let why = format!("the dead-letter queue {to:?} does not exist; CreateQueue makes it");
            return Err(Error::new(Kind::DeadLetterQueueMissing, why).with("dead_letter_queue", to));
        }
        if let Some(next) = column::<Option<&str>>(row, "goes_on_to")? {
            let why = format!("queue {to:?} has a dead-letter queue itself, {next:?}, so it cannot be one");
            return Err(chain(why, to, next));
        }
        if let Some(other) = column::<Option<&str>>(row, "comes_from")? {
            let why = format!("queue {from:?} is the dead-letter queue of {other:?}, so it cannot have one");
            return Err(chain(why, from, other));
        }
        Ok(())
    }
}

fn chain(why: String, both: &str, other_end: &str) -> Error {
    Error::new(Kind::DeadLetterChain, why).with("dead_letter_queue", both).with("queue", other_end)
}

fn columns_of(field: PolicyField) -> &'static [&'static str] {
    match field {
        PolicyField::DefaultVisibilityTimeout => &["default_visibility_timeout_s"],
        PolicyField::DefaultDelay => &["default_delay_ms"],
        PolicyField::DefaultWait => &["default_wait_ms"],
        PolicyField::MaxMessageBytes => &["max_message_bytes"],
        PolicyField::DeadLetter => &["dead_letter_queue", "dead_letter_max_receives"],
        PolicyField::RetryBackoff => &[
            "retry_backoff_minimum_ms",
            "retry_backoff_maximum_ms",
            "retry_backoff_multiplier",
            "retry_backoff_jitter",
        ],
        PolicyField::DeduplicationWindow => &["deduplication_window_ms"],
        PolicyField::DefaultOrdering => &["default_ordering"],
        PolicyField::ArchiveRetention => &["archive_retention_ms"],
    }
}
