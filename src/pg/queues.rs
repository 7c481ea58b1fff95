//! Queues themselves: made, listed, emptied, dropped.

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::database::{Connection, Parameter};
use super::layout::PARTMAN_SCHEMA;
use super::policies::{policy_columns, policy_of, policy_of_queue};
use super::row::column;
use super::statement::{Effect, Statement};
use super::version::Feature;
use crate::domain::page::{Page, Paged};
use crate::domain::queue::Partitioning;
use crate::domain::{
    DescribedQueue, Error, Invalid, Kind, Policy, Queue, QueueKind, QueueLayout, QueueName, Result,
};

/// What a policy takes in a reply at most, beside its queue.
const POLICY_BYTES: usize = 256;

/// A queue's row. The table's name is formed here and not by `pgmq.format_table_name`, which raises for a name that
/// somebody wrote into `pgmq.meta` by hand, and would so break the whole list.
macro_rules! queue_columns {
    () => {
        "SELECT m.queue_name::text AS name, m.is_partitioned, m.is_unlogged, m.created_at,
  coalesce(to_regclass(format('pgmq.%I', left(lower('q_' || m.queue_name), 63)))::oid::bigint, 0) AS id,
  (SELECT NOT EXISTS (SELECT FROM pg_index AS i JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
      WHERE i.indrelid = c.oid AND a.attname = 'vt' AND i.indisvalid)
    AND (SELECT bool_and(EXISTS (SELECT FROM unnest(l.reloptions) AS o WHERE o LIKE 'fillfactor=%' AND o <> 'fillfactor=100'))
      FROM pg_class AS l WHERE l.relkind = 'r'
        AND (l.oid = c.oid OR l.oid IN (SELECT h.inhrelid FROM pg_inherits AS h WHERE h.inhparent = c.oid)))
   FROM pg_class AS c WHERE c.oid = to_regclass(format('pgmq.%I', left(lower('q_' || m.queue_name), 63)))) AS is_tuned,
  to_regclass(format('pgmq.%I', left(lower('q_' || m.queue_name), 63))) IS NOT NULL AS has_table"
    };
}

const GET_QUEUE: Statement = Statement::new(
    "get_queue",
    Effect::Reads,
    concat!(
        "-- pgmq-grpc: get_queue\n",
        queue_columns!(),
        "\nFROM pgmq.meta AS m WHERE m.queue_name = $1::text"
    ),
);

/// The same with the policy.
const DESCRIBE_QUEUE: Statement = Statement::new(
    "describe_queue",
    Effect::Reads,
    concat!(
        "-- pgmq-grpc: describe_queue\n",
        queue_columns!(),
        ", ",
        policy_columns!(),
        "\nFROM pgmq.meta AS m LEFT JOIN pgmq_grpc.queue_policy AS p ON ",
        policy_of_queue!(),
        "\nWHERE m.queue_name = $1::text"
    ),
);

