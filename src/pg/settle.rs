//! Ends of deliveries for one caller: deletes, archives, releases and changes of visibility, by receipt or by id.
//!
//! The rows are locked in the order of their ids, however long others hold them, and then told for what they are. This is
//! for transactions; calls by themselves are merged and wait for nobody's lock (`settle_many.rs`).

use std::collections::HashMap;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::database::{Connection, Parameter};
use super::row::{self, column};
use super::statement::{Effect, Statement};
use crate::domain::message::{ItemResult, Message, Outcome};
use crate::domain::{Error, QueueName, Receipt, Result, Settlement, Timestamp};

/// The wanted deliveries, and the rows of their messages whatever became of them, locked.
macro_rules! wanted_and_live {
    () => {
        "WITH queue AS (SELECT m.created_at FROM pgmq.meta AS m WHERE m.queue_name = $5::text),
wanted AS MATERIALIZED (SELECT w.msg_id, w.read_ct, w.enqueued_at, w.last_read_at, w.queue_created_at, w.ordinal
  FROM unnest($1::bigint[], $2::integer[], $3::timestamptz[], $4::timestamptz[], $6::timestamptz[])
    WITH ORDINALITY AS w(msg_id, read_ct, enqueued_at, last_read_at, queue_created_at, ordinal)),
live AS MATERIALIZED (SELECT q.msg_id, q.read_ct, q.enqueued_at/*L*/, q.last_read_at/*/L*/
  FROM {q} AS q WHERE q.msg_id = ANY ($1) AND q.enqueued_at = ANY ($3) ORDER BY q.msg_id FOR UPDATE)"
    };
}

pub(super) use wanted_and_live;

/// Tells what became of each wanted delivery; `settled` holds the ordinals that were settled, and their new `vt`. Where a
/// trigger of the user's swallows a change of a row that is locked and as wanted, the division by zero takes back the rest.
macro_rules! verdicts {
    () => {
        "SELECT w.ordinal, settled.vt, CASE WHEN settled.ordinal IS NOT NULL THEN 'DONE'
  WHEN w.queue_created_at <> queue.created_at THEN 'STALE'
  WHEN l.msg_id IS NULL THEN 'NOT_FOUND'
  WHEN l.read_ct = w.read_ct/*L*/ AND l.last_read_at IS NOT DISTINCT FROM w.last_read_at/*/L*/ THEN 'NOT_FOUND'
  ELSE 'STALE' END AS outcome
FROM queue CROSS JOIN wanted AS w LEFT JOIN live AS l USING (msg_id, enqueued_at) LEFT JOIN settled USING (ordinal)
WHERE 1 / ((SELECT count(*) FROM settled) = (SELECT count(DISTINCT (l.msg_id, l.enqueued_at)) FROM live AS l
  JOIN wanted AS w ON w.msg_id = l.msg_id AND w.read_ct = l.read_ct AND w.enqueued_at = l.enqueued_at
    /*L*/AND w.last_read_at IS NOT DISTINCT FROM l.last_read_at/*/L*/))::integer = 1"
    };
}

pub(super) use verdicts;

macro_rules! delete_live {
    ($returning:literal) => {
        concat!(
            "DELETE FROM {q} AS q USING live AS l
  JOIN wanted AS w ON w.msg_id = l.msg_id AND w.read_ct = l.read_ct AND w.enqueued_at = l.enqueued_at
    /*L*/AND w.last_read_at IS NOT DISTINCT FROM l.last_read_at/*/L*/
  WHERE q.msg_id = l.msg_id AND q.enqueued_at = l.enqueued_at RETURNING w.ordinal",
            $returning
        )
    };
}

pub(super) use delete_live;

/// Keeps what was deleted in the archive.
macro_rules! keep_gone {
    () => {
        "INSERT INTO {a} (msg_id, read_ct, enqueued_at/*L*/, last_read_at/*/L*/, vt, message, headers)
  SELECT g.msg_id, g.read_ct, g.enqueued_at/*L*/, g.last_read_at/*/L*/, g.vt, g.message, g.headers FROM gone AS g
  RETURNING msg_id"
    };
}
pub(super) use keep_gone;

/// Where a trigger of the user's on the archive swallows a message, the division by zero takes back the rest, and the
/// message stays in the queue.
macro_rules! all_are_kept {
    () => {
        "1 / ((SELECT count(*) FROM kept) = (SELECT count(*) FROM gone))::integer = 1"
    };
}
pub(super) use all_are_kept;

