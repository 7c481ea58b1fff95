//! Settles of many callers in one statement, which waits for nobody.
//!
//! Every message that is still as its delivery left it is settled; rows that others have locked are passed over. What was
//! not settled is looked at by a second statement without a lock: gone, or read by another, or else locked by somebody.
//! One statement could not tell: a row that was read again between its snapshot and its lock would look as if it were
//! still there and yet not settled.

use std::collections::HashSet;

use tokio_postgres::types::Type;

use super::database::{Connection, Parameter};
use super::row::column;
use super::settle::{Fences, all_are_kept, keep_gone, no_verdict, place};
use super::statement::{Effect, Plan, Sight, Statement};
use crate::domain::message::{ItemResult, Outcome};
use crate::domain::{Error, QueueName, Receipt, Result, Settlement, Timestamp};

/// What a statement that waits for nobody made of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstLook {
    /// Its outcome.
    Told(ItemResult),
    /// It was not settled; if that is still so after the second look, somebody has locked it, or after a quick first one a
    /// trigger swallows the change.
    NotSettled,
}

/// The rows that are still as their deliveries left them, locked in the order of their ids, which an array's order would
/// not do. `$1..$4` fences.
///
/// `{place}` and `{same}` find a locked row again. One that somebody changed between the statement's snapshot and its
/// lock may not be found, and is left to the looks that follow.
macro_rules! held {
    ($columns:literal, $arrays:literal) => {
        concat!(
            "WITH held AS MATERIALIZED (SELECT {place}, w.ordinal",
            $columns,
            "
  FROM unnest($1::bigint[], $2::integer[], $3::timestamptz[], $4::timestamptz[]",
            $arrays,
            ", ordinal)
  JOIN {q} AS q ON q.msg_id = w.msg_id AND q.read_ct = w.read_ct AND q.enqueued_at = w.enqueued_at
    /*L*/AND q.last_read_at IS NOT DISTINCT FROM w.last_read_at/*/L*/
  WHERE q.msg_id = ANY ($1){prune}
  ORDER BY q.msg_id FOR UPDATE OF q SKIP LOCKED)"
        )
    };
    () => {
        held!("", ") WITH ORDINALITY AS w(msg_id, read_ct, enqueued_at, last_read_at")
    };
}

pub(super) use held;

/// The rows of ids, whoever holds their messages, locked in the order of their ids. `$1` ids.
macro_rules! held_by_id {
    ($columns:literal, $arrays:literal) => {
        concat!(
            "WITH held AS MATERIALIZED (SELECT {place}, w.ordinal",
            $columns,
            " FROM unnest($1::bigint[]",
            $arrays,
            ", ordinal)
  JOIN {q} AS q ON q.msg_id = w.msg_id WHERE q.msg_id = ANY ($1) ORDER BY q.msg_id FOR UPDATE OF q SKIP LOCKED)"
        )
    };
    () => {
        held_by_id!("", ") WITH ORDINALITY AS w(msg_id")
    };
}

macro_rules! delete_held {
    () => {
        "{gone} DELETE FROM {q} AS q USING held
WHERE {same} RETURNING held.ordinal, NULL::timestamptz AS vt, {size}{all}"
    };
}

macro_rules! archive_held {
    () => {
        concat!(
            ", gone AS (DELETE FROM {q} AS q USING held
  WHERE {same}
  RETURNING held.ordinal, q.msg_id, q.read_ct, q.enqueued_at/*L*/, q.last_read_at/*/L*/, q.vt, q.message, q.headers),
kept AS (",
            keep_gone!(),
            ") SELECT g.ordinal, NULL::timestamptz AS vt, {size} FROM gone AS g WHERE ",
            all_are_kept!(),
            "{and_all}"
        )
    };
}

macro_rules! set_vt_held {
    () => {
        "{gone} UPDATE {q} AS q SET vt = greatest(CASE WHEN held.only_longer THEN q.vt END,
  coalesce(held.visible_at, clock_timestamp() + held.delay_ms * interval '1 millisecond'))
FROM held WHERE {same} RETURNING held.ordinal, q.vt, {size}{all}"
    };
}

