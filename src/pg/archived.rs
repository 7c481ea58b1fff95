//! Messages out of an archive: deleted for good, or back into a queue.

use tokio_postgres::types::Type;

use super::database::{Connection, Parameter};
use super::row::column;
use super::statement::{Effect, Statement};
use crate::domain::{Error, Kind, QueueName, Result, Timestamp};

/// The bytes of stored bodies after which one statement replays no further message.
const REPLAY_BYTES: i64 = 8 << 20;

/// The archived messages of `$1` ids and `$2` moments of archiving, locked; others have locked the rest. The ids of a
/// partitioned archive need not be unique. The moments are compared so that no index is used for them: thousands of messages
/// can have the same.
macro_rules! held {
    () => {
        "held AS MATERIALIZED (SELECT a.msg_id, a.archived_at, coalesce(pg_column_size(a.message), 0)::bigint AS stored_bytes
  FROM unnest($1::bigint[], $2::timestamptz[]) AS w(msg_id, archived_at)
  JOIN {a} AS a ON a.msg_id = w.msg_id AND a.archived_at IS NOT DISTINCT FROM w.archived_at
  ORDER BY a.msg_id FOR UPDATE OF a SKIP LOCKED)"
    };
}

/// The ids of those that were locked for it and are not gone: a trigger swallows their delete. Nobody else can have
/// touched them since.
macro_rules! not_gone {
    ($chosen:literal) => {
        concat!(
            "(SELECT coalesce(array_agg(r.msg_id ORDER BY r.msg_id), '{}') FROM (SELECT c.msg_id, c.archived_at FROM ",
            $chosen,
            " AS c
    EXCEPT SELECT g.msg_id, g.archived_at FROM gone AS g) AS r) AS refused"
        )
    };
}

const DELETE_ARCHIVED: Statement = Statement::new(
    "delete_archived",
    Effect::Repeatable,
    concat!(
        "-- pgmq-grpc: delete_archived\nWITH ",
        held!(),
        ", gone AS (DELETE FROM {a} AS a USING held AS h
  WHERE a.msg_id = h.msg_id AND a.archived_at IS NOT DISTINCT FROM h.archived_at RETURNING a.msg_id, a.archived_at)
SELECT count(*) AS taken, NULL::bigint AS last_tried, ",
        not_gone!("held"),
        " FROM gone"
    ),
);

/// Inserts as `pgmq.send` does, in the order of the old ids, and keeps the headers. A new id and no reads: with the old
/// ones, old receipts would name the message again. `{q}` comes first, because `pgmq.drop_queue` locks a queue's table
/// before its archive, and the locks of tables are taken in the order in which a statement names them. `$3` bytes. Where a
/// trigger of the user's swallows some of them, the division by zero takes back the others.
const REPLAY_ARCHIVED: Statement = Statement::new(
    "replay_archived",
    Effect::Writes,
    concat!(
        "-- pgmq-grpc: replay_archived\nWITH locked_first AS (SELECT FROM {q} LIMIT 0),\n",
        held!(),
        ", weighed AS (SELECT h.msg_id, h.archived_at,
    sum(h.stored_bytes) OVER (ORDER BY h.msg_id ROWS UNBOUNDED PRECEDING) - h.stored_bytes AS bytes_before FROM held AS h),
chosen AS (SELECT w.msg_id, w.archived_at FROM weighed AS w WHERE w.bytes_before < $3::bigint),
gone AS (DELETE FROM {a} AS a USING chosen AS c
  WHERE a.msg_id = c.msg_id AND a.archived_at IS NOT DISTINCT FROM c.archived_at RETURNING a.msg_id, a.archived_at, a.message, a.headers),
sent AS (INSERT INTO {q} (vt, message, headers)
  SELECT clock_timestamp(), g.message, g.headers FROM gone AS g ORDER BY g.msg_id RETURNING msg_id)
SELECT count(*) AS taken,
  CASE WHEN (SELECT count(*) FROM chosen) < (SELECT count(*) FROM held) THEN (SELECT max(c.msg_id) FROM chosen AS c) END
    AS last_tried, ",
        not_gone!("chosen"),
        ",
  1 / (count(*) = (SELECT count(*) FROM gone))::integer AS all_or_none FROM sent"
    ),
);

