//! Messages out of a queue: reads, pops, and what was read but could not be handed over.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::database::{Connection, Parameter};
use super::dead_letter::{PAUSE_MS, UNREADABLE_PAUSE_MS, Unreadable, WornOut};
use super::error;
use super::row::{self, column};
use super::settle::{Fences, all_are_kept};
use super::statement::{Effect, Plan, Statement};
use super::version::Feature;
use crate::domain::bounds::MAX_REPLY_BYTES;
use crate::domain::dead_letter::SetAside;
use crate::domain::{
    Delivery, Error, Kind, Ordering, QueueName, ReadOrder, Receipt, Result, Taken, Timestamp,
};

/// A read. `$1` queue, `$2` visibility timeout in seconds, `$3` number of messages, `$4` bytes that a batch may take, `$5`
/// bytes that a message may take that is alone in it; what follows is the source's own.
///
/// Bodies beyond `$4` stay in the database, so that a batch has a bound here whatever its messages weigh, and so does
/// one that no reply can carry, which takes no place from the others. `OFFSET 0` keeps sizes from being counted again. One row
/// of NULLs means an empty queue, no row a missing one: `pgmq.read` folds names to lower case, `pgmq.meta` does not.
macro_rules! read_statement {
    ($name:literal, $source:expr, $order:literal, $more:literal, $plan:expr) => {
        Statement::new(
            $name,
            Effect::Repeatable,
            concat!(
                "-- pgmq-grpc: ",
                $name,
                "
WITH queue AS MATERIALIZED (SELECT m.queue_name::text AS name, m.created_at, clock_timestamp() AS before_read
  FROM pgmq.meta AS m WHERE m.queue_name = $1::text),
",
                $source,
                ",
measured AS (SELECT d.msg_id, d.read_ct, d.enqueued_at/*L*/, d.last_read_at/*/L*/, d.vt, d.message, d.headers, ",
                $order,
                " AS place, coalesce(octet_length(d.message), 0) + coalesce(octet_length(d.headers), 0) + 256 AS own_bytes
  FROM delivered AS d OFFSET 0),
weighed AS (SELECT m.msg_id, m.read_ct, m.enqueued_at/*L*/, m.last_read_at/*/L*/, m.vt, m.message, m.headers, m.place,
    m.own_bytes > $5::bigint AS oversized, sum(m.own_bytes) FILTER (WHERE m.own_bytes <= $5::bigint) OVER sized AS bytes,
    count(*) FILTER (WHERE m.own_bytes <= $5::bigint) OVER sized AS rank
  FROM measured AS m WINDOW sized AS (ORDER BY m.place ROWS UNBOUNDED PRECEDING)),
judged AS (SELECT w.msg_id, w.read_ct, w.enqueued_at/*L*/, w.last_read_at/*/L*/, w.vt, w.message, w.headers, w.place,
    w.oversized, NOT w.oversized AND (w.bytes <= $4::bigint OR w.rank = 1) AS fits FROM weighed AS w)
SELECT queue.created_at, queue.before_read, j.msg_id, j.read_ct, j.enqueued_at/*L*/, j.last_read_at/*/L*/, j.vt, j.fits, j.oversized,
  CASE WHEN j.fits THEN j.message END AS message, CASE WHEN j.fits THEN j.headers END AS headers",
                $more,
                "
FROM queue LEFT JOIN judged AS j ON true ORDER BY j.place"
            ),
        )
        .planned($plan)
    };
}

/// What one of pgmq's functions delivers.
macro_rules! by_function {
    ($function:literal) => {
        concat!(
            "delivered AS MATERIALIZED (SELECT r.ordinality, r.msg_id, r.read_ct, r.enqueued_at/*L*/, r.last_read_at/*/L*/, r.vt,
    r.message::text AS message, r.headers::text AS headers
  FROM queue CROSS JOIN LATERAL ",
            $function,
            " WITH ORDINALITY AS r)"
        )
    };
}

