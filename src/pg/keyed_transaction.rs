//! Transactions with deduplication ids: each is applied once within the window, and its results are kept under its key.
//!
//! Their keys are in the same table as those of messages, under no queue: the empty name and the moment `-infinity`. The
//! results name messages in the queues to which it sent. A key counts as expired once one of those queues was dropped, made
//! anew, or emptied by a crash.

use tokio_postgres::types::Type;

use super::database::Connection;
use super::keyed::renew_contents;
use super::row::column;
use super::statement::{Effect, Statement};
use crate::domain::{DeduplicationId, Error, Kind, Result};

/// How often a key is tried that expires just when it is looked at.
const ROUNDS: usize = 8;

/// Which queues of some names are there: by name, the moment at which each was made, and the number of its contents if a crash
/// can take them away. NULL for none.
macro_rules! incarnations {
    ($names:literal) => {
        concat!(
            "(SELECT jsonb_object_agg(m.queue_name, jsonb_build_array(m.created_at AT TIME ZONE 'UTC',
    CASE WHEN m.is_unlogged THEN u.contents ELSE 0 END))
  FROM pgmq.meta AS m LEFT JOIN pgmq_grpc.unlogged_contents AS u ON m.is_unlogged WHERE m.queue_name = ANY (",
            $names,
            "))"
        )
    };
}

/// Waits for another transaction of this key, and gives no row if that one was committed. In either case it locks the key
/// until the transaction ends, and the number of the contents of unlogged queues is there afterwards.
const CLAIM: Statement = Statement::new(
    "claim_transaction",
    Effect::Reads,
    concat!(
        "-- pgmq-grpc: claim_transaction
WITH renewed AS (",
        renew_contents!(),
        ")
INSERT INTO pgmq_grpc.deduplication AS d
  (queue_name, queue_created_at, deduplication_id, content_hash, msg_id, expires_at)
VALUES ('', '-infinity', $1::text, pgmq_grpc.content_hash($2::text::jsonb), 0,
  clock_timestamp() + $3::bigint * interval '1 millisecond')
ON CONFLICT (queue_name, queue_created_at, deduplication_id) DO UPDATE
  SET content_hash = excluded.content_hash, expires_at = excluded.expires_at, results = NULL, sent_to = NULL
  WHERE d.expires_at <= clock_timestamp()
RETURNING true AS claimed"
    ),
);

/// Its snapshot sees whom [`CLAIM`] waited for, and the queues as they are since. A record of an older server tells no queues.
const FIND_RESULTS: Statement = Statement::new(
    "find_results",
    Effect::Reads,
    concat!(
        "-- pgmq-grpc: find_results
SELECT d.results::text AS results, d.content_hash = pgmq_grpc.content_hash($2::text::jsonb) AS same_content,
  d.sent_to IS NOT DISTINCT FROM ",
        incarnations!("ARRAY(SELECT jsonb_object_keys(d.sent_to))"),
        " AS still_there
FROM pgmq_grpc.deduplication AS d
WHERE d.queue_name = '' AND d.queue_created_at = '-infinity' AND d.deduplication_id = $1::text COLLATE \"C\"
  AND d.expires_at > clock_timestamp()"
    ),
);

/// Ends a record whose queues are no more what they were.
const EXPIRE: Statement = Statement::new(
    "expire_transaction",
    Effect::Reads,
    "-- pgmq-grpc: expire_transaction
UPDATE pgmq_grpc.deduplication AS d SET expires_at = '-infinity'
WHERE d.queue_name = '' AND d.queue_created_at = '-infinity' AND d.deduplication_id = $1::text COLLATE \"C\"",
);

const KEEP_RESULTS: Statement = Statement::new(
    "keep_results",
    Effect::Reads,
    concat!(
        "-- pgmq-grpc: keep_results
UPDATE pgmq_grpc.deduplication AS d SET results = $2::text::jsonb, sent_to = ",
        incarnations!("$3::text[]"),
        "
WHERE d.queue_name = '' AND d.queue_created_at = '-infinity' AND d.deduplication_id = $1::text COLLATE \"C\""
    ),
);

impl Connection {
    /// Claims a key for the open transaction, or gives the results that another one has kept under it.
    ///
    /// `content` is JSON that says what the transaction does.
    ///
    /// # Errors
    /// `DeduplicationIdReused` if the other one did something else; `QueueBusy` while it is open; `PgmqNotInstalled`
    /// where the schema `pgmq_grpc` is missing.
    pub async fn claim_transaction(&mut self, id: &DeduplicationId, content: &str) -> Result<Option<String>> {
        self.require_schema().await?;
        let key = id.as_str();
        for _ in 0..ROUNDS {
            let window_ms = self.policies().deduplication_window_ms(None);
            let parameters =
                [(&key as _, Type::TEXT), (&content as _, Type::TEXT), (&window_ms as _, Type::INT8)];
            if !self.query(&CLAIM, &parameters).await?.is_empty() {
                return Ok(None);
            }
            let rows = self.query(&FIND_RESULTS, &parameters[..2]).await?;
            let Some(row) = rows.first() else { continue };
            if !column::<bool>(row, "still_there")? {
                self.query(&EXPIRE, &parameters[..1]).await?;
                continue;
            }
            if !column::<bool>(row, "same_content")? {
                let why = format!(
                    "the deduplication id {key:?} was used for another transaction within its window"
                );
                let error = Error::new(Kind::DeduplicationIdReused, format!("{why}; nothing was applied"));
                return Err(error.with("deduplication_id", key));
            }
            let results: Option<String> = column(row, "results")?;
            return results.map(Some).ok_or_else(|| Error::internal("a transaction's key has no results"));
        }
        Err(super::error::conflict())
    }

    /// Keeps the results of the open transaction under its key, until one of the queues to which it sent is no more what it
    /// was.
    ///
    /// # Errors
    /// As any statement.
    pub async fn keep_results(
        &mut self,
        id: &DeduplicationId,
        results: &str,
        sent_to: &[&str],
    ) -> Result<()> {
        let parameters =
            [(&id.as_str() as _, Type::TEXT), (&results as _, Type::TEXT), (&sent_to as _, Type::TEXT_ARRAY)];
        self.query(&KEEP_RESULTS, &parameters).await.map(drop)
    }
}
