//! Messages that are read and deleted in one step.

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::database::{Connection, Parameter};
use super::error;
use super::row::{self, column};
use super::statement::{Effect, Plan, Statement};
use crate::domain::bounds::MAX_REPLY_BYTES;
use crate::domain::message::Message;
use crate::domain::{Error, QueueName, Result};

/// As `pgmq.pop`, but for what fits a reply. `$1` number of messages, `$2` bytes. One row of NULLs means that nothing was
/// deleted; how many should have been, each row says.
macro_rules! pop_statement {
    ($name:literal, $more:literal) => {
        Statement::new(
            $name,
            Effect::Writes,
            concat!(
                "-- pgmq-grpc: ",
                $name,
                "
WITH candidate AS MATERIALIZED (SELECT q.msg_id, q.enqueued_at,
    coalesce(octet_length(q.message::text), 0) + coalesce(octet_length(q.headers::text), 0) + 256 AS bytes
  FROM {q} AS q WHERE q.vt <= clock_timestamp()",
                $more,
                "
    AND coalesce(octet_length(q.message::text), 0) + coalesce(octet_length(q.headers::text), 0) + 256 <= $2::bigint
  ORDER BY q.msg_id LIMIT $1::integer FOR UPDATE SKIP LOCKED),
weighed AS (SELECT c.msg_id, c.enqueued_at, sum(c.bytes) OVER (ORDER BY c.msg_id ROWS UNBOUNDED PRECEDING) AS bytes
  FROM candidate AS c),
chosen AS MATERIALIZED (SELECT w.msg_id, w.enqueued_at FROM weighed AS w WHERE w.bytes <= $2::bigint),
gone AS (DELETE FROM {q} AS q USING chosen AS c WHERE q.msg_id = c.msg_id AND q.enqueued_at = c.enqueued_at
  RETURNING q.msg_id, q.read_ct, q.enqueued_at/*L*/, q.last_read_at/*/L*/, q.vt, q.message::text AS message,
    q.headers::text AS headers)
SELECT counted.chosen, g.msg_id, g.read_ct, g.enqueued_at/*L*/, g.last_read_at/*/L*/, g.vt, g.message, g.headers, {size}
FROM (SELECT count(*) AS chosen FROM chosen) AS counted LEFT JOIN gone AS g ON true"
            ),
        )
    };
}

const POP: Statement = pop_statement!("pop", "").planned(Plan::BySize);

/// The same of the messages of the ids `$3`.
const POP_THESE: Statement = pop_statement!("pop_these", " AND q.msg_id = ANY ($3::bigint[])");

/// What a pop finds, without a look at it. `$1` the id after which, `$2` number, `$3` ids that are passed over,
/// `$4` queue.
macro_rules! visible_statement {
    ($name:literal, $order:literal) => {
        Statement::new(
            $name,
            Effect::Reads,
            concat!(
                "-- pgmq-grpc: ",
                $name,
                "
SELECT m.created_at, q.msg_id FROM {q} AS q JOIN pgmq.meta AS m ON m.queue_name = $4::text
WHERE q.vt <= clock_timestamp() AND q.msg_id > $1::bigint AND q.msg_id <> ALL ($3::bigint[])
ORDER BY q.msg_id",
                $order,
                " LIMIT $2::integer"
            ),
        )
    };
}

const VISIBLE: Statement = visible_statement!("visible", "");

/// The last of them: where many at the head are refused, these may not be.
const VISIBLE_LAST: Statement = visible_statement!("visible_last_to_pops", " DESC");

/// How many messages a pop looks for at once that passes over some.
const STEP: i32 = 100;

/// After so many refusals a pop has searched enough.
const MOST_REFUSALS: usize = 64;

/// Among how many other messages it is looked for one that can be popped.
const OTHERS: i32 = 20;