/// Takes a delivery back, as if it had not been read. Without `last_read_at` in the receipts the read stays counted: the next
/// delivery would have the receipt of this one, which is still in its holder's hands.
macro_rules! give_back_held {
    () => {
        "{gone} UPDATE {q} AS q SET vt = clock_timestamp()/*L*/, read_ct = greatest(q.read_ct - 1, 0)/*/L*/
FROM held WHERE {same} RETURNING held.ordinal, q.vt, {size}{all}"
    };
}

const DELETE: Statement =
    Statement::new("delete", Effect::Repeatable, concat!("-- pgmq-grpc: delete\n", held!(), delete_held!()))
        .planned(Plan::BySize);

const ARCHIVE: Statement = Statement::new(
    "archive",
    Effect::Repeatable,
    concat!("-- pgmq-grpc: archive\n", held!(), archive_held!()),
)
.planned(Plan::BySize);

/// `$5` delays in milliseconds, `$6` moments, `$7` whether the time may only grow.
const SET_VT: Statement = Statement::new(
    "set_vt",
    Effect::Repeatable,
    concat!(
        "-- pgmq-grpc: set_vt\n",
        held!(
            ", w.delay_ms, w.visible_at, w.only_longer",
            ", $5::bigint[], $6::timestamptz[], $7::boolean[])
    WITH ORDINALITY AS w(msg_id, read_ct, enqueued_at, last_read_at, delay_ms, visible_at, only_longer"
        ),
        set_vt_held!()
    ),
)
.planned(Plan::BySize);

const GIVE_BACK: Statement = Statement::new(
    "give_back_by_receipt",
    Effect::Repeatable,
    concat!("-- pgmq-grpc: give_back_by_receipt\n", held!(), give_back_held!()),
)
.planned(Plan::BySize);

const DELETE_BY_ID: Statement = Statement::new(
    "delete_by_id",
    Effect::Repeatable,
    concat!("-- pgmq-grpc: delete_by_id\n", held_by_id!(), delete_held!()),
)
.planned(Plan::BySize);

const ARCHIVE_BY_ID: Statement = Statement::new(
    "archive_by_id",
    Effect::Repeatable,
    concat!("-- pgmq-grpc: archive_by_id\n", held_by_id!(), archive_held!()),
)
.planned(Plan::BySize);

/// A repetition could take a message from a consumer who has read it meanwhile. `$2..$4` as `$5..$7` of [`SET_VT`].
const SET_VT_BY_ID: Statement = Statement::new(
    "set_vt_by_id",
    Effect::Writes,
    concat!(
        "-- pgmq-grpc: set_vt_by_id\n",
        held_by_id!(
            ", w.delay_ms, w.visible_at, w.only_longer",
            ", $2::bigint[], $3::timestamptz[], $4::boolean[])
    WITH ORDINALITY AS w(msg_id, delay_ms, visible_at, only_longer"
        ),
        set_vt_held!()
    ),
)
.planned(Plan::BySize);

/// What deliveries are whose messages were not settled. `$5` queue, `$6` the queue's `created_at` in the receipts. Its
/// callers have been settled in part, so a loss of the connection leaves more than nothing.
const TELL: Statement = Statement::new(
    "tell",
    Effect::Repeatable,
    "-- pgmq-grpc: tell
WITH queue AS (SELECT m.created_at FROM pgmq.meta AS m WHERE m.queue_name = $5::text)
SELECT w.ordinal, CASE WHEN w.queue_created_at <> queue.created_at THEN 'STALE'
  WHEN q.msg_id IS NULL THEN 'NOT_FOUND'
  WHEN q.read_ct = w.read_ct/*L*/ AND q.last_read_at IS NOT DISTINCT FROM w.last_read_at/*/L*/ THEN 'LOCKED'
  ELSE 'STALE' END AS outcome
FROM queue CROSS JOIN unnest($1::bigint[], $2::integer[], $3::timestamptz[], $4::timestamptz[], $6::timestamptz[])
  WITH ORDINALITY AS w(msg_id, read_ct, enqueued_at, last_read_at, queue_created_at, ordinal)
LEFT JOIN (SELECT q.msg_id, q.read_ct, q.enqueued_at/*L*/, q.last_read_at/*/L*/ FROM {q} AS q
  WHERE q.msg_id = ANY ($1) AND q.enqueued_at = ANY ($3)) AS q USING (msg_id, enqueued_at)",
);

const TELL_BY_ID: Statement = Statement::new(
    "tell_by_id",
    Effect::Repeatable,
    "-- pgmq-grpc: tell_by_id
SELECT q.msg_id FROM {q} AS q WHERE q.msg_id = ANY ($1::bigint[])",
);

/// The columns of changes of visibility, as array parameters.
struct NewTimes {
    delays_ms: Vec<Option<i64>>,
    visible_at: Vec<Option<Timestamp>>,
    only_longer: Vec<bool>,
}

impl NewTimes {
    fn of(settlements: &[Settlement]) -> Self {
        Self {
            delays_ms: settlements.iter().map(|settlement| settlement.delay_ms()).collect(),
            visible_at: settlements.iter().map(|settlement| settlement.visible_at()).collect(),
            only_longer: settlements.iter().map(|settlement| settlement.only_longer()).collect(),
        }
    }

    fn parameters(&self) -> [Parameter<'_>; 3] {
        [
            (&self.delays_ms, Type::INT8_ARRAY),
            (&self.visible_at, Type::TIMESTAMPTZ_ARRAY),
            (&self.only_longer, Type::BOOL_ARRAY),
        ]
    }
}

impl Connection {
    /// Settles deliveries of distinct messages that nobody has locked, all in one way: the settlements differ in times
    /// only.
    ///
    /// # Errors
    /// `QueueNotFound`; `RefusedByDatabase` where a sure look finds that a trigger swallows a change; `OutcomeUnknownRetrySafe`
    /// if the connection was lost meanwhile.
    pub async fn settle_unlocked(
        &mut self,
        queue: &QueueName,
        receipts: &[&Receipt],
        settlements: &[Settlement],
        sight: Sight,
    ) -> Result<Vec<FirstLook>> {
        let table = self.table(queue).await?;
        let fences = Fences::of(receipts.iter().copied());
        let new_times = NewTimes::of(settlements);
        let mut parameters = fences.parameters();
        let statement = match settlements.first() {
            None => return Ok(Vec::new()),
            Some(Settlement::Delete) => DELETE,
            Some(Settlement::Archive) => ARCHIVE,
            Some(_) => {
                parameters.extend(new_times.parameters());
                SET_VT
            }
        };
        self.settled(queue, &statement.seen_on(&table, sight), &parameters, receipts.len()).await
    }

    /// Makes deliveries of distinct messages visible again that nobody has locked, as if they had not been read.
    ///
    /// # Errors
    /// As [`Connection::settle_unlocked`].
    pub async fn give_back_unlocked(
        &mut self,
        queue: &QueueName,
        receipts: &[&Receipt],
        sight: Sight,
    ) -> Result<Vec<FirstLook>> {
        let table = self.table(queue).await?;
        let fences = Fences::of(receipts.iter().copied());
        self.settled(queue, &GIVE_BACK.seen_on(&table, sight), &fences.parameters(), receipts.len()).await
    }

    /// The same as [`Connection::settle_unlocked`] of distinct ids, whoever holds their messages.
    ///
    /// # Errors
    /// As [`Connection::settle_unlocked`]; `OutcomeUnknown` where repeating could hurt another's delivery.
    pub async fn settle_unlocked_by_id(
        &mut self,
        queue: &QueueName,
        msg_ids: &[i64],
        settlements: &[Settlement],
        sight: Sight,
    ) -> Result<Vec<FirstLook>> {
        let table = self.table(queue).await?;
        let new_times = NewTimes::of(settlements);
        let mut parameters: Vec<Parameter<'_>> = vec![(&msg_ids, Type::INT8_ARRAY)];
        let statement = match settlements.first() {
            None => return Ok(Vec::new()),
            Some(Settlement::Delete) => DELETE_BY_ID,
            Some(Settlement::Archive) => ARCHIVE_BY_ID,
            Some(_) => {
                parameters.extend(new_times.parameters());
                SET_VT_BY_ID
            }
        };
        let mut statement = statement.seen_on(&table, sight);
        if table.unlogged {
            // A crash empties the queue and begins its ids anew: a repetition could settle another message.
            statement.effect = Effect::Writes;
        }
        self.settled(queue, &statement, &parameters, msg_ids.len()).await
    }

    async fn settled(
        &mut self,
        queue: &QueueName,
        statement: &Statement,
        parameters: &[Parameter<'_>],
        count: usize,
    ) -> Result<Vec<FirstLook>> {
        let rows = self.query(statement, parameters).await.map_err(|error| self.missing(queue, error))?;
        let mut looks = vec![FirstLook::NotSettled; count];
        for row in &rows {
            let done = ItemResult { outcome: Outcome::Done, vt: column(row, "vt")? };
            *place(&mut looks, column(row, "ordinal")?)? = FirstLook::Told(done);
        }
        Ok(looks)
    }

    /// Tells what became of deliveries that were not settled, in the same order; those that nobody has taken are locked.
    ///
    /// # Errors
    /// `QueueNotFound`; `OutcomeUnknownRetrySafe` if the connection was lost meanwhile.
    pub async fn tell(&mut self, queue: &QueueName, receipts: &[&Receipt]) -> Result<Vec<FirstLook>> {
        let table = self.table(queue).await?;
        let fences = Fences::of(receipts.iter().copied());
        let created_at: Vec<Timestamp> = receipts.iter().map(|receipt| receipt.queue_created_at()).collect();
        let name = queue.as_str();
        let mut parameters = fences.parameters();
        parameters
            .extend::<[Parameter<'_>; 2]>([(&name, Type::TEXT), (&created_at, Type::TIMESTAMPTZ_ARRAY)]);
        let rows =
            self.query(&TELL.on(&table), &parameters).await.map_err(|error| self.missing(queue, error))?;
        if rows.is_empty() {
            self.catalog().forget(queue);
            return Err(Error::queue_not_found(queue.as_str()));
        }
        let mut looks = vec![None; receipts.len()];
        for row in &rows {
            let look = match column(row, "outcome")? {
                "NOT_FOUND" => FirstLook::Told(ItemResult { outcome: Outcome::NotFound, vt: None }),
                "STALE" => FirstLook::Told(ItemResult { outcome: Outcome::Stale, vt: None }),
                _ => FirstLook::NotSettled,
            };
            *place(&mut looks, column(row, "ordinal")?)? = Some(look);
        }
        looks.into_iter().map(|look| look.ok_or_else(no_verdict)).collect()
    }

    /// Tells which of the ids that were not settled are gone; those that are not are locked.
    ///
    /// # Errors
    /// As [`Connection::tell`].
    pub async fn tell_by_id(
        &mut self,
        queue: &QueueName,
        msg_ids: &[i64],
        settlement: Settlement,
    ) -> Result<Vec<FirstLook>> {
        let table = self.table(queue).await?;
        let mut statement = TELL_BY_ID.on(&table);
        if table.unlogged || !matches!(settlement, Settlement::Delete | Settlement::Archive) {
            statement.effect = Effect::Writes;
        }
        let rows = self
            .query(&statement, &[(&msg_ids, Type::INT8_ARRAY)])
            .await
            .map_err(|error| self.missing(queue, error))?;
        let there: HashSet<i64> = rows.iter().map(|row| column(row, "msg_id")).collect::<Result<_>>()?;
        let gone = FirstLook::Told(ItemResult { outcome: Outcome::NotFound, vt: None });
        let look = |msg_id| if there.contains(msg_id) { FirstLook::NotSettled } else { gone };
        Ok(msg_ids.iter().map(look).collect())
    }
}
