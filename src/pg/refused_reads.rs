//! Reads around messages that the database refuses to have read: a trigger raises an error for them or swallows the change,
//! or a constraint does not hold for what the read makes of them.
//!
//! One of them fails the statement for all. So once a read has failed, the messages that it would have taken are tried by
//! halves, in a transaction that is taken back, and the others are read. What is refused goes where other messages go that cannot
//! be handed over. What neither place takes stays visible, and is passed over for a while. As long as nothing can be read,
//! the rule may be wrong and not the messages: then all of them stay, and the readers are told.

use tokio_postgres::types::Type;

use super::catalog::QueueTable;
use super::database::{Connection, Parameter};
use super::dead_letter::Unreadable;
use super::error;
use super::row::{self, column};
use super::statement::{Effect, Statement};
use crate::domain::{Delivery, Error, Ordering, QueueName, ReadOrder, Receipt, Result, Taken};

/// What a read would find, as it is. `$1` queue, `$2` ids that are passed over, `$3` number, `$4` condition, `$5` the id after
/// which.
macro_rules! visible_statement {
    ($name:literal, $more:literal, $order:literal) => {
        Statement::new(
            $name,
            Effect::Reads,
            concat!(
                "-- pgmq-grpc: ",
                $name,
                "
SELECT m.created_at, q.msg_id, q.read_ct, q.enqueued_at/*L*/, q.last_read_at/*/L*/, q.vt, NULL::text AS message,
  NULL::text AS headers
FROM {q} AS q JOIN pgmq.meta AS m ON m.queue_name = $1::text
WHERE q.vt <= clock_timestamp() AND q.msg_id > $5::bigint AND q.msg_id <> ALL ($2::bigint[])
  AND ($4::text = '{}' OR q.message @> $4::text::jsonb)",
                $more,
                "
ORDER BY q.msg_id",
                $order,
                " LIMIT $3::bigint"
            ),
        )
    };
}

const VISIBLE: Statement = visible_statement!("visible_to_reads", "", "");

/// The last of them: where many at the head are refused, these may not be.
const VISIBLE_LAST: Statement = visible_statement!("visible_last", "", " DESC");

/// Of each group the first message, if it is visible: behind one that is passed over its group waits.
const VISIBLE_HEADS: Statement = visible_statement!(
    "visible_heads",
    " AND q.msg_id IN (SELECT min(h.msg_id) FROM {q} AS h
  GROUP BY coalesce(h.headers ->> 'x-pgmq-group', '_default_fifo_group'))",
    ""
);

/// Reads messages, and tells of those that it has locked whether they are read. `$1` ids, `$2` visibility timeout in seconds.
const TRY: Statement = Statement::new(
    "try_to_read",
    Effect::Reads,
    "-- pgmq-grpc: try_to_read
WITH held AS MATERIALIZED (SELECT q.msg_id, q.enqueued_at FROM {q} AS q
  WHERE q.msg_id = ANY ($1::bigint[]) AND q.vt <= clock_timestamp() ORDER BY q.msg_id FOR UPDATE OF q SKIP LOCKED),
taken AS (UPDATE {q} AS q SET vt = clock_timestamp() + make_interval(secs => $2::integer),
    read_ct = least(q.read_ct, 2147483646) + 1
    /*L*/, last_read_at = clock_timestamp()/*/L*/
  FROM held WHERE q.msg_id = held.msg_id AND q.enqueued_at = held.enqueued_at RETURNING q.msg_id, q.enqueued_at)
SELECT h.msg_id, t.msg_id IS NOT NULL AS is_read FROM held AS h LEFT JOIN taken AS t USING (msg_id, enqueued_at)",
);

const REFUSED: Unreadable = Unreadable { reason: "the database refuses to have it read", uncounted: 0 };

/// At least so many messages are looked at, so that many that are refused are found together.
const LOOK: i64 = 100;

/// After so many statements that failed, a search ends with what it has found.
const MOST_FAILURES: usize = 128;