/// As `pgmq.read` without a condition, but parsed once, and on a queue of up to some thousand messages planned once, which is
/// most of what a read of few messages costs. A message that was changed between the statement's snapshot and its lock is
/// claimed and not found again by its place: then more may be there than was read.
const READ_PLAIN: Statement = read_statement!(
    "read_plain",
    "candidate AS MATERIALIZED (SELECT {place} FROM {q} AS q
  WHERE q.vt <= clock_timestamp() AND EXISTS (SELECT FROM queue)
  ORDER BY q.msg_id LIMIT $3::integer FOR UPDATE OF q SKIP LOCKED),
taken AS (UPDATE {q} AS q SET vt = clock_timestamp() + make_interval(secs => $2::integer),
    read_ct = least(q.read_ct, 2147483646) + 1
    /*L*/, last_read_at = clock_timestamp()/*/L*/
  FROM candidate AS held WHERE {same}
  RETURNING q.msg_id, q.read_ct, q.enqueued_at/*L*/, q.last_read_at/*/L*/, q.vt, q.message, q.headers),
delivered AS MATERIALIZED (SELECT t.msg_id, t.read_ct, t.enqueued_at/*L*/, t.last_read_at/*/L*/, t.vt,
    t.message::text AS message, t.headers::text AS headers FROM taken AS t)",
    "d.msg_id",
    ", {size}, (SELECT count(*) FROM candidate) AS claimed",
    Plan::BySize
);
/// The same of the messages of the ids `$6`, each of which is found that is locked.
const READ_THESE: Statement = read_statement!(
    "read_these",
    "held AS MATERIALIZED (SELECT q.msg_id, q.enqueued_at FROM {q} AS q
  WHERE q.msg_id = ANY ($6::bigint[]) AND q.vt <= clock_timestamp() AND EXISTS (SELECT FROM queue)
  ORDER BY q.msg_id LIMIT $3::integer FOR UPDATE OF q SKIP LOCKED),
taken AS (UPDATE {q} AS q SET vt = clock_timestamp() + make_interval(secs => $2::integer),
    read_ct = least(q.read_ct, 2147483646) + 1
    /*L*/, last_read_at = clock_timestamp()/*/L*/
  FROM held WHERE q.msg_id = held.msg_id AND q.enqueued_at = held.enqueued_at
  RETURNING q.msg_id, q.read_ct, q.enqueued_at/*L*/, q.last_read_at/*/L*/, q.vt, q.message, q.headers),
delivered AS MATERIALIZED (SELECT r.msg_id, r.read_ct, r.enqueued_at/*L*/, r.last_read_at/*/L*/, r.vt,
    r.message::text AS message, r.headers::text AS headers FROM taken AS r)",
    "d.msg_id",
    ", (SELECT count(*) FROM held) AS claimed",
    Plan::Once
);
/// `$6` condition.
const READ: Statement = read_statement!(
    "read",
    by_function!(
        "pgmq.read(queue_name => queue.name, vt => $2::integer, qty => $3::integer, conditional => $6::text::jsonb)"
    ),
    "d.msg_id",
    "",
    Plan::ForEver
);
const READ_GROUPED: Statement = read_statement!(
    "read_grouped",
    by_function!("pgmq.read_grouped(queue_name => queue.name, vt => $2::integer, qty => $3::integer)"),
    "d.msg_id",
    "",
    Plan::ForEver
);
const READ_GROUPED_RR: Statement = read_statement!(
    "read_grouped_rr",
    by_function!("pgmq.read_grouped_rr(queue_name => queue.name, vt => $2::integer, qty => $3::integer)"),
    "d.ordinality",
    "",
    Plan::ForEver
);
const READ_GROUPED_HEAD: Statement = read_statement!(
    "read_grouped_head",
    by_function!("pgmq.read_grouped_head(queue_name => queue.name, vt => $2::integer, qty => $3::integer)"),
    "d.msg_id",
    "",
    Plan::ForEver
);

