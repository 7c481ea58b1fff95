//! What watched queues look like, without reading from them.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::types::Type;

use super::catalog::QueueTable;
use super::database::{Connection, Parameter};
use super::row::column;
use super::statement::{Effect, Plan, Statement};
use crate::domain::{Deadline, Error, Kind, QueueName, Result, Timestamp};

/// How many tables one statement looks at. It locks each of them and its indexes, and a database has room for some thousand
/// locks.
const TABLES: usize = 512;

/// For how many tables one with partitions counts.
const PARTITIONS: usize = 32;

/// How long one queue may keep those behind it from being looked at that were in a statement with it which has failed.
const BRIEF_LOOK: Duration = Duration::from_secs(2);

/// How long it waits then for a lock, and how long a session waits otherwise.
const BRIEF_WAIT: &str = "10ms";
const USUAL_WAIT: &str = "2s";

/// What changes with each commit, and with each start of the database: as long as it is the same, nothing else is another.
const STATE: Statement = Statement::new(
    "watch_state",
    Effect::Reads,
    "-- pgmq-grpc: watch_state
SELECT concat(pg_current_snapshot(), ' ', pg_postmaster_start_time()) AS state",
);

/// What is the same for all queues of a look: `$1` their names, `$2` for each the clock of the look before, `$3` whether to
/// look at times. `{looked}` is a [`SIGHT`] of each.
///
/// The clock is that of the transaction's begin, so it is from before everything that the look sees. It comes from a part of
/// its own because that keeps the database from spreading so many small looks over several processes.
const LOOK: &str = "-- pgmq-grpc: watch
WITH clock AS MATERIALIZED (SELECT now() AS looked_at)
SELECT l.ordinal, m.created_at, l.looked_at, l.bytes, l.newest, l.became_visible, clock_timestamp() AS seen_at,
  concat(pg_current_snapshot(), ' ', pg_postmaster_start_time()) AS state,
  CASE WHEN l.next_visible IS NOT NULL THEN greatest(0, least(3600000,
    ceil(extract(epoch FROM l.next_visible - clock_timestamp()) * 1000)))::bigint END AS wait_ms
FROM ({looked}) AS l JOIN pgmq.meta AS m ON m.queue_name = ($1::text[])[l.ordinal]";

/// What is seen of one queue. The newest ids come one by one, because a message with a lower id can be committed after one
/// with a higher.
const SIGHT: &str = "SELECT {ordinal} AS ordinal, c.looked_at, {bytes} AS bytes,
  ARRAY(SELECT q.msg_id FROM {q} AS q ORDER BY q.msg_id DESC LIMIT 100) AS newest,
  $3::boolean AND EXISTS (SELECT FROM {q} AS q WHERE q.vt > ($2::timestamptz[])[{ordinal}] AND q.vt <= now()) AS became_visible,
  CASE WHEN $3 THEN (SELECT min(q.vt) FROM {q} AS q WHERE q.vt > now() AND q.vt < 'infinity') END AS next_visible
FROM clock AS c";

const BYTES: &str = "pg_relation_size({name}::regclass)";
const BYTES_OF_PARTITIONS: &str =
    "(SELECT coalesce(sum(pg_relation_size(h.inhrelid)), 0)::bigint FROM pg_inherits AS h
    WHERE h.inhparent = {name}::regclass)";

/// A question about one queue.
#[derive(Debug, Clone)]
pub struct Glance {
    /// The queue.
    pub queue: QueueName,
    /// The database's clock of the look before; none for the first one.
    pub since: Option<Timestamp>,
    /// The database's state in the look before.
    pub state: Option<Arc<str>>,
}

/// What one look at a queue found.
#[derive(Debug)]
pub struct Sighting {
    /// When the queue was made, which tells one that was made anew from the one before.
    pub queue_created_at: Timestamp,
    /// The database's clock from before the look.
    pub looked_at: Timestamp,
    /// The database's clock from after the look.
    pub seen_at: Timestamp,
    /// The database's state, which is another after each commit.
    pub state: Arc<str>,
    /// How large the queue's table is.
    pub bytes: u64,
    /// The newest hundred ids, the highest first.
    pub newest: Vec<i64>,
    /// Messages became visible since the look before, as far as times were looked at.
    pub became_visible: bool,
    /// How long until the next message becomes visible, as far as times were looked at.
    pub next_visible: Option<Duration>,
}

/// A question, its place among all, and where to look.
type Look<'a> = (usize, &'a Glance, Arc<QueueTable>);

impl Connection {
    /// Looks at one queue. Without `times` it costs next to nothing.
    ///
    /// # Errors
    /// `QueueNotFound`.
    pub async fn look(&mut self, glance: &Glance, times: bool) -> Result<Sighting> {
        let table = self.table(&glance.queue).await?;
        self.look_at_one(&(0, glance, table), times).await
    }

    /// The database's state, which is another after each commit.
    ///
    /// # Errors
    /// As any statement that reads.
    pub async fn watched_state(&mut self) -> Result<Arc<str>> {
        let rows = self.query(&STATE, &[]).await?;
        let row = rows.first().ok_or_else(|| Error::internal("no state of the database"))?;
        Ok(column::<&str>(row, "state")?.into())
    }

