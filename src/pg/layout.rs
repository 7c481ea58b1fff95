//! How a queue's table is laid out: as pgmq makes it, or tuned.
//!
//! A read updates `vt`. An index on `vt` makes each read write that index too, and `pgmq.read` never uses it, because it
//! compares `vt` with a volatile clock. Without the index, and with room in the page, the new version of the row goes
//! into the same page and no index changes. Which layout a table has is seen in the table itself.

use tokio_postgres::types::Type;

use super::database::Connection;
use super::row::column;
use super::statement::{Effect, Statement};
use crate::domain::{Kind, Queue, QueueKind, QueueLayout, QueueName, Result};

/// Half of each page stays free for the next versions of its rows. Dead rows at the head of a queue cost every read, so
/// they are removed early and without pauses; the same for long bodies, which are stored apart.
const SETTINGS: [(&str, &str); 5] = [
    ("fillfactor", "50"),
    ("autovacuum_vacuum_scale_factor", "0.01"),
    ("autovacuum_vacuum_cost_delay", "0"),
    ("toast.autovacuum_vacuum_scale_factor", "0.01"),
    ("toast.autovacuum_vacuum_cost_delay", "0"),
];

/// The tables that hold the rows: the queue's own, or its partitions.
const TABLES: Statement = Statement::new(
    "layout_tables",
    Effect::Reads,
    "-- pgmq-grpc: layout_tables
SELECT format('%I.%I', n.nspname, c.relname) AS name
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND (c.oid = $1::text::regclass
  OR c.oid IN (SELECT h.inhrelid FROM pg_inherits AS h WHERE h.inhparent = $1::text::regclass))
ORDER BY name",
);

const INDEXES: Statement = Statement::new(
    "layout_indexes",
    Effect::Reads,
    "-- pgmq-grpc: layout_indexes
SELECT format('%I.%I', n.nspname, c.relname) AS name, i.indisvalid AS is_valid
FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
WHERE i.indrelid = $1::text::regclass AND a.attname = $2::text",
);

pub(super) const PARTMAN_SCHEMA: Statement = Statement::new(
    "partman_schema",
    Effect::Reads,
    "-- pgmq-grpc: partman_schema
SELECT quote_ident(n.nspname) AS name FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace
WHERE e.extname = 'pg_partman'",
);

/// The table from which pg_partman copies the settings of new partitions. `{p}` is pg_partman's schema.
const TEMPLATE: &str = "-- pgmq-grpc: layout_template
SELECT format('%I.%I', n.nspname, c.relname) AS name
FROM {p}.part_config AS p JOIN pg_class AS c ON true JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE p.parent_table = 'pgmq.' || lower('q_' || $1::text) AND n.nspname || '.' || c.relname = p.template_table";

impl Connection {
    /// Gives a queue another layout. Outside a transaction; one towards pgmq's builds its index beside the senders.
    ///
    /// # Errors
    /// `QueueNotFound`; `QueueBusy` if a lock was not free in time; `PermissionDenied` for tables of another owner.
    pub async fn set_layout(&mut self, queue: &QueueName, layout: QueueLayout) -> Result<()> {
        let found = self.get_queue(queue).await?;
        let changed = match layout {
            QueueLayout::Tuned => {
                self.begin().await?;
                let tuned = self.tune_locked(queue, &found).await;
                self.conclude(tuned, true).await
            }
            QueueLayout::Pgmq => self.untune(queue, &found).await,
        };
        self.catalog().forget(queue);
        changed.map_err(|error| self.missing(queue, error))
    }

    async fn tune_locked(&mut self, queue: &QueueName, found: &Queue) -> Result<()> {
        self.lock_queue(queue).await?;
        self.tune(queue, found).await
    }

    /// Tunes the table of a queue, in the open transaction.
    ///
    /// # Errors
    /// As [`Connection::set_layout`].
    pub async fn tune(&mut self, queue: &QueueName, found: &Queue) -> Result<()> {
        let table = self.find_table(queue).await?.queue.clone();
        for (index, _) in self.indexes_on(&table, "vt").await? {
            self.change(format!("DROP INDEX {index}")).await?;
        }
        if found.kind == QueueKind::Partitioned && self.indexes_on(&table, "msg_id").await?.is_empty() {
            // Cut by time, the queue has no index on its ids, and every settle would look at all rows.
            self.change(format!("CREATE INDEX ON {table} (msg_id)")).await?;
        }
        if found.kind == QueueKind::Partitioned {
            self.index_archive(queue).await?;
        }
        let settings = SETTINGS.map(|(name, value)| format!("{name} = {value}")).join(", ");
        for table in self.tables_of(queue, found, &table).await? {
            self.change(format!("ALTER TABLE {table} SET ({settings})")).await?;
        }
        self.catalog().forget(queue);
        Ok(())
    }