/// How long until the next invisible message becomes visible, counted from before the read that missed it. One that is
/// parked for ever has no such moment, and Postgres before 17 cannot subtract from infinity.
const NEXT_VISIBLE: Statement = Statement::new(
    "next_visible",
    Effect::Reads,
    "-- pgmq-grpc: next_visible
SELECT CASE WHEN min(q.vt) IS NOT NULL
  THEN greatest(0, least(3600000, ceil(extract(epoch FROM min(q.vt) - clock_timestamp()) * 1000)))::bigint END AS wait_ms
FROM {q} AS q WHERE q.vt > $1::timestamptz AND q.vt < 'infinity'",
);

/// Undoes a read whose message nobody got: visible at once, and not counted. Fenced by the `vt` too, so that a
/// change of it in between wins. `$1..$4` receipts, `$5` vt, `$6` after how many milliseconds it is visible.
const GIVE_BACK: Statement = Statement::new(
    "give_back",
    Effect::Repeatable,
    "-- pgmq-grpc: give_back
WITH held AS MATERIALIZED (SELECT {place}
  FROM unnest($1::bigint[], $2::integer[], $3::timestamptz[], $4::timestamptz[], $5::timestamptz[])
    AS w(msg_id, read_ct, enqueued_at, last_read_at, vt)
  JOIN {q} AS q USING (msg_id, read_ct, enqueued_at/*L*/, last_read_at/*/L*/, vt)
  WHERE q.msg_id = ANY ($1){prune}
  ORDER BY q.msg_id FOR UPDATE OF q SKIP LOCKED)
UPDATE {q} AS q SET vt = clock_timestamp() + $6::bigint * interval '1 millisecond', read_ct = q.read_ct - 1
FROM held WHERE {same} RETURNING q.msg_id",
);

/// Moves one message that cannot be handed over to the archive. `$1..$4` receipt, `$5` queue, `$6` reason, `$7` how many of
/// its reads gave it to nobody.
const SET_ASIDE: Statement = Statement::new(
    "set_aside",
    Effect::Repeatable,
    concat!(
        "-- pgmq-grpc: set_aside
WITH gone AS (DELETE FROM {q} AS q
  WHERE q.msg_id = $1::bigint AND q.read_ct = $2::integer AND q.enqueued_at = $3::timestamptz
    /*L*/AND q.last_read_at IS NOT DISTINCT FROM $4::timestamptz/*/L*/
  RETURNING q.msg_id, q.read_ct, q.enqueued_at/*L*/, q.last_read_at/*/L*/, q.vt, q.message, q.headers),
kept AS (INSERT INTO {a} (msg_id, read_ct, enqueued_at/*L*/, last_read_at/*/L*/, vt, message, headers)
  SELECT g.msg_id, g.read_ct, g.enqueued_at/*L*/, g.last_read_at/*/L*/, g.vt, g.message,
  CASE WHEN jsonb_typeof(g.headers) = 'object' THEN g.headers ELSE '{}'::jsonb END
  || jsonb_build_object('x-pgmq-dead-letter', jsonb_build_object('queue', $5::text, 'msg_id', g.msg_id,
    'read_ct', g.read_ct - $7::integer, 'enqueued_at', g.enqueued_at, 'reason', $6::text))
  FROM gone AS g RETURNING msg_id)
SELECT g.msg_id FROM gone AS g WHERE ",
        all_are_kept!()
    ),
);

const OVERSIZED: Unreadable = Unreadable { reason: "too large for a reply", uncounted: 1 };

