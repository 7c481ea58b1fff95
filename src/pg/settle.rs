//! Ends of deliveries: deletes, archives, releases and changes of visibility, by receipt or by id.
//!
//! By receipt, a first statement settles every message that is still as its delivery left it, passing over rows that
//! others hold. What it did not settle goes to a second one, which locks the rows and then tells what they are: a
//! single statement cannot, because a row that was read again between its snapshot and its lock would look as if it
//! were still there and yet not settled.

use tokio_postgres::types::Type;

use super::database::{Connection, Parameter};
use super::error::partly_applied;
use super::row::{self, column};
use super::statement::{Effect, Statement};
use crate::domain::message::{ItemResult, Message, Outcome};
use crate::domain::{Error, Kind, QueueName, Receipt, Result, Timestamp};

/// How often the second statement is tried when it collides with others.
const ATTEMPTS: u32 = 3;

/// What is to become of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// They are deleted (`pgmq.delete`).
    Delete,
    /// They move to the archive (`pgmq.archive`).
    Archive,
    /// They become visible after so many milliseconds (`pgmq.set_vt`).
    VisibleAfterMillis(i64),
    /// They stay hidden for at least so many milliseconds: like the one before, but never sooner than they would.
    HiddenForMillis(i64),
    /// They become visible at a moment (`pgmq.set_vt`).
    VisibleAt(Timestamp),
}

/// The rows that are still as their deliveries left them, locked in the order of their ids.
macro_rules! held {
    () => {
        "WITH held AS MATERIALIZED (SELECT q.msg_id, q.enqueued_at, w.ordinal
  FROM unnest($1::bigint[], $2::integer[], $3::timestamptz[], $4::timestamptz[])
    WITH ORDINALITY AS w(msg_id, read_ct, enqueued_at, last_read_at, ordinal)
  JOIN {q} AS q ON q.msg_id = w.msg_id AND q.read_ct = w.read_ct AND q.enqueued_at = w.enqueued_at
    /*L*/AND q.last_read_at IS NOT DISTINCT FROM w.last_read_at/*/L*/
  WHERE q.msg_id = ANY ($1) AND q.enqueued_at = ANY ($3)
  ORDER BY q.msg_id FOR UPDATE OF q SKIP LOCKED)"
    };
}

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

/// Tells what became of each wanted delivery; `settled` holds the ordinals that were settled, and their new `vt`.
macro_rules! verdicts {
    () => {
        "SELECT w.ordinal, settled.vt, CASE WHEN settled.ordinal IS NOT NULL THEN 'DONE'
  WHEN w.queue_created_at <> queue.created_at THEN 'STALE'
  WHEN l.msg_id IS NULL THEN 'NOT_FOUND'
  WHEN l.read_ct = w.read_ct/*L*/ AND l.last_read_at IS NOT DISTINCT FROM w.last_read_at/*/L*/ THEN 'NOT_FOUND'
  ELSE 'STALE' END AS outcome
FROM queue CROSS JOIN wanted AS w LEFT JOIN live AS l USING (msg_id, enqueued_at) LEFT JOIN settled USING (ordinal)"
    };
}

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

macro_rules! keep_gone {
    () => {
        "INSERT INTO {a} (msg_id, read_ct, enqueued_at/*L*/, last_read_at/*/L*/, vt, message, headers)
  SELECT g.msg_id, g.read_ct, g.enqueued_at/*L*/, g.last_read_at/*/L*/, g.vt, g.message, g.headers FROM gone AS g"
    };
}

macro_rules! new_vt {
    () => {
        "greatest(CASE WHEN $9::boolean THEN q.vt END,
    coalesce($8::timestamptz, clock_timestamp() + $7::bigint * interval '1 millisecond'))"
    };
}

const DELETE_HELD: Statement = Statement::new(
    "delete",
    Effect::Repeatable,
    concat!(
        "-- pgmq-grpc: delete\n",
        held!(),
        " DELETE FROM {q} AS q USING held
WHERE q.msg_id = held.msg_id AND q.enqueued_at = held.enqueued_at RETURNING held.ordinal, NULL::timestamptz AS vt"
    ),
);

