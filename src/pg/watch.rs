//! What a watched queue looks like, without reading from it.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::database::Connection;
use super::row::column;
use super::statement::{Effect, Statement};
use crate::domain::{Error, QueueName, Result, Timestamp};

/// `$1` queue, `$2` the clock of the look before, `$3` whether to look at times. The newest ids come one by one, because
/// a message with a lower id can be committed after one with a higher.
const LOOK: Statement = Statement::new(
    "watch",
    Effect::Reads,
    "-- pgmq-grpc: watch
WITH queue AS MATERIALIZED (SELECT m.created_at, clock_timestamp() AS looked_at FROM pgmq.meta AS m
  WHERE m.queue_name = $1::text)
SELECT w.created_at, w.looked_at,
  ARRAY(SELECT q.msg_id FROM {q} AS q ORDER BY q.msg_id DESC LIMIT 100) AS newest,
  CASE WHEN $3::boolean THEN EXISTS (SELECT FROM {q} AS q WHERE q.vt > $2::timestamptz AND q.vt <= w.looked_at)
    ELSE false END AS became_visible,
  CASE WHEN $3::boolean THEN (SELECT CASE WHEN min(q.vt) IS NOT NULL
      THEN greatest(0, least(3600000, ceil(extract(epoch FROM min(q.vt) - clock_timestamp()) * 1000)))::bigint END
    FROM {q} AS q WHERE q.vt > w.looked_at AND q.vt < 'infinity') END AS wait_ms
FROM queue AS w",
);

/// What one look at a queue found.
#[derive(Debug)]
pub struct Sighting {
    /// When the queue was made, which tells one that was made anew from the one before.
    pub queue_created_at: Timestamp,
    /// The database's clock from before the look.
    pub looked_at: Timestamp,
    /// The newest hundred ids, the highest first.
    pub newest: Vec<i64>,
    /// Messages became visible since the look before, as far as times were looked at.
    pub became_visible: bool,
    /// How long until the next message becomes visible, as far as times were looked at.
    pub next_visible: Option<Duration>,
}

impl Connection {
    /// Looks at a queue; `since` is the clock of the look before. Without `times` it costs next to nothing.
    ///
    /// # Errors
    /// `QueueNotFound`.
    pub async fn look(
        &mut self,
        queue: &QueueName,
        since: Option<Timestamp>,
        times: bool,
    ) -> Result<Sighting> {
        let table = self.table(queue).await?;
        let parameters: [super::database::Parameter<'_>; 3] =
            [(&queue.as_str(), Type::TEXT), (&since, Type::TIMESTAMPTZ), (&times, Type::BOOL)];
        let rows =
            self.query(&LOOK.on(&table), &parameters).await.map_err(|error| self.missing(queue, error))?;
        let row = rows.first().ok_or_else(|| Error::queue_not_found(queue.as_str()))?;
        let wait_ms: Option<i64> = column(row, "wait_ms")?;
        Ok(Sighting {
            queue_created_at: column(row, "created_at")?,
            looked_at: column(row, "looked_at")?,
            newest: column(row, "newest")?,
            became_visible: column(row, "became_visible")?,
            next_visible: wait_ms.map(|wait_ms| Duration::from_millis(wait_ms.unsigned_abs())),
        })
    }
}
