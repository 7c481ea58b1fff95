//! Messages that were read as often as can be counted.
//!
//! pgmq's functions count one further and fail, for all that they read. So such counts are set back by one before they are
//! tried again, and such a message is read like any other, its count the same each time: as plain reads have it.

use super::catalog::QueueTable;
use super::database::{Connection, Parameter};
use super::error;
use super::statement::{Effect, Statement};
use crate::domain::Result;

/// A receipt of such a message that is visible again becomes stale a moment before the message is read again.
const SET_BACK_COUNTS: Statement = Statement::new(
    "set_back_counts",
    Effect::Repeatable,
    "-- pgmq-grpc: set_back_counts
WITH held AS MATERIALIZED (SELECT {place} FROM {q} AS q
  WHERE q.read_ct = 2147483647 AND q.vt <= clock_timestamp() ORDER BY q.msg_id FOR UPDATE OF q SKIP LOCKED)
UPDATE {q} AS q SET read_ct = 2147483646 FROM held WHERE {same} RETURNING q.msg_id",
);

impl Connection {
    /// Runs a statement of reading, and once more without counts in its way that are as large as can be. An open transaction
    /// goes back to its mark in between.
    ///
    /// # Errors
    /// The statement's own.
    pub(super) async fn query_whatever_counts(
        &mut self,
        statement: &Statement,
        table: &QueueTable,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<tokio_postgres::Row>> {
        match self.query(statement, parameters).await {
            Err(failed) if error::is_out_of_range(&failed) => {
                self.return_to_mark().await?;
                match self.query(&SET_BACK_COUNTS.on(table), &[]).await?.is_empty() {
                    true => Err(failed),
                    false => self.query(statement, parameters).await,
                }
            }
            done => done,
        }
    }
}
