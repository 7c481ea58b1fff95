//! Messages into a queue.

use std::borrow::Borrow;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::database::{Connection, Parameter};
use super::error;
use super::row::column;
use super::statement::{Effect, Plan, Statement};
use crate::domain::{DeduplicationId, OutgoingMessage, QueueName, Result, Schedule, Timestamp};

/// The insert of `pgmq.send`, for many messages at once, each with its own headers and schedule. Where a trigger of the
/// user's swallows some of them, the division by zero takes back the others.
pub(super) const SEND: Statement = Statement::new(
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
pub(super) const SEND_ONE: Statement = Statement::new(
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

    /// The parameters of [`SEND`].
    pub(super) fn parameters(&self) -> [Parameter<'_>; 4] {
        [
            (&self.messages, Type::TEXT_ARRAY),
            (&self.headers, Type::TEXT_ARRAY),
            (&self.delays_ms, Type::INT8_ARRAY),
            (&self.visible_at, Type::TIMESTAMPTZ_ARRAY),
        ]
    }
}

/// The fields of one message to be sent, as parameters.
pub(super) struct Fields<'a> {
    message: &'a str,
    headers: Option<&'a str>,
    delay_ms: Option<i64>,
    visible_at: Option<Timestamp>,
}

impl<'a> Fields<'a> {
    pub(super) fn of(message: &'a OutgoingMessage) -> Self {
        let (delay_ms, visible_at) = times(message.schedule());
        Self { message: message.message(), headers: message.headers(), delay_ms, visible_at }
    }

    /// The parameters of [`SEND_ONE`].
    pub(super) fn parameters(&self) -> [Parameter<'_>; 4] {
        [
            (&self.message, Type::TEXT),
            (&self.headers, Type::TEXT),
            (&self.delay_ms, Type::INT8),
            (&self.visible_at, Type::TIMESTAMPTZ),
        ]
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
            .query(&SEND.on(&table), &columns.parameters())
            .await
            .map_err(|error| self.missing(queue, error))?;
        ids_of_many(&rows, messages.len())
    }

    async fn send_one(&mut self, queue: &QueueName, message: &OutgoingMessage) -> Result<i64> {
        let table = self.table(queue).await?;
        let fields = Fields::of(message);
        let rows = self
            .query(&SEND_ONE.on(&table), &fields.parameters())
            .await
            .map_err(|error| self.missing(queue, error))?;
        id_of_one(&rows)
    }
}

/// The id that [`SEND_ONE`] gave.
pub(super) fn id_of_one(rows: &[Row]) -> Result<i64> {
    rows.first().map(|row| column(row, "msg_id")).transpose()?.ok_or_else(error::swallowed)
}

/// The ids that [`SEND`] gave, in the order of the messages.
pub(super) fn ids_of_many(rows: &[Row], count: usize) -> Result<Vec<i64>> {
    // In one row: many cost both sides more than what they hold.
    let msg_ids = rows.first().map(|row| column::<Option<Vec<i64>>>(row, "msg_ids")).transpose()?;
    let mut msg_ids = msg_ids.flatten().unwrap_or_default();
    if msg_ids.len() != count {
        return Err(error::swallowed());
    }
    // The sequence gives ids in the order of insertion, but they come back in any order.
    msg_ids.sort_unstable();
    Ok(msg_ids)
}