impl Connection {
    /// Reads at most `count` messages that together take at most `bytes`, one alone at most a reply. What does not
    /// fit is given back at once. What can never fit goes to the dead-letter queue, or without one to the archive; what was
    /// handed over as often as the queue's policy allows, to the dead-letter queue. What the database refuses to have read
    /// goes aside or is passed over.
    ///
    /// # Errors
    /// `QueueNotFound`; `PgmqVersionUnsupported` for an ordering that this pgmq lacks.
    pub async fn read(&mut self, order: &ReadOrder, count: i32, bytes: i64) -> Result<Taken> {
        self.check_ordering(order.ordering).await?;
        // What was handed over often enough would be once more.
        if !self.in_transaction() {
            self.learn_policies().await?;
        }
        self.mark().await?;
        let table = self.table(&order.queue).await?;
        if table.refused.reads.are_known() {
            return self.read_around_refused(order, count, bytes, None).await;
        }
        match self.take_rendered(order, count, bytes, None).await {
            Err(error) if error::is_of_a_row(&error) => {
                self.return_to_mark().await?;
                // What was left may only have been changed by another just before it was locked.
                let failed = Some(error).filter(error::is_raised);
                self.read_around_refused(order, count, bytes, failed).await
            }
            taken => taken,
        }
    }

    /// Reads around what cannot be rendered; of these ids only, if some are given.
    ///
    /// # Errors
    /// `RefusedByDatabase` if the database refuses to have one of the messages read.
    pub(super) async fn take_rendered(
        &mut self,
        order: &ReadOrder,
        count: i32,
        bytes: i64,
        only: Option<&[i64]>,
    ) -> Result<Taken> {
        match self.take(order, count, bytes, only, None).await {
            Err(error) if error::is_unrenderable(&error) => {
                self.return_to_mark().await?;
                self.read_around_unrenderable(order, count, only, error).await
            }
            taken => taken,
        }
    }