const ARCHIVE_HELD: Statement = Statement::new(
    "archive",
    Effect::Repeatable,
    concat!(
        "-- pgmq-grpc: archive\n",
        held!(),
        ", gone AS (DELETE FROM {q} AS q USING held
  WHERE q.msg_id = held.msg_id AND q.enqueued_at = held.enqueued_at
  RETURNING held.ordinal, q.msg_id, q.read_ct, q.enqueued_at/*L*/, q.last_read_at/*/L*/, q.vt, q.message, q.headers),
kept AS (",
        keep_gone!(),
        ") SELECT g.ordinal, NULL::timestamptz AS vt FROM gone AS g"
    ),
);

const SET_VT_HELD: Statement = Statement::new(
    "set_vt",
    Effect::Repeatable,
    concat!(
        "-- pgmq-grpc: set_vt\n",
        held!(),
        " UPDATE {q} AS q SET vt = ",
        new_vt!(),
        " FROM held
WHERE q.msg_id = held.msg_id AND q.enqueued_at = held.enqueued_at RETURNING held.ordinal, q.vt"
    ),
);

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
        "), settled AS (SELECT g.ordinal, NULL::timestamptz AS vt FROM gone AS g)\n",
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

const DELETE_BY_ID: Statement = Statement::new(
    "delete_by_id",
    Effect::Repeatable,
    concat!(
        "-- pgmq-grpc: delete_by_id\n",
        live_by_id!(),
        " DELETE FROM {q} AS q USING live AS l
WHERE q.msg_id = l.msg_id AND q.enqueued_at = l.enqueued_at RETURNING q.msg_id, NULL::timestamptz AS vt"
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
        ") SELECT g.msg_id, NULL::timestamptz AS vt FROM gone AS g"
    ),
);

