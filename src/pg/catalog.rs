//! The tables behind queue names, looked up once and remembered.

use std::sync::Arc;

use quick_cache::sync::Cache;
use tokio_postgres::types::Type;

use super::database::Connection;
use super::refused::Refused;
use super::row::column;
use super::statement::{Effect, QueueTexts, Sight, Statement, Texts};
use crate::domain::{Error, Kind, QueueName, Result};

/// How many queues' tables are remembered.
const CAPACITY: usize = 10_000;

/// How many bytes the statements may take that were made for them.
const TEXT_BYTES: u64 = 16 << 20;

/// Exact names only: pgmq folds table names to lower case, and so would answer for a queue of another name. Names are made
/// once, before `pg_class` is searched: pgmq's function is volatile, so a condition with it is tried on each table there is. The
/// sequence is looked up as `pg_get_serial_sequence` does it, which fails for a table that is dropped at that moment.
const FIND: Statement = Statement::new(
    "find_queue",
    Effect::Reads,
    "-- pgmq-grpc: find_queue
SELECT m.queue_table, m.archive_table, m.is_unlogged, (c.relkind = 'p') IS TRUE AS partitioned,
  (SELECT format('%I.%I', n.nspname, s.relname) FROM pg_depend AS d JOIN pg_class AS s ON s.oid = d.objid
     JOIN pg_namespace AS n ON n.oid = s.relnamespace
     JOIN pg_attribute AS a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
   WHERE d.refobjid = m.table_id AND d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
     AND d.deptype IN ('a', 'i') AND s.relkind = 'S' AND a.attname = 'msg_id' LIMIT 1) AS sequence
FROM (SELECT n.queue_table, n.archive_table, n.is_unlogged, to_regclass(n.queue_table)::oid AS table_id
  FROM (SELECT format('pgmq.%I', pgmq.format_table_name(m.queue_name, 'q')) AS queue_table,
      format('pgmq.%I', pgmq.format_table_name(m.queue_name, 'a')) AS archive_table, m.is_unlogged
    FROM pgmq.meta AS m WHERE m.queue_name = $1::text OFFSET 0) AS n OFFSET 0) AS m
LEFT JOIN pg_class AS c ON c.oid = m.table_id",
);

/// Where a queue's messages are.
#[derive(Debug)]
pub(super) struct QueueTable {
    /// The queue's table, qualified and quoted.
    pub(super) queue: String,
    /// Its archive's table, qualified and quoted.
    pub(super) archive: String,
    /// A crash of the database empties it.
    pub(super) unlogged: bool,
    /// The sequence of the queue's ids, qualified and quoted; none if the table is missing.
    pub(super) sequence: Option<String>,
    /// The table has the column `last_read_at`.
    pub(super) fenced_by_read_time: bool,
    /// It has partitions.
    pub(super) partitioned: bool,
    /// The statements that were made for it.
    pub(super) texts: QueueTexts,
    /// Which of its messages the database refuses to have taken.
    pub(super) refused: Arc<Refused>,
}

impl QueueTable {
    /// How statements find rows: `{place}`, what they keep of a row `q` that they have locked; `{same}`, the condition
    /// that finds it again by that; `{prune}`, the condition that keeps them from partitions without any of the rows of
    /// `$3`. A row's place in a plain table is the fastest way to it; with partitions, each would have to be looked at.
    /// By its place, a row that was changed before it was locked is not found, so who has to find each goes by its key.
    pub(super) fn row_marks(&self, sight: Sight) -> [(&'static str, &'static str); 3] {
        let prune = if self.partitioned { " AND q.enqueued_at = ANY ($3)" } else { "" };
        match self.partitioned || sight == Sight::Sure {
            true => [
                ("{place}", "q.msg_id, q.enqueued_at"),
                ("{same}", "q.msg_id = held.msg_id AND q.enqueued_at = held.enqueued_at"),
                ("{prune}", prune),
            ],
            // If the table has become another one meanwhile, places in its partitions are not mixed up.
            false => [
                ("{place}", "q.tableoid AS part, q.ctid AS place"),
                ("{same}", "q.ctid = held.place AND q.tableoid = held.part"),
                ("{prune}", prune),
            ],
        }
    }
}

/// Remembers the tables of the queues in use.
pub(super) struct Catalog {
    tables: Cache<QueueName, Arc<QueueTable>>,
    texts: Arc<Texts>,
}

impl Catalog {
    pub(super) fn new() -> Self {
        Self { tables: Cache::new(CAPACITY), texts: Texts::new(TEXT_BYTES) }
    }

    /// Forgets a queue, for instance because its table was not there.
    pub(super) fn forget(&self, queue: &QueueName) {
        self.tables.remove(queue);
    }

    /// Forgets all queues, because pgmq itself changed.
    pub(super) fn clear(&self) {
        self.tables.clear();
    }
}

impl Connection {
    /// The tables of a queue, from memory if it was used before.
    ///
    /// # Errors
    /// `QueueNotFound` if `pgmq.meta` does not list it.
    pub(super) async fn table(&mut self, queue: &QueueName) -> Result<Arc<QueueTable>> {
        if let Some(table) = self.catalog().tables.get(queue) {
            return Ok(table);
        }
        self.find_table(queue).await
    }

    /// The tables of a queue, from the database.
    ///
    /// # Errors
    /// `QueueNotFound` if `pgmq.meta` does not list it.
    pub(super) async fn find_table(&mut self, queue: &QueueName) -> Result<Arc<QueueTable>> {
        let strong = self.installation().await?.strong_receipts;
        let rows = self.query(&FIND, &[(&queue.as_str(), Type::TEXT)]).await?;
        let Some(row) = rows.first() else {
            self.catalog().forget(queue);
            return Err(Error::queue_not_found(queue.as_str()));
        };
        let known = self.catalog().tables.peek(queue);
        let table = Arc::new(QueueTable {
            queue: column(row, "queue_table")?,
            archive: column(row, "archive_table")?,
            unlogged: column(row, "is_unlogged")?,
            sequence: column(row, "sequence")?,
            fenced_by_read_time: strong,
            partitioned: column(row, "partitioned")?,
            texts: self.catalog().texts.of_another_queue(),
            refused: known.map(|known| Arc::clone(&known.refused)).unwrap_or_default(),
        });
        self.catalog().tables.insert(queue.clone(), Arc::clone(&table));
        Ok(table)
    }

    /// Names the queue in an error about a missing table, and forgets the table; names it too if it is busy.
    pub(super) fn missing(&self, queue: &QueueName, error: Error) -> Error {
        match error.kind() {
            Kind::QueueNotFound => {
                self.catalog().forget(queue);
                Error::queue_not_found(queue.as_str()).caused_by(error)
            }
            Kind::QueueBusy => error.with("queue", queue.as_str()),
            _ => error,
        }
    }
}
