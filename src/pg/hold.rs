//! Which deliveries still hold their messages, and rows locked ahead of a transaction's work.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::database::Connection;
use super::row::column;
use super::settle::Fences;
use super::statement::{Effect, Statement};
use crate::domain::{QueueName, Receipt, Result};

const HIDDEN_FOR: Statement = Statement::new(
    "hidden_for",
    Effect::Reads,
    "-- pgmq-grpc: hidden_for
SELECT w.ordinal, least(43200000, ceil(extract(epoch FROM q.vt - clock_timestamp()) * 1000))::bigint AS hidden_ms
FROM unnest($1::bigint[], $2::integer[], $3::timestamptz[], $4::timestamptz[])
  WITH ORDINALITY AS w(msg_id, read_ct, enqueued_at, last_read_at, ordinal)
JOIN {q} AS q USING (msg_id, read_ct, enqueued_at/*L*/, last_read_at/*/L*/)
WHERE q.msg_id = ANY ($1) AND q.enqueued_at = ANY ($3)",
);

const LOCK_ROWS: Statement = Statement::new(
    "lock_rows",
    Effect::Reads,
    "-- pgmq-grpc: lock_rows
SELECT q.msg_id FROM {q} AS q WHERE q.msg_id = ANY ($1::bigint[]) ORDER BY q.msg_id FOR UPDATE",
);

impl Connection {
    /// How long each delivery's message stays hidden; none where it is settled, visible again or read by another.
    ///
    /// # Errors
    /// `QueueNotFound`.
    pub async fn hidden_for(
        &mut self,
        queue: &QueueName,
        receipts: &[Receipt],
    ) -> Result<Vec<Option<Duration>>> {
        let table = self.table(queue).await?;
        let fences = Fences::of(receipts.iter());
        let rows = self
            .query(&HIDDEN_FOR.on(&table), &fences.parameters())
            .await
            .map_err(|error| self.missing(queue, error))?;
        let mut hidden = vec![None; receipts.len()];
        for row in &rows {
            let ordinal: i64 = column(row, "ordinal")?;
            let hidden_ms: i64 = column(row, "hidden_ms")?;
            let index = usize::try_from(ordinal - 1).unwrap_or(usize::MAX);
            if let (Some(slot), Ok(millis @ 1..)) = (hidden.get_mut(index), u64::try_from(hidden_ms)) {
                *slot = Some(Duration::from_millis(millis));
            }
        }
        Ok(hidden)
    }

    /// Locks the rows of messages in the order of their ids, so that transactions cannot wait for each other in a ring.
    ///
    /// # Errors
    /// `QueueNotFound`; `QueueBusy` after 2 s.
    pub async fn lock_rows(&mut self, queue: &QueueName, msg_ids: &[i64]) -> Result<()> {
        let table = self.table(queue).await?;
        let locked = self.query(&LOCK_ROWS.on(&table), &[(&msg_ids, Type::INT8_ARRAY)]).await;
        locked.map(drop).map_err(|error| self.missing(queue, error))
    }
}