/// A repetition could take a message from a consumer who has read it meanwhile.
const SET_VT_BY_ID: Statement = Statement::new(
    "set_vt_by_id",
    Effect::Writes,
    concat!(
        "-- pgmq-grpc: set_vt_by_id\n",
        live_by_id!(),
        " UPDATE {q} AS q SET vt = greatest(CASE WHEN $4::boolean THEN q.vt END,
  coalesce($3::timestamptz, clock_timestamp() + $2::bigint * interval '1 millisecond'))
FROM live AS l WHERE q.msg_id = l.msg_id AND q.enqueued_at = l.enqueued_at RETURNING q.msg_id, q.vt"
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

impl Settlement {
    fn delay_ms(self) -> Option<i64> {
        match self {
            Self::VisibleAfterMillis(delay_ms) | Self::HiddenForMillis(delay_ms) => Some(delay_ms),
            Self::Delete | Self::Archive | Self::VisibleAt(_) => None,
        }
    }

    fn visible_at(self) -> Option<Timestamp> {
        match self {
            Self::VisibleAt(moment) => Some(moment),
            Self::Delete | Self::Archive | Self::VisibleAfterMillis(_) | Self::HiddenForMillis(_) => None,
        }
    }

    fn never_sooner(self) -> bool {
        matches!(self, Self::HiddenForMillis(_))
    }
}

impl Connection {
    /// Settles distinct receipts, each with its own outcome, in the same order.
    ///
    /// # Errors
    /// `QueueNotFound`; `QueueBusy` if another transaction holds one of the rows for more than 2 s: then the others
    /// may be settled already, and repeating the call is safe.
    pub async fn settle(
        &mut self,
        queue: &QueueName,
        receipts: &[Receipt],
        settlement: Settlement,
    ) -> Result<Vec<ItemResult>> {
        let table = self.table(queue).await?;
        let (held, live) = match settlement {
            Settlement::Delete => (DELETE_HELD, DELETE_LIVE),
            Settlement::Archive => (ARCHIVE_HELD, ARCHIVE_LIVE),
            Settlement::VisibleAfterMillis(_) | Settlement::VisibleAt(_) | Settlement::HiddenForMillis(_) => {
                (SET_VT_HELD, SET_VT_LIVE)
            }
        };
        let (delay_ms, visible_at) = (settlement.delay_ms(), settlement.visible_at());
        let never_sooner = settlement.never_sooner();
        let mut results: Vec<Option<ItemResult>> = vec![None; receipts.len()];

        let fences = Fences::of(receipts.iter());
        // The first statement takes no $5 and $6, so that the second one can number its parameters alike.
        let (name, created_at): (Option<&str>, Option<Vec<Timestamp>>) = (None, None);
        let parameters = [
            fences.parameters(),
            vec![
                (&name, Type::TEXT),
                (&created_at, Type::TIMESTAMPTZ_ARRAY),
                (&delay_ms, Type::INT8),
                (&visible_at, Type::TIMESTAMPTZ),
                (&never_sooner, Type::BOOL),
            ],
        ]
        .concat();
        let rows =
            self.query(&held.on(&table), &parameters).await.map_err(|error| self.missing(queue, error))?;
        for row in &rows {
            let result = ItemResult { outcome: Outcome::Done, vt: column(row, "vt")? };
            *place(&mut results, column(row, "ordinal")?)? = Some(result);
        }

        let undecided: Vec<usize> = (0..receipts.len()).filter(|&index| results[index].is_none()).collect();
        if !undecided.is_empty() {
            let receipts: Vec<&Receipt> = undecided.iter().map(|&index| &receipts[index]).collect();
            let fences = Fences::of(receipts.iter().copied());
            let created_at: Vec<Timestamp> =
                receipts.iter().map(|receipt| receipt.queue_created_at()).collect();
            let name = queue.as_str();
            let parameters = [
                fences.parameters(),
                vec![
                    (&name, Type::TEXT),
                    (&created_at, Type::TIMESTAMPTZ_ARRAY),
                    (&delay_ms, Type::INT8),
                    (&visible_at, Type::TIMESTAMPTZ),
                    (&never_sooner, Type::BOOL),
                ],
            ]
            .concat();
            // Tried again by itself: the first statement's outcomes would be lost if the whole call were.
            let mut attempt = 1;
            let rows = loop {
                match self.query(&live.on(&table), &parameters).await {
                    Err(error)
                        if error.kind() == Kind::Conflict && attempt < ATTEMPTS && !self.in_transaction() =>
                    {
                        attempt += 1;
                    }
                    Err(error) if self.in_transaction() => return Err(self.missing(queue, error)),
                    Err(error) => return Err(partly_applied(self.missing(queue, error))),
                    Ok(rows) => break rows,
                }
            };
            if rows.is_empty() {
                self.catalog().forget(queue);
                return Err(Error::queue_not_found(queue.as_str()));
            }
            for row in &rows {
                let outcome = match column(row, "outcome")? {
                    "DONE" => Outcome::Done,
                    "NOT_FOUND" => Outcome::NotFound,
                    _ => Outcome::Stale,
                };
                let index = *place_of(&undecided, column(row, "ordinal")?)?;
                results[index] = Some(ItemResult { outcome, vt: column(row, "vt")? });
            }
        }
        results.into_iter().map(|result| result.ok_or_else(no_verdict)).collect()
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
        let rows = self
            .query(
                &statement,
                &[
                    (&msg_ids, Type::INT8_ARRAY),
                    (&delay_ms, Type::INT8),
                    (&visible_at, Type::TIMESTAMPTZ),
                    (&settlement.never_sooner(), Type::BOOL),
                ],
            )
            .await
            .map_err(|error| self.missing(queue, error))?;
        let mut results = vec![ItemResult { outcome: Outcome::NotFound, vt: None }; msg_ids.len()];
        for row in &rows {
            let msg_id: i64 = column(row, "msg_id")?;
            if let Some(index) = msg_ids.iter().position(|&wanted| wanted == msg_id) {
                results[index] = ItemResult { outcome: Outcome::Done, vt: column(row, "vt")? };
            }
        }
        Ok(results)
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

fn place<T>(items: &mut [T], ordinal: i64) -> Result<&mut T> {
    usize::try_from(ordinal - 1).ok().and_then(|index| items.get_mut(index)).ok_or_else(no_verdict)
}

fn place_of<T>(items: &[T], ordinal: i64) -> Result<&T> {
    usize::try_from(ordinal - 1).ok().and_then(|index| items.get(index)).ok_or_else(no_verdict)
}

fn no_verdict() -> Error {
    Error::internal("a settle statement's ordinals do not match its items")
}