/// An archived message: its id, and when it was archived.
pub type ArchivedKey = (i64, Timestamp);

/// What became of archived messages that were to be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TakenStep {
    /// So many were taken; the others are gone, locked by somebody, or refused.
    pub count: usize,
    /// The ids of those whose delete a trigger swallows.
    pub refused: Vec<i64>,
    /// So many of the first were tried; there was no room for the others.
    pub tried: usize,
}

impl Connection {
    /// Deletes messages from an archive, which the caller has named by their ids, or not. Those that others have locked are
    /// passed over.
    ///
    /// # Errors
    /// `QueueNotFound`; `OutcomeUnknownRetrySafe` if the connection was lost meanwhile, and `OutcomeUnknown` if another try
    /// could mean other messages.
    pub async fn delete_archived(
        &mut self,
        queue: &QueueName,
        keys: &[ArchivedKey],
        named: bool,
    ) -> Result<TakenStep> {
        let table = self.table(queue).await?;
        let mut statement = DELETE_ARCHIVED.on(&table);
        // After a crash, an unlogged queue gives its ids again.
        if named && table.unlogged {
            statement.effect = Effect::Writes;
        }
        let taken = self.take_archived(&statement, keys, None).await;
        taken.map_err(|error| self.missing(queue, error))
    }

    /// Moves messages from an archive into a queue, where they are new and visible at once: as many of the first as are
    /// moved in one step, at least one. Those that others have locked are passed over.
    ///
    /// # Errors
    /// `QueueNotFound`, naming the queue that is missing; `OutcomeUnknown` if the connection was lost meanwhile, or its
    /// retry-safe form if it is `repeatable`.
    pub async fn replay_archived(
        &mut self,
        queue: &QueueName,
        target: &QueueName,
        keys: &[ArchivedKey],
        repeatable: bool,
    ) -> Result<TakenStep> {
        let source = self.table(queue).await?;
        let table = self.table(target).await?;
        let mut statement = REPLAY_ARCHIVED.on_pair(&table, &source.archive);
        // After a crash, an unlogged queue gives its ids again.
        if repeatable && !source.unlogged {
            statement.effect = Effect::Repeatable;
        }
        match self.take_archived(&statement, keys, Some(&REPLAY_BYTES)).await {
            Err(error) if error.kind() == Kind::QueueNotFound => {
                self.require_queue(target).await?;
                self.require_queue(queue).await?;
                Err(self.missing(target, error))
            }
            taken => taken,
        }
    }

    /// Checks that a queue is there.
    ///
    /// # Errors
    /// `QueueNotFound`.
    pub async fn require_queue(&mut self, queue: &QueueName) -> Result<()> {
        let found = self.get_queue(queue).await;
        found.map(drop).map_err(|error| self.missing(queue, error))
    }

    async fn take_archived(
        &mut self,
        statement: &Statement,
        keys: &[ArchivedKey],
        bytes: Option<&i64>,
    ) -> Result<TakenStep> {
        let (msg_ids, archived_at): (Vec<i64>, Vec<Timestamp>) = keys.iter().copied().unzip();
        let mut parameters: Vec<Parameter<'_>> =
            vec![(&msg_ids, Type::INT8_ARRAY), (&archived_at, Type::TIMESTAMPTZ_ARRAY)];
        if let Some(bytes) = bytes {
            parameters.push((bytes, Type::INT8));
        }
        let rows = self.query(statement, &parameters).await?;
        let row = rows.first().ok_or_else(|| Error::internal("a count gave no row"))?;
        let last_tried: Option<i64> = column(row, "last_tried")?;
        let tried = last_tried.map_or(keys.len(), |last| keys.partition_point(|&(msg_id, _)| msg_id <= last));
        let count = usize::try_from(column::<i64>(row, "taken")?).unwrap_or(0);
        Ok(TakenStep { count, refused: column(row, "refused")?, tried: tried.max(1) })
    }
}