/// What a pop has found that passes over some.
#[derive(Default)]
struct Popping {
    popped: Vec<Message>,
    refused: Vec<i64>,
    refusals: usize,
    why: Option<Error>,
}

impl Popping {
    /// How many bytes a reply has left.
    fn left(&self) -> i64 {
        let bytes: usize = self.popped.iter().map(Message::text_bytes).sum();
        MAX_REPLY_BYTES - i64::try_from(bytes).unwrap_or(i64::MAX)
    }
}

impl Connection {
    /// Takes at most `count` messages out of the queue for good, as many as fit a reply (`pgmq.pop`). Those that no reply
    /// can carry stay in the queue, and so do those that the database does not let go.
    ///
    /// # Errors
    /// `QueueNotFound`; `RefusedByDatabase` if it lets none go; `OutcomeUnknown` if the connection was lost meanwhile.
    pub async fn pop(&mut self, queue: &QueueName, count: i32) -> Result<Vec<Message>> {
        self.mark().await?;
        let table = self.table(queue).await?;
        if table.refused.pops.are_known() {
            return self.pop_around(queue, count).await;
        }
        let parameters: [Parameter<'_>; 2] = [(&count, Type::INT4), (&MAX_REPLY_BYTES, Type::INT8)];
        match self.pop_by(&POP, queue, &parameters).await {
            Err(error) if error::is_unrenderable(&error) || error::is_of_a_row(&error) => {
                self.return_to_mark().await?;
                self.pop_around(queue, count).await
            }
            popped => popped,
        }
    }

    async fn pop_by(
        &mut self,
        statement: &Statement,
        queue: &QueueName,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Message>> {
        let table = self.table(queue).await?;
        let popped = self.query(&statement.on(&table), parameters).await;
        let rows = popped.map_err(|error| self.missing(queue, error))?;
        let mut messages = Vec::with_capacity(rows.len());
        for row in &rows {
            match column::<Option<i64>>(row, "msg_id")? {
                Some(_) => messages.push(row::message(row, table.fenced_by_read_time)?),
                None if column::<i64>(row, "chosen")? > 0 => return Err(error::swallowed()),
                None => {}
            }
        }
        messages.sort_unstable_by_key(|message| message.msg_id);
        Ok(messages)
    }

    /// Pops around messages that cannot be rendered or that the database does not let go.
    async fn pop_around(&mut self, queue: &QueueName, count: i32) -> Result<Vec<Message>> {
        if self.in_transaction() {
            // What was done before may be made good until the end; then the pop's own is looked at there, too.
            if self.check_constraints().await.is_err() {
                self.return_to_mark().await?;
            }
            let popped = self.pop_in_parts(queue, count).await?;
            self.defer_constraints().await?;
            return Ok(popped);
        }
        self.begin().await?;
        let popped = async {
            self.check_constraints().await?;
            self.pop_in_parts(queue, count).await
        };
        let popped = popped.await;
        self.conclude(popped, false).await
    }

    async fn pop_in_parts(&mut self, queue: &QueueName, count: i32) -> Result<Vec<Message>> {
        let wanted = usize::try_from(count).unwrap_or(0);
        let table = self.table(queue).await?;
        let rows = &table.refused.pops;
        rows.forget_all_but(&[]);
        let mut passed_over = rows.passed_over();
        let mut popping = Popping::default();
        let (name, mut after) = (queue.as_str(), rows.up_to());
        let is_enough = |popping: &Popping| {
            popping.popped.len() >= wanted
                || popping.left() < MAX_REPLY_BYTES / 2
                || popping.refusals >= MOST_REFUSALS
        };
        while !is_enough(&popping) {
            let parameters: [Parameter<'_>; 4] = [
                (&after, Type::INT8),
                (&STEP, Type::INT4),
                (&passed_over, Type::INT8_ARRAY),
                (&name, Type::TEXT),
            ];
            let visible = self.query(&VISIBLE.on(&table), &parameters).await;
            let visible = visible.map_err(|error| self.missing(queue, error))?;
            let ids = ids_of(&visible)?;
            let (Some(row), Some(last)) = (visible.first(), ids.last()) else { break };
            if rows.keep_incarnation(column(row, "created_at")?) {
                passed_over.clear();
                after = i64::MIN;
                continue;
            }
            after = *last;
            let mut parts = vec![ids.as_slice()];
            while let Some(part) = parts.pop().filter(|_| !is_enough(&popping)) {
                parts.extend(self.pop_part(queue, wanted, part, &mut popping).await?);
            }
        }
        let Popping { popped, refused, refusals, why } = popping;
        let why_none = why.clone().or_else(|| rows.why_suspected());
        if let Some(why) = why {
            // Where the search has ended early, others may stand behind.
            let are_alone = match popped.is_empty() && refusals >= MOST_REFUSALS {
                true => self.can_pop_others(queue, &[passed_over, refused.clone()].concat()).await?,
                false => !popped.is_empty(),
            };
            rows.pass_over(refused, are_alone, &why);
        }
        rows.warn(queue);
        match why_none.filter(|_| popped.is_empty()) {
            Some(why) => Err(why),
            None => Ok(popped),
        }
    }

    /// Whether one of the last messages can be popped; all of them stay.
    async fn can_pop_others(&mut self, queue: &QueueName, known: &[i64]) -> Result<bool> {
        let table = self.table(queue).await?;
        let name = queue.as_str();
        let parameters: [Parameter<'_>; 4] = [
            (&table.refused.pops.up_to(), Type::INT8),
            (&OTHERS, Type::INT4),
            (&known, Type::INT8_ARRAY),
            (&name, Type::TEXT),
        ];
        let visible = self.query(&VISIBLE_LAST.on(&table), &parameters).await;
        let visible = visible.map_err(|error| self.missing(queue, error))?;
        let ids = ids_of(&visible)?;
        let (mut popping, mut parts) = (Popping::default(), vec![ids.as_slice()]);
        while let Some(part) = parts.pop() {
            parts.extend(self.pop_part(queue, ids.len(), part, &mut popping).await?);
            if !popping.popped.is_empty() {
                self.return_to_mark().await?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Pops a part of what is visible; gives the parts of it that are to be tried instead, the first one last.
    async fn pop_part<'a>(
        &mut self,
        queue: &QueueName,
        wanted: usize,
        part: &'a [i64],
        popping: &mut Popping,
    ) -> Result<Vec<&'a [i64]>> {
        self.mark().await?;
        let room = i32::try_from(wanted - popping.popped.len()).unwrap_or(i32::MAX);
        let left = popping.left();
        let parameters: [Parameter<'_>; 3] =
            [(&room, Type::INT4), (&left, Type::INT8), (&part, Type::INT8_ARRAY)];
        let error = match self.pop_by(&POP_THESE, queue, &parameters).await {
            Ok(popped) => {
                popping.popped.extend(popped);
                return Ok(Vec::new());
            }
            Err(error) => error,
        };
        // To find out that one cannot be rendered takes seconds, so each of them is tried once.
        let is_unrenderable = error::is_unrenderable(&error);
        if !is_unrenderable && !error::is_of_a_row(&error) {
            return Err(error);
        }
        self.return_to_mark().await?;
        match part {
            [_] if is_unrenderable => return Ok(Vec::new()),
            [msg_id] => popping.refused.push(*msg_id),
            _ if is_unrenderable => return Ok(part.chunks(1).rev().collect()),
            _ => {}
        }
        popping.refusals += 1;
        popping.why = Some(error);
        Ok(part.chunks(part.len().div_ceil(2)).rev().filter(|_| part.len() > 1).collect())
    }
}

fn ids_of(rows: &[Row]) -> Result<Vec<i64>> {
    rows.iter().map(|row| column(row, "msg_id")).collect()
}