macro_rules! new_vt {
    () => {
        "greatest(CASE WHEN $9::boolean THEN q.vt END,
    coalesce($8::timestamptz, clock_timestamp() + ($7::bigint[])[w.ordinal::integer] * interval '1 millisecond'))"
    };
}

const DELETE_LIVE: Statement = Statement::new(
    "delete_or_tell",
    Effect::Repeatable,
    concat!(
        "-- pgmq-grpc: delete_or_tell\n",
        wanted_and_live!(),
        ", settled AS (",
        delete_live!(", NULL::timestamptz AS vt"),
        ")\n",
        verdicts!()
    ),
);

const ARCHIVE_LIVE: Statement = Statement::new(
    "archive_or_tell",
    Effect::Repeatable,
    concat!(
        "-- pgmq-grpc: archive_or_tell\n",
        wanted_and_live!(),
        ", gone AS (",
        delete_live!(
            ", q.msg_id, q.read_ct, q.enqueued_at/*L*/, q.last_read_at/*/L*/, q.vt, q.message, q.headers"
        ),
        "), kept AS (",
        keep_gone!(),
        "), settled AS (SELECT g.ordinal, NULL::timestamptz AS vt FROM gone AS g WHERE ",
        all_are_kept!(),
        ")\n",
        verdicts!()
    ),
);

const SET_VT_LIVE: Statement = Statement::new(
    "set_vt_or_tell",
    Effect::Repeatable,
    concat!(
        "-- pgmq-grpc: set_vt_or_tell\n",
        wanted_and_live!(),
        ", settled AS (UPDATE {q} AS q SET vt = ",
        new_vt!(),
        " FROM live AS l JOIN wanted AS w ON w.msg_id = l.msg_id AND w.read_ct = l.read_ct AND w.enqueued_at = l.enqueued_at
    /*L*/AND w.last_read_at IS NOT DISTINCT FROM l.last_read_at/*/L*/
  WHERE q.msg_id = l.msg_id AND q.enqueued_at = l.enqueued_at RETURNING w.ordinal, q.vt)\n",
        verdicts!()
    ),
);

/// The rows of wanted ids, locked in their order: an array's order is not the order of locks.
macro_rules! live_by_id {
    () => {
        "WITH live AS MATERIALIZED (SELECT q.msg_id, q.enqueued_at FROM {q} AS q
  WHERE q.msg_id = ANY ($1::bigint[]) ORDER BY q.msg_id FOR UPDATE)"
    };
}

/// The same for ids, of which `done` holds what was settled.
macro_rules! all_live_are_done {
    () => {
        "1 / ((SELECT count(*) FROM done) = (SELECT count(*) FROM live))::integer = 1"
    };
}

const DELETE_BY_ID: Statement = Statement::new(
    "delete_by_id",
    Effect::Repeatable,
    concat!(
        "-- pgmq-grpc: delete_by_id\n",
        live_by_id!(),
        ", done AS (DELETE FROM {q} AS q USING live AS l
  WHERE q.msg_id = l.msg_id AND q.enqueued_at = l.enqueued_at RETURNING q.msg_id)
SELECT d.msg_id, NULL::timestamptz AS vt FROM done AS d WHERE ",
        all_live_are_done!()
    ),
);

const ARCHIVE_BY_ID: Statement = Statement::new(
    "archive_by_id",
    Effect::Repeatable,
    concat!(
        "-- pgmq-grpc: archive_by_id\n",
        live_by_id!(),
        ", gone AS (DELETE FROM {q} AS q USING live AS l
  WHERE q.msg_id = l.msg_id AND q.enqueued_at = l.enqueued_at
  RETURNING q.msg_id, q.read_ct, q.enqueued_at/*L*/, q.last_read_at/*/L*/, q.vt, q.message, q.headers),
kept AS (",
        keep_gone!(),
        "), done AS (SELECT g.msg_id FROM gone AS g WHERE ",
        all_are_kept!(),
        ") SELECT d.msg_id, NULL::timestamptz AS vt FROM done AS d WHERE ",
        all_live_are_done!()
    ),
);

/// A repetition could take a message from a consumer who has read it meanwhile.
const SET_VT_BY_ID: Statement = Statement::new(
    "set_vt_by_id",
    Effect::Writes,
    concat!(
        "-- pgmq-grpc: set_vt_by_id\n",
        live_by_id!(),
        ", done AS (UPDATE {q} AS q SET vt = greatest(CASE WHEN $4::boolean THEN q.vt END,
    coalesce($3::timestamptz, clock_timestamp() + $2::bigint * interval '1 millisecond'))
  FROM live AS l WHERE q.msg_id = l.msg_id AND q.enqueued_at = l.enqueued_at RETURNING q.msg_id, q.vt)