/// `$1` prefix, `$2` last name of the page before, `$3` rows.
const LIST_QUEUES: Statement = Statement::new(
    "list_queues",
    Effect::Reads,
    concat!(
        "-- pgmq-grpc: list_queues\n",
        queue_columns!(),
        "\nFROM pgmq.meta AS m
WHERE starts_with(m.queue_name, $1::text) AND ($2::text IS NULL OR m.queue_name COLLATE \"C\" > $2::text)
ORDER BY m.queue_name COLLATE \"C\" LIMIT $3::bigint"
    ),
);

/// The same with their policies; `$4` the dead-letter queue that they name, or NULL.
const DESCRIBE_QUEUES: Statement = Statement::new(
    "describe_queues",
    Effect::Reads,
    concat!(
        "-- pgmq-grpc: describe_queues\n",
        queue_columns!(),
        ", ",
        policy_columns!(),
        "\nFROM pgmq.meta AS m LEFT JOIN pgmq_grpc.queue_policy AS p ON ",
        policy_of_queue!(),
        "
WHERE starts_with(m.queue_name, $1::text) AND ($2::text IS NULL OR m.queue_name COLLATE \"C\" > $2::text)
  AND ($4::text IS NULL OR p.dead_letter_queue = $4::text COLLATE \"C\")
ORDER BY m.queue_name COLLATE \"C\" LIMIT $3::bigint"
    ),
);

/// The lock under which pgmq itself makes and drops queues (`pgmq.acquire_queue_lock`, which 1.5 lacks).
const LOCK_QUEUE: Statement = Statement::new(
    "lock_queue",
    Effect::Reads,
    "-- pgmq-grpc: lock_queue
SELECT pg_advisory_xact_lock(hashtext('pgmq.queue_' || $1::text))",
);

/// Another queue whose name differs in case only, and which therefore has the same table.
const FIND_TWIN: Statement = Statement::new(
    "find_twin",
    Effect::Reads,
    "-- pgmq-grpc: find_twin
SELECT m.queue_name::text AS name FROM pgmq.meta AS m WHERE lower(m.queue_name) = $1::text AND m.queue_name <> $1::text",
);

const CREATE: Statement = Statement::new(
    "create",
    Effect::Repeatable,
    "-- pgmq-grpc: create\nSELECT pgmq.create(queue_name => $1::text)",
);

const CREATE_UNLOGGED: Statement = Statement::new(
    "create_unlogged",
    Effect::Repeatable,
    "-- pgmq-grpc: create_unlogged\nSELECT pgmq.create_unlogged(queue_name => $1::text)",
);

const CREATE_PARTITIONED: Statement = Statement::new(
    "create_partitioned",
    Effect::Repeatable,
    "-- pgmq-grpc: create_partitioned
SELECT pgmq.create_partitioned(queue_name => $1::text, partition_interval => $2::text, retention_interval => $3::text,
  premake => $4::integer)",
);

const CREATE_PARTITIONED_WITHOUT_PREMAKE: Statement = Statement::new(
    "create_partitioned",
    Effect::Repeatable,
    "-- pgmq-grpc: create_partitioned
SELECT pgmq.create_partitioned(queue_name => $1::text, partition_interval => $2::text, retention_interval => $3::text)",
);

/// Whether a queue is partitioned as asked; spans are compared as spans. `{p}` is pg_partman's schema.
const SAME_PARTITIONING: &str = "-- pgmq-grpc: same_partitioning
SELECT CASE WHEN $2::text ~ '^[0-9]+$' OR c.partition_interval ~ '^[0-9]+$'
    THEN c.partition_interval = $2::text AND c.retention = $3::text
    ELSE c.partition_interval::interval = $2::interval AND c.retention::interval = $3::interval END
  AND c.premake = $4::integer AS same
FROM {p}.part_config AS c WHERE c.parent_table = 'pgmq.' || lower('q_' || $1::text)";

const DROP: Statement = Statement::new(
    "drop_queue",
    Effect::Writes,
    "-- pgmq-grpc: drop_queue
SELECT pgmq.drop_queue(queue_name => m.queue_name::text) AS dropped FROM pgmq.meta AS m WHERE m.queue_name = $1::text",
);

/// Whether a queue has an archive; of a name that somebody wrote into `pgmq.meta` by hand, too.
const HAS_ARCHIVE: Statement = Statement::new(
    "has_archive",
    Effect::Reads,
    "-- pgmq-grpc: has_archive
SELECT to_regclass(format('pgmq.%I', left(lower('a_' || $1::text), 63))) IS NOT NULL AS has_archive",
);

/// What is left of a queue that has neither a table nor an archive.
const FORGET: Statement = Statement::new(
    "forget_queue",
    Effect::Repeatable,
    "-- pgmq-grpc: forget_queue\nDELETE FROM pgmq.meta AS m WHERE m.queue_name = $1::text RETURNING m.queue_name",
);

const LOCK_TABLE: Statement = Statement::new(
    "lock_table",
    Effect::Reads,
    "-- pgmq-grpc: lock_table
LOCK TABLE {q} IN ACCESS EXCLUSIVE MODE",
);

const PURGE: Statement = Statement::new(
    "purge_queue",
    Effect::Writes,
    "-- pgmq-grpc: purge_queue
SELECT pgmq.purge_queue(queue_name => m.queue_name::text) AS purged FROM pgmq.meta AS m WHERE m.queue_name = $1::text",
);

impl Connection {
    /// A queue as `pgmq.meta` lists it now.
    ///
    /// # Errors
    /// `QueueNotFound`.
    pub async fn get_queue(&mut self, queue: &QueueName) -> Result<Queue> {
        self.find_queue(queue).await?.ok_or_else(|| Error::queue_not_found(queue.as_str()))
    }

    /// A queue as `pgmq.meta` lists it now, if it does.
    ///
    /// # Errors
    /// As any statement that reads.
    pub async fn find_queue(&mut self, queue: &QueueName) -> Result<Option<Queue>> {
        let rows = self.query(&GET_QUEUE, &[(&queue.as_str(), Type::TEXT)]).await?;
        rows.first().map(queue_of).transpose()
    }

    /// A queue as `pgmq.meta` lists it now, with its policy, if it does. Where the servers' own schema is missing there are
    /// no policies.
    ///
    /// # Errors
    /// As any statement that reads.
    pub async fn describe_queue(&mut self, queue: &QueueName) -> Result<Option<DescribedQueue>> {
        if !self.can_have_policies().await? {
            let queue = self.find_queue(queue).await?;
            return Ok(queue.map(without_policy));
        }
        let rows = self.query(&DESCRIBE_QUEUE, &[(&queue.as_str(), Type::TEXT)]).await?;
        rows.first().map(described).transpose()
    }

    /// A page of the queues whose names begin with a prefix, and whose policies name a dead-letter queue if one is given, by
    /// name (`pgmq.list_queues`).
    ///
    /// # Errors
    /// As any statement that reads.
    pub async fn describe_queues(
        &mut self,
        prefix: &str,
        dead_letter_queue: Option<&QueueName>,
        page: &Page,
    ) -> Result<Paged<DescribedQueue>> {
        let dead_letter_queue = dead_letter_queue.map(QueueName::as_str);
        if !self.can_have_policies().await? {
            if dead_letter_queue.is_some() {
                return Ok(Paged { items: Vec::new(), next_page_token: String::new() });
            }
            let Paged { items, next_page_token } = self.list_queues(prefix, page).await?;
            return Ok(Paged { items: items.into_iter().map(without_policy).collect(), next_page_token });
        }
        let parameters = [
            (&prefix as _, Type::TEXT),
            (&page.after(0) as _, Type::TEXT),
            (&page.rows() as _, Type::INT8),
            (&dead_letter_queue as _, Type::TEXT),
        ];
        let rows = self.query(&DESCRIBE_QUEUES, &parameters).await?;
        let queues = rows.iter().map(described).collect::<Result<Vec<_>>>()?;
        let bytes = |described: &DescribedQueue| match described.policy.is_empty() {
            true => described.queue.name.len(),
            false => described.queue.name.len() + POLICY_BYTES,
        };
        Ok(page.cut(queues, bytes, |described| vec![described.queue.name.clone()]))
    }

    /// Whether the schema is there in which policies stand, by a look at it if nobody has looked before.
    async fn can_have_policies(&self) -> Result<bool> {
        match self.require_schema().await {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.kind(), Kind::PgmqNotInstalled | Kind::PermissionDenied) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// A page of the queues whose names begin with a prefix, by name (`pgmq.list_queues`).
    ///
    /// # Errors
    /// As any statement that reads.
    pub async fn list_queues(&mut self, prefix: &str, page: &Page) -> Result<Paged<Queue>> {
        let parameters =
            [(&prefix as _, Type::TEXT), (&page.after(0) as _, Type::TEXT), (&page.rows() as _, Type::INT8)];
        let rows = self.query(&LIST_QUEUES, &parameters).await?;
        let queues = rows.iter().map(queue_of).collect::<Result<Vec<_>>>()?;
        Ok(page.cut(queues, |queue| queue.name.len(), |queue| vec![queue.name.clone()]))
    }

    /// Waits until nobody else makes or drops a queue of this name; needs an open transaction.
    ///
    /// # Errors
    /// `QueueBusy` after 2 s.
    pub async fn lock_queue(&mut self, queue: &QueueName) -> Result<()> {
        let locked = self.query(&LOCK_QUEUE, &[(&queue.as_str(), Type::TEXT)]).await;
        locked.map(drop).map_err(|error| self.missing(queue, error))
    }

    /// Makes a queue (`pgmq.create`, `pgmq.create_unlogged`, `pgmq.create_partitioned`).
    ///
    /// # Errors
    /// `QueueAlreadyExists` if another name would share its table; `PartmanNotInstalled`; `PgmqVersionUnsupported` for
    /// a `premake` that this pgmq cannot take; `InvalidPartitioning`.
    pub async fn create_queue(
        &mut self,
        queue: &QueueName,
        kind: QueueKind,
        partitioning: &Partitioning,
    ) -> Result<()> {
        let name: [Parameter<'_>; 1] = [(&queue.as_str(), Type::TEXT)];
        if let Some(twin) = self.query(&FIND_TWIN, &name).await?.first() {
            let twin: &str = column(twin, "name")?;
            return Err(Error::new(
                Kind::QueueAlreadyExists,
                format!(
                    "queue {twin:?} exists, and its name differs in case only, so both would share one table"
                ),
            )
            .with("queue", twin));
        }
        match kind {
            QueueKind::Standard => self.query(&CREATE, &name).await.map(drop),
            QueueKind::Unlogged => self.query(&CREATE_UNLOGGED, &name).await.map(drop),
            QueueKind::Partitioned => self.create_partitioned(queue, partitioning).await,
        }
    }

    async fn create_partitioned(&mut self, queue: &QueueName, partitioning: &Partitioning) -> Result<()> {
        let installation = self.installation().await?;
        if !installation.partman {
            return Err(partman_not_installed());
        }
        let name = queue.as_str();
        let mut parameters: Vec<Parameter<'_>> = vec![
            (&name as _, Type::TEXT),
            (&partitioning.interval as _, Type::TEXT),
            (&partitioning.retention as _, Type::TEXT),
        ];
        let statement = if installation.has(Feature::Premake) {
            parameters.push((&partitioning.premake as _, Type::INT4));
            CREATE_PARTITIONED
        } else if partitioning.premake == Partitioning::DEFAULT_PREMAKE {
            CREATE_PARTITIONED_WITHOUT_PREMAKE
        } else {
            return installation.require(Feature::Premake);
        };
        self.query(&statement, &parameters).await.map(drop).map_err(partitioning_refused)
    }

    /// Whether an existing partitioned queue has these settings.
    ///
    /// # Errors
    /// As any statement that reads.
    pub async fn is_partitioned_as(
        &mut self,
        queue: &QueueName,
        partitioning: &Partitioning,
    ) -> Result<bool> {
        let rows = self.query(&PARTMAN_SCHEMA, &[]).await?;
        let Some(schema) = rows.first() else {
            return Err(partman_not_installed());
        };
        let schema: &str = column(schema, "name")?;
        let mut statement = Statement::new("same_partitioning", Effect::Reads, SAME_PARTITIONING);
        statement.text = SAME_PARTITIONING.replace("{p}", schema).into();
        let name = queue.as_str();
        let parameters = [
            (&name as _, Type::TEXT),
            (&partitioning.interval as _, Type::TEXT),
            (&partitioning.retention as _, Type::TEXT),
            (&partitioning.premake as _, Type::INT4),
        ];
        let rows = self.query(&statement, &parameters).await.map_err(partitioning_refused)?;
        rows.first().map_or(Ok(false), |row| Ok(column::<Option<bool>>(row, "same")?.unwrap_or(false)))
    }

    /// Drops a queue with its archive and bindings (`pgmq.drop_queue`).
    ///
    /// # Errors
    /// `QueueNotFound`; `QueueBusy` if a lock was not free within 2 s.
    pub async fn drop_queue(&mut self, queue: &QueueName) -> Result<()> {
        let name: [Parameter<'_>; 1] = [(&queue.as_str(), Type::TEXT)];
        self.mark().await?;
        let dropped = match self.query(&DROP, &name).await {
            Ok(rows) => rows.first().map(|row| column(row, "dropped")).transpose()?,
            // So pgmq 1.5 says that the queue's table is gone.
            Err(error) if error.kind() == Kind::QueueNotFound => {
                self.return_to_mark().await?;
                Some(false)
            }
            Err(error) => return Err(self.missing(queue, error)),
        };
        self.catalog().forget(queue);
        match dropped {
            None => return Err(Error::queue_not_found(queue.as_str())),
            Some(true) => {}
            Some(false) => {
                self.drop_what_is_left(queue).await.map_err(|error| self.missing(queue, error))?;
            }
        }
        self.remove_keys_of_dropped(queue).await;
        Ok(())
    }

    /// Drops a queue whose table somebody has dropped already. pgmq takes such a queue for none, and leaves its archive to the
    /// next one of that name, whose ids begin anew; so it gets a table once more.
    async fn drop_what_is_left(&mut self, queue: &QueueName) -> Result<()> {
        let name: [Parameter<'_>; 1] = [(&queue.as_str(), Type::TEXT)];
        let rows = self.query(&HAS_ARCHIVE, &name).await?;
        if rows.first().map_or(Ok(false), |row| column(row, "has_archive"))? {
            self.query(&CREATE, &name).await?;
            self.query(&DROP, &name).await?;
        } else {
            self.query(&FORGET, &name).await?;
        }
        Ok(())
    }

    /// Deletes all messages of a queue and tells how many (`pgmq.purge_queue`), in the open transaction.
    ///
    /// # Errors
    /// `QueueNotFound`; `QueueBusy` if the table's lock was not free within 2 s.
    pub async fn purge_queue(&mut self, queue: &QueueName) -> Result<i64> {
        let table = self.table(queue).await?;
        // `pgmq.purge_queue` counts and then truncates: two at once would each wait for the other's weaker lock.
        let locked = self.query(&LOCK_TABLE.on(&table), &[]).await;
        locked.map_err(|error| self.missing(queue, error))?;
        let purged = self.query(&PURGE, &[(&queue.as_str(), Type::TEXT)]).await;
        let rows = purged.map_err(|error| self.missing(queue, error))?;
        let row = rows.first().ok_or_else(|| Error::queue_not_found(queue.as_str()))?;
        column(row, "purged")
    }
}

/// The error of everything that needs pg_partman where it is missing.
pub(super) fn partman_not_installed() -> Error {
    Error::new(
        Kind::PartmanNotInstalled,
        "partitions need the extension pg_partman; install it in this database (CREATE EXTENSION pg_partman)",
    )
}

/// pg_partman reads intervals only when it makes the partitions; what it cannot read is the caller's.
pub(super) fn partitioning_refused(error: Error) -> Error {
    if matches!(error.kind(), Kind::RefusedByDatabase | Kind::Internal) {
        let refused =
            Invalid::new(Kind::InvalidPartitioning, "pg_partman refused the interval or the retention");
        return Error::invalid(vec![refused.at("partitioning".to_owned())]).caused_by(error);
    }
    error
}

fn without_policy(queue: Queue) -> DescribedQueue {
    DescribedQueue { queue, policy: Policy::default() }
}

fn described(row: &Row) -> Result<DescribedQueue> {
    Ok(DescribedQueue { queue: queue_of(row)?, policy: policy_of(row)? })
}

fn queue_of(row: &Row) -> Result<Queue> {
    let kind = match (column(row, "is_partitioned")?, column(row, "is_unlogged")?) {
        (true, _) => QueueKind::Partitioned,
        (false, true) => QueueKind::Unlogged,
        (false, false) => QueueKind::Standard,
    };
    let layout = match (column(row, "has_table")?, column::<Option<bool>>(row, "is_tuned")?) {
        (false, _) => None,
        (true, Some(true)) => Some(QueueLayout::Tuned),
        (true, _) => Some(QueueLayout::Pgmq),
    };
    Ok(Queue {
        id: column(row, "id")?,
        name: column(row, "name")?,
        kind,
        created_at: column(row, "created_at")?,
        layout,
    })
}