/// Among how many other messages it is looked for one that can be read.
const OTHERS: i64 = 20;

/// What a search has found.
#[derive(Default)]
struct Tried {
    good: Vec<i64>,
    refused: Vec<i64>,
}

impl Connection {
    /// Reads what it may, after a read that has `failed` because of a row, or where such rows are known.
    ///
    /// # Errors
    /// As [`Connection::read`]; `RefusedByDatabase` if that does not go away.
    pub(super) async fn read_around_refused(
        &mut self,
        order: &ReadOrder,
        count: i32,
        bytes: i64,
        failed: Option<Error>,
    ) -> Result<Taken> {
        let table = self.table(&order.queue).await?;
        let rows = &table.refused.reads;
        let passed_over = rows.passed_over();
        let statement = match order.ordering {
            Ordering::Unordered => VISIBLE,
            Ordering::Grouped | Ordering::GroupedRoundRobin | Ordering::GroupedHead => VISIBLE_HEADS,
        };
        let seen = self.visible(&table, order, &statement, &passed_over, LOOK.max(count.into())).await?;
        let ids: Vec<i64> = seen.iter().map(|delivery| delivery.message.msg_id).collect();
        rows.forget_all_but(&ids);
        let failed = match failed {
            Some(failed) => failed,
            None => match self.take_rendered(order, count, bytes, Some(&ids)).await {
                Err(error) if error::is_of_a_row(&error) => {
                    self.return_to_mark().await?;
                    error
                }
                taken => {
                    let mut taken = taken?;
                    taken.cut |= rows.keep_incarnation(taken.queue_created_at);
                    match taken.deliveries.is_empty() {
                        true => taken.refused = rows.why_suspected(),
                        false => rows.others_are_taken(),
                    }
                    rows.warn(&order.queue);
                    return Ok(taken);
                }
            },
        };
        let tried = self.try_apart(&table, order, &ids).await?;
        let mut taken = self.take_rendered(order, count, bytes, Some(&tried.good)).await?;
        rows.keep_incarnation(taken.queue_created_at);
        if tried.refused.is_empty() {
            // Others took them meanwhile, or they can be read now.
            return Ok(Taken { cut: taken.cut || !taken.deliveries.is_empty(), ..taken });
        }
        let known = [passed_over, tried.refused.clone()].concat();
        let is_swallowed = !error::is_raised(&failed);
        let are_alone = !tried.good.is_empty()
            || is_swallowed && rows.are_left(tried.refused.len())
            || self.can_read_others(&table, order, &known).await?;
        // As long as nothing can be read, only those move of which it was known before.
        let (alone, others): (Vec<i64>, Vec<i64>) =
            tried.refused.into_iter().partition(|msg_id| are_alone || rows.is_alone(*msg_id));
        let alone: Vec<&Delivery> =
            seen.iter().filter(|delivery| alone.contains(&delivery.message.msg_id)).collect();
        if !alone.is_empty() {
            taken = self.put_aside(&table, &order.queue, &alone, &failed, taken).await;
        }
        if !others.is_empty() {
            rows.pass_over(others, false, &failed);
            taken.refused = Some(failed);
        }
        rows.warn(&order.queue);
        Ok(taken)
    }

    /// Moves aside what is refused, and remembers what cannot be moved.
    async fn put_aside(
        &mut self,
        table: &QueueTable,
        queue: &QueueName,
        refused: &[&Delivery],
        why: &Error,
        mut taken: Taken,
    ) -> Taken {
        let rows = &table.refused.reads;
        let stuck = self.set_all_unreadable_aside(queue, refused, &REFUSED, &mut taken.set_aside).await;
        let has_moved = |msg_id: &i64| taken.set_aside.iter().any(|aside| aside.msg_ids.contains(msg_id));
        let stays = refused.iter().map(|delivery| delivery.message.msg_id).filter(|id| !has_moved(id));
        // What is neither moved nor stuck was touched by somebody, or its move is swallowed.
        rows.pass_over(stays, true, why);
        tracing::debug!(queue = queue.as_str(), stuck = stuck.len(), "refused messages are passed over");
        let in_vain = taken.deliveries.is_empty() && taken.set_aside.is_empty();
        Taken { cut: true, in_vain, ..taken }
    }