SELECT d.msg_id, d.vt FROM done AS d WHERE ",
        all_live_are_done!()
    ),
);

/// The messages of ids, as many as fit. `$1` ids, `$2` bytes.
const FETCH: Statement = Statement::new(
    "fetch",
    Effect::Reads,
    "-- pgmq-grpc: fetch
WITH rendered AS MATERIALIZED (SELECT q.msg_id, q.read_ct, q.enqueued_at/*L*/, q.last_read_at/*/L*/, q.vt,
    q.message::text AS message, q.headers::text AS headers FROM {q} AS q WHERE q.msg_id = ANY ($1::bigint[])),
weighed AS (SELECT r.msg_id, r.read_ct, r.enqueued_at/*L*/, r.last_read_at/*/L*/, r.vt, r.message, r.headers,
    sum(coalesce(octet_length(r.message), 0) + coalesce(octet_length(r.headers), 0) + 256)
      OVER (ORDER BY r.msg_id ROWS UNBOUNDED PRECEDING) AS bytes FROM rendered AS r)
SELECT w.msg_id, w.read_ct, w.enqueued_at/*L*/, w.last_read_at/*/L*/, w.vt, w.message, w.headers
FROM weighed AS w WHERE w.bytes <= $2::bigint ORDER BY w.msg_id",
);

/// The columns of receipts, as array parameters `$1..$4`.
pub(super) struct Fences {
    msg_ids: Vec<i64>,
    read_counts: Vec<i32>,
    enqueued_at: Vec<Timestamp>,
    last_read_at: Vec<Option<Timestamp>>,
}

impl Fences {
    pub(super) fn of<'a>(receipts: impl Iterator<Item = &'a Receipt> + Clone) -> Self {
        Self {
            msg_ids: receipts.clone().map(Receipt::msg_id).collect(),
            read_counts: receipts.clone().map(Receipt::read_ct).collect(),
            enqueued_at: receipts.clone().map(Receipt::enqueued_at).collect(),
            last_read_at: receipts.map(Receipt::last_read_at).collect(),
        }
    }

    pub(super) fn parameters(&self) -> Vec<Parameter<'_>> {
        vec![
            (&self.msg_ids, Type::INT8_ARRAY),
            (&self.read_counts, Type::INT4_ARRAY),
            (&self.enqueued_at, Type::TIMESTAMPTZ_ARRAY),
            (&self.last_read_at, Type::TIMESTAMPTZ_ARRAY),
        ]
    }
}

impl Connection {
    /// Settles distinct receipts, each with its own outcome, in the same order; waits for locked rows.
    ///
    /// # Errors
    /// `QueueNotFound`; `QueueBusy` if another transaction holds one of the rows for more than 2 s.
    pub async fn settle_or_tell(
        &mut self,
        queue: &QueueName,
        receipts: &[Receipt],
        settlement: Settlement,
    ) -> Result<Vec<ItemResult>> {
        let delays_ms = vec![settlement.delay_ms(); receipts.len()];
        let statement = match settlement {
            Settlement::Delete => DELETE_LIVE,
            Settlement::Archive => ARCHIVE_LIVE,
            Settlement::VisibleAfterMillis(_) | Settlement::VisibleAt(_) | Settlement::HiddenForMillis(_) => {
                SET_VT_LIVE
            }
        };
        self.settle_live(&statement, queue, receipts, settlement, &delays_ms).await
    }

    /// The same, making each visible after its own number of milliseconds.
    ///
    /// # Errors
    /// As [`Connection::settle_or_tell`].
    pub async fn release_or_tell(
        &mut self,
        queue: &QueueName,
        receipts: &[Receipt],
        delays_ms: &[i64],
    ) -> Result<Vec<ItemResult>> {
        let delays_ms: Vec<Option<i64>> = delays_ms.iter().copied().map(Some).collect();
        self.settle_live(&SET_VT_LIVE, queue, receipts, Settlement::VisibleAfterMillis(0), &delays_ms).await
    }

