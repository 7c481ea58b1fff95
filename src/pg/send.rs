//! Messages into a queue.

use std::borrow::Borrow;

use tokio_postgres::types::Type;

use super::database::Connection;
use super::row::column;
use super::statement::{Effect, Plan, Statement};
use crate::domain::{DeduplicationId, Error, OutgoingMessage, QueueName, Result, Schedule, Timestamp};

/// The insert of `pgmq.send`, for many messages at once, each with its own headers and schedule. Where a trigger of the
/// user's swallows some of them, the division by zero takes back the others.
const SEND: Statement = Statement::new(
    "send",
    Effect::Writes,
    "-- pgmq-grpc: send
WITH sent AS (INSERT INTO {q} (vt, message, headers)
SELECT coalesce(i.visible_at, clock_timestamp() + coalesce(i.delay_ms, 0) * interval '1 millisecond'),
  i.message::jsonb, i.headers::jsonb
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::timestamptz[])
  WITH ORDINALITY AS i(message, headers, delay_ms, visible_at, ordinal)
ORDER BY i.ordinal RETURNING msg_id)
SELECT array_agg(s.msg_id) AS msg_ids, 1 / (count(*) IN (0, cardinality($1)))::integer AS all_or_none FROM sent AS s",
)
.planned(Plan::ForEver);

/// The same for one message, which costs the database half as much. `$1` message, `$2` headers, `$3` delay in
/// milliseconds, `$4` moment.
const SEND_ONE: Statement = Statement::new(
    "send_one",
    Effect::Writes,
    "-- pgmq-grpc: send_one
INSERT INTO {q} (vt, message, headers)
VALUES (coalesce($4::timestamptz, clock_timestamp() + coalesce($3::bigint, 0) * interval '1 millisecond'),
  $1::text::jsonb, $2::text::jsonb)
RETURNING msg_id",
)
.planned(Plan::ForEver);

/// The columns of messages to be sent, as array parameters.
pub(super) struct Columns<'a> {
    pub(super) messages: Vec<&'a str>,
    pub(super) headers: Vec<Option<&'a str>>,
    pub(super) delays_ms: Vec<Option<i64>>,
    pub(super) visible_at: Vec<Option<Timestamp>>,
    pub(super) deduplication_ids: Vec<Option<&'a str>>,
}

impl<'a> Columns<'a> {
    pub(super) fn of(messages: &'a [impl Borrow<OutgoingMessage>]) -> Self {
        let messages = || messages.iter().map(Borrow::borrow);
        let schedules = || messages().map(OutgoingMessage::schedule);
        Self {
            messages: messages().map(OutgoingMessage::message).collect(),
            headers: messages().map(OutgoingMessage::headers).collect(),
            deduplication_ids: messages()
                .map(|message| message.deduplication_id().map(DeduplicationId::as_str))
                .collect(),
            delays_ms: schedules().map(|schedule| times(schedule).0).collect(),
            visible_at: schedules().map(|schedule| times(schedule).1).collect(),
        }
    }
}

/// A schedule as a delay in milliseconds or a moment.
fn times(schedule: Schedule) -> (Option<i64>, Option<Timestamp>) {
    match schedule {
        Schedule::AfterMillis(delay_ms) => (Some(delay_ms), None),
        Schedule::At(moment) => (None, Some(moment)),
        Schedule::ByPolicy => (None, None),
    }
}

fn swallowed() -> Error {
    Error::internal("a trigger on the queue's table swallowed messages")
}

impl Connection {
    /// Stores messages in one statement, all or none, and gives their ids in the same order (`pgmq.send`,
    /// `pgmq.send_batch`). It looks at no deduplication id; [`Connection::send_keyed`] does.
    ///
    /// # Errors
    /// `QueueNotFound`; `OutcomeUnknown` if the connection was lost meanwhile.
    pub async fn send(
        &mut self,
        queue: &QueueName,
        messages: &[impl Borrow<OutgoingMessage> + Sync],
    ) -> Result<Vec<i64>> {
        if let [message] = messages {
            return Ok(vec![self.send_one(queue, message.borrow()).await?]);
        }
        let table = self.table(queue).await?;
        let columns = Columns::of(messages);
        let rows = self
            .query(
                &SEND.on(&table),
                &[
                    (&columns.messages, Type::TEXT_ARRAY),
                    (&columns.headers, Type::TEXT_ARRAY),
                    (&columns.delays_ms, Type::INT8_ARRAY),
                    (&columns.visible_at, Type::TIMESTAMPTZ_ARRAY),
                ],
            )
            .await
            .map_err(|error| self.missing(queue, error))?;
        // In one row: many cost both sides more than what they hold.
        let msg_ids = rows.first().map(|row| column::<Option<Vec<i64>>>(row, "msg_ids")).transpose()?;
        let mut msg_ids = msg_ids.flatten().unwrap_or_default();
        if msg_ids.len() != messages.len() {
            return Err(swallowed());
        }
        // The sequence gives ids in the order of insertion, but they come back in any order.
        msg_ids.sort_unstable();
        Ok(msg_ids)
    }

    async fn send_one(&mut self, queue: &QueueName, message: &OutgoingMessage) -> Result<i64> {
        let table = self.table(queue).await?;
        let (delay_ms, visible_at) = times(message.schedule());
        let rows = self
            .query(
                &SEND_ONE.on(&table),
                &[
                    (&message.message(), Type::TEXT),
                    (&message.headers(), Type::TEXT),
                    (&delay_ms, Type::INT8),
                    (&visible_at, Type::TIMESTAMPTZ),
                ],
            )
            .await
            .map_err(|error| self.missing(queue, error))?;
        rows.first().map(|row| column(row, "msg_id")).transpose()?.ok_or_else(swallowed)
    }
}