    /// Whether one of the last messages can be read, in whatever order.
    async fn can_read_others(
        &mut self,
        table: &QueueTable,
        order: &ReadOrder,
        known: &[i64],
    ) -> Result<bool> {
        let seen = self.visible(table, order, &VISIBLE_LAST, known, OTHERS).await?;
        let ids: Vec<i64> = seen.iter().map(|delivery| delivery.message.msg_id).collect();
        Ok(!self.try_apart(table, order, &ids).await?.good.is_empty())
    }

    /// What a read would find, but for some that are passed over.
    async fn visible(
        &mut self,
        table: &QueueTable,
        order: &ReadOrder,
        statement: &Statement,
        passed_over: &[i64],
        count: i64,
    ) -> Result<Vec<Delivery>> {
        let (queue, condition) = (order.queue.as_str(), order.conditional.as_deref().unwrap_or("{}"));
        let up_to = table.refused.reads.up_to();
        let parameters: [Parameter<'_>; 5] = [
            (&queue, Type::TEXT),
            (&passed_over, Type::INT8_ARRAY),
            (&count, Type::INT8),
            (&condition, Type::TEXT),
            (&up_to, Type::INT8),
        ];
        let rows = self.query(&statement.on(table), &parameters).await;
        let rows = rows.map_err(|error| self.missing(&order.queue, error))?;
        let deliveries = rows.iter().map(|row| {
            let message = row::message(row, table.fenced_by_read_time)?;
            let receipt = Receipt::new(
                &order.queue,
                column(row, "created_at")?,
                message.msg_id,
                message.read_ct,
                message.enqueued_at,
                message.last_read_at,
            );
            Ok(Delivery { message, receipt })
        });
        deliveries.collect()
    }

    /// Finds out which messages can be read and which are refused, and leaves all as they are.
    async fn try_apart(&mut self, table: &QueueTable, order: &ReadOrder, ids: &[i64]) -> Result<Tried> {
        if self.in_transaction() {
            self.mark().await?;
            return self.try_by_halves(table, order, ids).await;
        }
        self.begin().await?;
        let tried = async {
            self.check_constraints().await?;
            self.mark().await?;
            self.try_by_halves(table, order, ids).await
        };
        let tried = tried.await;
        self.roll_back().await;
        tried.map_err(Error::before_commit)
    }

    async fn try_by_halves(&mut self, table: &QueueTable, order: &ReadOrder, ids: &[i64]) -> Result<Tried> {
        let timeout = order.visibility_timeout.seconds();
        let mut tried = Tried::default();
        let mut failures = 0;
        let mut parts = vec![ids];
        while let Some(part) = parts.pop() {
            let parameters: [Parameter<'_>; 2] = [(&part, Type::INT8_ARRAY), (&timeout, Type::INT4)];
            match self.query(&TRY.on(table), &parameters).await {
                Ok(rows) => {
                    for row in &rows {
                        let of_its_kind = match column(row, "is_read")? {
                            true => &mut tried.good,
                            false => &mut tried.refused,
                        };
                        of_its_kind.push(column(row, "msg_id")?);
                    }
                }
                Err(error) if error::is_of_a_row(&error) => {
                    failures += 1;
                    match part {
                        [msg_id] => tried.refused.push(*msg_id),
                        _ => {
                            let (first, second) = part.split_at(part.len() / 2);
                            parts.extend([second, first]);
                        }
                    }
                }
                Err(error) => return Err(self.missing(&order.queue, error)),
            }
            self.return_to_mark().await?;
            if failures >= MOST_FAILURES {
                break;
            }
        }
        Ok(tried)
    }
}