    /// Reads, or claims the same messages by a variant of the statement; of these ids only, if some are given.
    pub(super) async fn take(
        &mut self,
        order: &ReadOrder,
        count: i32,
        bytes: i64,
        only: Option<&[i64]>,
        variant: Option<fn(&Statement) -> Statement>,
    ) -> Result<Taken> {
        let strong = self.installation().await?.strong_receipts;
        let table = self.table(&order.queue).await?;
        let (queue, timeout) = (order.queue.as_str(), order.visibility_timeout.seconds());
        let condition = order.conditional.as_deref();
        let mut parameters: Vec<Parameter<'_>> = vec![
            (&queue, Type::TEXT),
            (&timeout, Type::INT4),
            (&count, Type::INT4),
            (&bytes, Type::INT8),
            (&MAX_REPLY_BYTES, Type::INT8),
        ];
        let mut statement = match order.ordering {
            _ if only.is_some() => {
                parameters.push((&only, Type::INT8_ARRAY));
                READ_THESE
            }
            Ordering::Unordered if condition.is_none() && !table.partitioned && variant.is_none() => {
                READ_PLAIN
            }
            Ordering::Unordered => {
                parameters.push((condition.as_ref().unwrap_or(&"{}"), Type::TEXT));
                READ
            }
            Ordering::Grouped => READ_GROUPED,
            Ordering::GroupedRoundRobin => READ_GROUPED_RR,
            Ordering::GroupedHead => READ_GROUPED_HEAD,
        }
        .on(&table);
        if let Some(variant) = variant {
            statement = variant(&statement);
        }
        let read = self.query_whatever_counts(&statement, &table, &parameters).await;
        let rows = read.map_err(|error| self.missing(&order.queue, error))?;
        let Some(first) = rows.first() else {
            return Err(Error::queue_not_found(order.queue.as_str()));
        };
        let (created_at, before_read) = (column(first, "created_at")?, column(first, "before_read")?);
        let claimed = match [READ_PLAIN.name, READ_THESE.name].contains(&statement.name) {
            true => usize::try_from(column::<i64>(first, "claimed")?).unwrap_or(0),
            false => 0,
        };
        let mut found = Vec::with_capacity(rows.len());
        for row in &rows {
            let Some(fits) = column::<Option<bool>>(row, "fits")? else {
                break;
            };
            let message = row::message(row, strong)?;
            let receipt = Receipt::new(
                &order.queue,
                created_at,
                message.msg_id,
                message.read_ct,
                message.enqueued_at,
                message.last_read_at,
            );
            let is_oversized: bool = column(row, "oversized")?;
            found.push((Delivery { message, receipt }, fits, is_oversized));
        }
        // Or each was changed by another just before it was locked. pgmq's functions do not tell what they have claimed.
        let by_pgmq = only.is_none() && statement.name != READ_PLAIN.name;
        if found.is_empty() && (claimed > 0 || by_pgmq && table.refused.reads.take_doubt()) {
            return Err(error::swallowed());
        }
        let mut was_cut = claimed > found.len();
        if was_cut {
            table.refused.reads.some_are_left(claimed - found.len());
        }
        let WornOut { set_aside, stuck: too_often } =
            self.set_worn_out_aside(&order.queue, found.iter().map(|(read, ..)| read)).await;
        let mut set_aside: Vec<SetAside> = set_aside.into_iter().collect();
        let oversized = found.iter().filter(|(read, _, is_oversized)| {
            *is_oversized && !too_often.contains(&read.message.msg_id) && !has_moved(&set_aside, read)
        });
        let oversized: Vec<&Delivery> = oversized.map(|(read, ..)| read).collect();
        let unreadable = self.set_all_unreadable_aside(&order.queue, &oversized, &OVERSIZED, &mut set_aside);
        let unreadable = unreadable.await;
        let stands_behind = order.ordering.reads_groups_together();
        let stands_behind = stands_behind && !(too_often.is_empty() && unreadable.is_empty());
        let (mut deliveries, mut cut) = (Vec::with_capacity(found.len()), Vec::new());
        let (mut stuck, mut hidden) = (Vec::new(), Vec::new());
        for (delivery, fits, is_oversized) in found {
            let msg_id = delivery.message.msg_id;
            if has_moved(&set_aside, &delivery) {
                was_cut = true;
            } else if too_often.contains(&msg_id) {
                // It is hidden for a while, and nobody waits behind it.
                stuck.push(delivery);
            } else if unreadable.contains(&msg_id) {
                hidden.push(delivery);
            } else if is_oversized {
                // Somebody has touched it since.
                was_cut = true;
            } else if stands_behind || !fits {
                // In its group it stands behind one that stays.
                cut.push(delivery);
            } else {
                deliveries.push(delivery);
            }
        }
        let not_given = cut.len() + stuck.len() + hidden.len();
        was_cut |= not_given > 0;
        let given_back = self.give_back(&order.queue, &cut).await;
        let given_back = given_back.and(self.give_back_after(&order.queue, &stuck, PAUSE_MS).await);
        let given_back =
            given_back.and(self.give_back_after(&order.queue, &hidden, UNREADABLE_PAUSE_MS).await);
        // What has gone aside is told by a reply alone, but for that of a transaction that is of no more use.
        let is_news = !deliveries.is_empty() || (!set_aside.is_empty() && !self.in_transaction());
        match given_back {
            // The next read would fail alike.
            Err(error) if !is_news && !matches!(error.kind(), Kind::Internal | Kind::RefusedByDatabase) => {
                return Err(error);
            }
            // What fits is the caller's all the same, and what is not given back comes back when its timeout ends.
            Err(error) => {
                let (queue, error) = (order.queue.as_str(), crate::domain::error::chain(&error));
                tracing::warn!(queue, error, messages = not_given, "messages could not be given back");
            }
            Ok(()) => {}
        }
        Ok(Taken {
            deliveries,
            queue_created_at: created_at,
            before_read,
            cut: was_cut,
            set_aside,
            refused: None,
            in_vain: false,
        })
    }

    /// Checks that this pgmq can read in an order.
    ///
    /// # Errors
    /// `PgmqVersionUnsupported`, naming the version that can.
    pub async fn check_ordering(&mut self, ordering: Ordering) -> Result<()> {
        let installation = self.installation().await?;
        match ordering {
            Ordering::Unordered => Ok(()),
            Ordering::Grouped | Ordering::GroupedRoundRobin => installation.require(Feature::GroupedReads),
            Ordering::GroupedHead => installation.require(Feature::GroupedHeadReads),
        }
    }

    /// How long until the next message becomes visible that was not at `after`; none if nothing waits.
    ///
    /// # Errors
    /// `QueueNotFound`.
    pub async fn next_visible(&mut self, queue: &QueueName, after: Timestamp) -> Result<Option<Duration>> {
        let table = self.table(queue).await?;
        let rows = self
            .query(&NEXT_VISIBLE.on(&table), &[(&after, Type::TIMESTAMPTZ)])
            .await
            .map_err(|error| self.missing(queue, error))?;
        let wait_ms: Option<i64> = rows.first().map(|row| column(row, "wait_ms")).transpose()?.flatten();
        Ok(wait_ms.map(|wait_ms| Duration::from_millis(wait_ms.unsigned_abs())))
    }

    /// Makes messages visible again that a read took and nobody got, as if they had not been read.
    ///
    /// # Errors
    /// `QueueNotFound`. Messages that anybody touched since stay as they are.
    pub async fn give_back(&mut self, queue: &QueueName, deliveries: &[Delivery]) -> Result<()> {
        self.give_back_after(queue, deliveries, 0).await
    }

    /// The same for after so many milliseconds.
    pub(super) async fn give_back_after(
        &mut self,
        queue: &QueueName,
        deliveries: &[Delivery],
        delay_ms: i64,
    ) -> Result<()> {
        if deliveries.is_empty() {
            return Ok(());
        }
        let table = self.table(queue).await?;
        let fences = Fences::of(deliveries.iter().map(|delivery| &delivery.receipt));
        let visible_at: Vec<Timestamp> = deliveries.iter().map(|delivery| delivery.message.vt).collect();
        let mut parameters = fences.parameters();
        parameters.push((&visible_at, Type::TIMESTAMPTZ_ARRAY));
        parameters.push((&delay_ms, Type::INT8));
        let given_back = self.query(&GIVE_BACK.on(&table), &parameters).await;
        given_back.map(drop).map_err(|error| self.missing(queue, error))
    }

    /// Moves a message to the archive that cannot be handed over; false if somebody touched it since.
    pub(super) async fn move_to_archive(
        &mut self,
        queue: &QueueName,
        delivery: &Delivery,
        why: &Unreadable,
    ) -> Result<bool> {
        let table = self.table(queue).await?;
        let receipt = &delivery.receipt;
        let moved = self
            .query(
                &SET_ASIDE.on(&table),
                &[
                    (&receipt.msg_id(), Type::INT8),
                    (&receipt.read_ct(), Type::INT4),
                    (&receipt.enqueued_at(), Type::TIMESTAMPTZ),
                    (&receipt.last_read_at(), Type::TIMESTAMPTZ),
                    (&queue.as_str(), Type::TEXT),
                    (&why.reason, Type::TEXT),
                    (&why.uncounted, Type::INT4),
                ],
            )
            .await;
        let is_moved = !moved.map_err(|error| self.missing(queue, error))?.is_empty();
        if is_moved {
            tracing::warn!(
                queue = queue.as_str(),
                msg_id = receipt.msg_id(),
                reason = why.reason,
                "message that cannot be handed over moved to the archive"
            );
        }
        Ok(is_moved)
    }
}

/// Whether a message has left its queue.
fn has_moved(set_aside: &[SetAside], delivery: &Delivery) -> bool {
    set_aside.iter().any(|aside| aside.msg_ids.contains(&delivery.message.msg_id))
}