    /// Looks at many queues, as far as possible in one statement. Each gets its own answer, under its place: what is wrong with
    /// one queue keeps nobody from the others. A statement may take as long as `limit`.
    pub async fn look_at_each(
        &mut self,
        glances: &[Glance],
        limit: Duration,
        mut answer: impl FnMut(usize, Result<Sighting>) + Send,
    ) {
        let (mut together, mut tables) = (Vec::new(), 0);
        for (index, glance) in glances.iter().enumerate() {
            let table = match self.table(&glance.queue).await {
                Ok(table) => table,
                Err(error) => {
                    answer(index, Err(error));
                    continue;
                }
            };
            let more = if table.partitioned { PARTITIONS } else { 1 };
            if tables + more > TABLES {
                self.look_together(std::mem::take(&mut together), limit, &mut answer).await;
                tables = 0;
            }
            together.push((index, glance, table));
            tables += more;
        }
        self.look_together(together, limit, &mut answer).await;
    }

    async fn look_together(
        &mut self,
        looks: Vec<Look<'_>>,
        limit: Duration,
        answer: &mut (impl FnMut(usize, Result<Sighting>) + Send),
    ) {
        if looks.is_empty() {
            return;
        }
        self.set_deadline(Deadline::within(limit));
        let failed = match self.look_at(&looks, true).await {
            Ok(sightings) => {
                for ((index, glance, _), sighting) in looks.iter().zip(sightings) {
                    answer(*index, sighting.ok_or_else(|| self.gone(&glance.queue)));
                }
                return;
            }
            Err(error) => error,
        };
        let is_of_one = looks.len() > 1 && failed.kind() != Kind::DatabaseUnavailable;
        let prepared = match is_of_one {
            true => self.set_lock_timeout(BRIEF_WAIT).await,
            false => Err(failed.clone()),
        };
        if let Err(error) = prepared {
            for (index, glance, _) in &looks {
                answer(*index, Err(self.missing(&glance.queue, error.clone())));
            }
            return;
        }
        let patience = Deadline::within(limit);
        for look in &looks {
            self.set_deadline(patience.at_most(BRIEF_LOOK));
            let seen = match patience.remaining().is_zero() {
                true => Err(failed.clone()),
                false => self.look_at_one(look, true).await,
            };
            answer(look.0, seen);
        }
        if let Err(error) = self.set_lock_timeout(USUAL_WAIT).await {
            tracing::debug!(error = crate::domain::error::chain(&error), "a session is given up");
        }
    }

    async fn look_at_one(&mut self, look: &Look<'_>, times: bool) -> Result<Sighting> {
        let queue = &look.1.queue;
        let seen = self.look_at(std::slice::from_ref(look), times).await;
        let seen = seen.map_err(|error| self.missing(queue, error))?;
        seen.into_iter().next().flatten().ok_or_else(|| self.gone(queue))
    }

    /// Looks at queues in one statement; those that are gone have no sighting.
    async fn look_at(&mut self, looks: &[Look<'_>], times: bool) -> Result<Vec<Option<Sighting>>> {
        let mut looked = String::new();
        for (index, (_, _, table)) in looks.iter().enumerate() {
            if index > 0 {
                looked.push_str("\nUNION ALL ");
            }
            push_sight(&mut looked, index + 1, table);
        }
        // The text of many is seldom the same again.
        let plan = if looks.len() == 1 { Plan::ForEver } else { Plan::Once };
        let text = LOOK.replace("{looked}", &looked).into();
        let statement = Statement { text, plan, ..Statement::new("watch", Effect::Reads, "") };
        let names: Vec<&str> = looks.iter().map(|(_, glance, _)| glance.queue.as_str()).collect();
        let since: Vec<Option<Timestamp>> = looks.iter().map(|(_, glance, _)| glance.since).collect();
        let parameters: [Parameter<'_>; 3] =
            [(&names, Type::TEXT_ARRAY), (&since, Type::TIMESTAMPTZ_ARRAY), (&times, Type::BOOL)];
        let rows = self.query(&statement, &parameters).await?;
        let mut seen: Vec<Option<Sighting>> = looks.iter().map(|_| None).collect();
        for row in &rows {
            let wait_ms: Option<i64> = column(row, "wait_ms")?;
            let sighting = Sighting {
                queue_created_at: column(row, "created_at")?,
                looked_at: column(row, "looked_at")?,
                seen_at: column(row, "seen_at")?,
                state: column::<&str>(row, "state")?.into(),
                bytes: column::<i64>(row, "bytes")?.unsigned_abs(),
                newest: column(row, "newest")?,
                became_visible: column(row, "became_visible")?,
                next_visible: wait_ms.map(|wait_ms| Duration::from_millis(wait_ms.unsigned_abs())),
            };
            let index = usize::try_from(column::<i32>(row, "ordinal")? - 1).unwrap_or(usize::MAX);
            if let Some(place) = seen.get_mut(index) {
                *place = Some(sighting);
            }
        }
        Ok(seen)
    }

    fn gone(&self, queue: &QueueName) -> Error {
        self.missing(queue, Error::queue_not_found(queue.as_str()))
    }
}

/// Adds the part of a look that concerns one queue's table.
fn push_sight(text: &mut String, ordinal: usize, table: &QueueTable) {
    let name = format!("'{}'", table.queue.replace('\'', "''"));
    let bytes = if table.partitioned { BYTES_OF_PARTITIONS } else { BYTES }.replace("{name}", &name);
    let sight = SIGHT.replace("{ordinal}", &ordinal.to_string());
    let (before, after) = sight.split_once("{bytes}").unwrap_or((&sight, ""));
    // The names last: a queue may be named like a mark. Writing to a string cannot fail.
    let _ = write!(text, "{before}{bytes}{}", after.replace("{q}", &table.queue));
}
