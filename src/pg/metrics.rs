//! Measures of queues.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::database::Connection;
use super::row::column;
use super::statement::{Effect, Statement};
use super::version::Feature;
use crate::domain::queue::{Metrics, MoveCounts};
use crate::domain::{Error, QueueName, Result};

/// What `pgmq.metrics` tells of a queue, and more, in one pass over its table. That function fails for a message whose age is no
/// number of seconds, or too many for it. `$1` name, `$2` whether default partitions are told; pgmq takes the table of a queue
/// `a_default` for the default partition of a queue `a`, so they count for partitioned ones only. `{sequence}` comes before all
/// names, which may be like a mark.
const METRICS: Statement = Statement::new(
    "metrics",
    Effect::Reads,
    "-- pgmq-grpc: metrics
WITH sent AS (SELECT CASE WHEN n.is_called THEN n.last_value ELSE 0 END AS total FROM {sequence} AS n)
SELECT s.*, sent.total, now() AS scraped_at, m.created_at,
  extract(epoch FROM now() - s.newest)::bigint AS newest_age_s, extract(epoch FROM now() - s.oldest)::bigint AS oldest_age_s,
  extract(epoch FROM now() - s.oldest_visible)::bigint AS oldest_visible_age_s,
  CASE WHEN $2::boolean AND m.is_partitioned THEN (SELECT sum(greatest(c.reltuples, 0))::bigint FROM pg_class AS c
    WHERE c.oid IN (d.queue, d.archive) AND d.queue IS NOT NULL) END AS default_partition_length
FROM sent CROSS JOIN pgmq.meta AS m CROSS JOIN LATERAL (SELECT
    to_regclass(format('pgmq.%I', pgmq.format_table_name(m.queue_name, 'q') || '_default')) AS queue,
    to_regclass(format('pgmq.%I', pgmq.format_table_name(m.queue_name, 'a') || '_default')) AS archive) AS d CROSS JOIN (
  SELECT count(*) AS length, count(*) FILTER (WHERE q.vt <= now()) AS visible,
    count(*) FILTER (WHERE q.vt > now() AND q.read_ct > 0) AS in_flight,
    count(*) FILTER (WHERE q.vt > now() AND q.read_ct = 0) AS delayed,
    max(q.enqueued_at) FILTER (WHERE isfinite(q.enqueued_at)) AS newest,
    min(q.enqueued_at) FILTER (WHERE isfinite(q.enqueued_at)) AS oldest,
    min(q.enqueued_at) FILTER (WHERE isfinite(q.enqueued_at) AND q.vt <= now()) AS oldest_visible FROM {q} AS q) AS s
WHERE m.queue_name = $1::text",
);

/// In the place of a sequence that is missing.
const NO_SEQUENCE: &str = "(SELECT false AS is_called, 0::bigint AS last_value)";

const ARCHIVE_LENGTH: Statement = Statement::new(
    "archive_length",
    Effect::Reads,
    "-- pgmq-grpc: archive_length\nSELECT count(*) AS length FROM {a} AS a",
);

impl Connection {
    /// Measures one queue (as `pgmq.metrics`), counting all its rows. Messages that were sent at no finite moment, as plain SQL
    /// can write, count, and have no age.
    ///
    /// # Errors
    /// `QueueNotFound`.
    pub async fn metrics(&mut self, queue: &QueueName, include_archive: bool) -> Result<Metrics> {
        let table = self.find_table(queue).await?;
        let has_partition_length = self.installation().await?.has(Feature::Premake);
        let mut statement = METRICS.on(&table);
        let sequence = table.sequence.as_deref().unwrap_or(NO_SEQUENCE);
        statement.text = statement.text.replacen("{sequence}", sequence, 1).into();
        let rows = self
            .query(&statement, &[(&queue.as_str(), Type::TEXT), (&has_partition_length, Type::BOOL)])
            .await
            .map_err(|error| self.missing(queue, error))?;
        let row = rows.first().ok_or_else(|| Error::queue_not_found(queue.as_str()))?;
        let archive_length = match include_archive {
            true => Some(self.archive_length(queue).await?),
            false => None,
        };
        Ok(Metrics {
            queue_length: column(row, "length")?,
            visible_length: column(row, "visible")?,
            in_flight_length: column(row, "in_flight")?,
            delayed_length: column(row, "delayed")?,
            newest_message_age: age(column(row, "newest_age_s")?),
            oldest_message_age: age(column(row, "oldest_age_s")?),
            oldest_visible_message_age: age(column(row, "oldest_visible_age_s")?),
            total_messages: column(row, "total")?,
            default_partition_length: column(row, "default_partition_length")?,
            archive_length,
            scraped_at: column(row, "scraped_at")?,
            created_at: column(row, "created_at")?,
            moved: MoveCounts::default(),
        })
    }

    async fn archive_length(&mut self, queue: &QueueName) -> Result<i64> {
        let table = self.table(queue).await?;
        let rows =
            self.query(&ARCHIVE_LENGTH.on(&table), &[]).await.map_err(|error| self.missing(queue, error))?;
        rows.first().map_or(Ok(0), |row| column(row, "length"))
    }
}

fn age(seconds: Option<i64>) -> Option<Duration> {
    seconds.map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}
