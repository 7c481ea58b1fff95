//! Messages out of a dead-letter queue, back to where they came from.

use tokio_postgres::types::Type;

use super::database::{Connection, Parameter};
use super::row::column;
use super::statement::{Effect, Statement};
use crate::domain::{Error, Kind, QueueName, Result, Timestamp};

/// The most rows that one search looks at: what it passes over on the way to a match would otherwise have no bound.
const LOOK: i64 = 20_000;

/// The bytes of stored bodies and headers after which one statement moves no further message.
const STEP_BYTES: i64 = 8 << 20;

/// The visible messages of a dead-letter queue that can be moved, by id: where the caller says whereto (`$4`), all; else
/// those whose header names another queue (`$5` is this one) that is there. `$1` the id after which, `$2` rows to look at or
/// ids, `$3` messages. Also how far was looked if it was not to the end, and the first queue that is missing.
macro_rules! find {
    ($name:literal, $looked_at:literal, $looked_to:literal) => {
        Statement::new(
            $name,
            Effect::Reads,
            concat!(
                "-- pgmq-grpc: ",
                $name,
                "
WITH named AS MATERIALIZED (SELECT s.msg_id, s.enqueued_at,
    CASE WHEN jsonb_typeof(s.headers #> '{x-pgmq-dead-letter,queue}') = 'string'
      THEN s.headers #>> '{x-pgmq-dead-letter,queue}' END AS source
  FROM (SELECT q.msg_id, q.enqueued_at, q.vt, q.headers FROM {q} AS q WHERE q.msg_id > $1::bigint AND ",
                $looked_at,
                ") AS s WHERE s.vt <= now()),
judged AS MATERIALIZED (SELECT n.msg_id, n.enqueued_at, n.source,
    n.source IN (SELECT m.queue_name::text FROM pgmq.meta AS m) AS is_there
  FROM named AS n WHERE $4::boolean OR octet_length(n.source) <= 255 AND lower(n.source) <> lower($5::text)),
matching AS MATERIALIZED (SELECT j.msg_id, j.enqueued_at, j.source FROM judged AS j WHERE $4 OR j.is_there
  ORDER BY j.msg_id LIMIT $3::bigint)
SELECT looked.looked_to, looked.missing_queue, m.msg_id, m.enqueued_at, m.source
FROM (SELECT ",
                $looked_to,
                " AS looked_to,
    (SELECT j.source FROM judged AS j WHERE NOT $4 AND NOT j.is_there ORDER BY j.msg_id LIMIT 1) AS missing_queue) AS looked
  LEFT JOIN matching AS m ON true ORDER BY m.msg_id"
            ),
        )
    };
}

const FIND: Statement = find!(
    "find_dead_letters",
    "true ORDER BY q.msg_id LIMIT $2::bigint",
    "CASE WHEN (SELECT count(*) FROM matching) < $3 THEN (SELECT q.msg_id FROM {q} AS q
    WHERE q.msg_id > $1 ORDER BY q.msg_id OFFSET $2 - 1 LIMIT 1) END"
);

const FIND_BY_ID: Statement =
    find!("find_dead_letters_by_id", "q.msg_id = ANY ($2::bigint[])", "NULL::bigint");

/// Moves messages from `{q}` into `{a}`, in the order of their old ids, as `pgmq.send` would store them. `$1` ids, `$2` bytes,
/// `$3` moments. What a consumer has read meanwhile is left, and so is what somebody has locked. New ids and no reads: with
/// the old ones, old receipts would name the message again. The target is locked first, in the order in which messages
/// are moved into a dead-letter queue: the locks of tables are taken in the order in which a statement names them. Where a
/// trigger of the user's swallows some of them, the division by zero takes back the others.
const REDRIVE: Statement = Statement::new(
    "redrive",
    Effect::Writes,
    "-- pgmq-grpc: redrive
WITH locked_first AS (SELECT FROM {a} LIMIT 0),
held AS MATERIALIZED (SELECT q.msg_id, q.enqueued_at,
    (coalesce(pg_column_size(q.message), 0) + coalesce(pg_column_size(q.headers), 0))::bigint AS stored_bytes
  FROM unnest($1::bigint[], $3::timestamptz[]) AS w(msg_id, enqueued_at)
  JOIN {q} AS q ON q.msg_id = w.msg_id AND q.enqueued_at = w.enqueued_at{prune}
  WHERE q.vt <= clock_timestamp() ORDER BY q.msg_id FOR UPDATE OF q SKIP LOCKED),
weighed AS (SELECT h.msg_id, h.enqueued_at,
    sum(h.stored_bytes) OVER (ORDER BY h.msg_id ROWS UNBOUNDED PRECEDING) - h.stored_bytes AS bytes_before FROM held AS h),
chosen AS (SELECT w.msg_id, w.enqueued_at FROM weighed AS w WHERE w.bytes_before < $2::bigint),
gone AS (DELETE FROM {q} AS q USING chosen AS c
  WHERE q.msg_id = c.msg_id AND q.enqueued_at = c.enqueued_at RETURNING q.msg_id, q.enqueued_at, q.message, q.headers),
sent AS (INSERT INTO {a} (vt, message, headers)
  SELECT clock_timestamp(), g.message, CASE WHEN jsonb_typeof(g.headers) = 'object' AND g.headers ? 'x-pgmq-dead-letter'
    THEN nullif(g.headers - 'x-pgmq-dead-letter', '{}') ELSE g.headers END
  FROM gone AS g ORDER BY g.msg_id RETURNING msg_id)
SELECT coalesce((SELECT array_agg(g.msg_id) FROM gone AS g), '{}') AS moved,
  CASE WHEN (SELECT count(*) FROM chosen) < (SELECT count(*) FROM held) THEN (SELECT max(c.msg_id) FROM chosen AS c) END
    AS last_tried,
  (SELECT coalesce(array_agg(r.msg_id ORDER BY r.msg_id), '{}') FROM (SELECT c.msg_id, c.enqueued_at FROM chosen AS c
    EXCEPT SELECT g.msg_id, g.enqueued_at FROM gone AS g) AS r) AS refused,
  1 / (count(*) = (SELECT count(*) FROM gone))::integer AS all_or_none FROM sent",
);

/// A message of a dead-letter queue: its id, and when it came.
pub type DeadLetterKey = (i64, Timestamp);

/// What a search in a dead-letter queue has found.
#[derive(Debug)]
pub struct FoundDeadLetters {
    /// Messages that can be moved, by id, and whereto.
    pub messages: Vec<(DeadLetterKey, QueueName)>,
    /// The id after which another search goes on; none at the end.
    pub next_after: Option<i64>,
    /// The first queue that a message came from and that is not there.
    pub missing_queue: Option<String>,
}

/// What became of messages that were to be moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedriveStep {
    /// The old ids of those that were moved; the others are gone, read, locked by somebody, or refused.
    pub moved: Vec<i64>,
    /// The ids of those whose delete a trigger swallows.
    pub refused: Vec<i64>,
    /// So many of the first were tried; there was no room for the others.
    pub tried: usize,
}

impl Connection {
    /// The first visible messages of a dead-letter queue after an id, of certain ids if some are given, that can be moved: to
    /// the target, or to where they came from. They may be fewer than are wanted, and none, although more are there: then
    /// the search goes on where this one ended.
    ///
    /// # Errors
    /// `QueueNotFound`.
    pub async fn find_dead_letters(
        &mut self,
        dead_letter_queue: &QueueName,
        target: Option<&QueueName>,
        msg_ids: Option<&[i64]>,
        after: i64,
        wanted: usize,
    ) -> Result<FoundDeadLetters> {
        let table = self.table(dead_letter_queue).await?;
        let limit = i64::try_from(wanted).unwrap_or(i64::MAX);
        let (has_target, name) = (target.is_some(), dead_letter_queue.as_str());
        let (statement, looked_at): (_, Parameter<'_>) = match &msg_ids {
            Some(msg_ids) => (FIND_BY_ID, (msg_ids, Type::INT8_ARRAY)),
            None => (FIND, (&LOOK, Type::INT8)),
        };
        let parameters: [Parameter<'_>; 5] = [
            (&after, Type::INT8),
            looked_at,
            (&limit, Type::INT8),
            (&has_target, Type::BOOL),
            (&name, Type::TEXT),
        ];
        let rows = self
            .query(&statement.on(&table), &parameters)
            .await
            .map_err(|error| self.missing(dead_letter_queue, error))?;
        let first = rows.first().ok_or_else(|| Error::internal("a search gave no row"))?;
        let mut found = FoundDeadLetters {
            messages: Vec::new(),
            next_after: column(first, "looked_to")?,
            missing_queue: column(first, "missing_queue")?,
        };
        for row in &rows {
            let Some(msg_id) = column::<Option<i64>>(row, "msg_id")? else {
                break;
            };
            if rows.len() >= wanted {
                found.next_after = Some(msg_id);
            }
            let key = (msg_id, column(row, "enqueued_at")?);
            match target {
                Some(target) => found.messages.push((key, target.clone())),
                // Somebody may have listed a queue that pgmq itself cannot address.
                None => match QueueName::try_from(column::<String>(row, "source")?) {
                    Ok(source) => found.messages.push((key, source)),
                    Err(_) => found.missing_queue = found.missing_queue.take().or(column(row, "source")?),
                },
            }
        }
        Ok(found)
    }

    /// Moves visible messages from a dead-letter queue into another queue, where they are new and visible at once, without the
    /// header of dead letters: as many of the first as are moved in one step, at least one. Those that others have locked
    /// are passed over. Gives none if the target is missing.
    ///
    /// # Errors
    /// `QueueNotFound` for the dead-letter queue; `OutcomeUnknown` if the connection was lost meanwhile, or its retry-safe
    /// form if it is `repeatable`.
    pub async fn redrive(
        &mut self,
        dead_letter_queue: &QueueName,
        target: &QueueName,
        keys: &[DeadLetterKey],
        repeatable: bool,
    ) -> Result<Option<RedriveStep>> {
        match self.move_dead_letters(dead_letter_queue, target, keys, repeatable).await {
            Err(error) if error.kind() == Kind::QueueNotFound => {
                self.require_queue(dead_letter_queue).await?;
                match self.require_queue(target).await {
                    // Both are listed, so a table is missing.
                    Ok(()) => {
                        self.find_dead_letters(dead_letter_queue, Some(target), Some(&[]), 0, 1).await?;
                        Ok(None)
                    }
                    Err(error) if error.kind() == Kind::QueueNotFound => Ok(None),
                    Err(error) => Err(error),
                }
            }
            done => done.map(Some),
        }
    }

    async fn move_dead_letters(
        &mut self,
        dead_letter_queue: &QueueName,
        target: &QueueName,
        keys: &[DeadLetterKey],
        repeatable: bool,
    ) -> Result<RedriveStep> {
        let target = self.table(target).await?;
        let source = self.table(dead_letter_queue).await?;
        let mut statement = REDRIVE.on_pair(&source, &target.queue);
        // After a crash, an unlogged queue gives its ids again.
        if repeatable && !source.unlogged {
            statement.effect = Effect::Repeatable;
        }
        let (msg_ids, enqueued_at): (Vec<i64>, Vec<Timestamp>) = keys.iter().copied().unzip();
        let parameters: [Parameter<'_>; 3] = [
            (&msg_ids, Type::INT8_ARRAY),
            (&STEP_BYTES, Type::INT8),
            (&enqueued_at, Type::TIMESTAMPTZ_ARRAY),
        ];
        let rows = self.query(&statement, &parameters).await?;
        let row = rows.first().ok_or_else(|| Error::internal("a count gave no row"))?;
        let last_tried: Option<i64> = column(row, "last_tried")?;
        let tried = last_tried.map_or(keys.len(), |last| keys.partition_point(|&(msg_id, _)| msg_id <= last));
        let (moved, refused) = (column(row, "moved")?, column(row, "refused")?);
        Ok(RedriveStep { moved, refused, tried: tried.max(1) })
    }
}