    async fn settle_live(
        &mut self,
        statement: &Statement,
        queue: &QueueName,
        receipts: &[Receipt],
        settlement: Settlement,
        delays_ms: &[Option<i64>],
    ) -> Result<Vec<ItemResult>> {
        let table = self.table(queue).await?;
        let fences = Fences::of(receipts.iter());
        let created_at: Vec<Timestamp> = receipts.iter().map(Receipt::queue_created_at).collect();
        let name = queue.as_str();
        let (visible_at, only_longer) = (settlement.visible_at(), settlement.only_longer());
        let parameters = [
            fences.parameters(),
            vec![
                (&name, Type::TEXT),
                (&created_at, Type::TIMESTAMPTZ_ARRAY),
                (&delays_ms, Type::INT8_ARRAY),
                (&visible_at, Type::TIMESTAMPTZ),
                (&only_longer, Type::BOOL),
            ],
        ]
        .concat();
        let rows = self
            .query(&statement.on(&table), &parameters)
            .await
            .map_err(|error| self.missing(queue, error))?;
        if rows.is_empty() {
            self.catalog().forget(queue);
            return Err(Error::queue_not_found(queue.as_str()));
        }
        outcomes(&rows, receipts.len())
    }

    /// Settles distinct ids whoever holds their messages, in the same order.
    ///
    /// # Errors
    /// `QueueNotFound`; `QueueBusy` if another transaction holds one of the rows for more than 2 s.
    pub async fn settle_by_id(
        &mut self,
        queue: &QueueName,
        msg_ids: &[i64],
        settlement: Settlement,
    ) -> Result<Vec<ItemResult>> {
        let table = self.table(queue).await?;
        let statement = match settlement {
            Settlement::Delete => DELETE_BY_ID,
            Settlement::Archive => ARCHIVE_BY_ID,
            Settlement::VisibleAfterMillis(_) | Settlement::VisibleAt(_) | Settlement::HiddenForMillis(_) => {
                SET_VT_BY_ID
            }
        };
        let mut statement = statement.on(&table);
        if table.unlogged {
            // A crash empties the queue and begins its ids anew: a repetition could settle another message.
            statement.effect = Effect::Writes;
        }
        let (delay_ms, visible_at) = (settlement.delay_ms(), settlement.visible_at());
        let only_longer = settlement.only_longer();
        let mut parameters: Vec<Parameter<'_>> = vec![(&msg_ids, Type::INT8_ARRAY)];
        if !matches!(settlement, Settlement::Delete | Settlement::Archive) {
            parameters.extend::<[Parameter<'_>; 3]>([
                (&delay_ms, Type::INT8),
                (&visible_at, Type::TIMESTAMPTZ),
                (&only_longer, Type::BOOL),
            ]);
        }
        let rows = self.query(&statement, &parameters).await.map_err(|error| self.missing(queue, error))?;
        let mut done = HashMap::with_capacity(rows.len());
        for row in &rows {
            let result = ItemResult { outcome: Outcome::Done, vt: column(row, "vt")? };
            done.insert(column::<i64>(row, "msg_id")?, result);
        }
        let gone = ItemResult { outcome: Outcome::NotFound, vt: None };
        Ok(msg_ids.iter().map(|msg_id| done.get(msg_id).copied().unwrap_or(gone)).collect())
    }

    /// The messages of ids that are in the queue, sorted by id, as many as fit a reply.
    ///
    /// # Errors
    /// `QueueNotFound`.
    pub async fn fetch(&mut self, queue: &QueueName, msg_ids: &[i64], bytes: i64) -> Result<Vec<Message>> {
        let table = self.table(queue).await?;
        let rows = self
            .query(&FETCH.on(&table), &[(&msg_ids, Type::INT8_ARRAY), (&bytes, Type::INT8)])
            .await
            .map_err(|error| self.missing(queue, error))?;
        rows.iter().map(|row| row::message(row, table.fenced_by_read_time)).collect()
    }
}

/// What the rows of `verdicts` tell of so many deliveries.
pub(super) fn outcomes(rows: &[Row], count: usize) -> Result<Vec<ItemResult>> {
    let mut results: Vec<Option<ItemResult>> = vec![None; count];
    for row in rows {
        let outcome = match column(row, "outcome")? {
            "DONE" => Outcome::Done,
            "NOT_FOUND" => Outcome::NotFound,
            _ => Outcome::Stale,
        };
        let result = ItemResult { outcome, vt: column(row, "vt")? };
        *place(&mut results, column(row, "ordinal")?)? = Some(result);
    }
    results.into_iter().map(|result| result.ok_or_else(no_verdict)).collect()
}

pub(super) fn place<T>(items: &mut [T], ordinal: i64) -> Result<&mut T> {
    usize::try_from(ordinal - 1).ok().and_then(|index| items.get_mut(index)).ok_or_else(no_verdict)
}

pub(super) fn no_verdict() -> Error {
    Error::internal("a settle statement's ordinals do not match its items")
}