    /// Gives an archive an index on its ids, which pgmq makes for none that is partitioned from its beginning or by time:
    /// listings go by it.
    ///
    /// # Errors
    /// As [`Connection::set_layout`].
    pub(super) async fn index_archive(&mut self, queue: &QueueName) -> Result<()> {
        let archive = self.find_table(queue).await?.archive.clone();
        if self.indexes_on(&archive, "msg_id").await?.is_empty() {
            self.change(format!("CREATE INDEX ON {archive} (msg_id)")).await?;
        }
        Ok(())
    }

    /// Gives back to the table of a queue what pgmq had given it. The indexes on ids stay.
    async fn untune(&mut self, queue: &QueueName, found: &Queue) -> Result<()> {
        let table = self.find_table(queue).await?.queue.clone();
        if found.kind != QueueKind::Partitioned {
            self.index_vt(queue, &table).await?;
        }
        let settings = SETTINGS.map(|(name, _)| name).join(", ");
        for table in self.tables_of(queue, found, &table).await? {
            self.change(format!("ALTER TABLE {table} RESET ({settings})")).await?;
        }
        Ok(())
    }

    /// Builds the index on `vt` under pgmq's name for it, while the queue is used.
    async fn index_vt(&mut self, queue: &QueueName, table: &str) -> Result<()> {
        // Left of an attempt that was interrupted.
        self.drop_unfinished(table).await?;
        if !self.indexes_on(table, "vt").await?.is_empty() {
            return Ok(());
        }
        let folded: String = format!("q_{}", queue.as_str()).to_lowercase();
        let name = format!("{folded}_vt_idx").replace('"', "\"\"");
        // It waits for transactions that are older than it, and blocks nobody meanwhile.
        self.set_lock_timeout("60s").await?;
        let built = self.change(format!("CREATE INDEX CONCURRENTLY \"{name}\" ON {table} (vt)")).await;
        let usual = self.set_lock_timeout("2s").await;
        let Err(failed) = built else { return usual };
        let dropped = self.drop_unfinished(table).await;
        if failed.kind() != Kind::QueueBusy {
            return Err(failed);
        }
        // Whoever was waited for may use the table, and then it cannot be dropped either.
        let left = match dropped {
            Ok(()) => "nothing was applied",
            Err(_) => "an unfinished index is left, which the next call removes",
        };
        Err(failed.reworded(Kind::QueueBusy, format!("a lock was not free within 60 s; {left}")))
    }

    /// Drops the indexes on `vt` that were not built to their end.
    async fn drop_unfinished(&mut self, table: &str) -> Result<()> {
        for (index, is_valid) in self.indexes_on(table, "vt").await? {
            if !is_valid {
                self.change(format!("DROP INDEX {index}")).await?;
            }
        }
        Ok(())
    }

    /// The tables whose settings make the layout, quoted; with the one that pg_partman copies for new partitions.
    async fn tables_of(&mut self, queue: &QueueName, found: &Queue, table: &str) -> Result<Vec<String>> {
        let rows = self.query(&TABLES, &[(&table, Type::TEXT)]).await?;
        let mut tables: Vec<String> = rows.iter().map(|row| column(row, "name")).collect::<Result<_>>()?;
        if found.kind != QueueKind::Partitioned {
            return Ok(tables);
        }
        let rows = self.query(&PARTMAN_SCHEMA, &[]).await?;
        if let Some(schema) = rows.first() {
            let mut template = Statement::new("layout_template", Effect::Reads, TEMPLATE);
            template.text = TEMPLATE.replace("{p}", column(schema, "name")?).into();
            let rows = self.query(&template, &[(&queue.as_str(), Type::TEXT)]).await?;
            if let Some(row) = rows.first() {
                tables.push(column(row, "name")?);
            }
        }
        Ok(tables)
    }

    /// The indexes of a table that begin with a column, quoted, and whether each can be used.
    async fn indexes_on(&mut self, table: &str, first_column: &str) -> Result<Vec<(String, bool)>> {
        let rows = self.query(&INDEXES, &[(&table, Type::TEXT), (&first_column, Type::TEXT)]).await?;
        rows.iter().map(|row| Ok((column(row, "name")?, column(row, "is_valid")?))).collect()
    }

    /// Runs a change of a table, whose names are quoted.
    async fn change(&mut self, text: String) -> Result<()> {
        let mut statement = Statement::new("change_layout", Effect::Repeatable, "").unlimited();
        statement.text = format!("-- pgmq-grpc: change_layout\n{text}").into();
        self.query(&statement, &[]).await.map(drop)
    }
}
