//! Transactions with deduplication ids: each is applied once within the window, and its results are kept under its key.
//!
//! Their keys are in the same table as those of messages, under no queue: the empty name and the moment `-infinity`.

use tokio_postgres::types::Type;

use super::database::Connection;
use super::row::column;
use super::statement::{Effect, Statement};
use crate::domain::{DeduplicationId, Error, Kind, Result};

/// How often a key is tried that expires just when it is looked at.
const ROUNDS: usize = 8;

/// Waits for another transaction of this key, and gives no row if that one was committed.
const CLAIM: Statement = Statement::new(
    "claim_transaction",
    Effect::Reads,
    "-- pgmq-grpc: claim_transaction
INSERT INTO pgmq_grpc.deduplication AS d
  (queue_name, queue_created_at, deduplication_id, content_hash, msg_id, expires_at)
VALUES ('', '-infinity', $1::text, pgmq_grpc.content_hash($2::text::jsonb), 0,
  clock_timestamp() + $3::bigint * interval '1 millisecond')
ON CONFLICT (queue_name, queue_created_at, deduplication_id) DO UPDATE
  SET content_hash = excluded.content_hash, expires_at = excluded.expires_at, results = NULL
  WHERE d.expires_at <= clock_timestamp()
RETURNING true AS claimed",
);

const FIND_RESULTS: Statement = Statement::new(
    "find_results",
    Effect::Reads,
    "-- pgmq-grpc: find_results
SELECT d.results::text AS results, d.content_hash = pgmq_grpc.content_hash($2::text::jsonb) AS same_content
FROM pgmq_grpc.deduplication AS d
WHERE d.queue_name = '' AND d.queue_created_at = '-infinity' AND d.deduplication_id = $1::text COLLATE \"C\"
  AND d.expires_at > clock_timestamp()",
);

const KEEP_RESULTS: Statement = Statement::new(
    "keep_results",
    Effect::Reads,
    "-- pgmq-grpc: keep_results
UPDATE pgmq_grpc.deduplication AS d SET results = $2::text::jsonb
WHERE d.queue_name = '' AND d.queue_created_at = '-infinity' AND d.deduplication_id = $1::text COLLATE \"C\"",
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
            let window_ms = self.deduplication_window_ms();
            let parameters =
                [(&key as _, Type::TEXT), (&content as _, Type::TEXT), (&window_ms as _, Type::INT8)];
            if !self.query(&CLAIM, &parameters).await?.is_empty() {
                return Ok(None);
            }
            let rows = self.query(&FIND_RESULTS, &parameters[..2]).await?;
            let Some(row) = rows.first() else { continue };
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

    /// Keeps the results of the open transaction under its key.
    ///
    /// # Errors
    /// As any statement.
    pub async fn keep_results(&mut self, id: &DeduplicationId, results: &str) -> Result<()> {
        let parameters = [(&id.as_str() as _, Type::TEXT), (&results as _, Type::TEXT)];
        self.query(&KEEP_RESULTS, &parameters).await.map(drop)
    }
}
