//! Measures of queues.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::database::Connection;
use super::row::column;
use super::statement::{Effect, Statement};
use super::version::Feature;
use crate::domain::queue::{Metrics, MoveCounts};
use crate::domain::{Error, QueueName, Result};

/// `pgmq.metrics` and the split of a queue; `$1` name. `{partition}` is a column that pgmq has since 1.13; pgmq takes
/// the table of a queue `a_default` for the default partition of a queue `a`, so it counts for partitioned ones only.
const METRICS: Statement = Statement::new(
    "metrics",
    Effect::Reads,
    "-- pgmq-grpc: metrics
SELECT r.queue_length, r.newest_msg_age_sec, r.oldest_msg_age_sec, r.total_messages, r.scrape_time,
  CASE WHEN m.is_partitioned THEN {partition} END AS default_partition_length, s.visible, s.in_flight, s.delayed,
  floor(extract(epoch FROM r.scrape_time - s.oldest_visible))::bigint AS oldest_visible_age_sec, m.created_at
FROM pgmq.meta AS m CROSS JOIN LATERAL pgmq.metrics(queue_name => m.queue_name::text) AS r CROSS JOIN (
  SELECT count(*) FILTER (WHERE q.vt <= now()) AS visible,
    count(*) FILTER (WHERE q.vt > now() AND q.read_ct > 0) AS in_flight,
    count(*) FILTER (WHERE q.vt > now() AND q.read_ct = 0) AS delayed,
    min(q.enqueued_at) FILTER (WHERE q.vt <= now()) AS oldest_visible FROM {q} AS q) AS s
WHERE m.queue_name = $1::text",
);

const ARCHIVE_LENGTH: Statement = Statement::new(
    "archive_length",
    Effect::Reads,
    "-- pgmq-grpc: archive_length\nSELECT count(*) AS length FROM {a} AS a",
);

impl Connection {
    /// Measures one queue (`pgmq.metrics`), counting all its rows.
    ///
    /// # Errors
    /// `QueueNotFound`.
    pub async fn metrics(&mut self, queue: &QueueName, include_archive: bool) -> Result<Metrics> {
        let table = self.find_table(queue).await?;
        let has_partition_length = self.installation().await?.has(Feature::Premake);
        let partition = if has_partition_length { "r.default_partition_length" } else { "NULL::bigint" };
        let mut statement = METRICS;
        statement.text = statement.text.replace("{partition}", partition).into();
        let rows = self
            .query(&statement.on(&table), &[(&queue.as_str(), Type::TEXT)])
            .await
            .map_err(|error| self.missing(queue, error))?;
        let row = rows.first().ok_or_else(|| Error::queue_not_found(queue.as_str()))?;
        let archive_length = match include_archive {
            true => Some(self.archive_length(queue).await?),
            false => None,
        };
        Ok(Metrics {
            queue_length: column(row, "queue_length")?,
            visible_length: column(row, "visible")?,
            in_flight_length: column(row, "in_flight")?,
            delayed_length: column(row, "delayed")?,
            newest_message_age: age(column::<Option<i32>>(row, "newest_msg_age_sec")?.map(i64::from)),
            oldest_message_age: age(column::<Option<i32>>(row, "oldest_msg_age_sec")?.map(i64::from)),
            oldest_visible_message_age: age(column(row, "oldest_visible_age_sec")?),
            total_messages: column(row, "total_messages")?,
            default_partition_length: column(row, "default_partition_length")?,
            archive_length,
            scraped_at: column(row, "scrape_time")?,
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
