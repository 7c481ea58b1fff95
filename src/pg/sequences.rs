//! Sequences of ids that are behind the ids that are there: after a crash that emptied an unlogged queue but not its
//! archive, or a failover that does not carry sequences. Every send would fail until they have caught up.

use tokio_postgres::types::Type;

use super::database::{Connection, Database};
use super::row::column;
use super::statement::{Effect, Statement};
use crate::domain::{Deadline, Kind, Result, error};

/// How many queues one statement looks at: it locks their tables, if only against being dropped.
const STEP: i64 = 100;

/// The longest that all of it may take: readiness waits for it.
const TIME: std::time::Duration = std::time::Duration::from_secs(5);

/// The next queues by name: the SQL of one row that compares a queue's sequence with what an index says of the largest ids
/// of its table and its archive; no SQL where a table or the sequence is missing. A table without such an index is left
/// alone.
const LIST: Statement = Statement::new(
    "list_sequences",
    Effect::Reads,
    "-- pgmq-grpc: list_sequences
WITH page AS MATERIALIZED (SELECT m.queue_name::text AS queue_name FROM pgmq.meta AS m
  WHERE m.queue_name COLLATE \"C\" > $1::text ORDER BY m.queue_name COLLATE \"C\" LIMIT $2::bigint),
found AS MATERIALIZED (
  SELECT m.queue_name, q.oid AS queue_oid, q.relname AS queue_table, a.oid AS archive_oid, a.relname AS archive_table
  FROM page AS m
  JOIN pg_class AS q ON q.oid = to_regclass(format('pgmq.%I', left(lower('q_' || m.queue_name), 63)))
  JOIN pg_class AS a ON a.oid = to_regclass(format('pgmq.%I', left(lower('a_' || m.queue_name), 63))))
SELECT p.queue_name, CASE WHEN t.sequence IS NOT NULL THEN format('SELECT %L::text AS sequence, %L::text AS queue_table, %L::text AS archive_table,
    (SELECT CASE WHEN s.is_called THEN s.last_value ELSE s.last_value - 1 END FROM %s AS s) AS last_id, greatest(%s, %s) AS largest_id',
    t.sequence, t.queue_table, t.archive_table, t.sequence, t.queue_largest, t.archive_largest) END AS comparison
FROM page AS p LEFT JOIN (SELECT f.queue_name, format('pgmq.%I', f.queue_table) AS queue_table,
    format('pgmq.%I', f.archive_table) AS archive_table,
    pg_get_serial_sequence(format('pgmq.%I', f.queue_table), 'msg_id') AS sequence,
    CASE WHEN EXISTS (SELECT FROM pg_index AS i JOIN pg_attribute AS c ON c.attrelid = i.indrelid AND c.attnum = i.indkey[0]
      WHERE i.indrelid = f.queue_oid AND c.attname = 'msg_id')
      THEN format('(SELECT max(msg_id) FROM pgmq.%I)', f.queue_table) ELSE '0' END AS queue_largest,
    CASE WHEN EXISTS (SELECT FROM pg_index AS i JOIN pg_attribute AS c ON c.attrelid = i.indrelid AND c.attnum = i.indkey[0]
      WHERE i.indrelid = f.archive_oid AND c.attname = 'msg_id')
      THEN format('(SELECT max(msg_id) FROM pgmq.%I)', f.archive_table) ELSE '0' END AS archive_largest
  FROM found AS f) AS t ON t.queue_name = p.queue_name
ORDER BY p.queue_name COLLATE \"C\"",
);

/// A sequence that is behind.
struct Behind {
    queue_table: String,
    archive_table: String,
    sequence: String,
}

/// Moves every sequence that is behind, as far as that is quick and allowed; what is left is logged.
pub(super) async fn repair(database: &Database) {
    let repaired = async {
        let mut connection = database.connect("repair_sequences", Deadline::within(TIME)).await?;
        connection.repair_sequences().await
    };
    match tokio::time::timeout(TIME, repaired).await {
        Ok(Ok(0)) => {}
        Ok(Ok(moved)) => tracing::warn!(moved, "sequences of ids were behind their queues and are moved"),
        Ok(Err(error)) => {
            tracing::warn!(cause = error::chain(&error), "sequences of ids could not be looked at");
        }
        Err(_) => tracing::warn!("sequences of ids could not all be looked at in time"),
    }
}

impl Connection {
    async fn repair_sequences(&mut self) -> Result<usize> {
        let mut after = String::new();
        let mut moved = 0;
        loop {
            let rows = self.query(&LIST, &[(&after.as_str(), Type::TEXT), (&STEP, Type::INT8)]).await?;
            let Some(last) = rows.last() else { return Ok(moved) };
            after = column(last, "queue_name")?;
            let comparisons: Vec<Option<String>> =
                rows.iter().map(|row| column(row, "comparison")).collect::<Result<_>>()?;
            let comparisons: Vec<String> = comparisons.into_iter().flatten().collect();
            if comparisons.is_empty() {
                continue;
            }
            for behind in self.behind(&comparisons).await? {
                if self.move_on(&behind).await? {
                    moved += 1;
                }
            }
        }
    }

    /// Compares all at once; one by one if a queue among them is gone or closed to us.
    async fn behind(&mut self, comparisons: &[String]) -> Result<Vec<Behind>> {
        match self.compare(&comparisons.join("\nUNION ALL ")).await {
            Err(error)
                if matches!(error.kind(), Kind::QueueNotFound | Kind::PermissionDenied | Kind::QueueBusy) => {
            }
            compared => return compared,
        }
        let mut found = Vec::new();
        for comparison in comparisons {
            found.extend(self.compare(comparison).await.unwrap_or_default());
        }
        Ok(found)
    }

    async fn compare(&mut self, comparisons: &str) -> Result<Vec<Behind>> {
        let mut statement = Statement::new("compare_sequences", Effect::Reads, "");
        statement.text = format!(
            "-- pgmq-grpc: compare_sequences\nSELECT c.sequence, c.queue_table, c.archive_table FROM ({comparisons}) AS c \
             WHERE c.last_id < c.largest_id"
        )
        .into();
        let rows = self.query(&statement, &[]).await?;
        let behind = rows.iter().map(|row| {
            Ok(Behind {
                queue_table: column(row, "queue_table")?,
                archive_table: column(row, "archive_table")?,
                sequence: column(row, "sequence")?,
            })
        });
        behind.collect()
    }

    /// Moves one sequence while nobody inserts, so that it never goes back. False where others hold the table.
    async fn move_on(&mut self, behind: &Behind) -> Result<bool> {
        let Behind { queue_table, archive_table, sequence } = behind;
        let mut lock = Statement::new("lock_sequence", Effect::Reads, "");
        lock.text =
            format!("-- pgmq-grpc: lock_sequence\nLOCK TABLE {queue_table} IN SHARE ROW EXCLUSIVE MODE")
                .into();
        let mut moves = Statement::new("move_sequence", Effect::Repeatable, "");
        moves.text = format!(
            "-- pgmq-grpc: move_sequence\nSELECT setval($1::text::regclass, greatest((SELECT max(msg_id) FROM {queue_table}), \
             (SELECT max(msg_id) FROM {archive_table}), (SELECT s.last_value FROM {sequence} AS s)))"
        )
        .into();
        self.begin().await?;
        let moved = async {
            self.query(&lock, &[]).await?;
            self.query(&moves, &[(&sequence.as_str(), Type::TEXT)]).await.map(drop)
        };
        let moved = moved.await;
        match self.conclude(moved, true).await {
            Ok(()) => Ok(true),
            Err(error) => {
                tracing::warn!(sequence, cause = error::chain(&error), "a sequence of ids stays behind");
                Ok(false)
            }
        }
    }
}
