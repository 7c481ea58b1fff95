//! Removes deduplication ids whose window is over, a few at a time.

use std::time::Duration;

use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;

use super::database::{Connection, Database};
use super::row::column;
use super::statement::{Effect, Statement};
use crate::domain::{Deadline, Error, QueueName, Result, error};

/// The most keys that one statement removes.
const STEP: i64 = 1_000;

/// The longest pause between two rounds of an idle database.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The longest that one step may take.
const STEP_TIME: Duration = Duration::from_secs(15);

/// Only one server at a time removes: the lock ends with the statement. Keys that a send is about to renew are skipped.
const REMOVE_EXPIRED: Statement = Statement::new(
    "remove_expired_keys",
    Effect::Repeatable,
    "-- pgmq-grpc: remove_expired_keys
WITH turn AS MATERIALIZED (SELECT pg_try_advisory_xact_lock(8102083524853886832) AS mine),
gone AS (
  DELETE FROM pgmq_grpc.deduplication AS d WHERE d.ctid = ANY (ARRAY(
    SELECT e.ctid FROM pgmq_grpc.deduplication AS e, turn
    WHERE turn.mine AND e.expires_at <= clock_timestamp() ORDER BY e.expires_at LIMIT $1::bigint
    FOR UPDATE OF e SKIP LOCKED))
  RETURNING 1)
SELECT count(*) AS removed FROM gone",
);

/// What a dropped queue leaves; one of the same name that was made since keeps its own.
const REMOVE_OF_DROPPED: Statement = Statement::new(
    "remove_keys_of_dropped",
    Effect::Repeatable,
    "-- pgmq-grpc: remove_keys_of_dropped
WITH gone AS (
  DELETE FROM pgmq_grpc.deduplication AS d WHERE d.ctid = ANY (ARRAY(
    SELECT e.ctid FROM pgmq_grpc.deduplication AS e
    WHERE e.queue_name = $1::text COLLATE \"C\" AND NOT EXISTS (
      SELECT FROM pgmq.meta AS m WHERE m.queue_name = $1::text AND m.created_at = e.queue_created_at)
    LIMIT $2::bigint FOR UPDATE OF e SKIP LOCKED))
  RETURNING 1)
SELECT count(*) AS removed FROM gone",
);

/// Removes what has expired until the token is cancelled.
pub async fn remove_expired_keys(database: Database, window: Duration, stop: CancellationToken) {
    // Soon after it has expired, but no more often than every second.
    let pause = (window / 4).clamp(Duration::from_secs(1), LONGEST_PAUSE);
    let work = async {
        loop {
            tokio::time::sleep(pause).await;
            while database.has_own_schema() {
                match remove_step(&database).await {
                    // More have expired, and other work goes first.
                    Ok(STEP) => tokio::task::yield_now().await,
                    Ok(_) => break,
                    Err(error) => {
                        tracing::debug!(
                            cause = error::chain(&error),
                            "expired deduplication ids stay for now"
                        );
                        break;
                    }
                }
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

async fn remove_step(database: &Database) -> Result<i64> {
    let mut connection = database.connect("remove_expired_keys", Deadline::within(STEP_TIME)).await?;
    let rows = connection.query(&REMOVE_EXPIRED, &[(&STEP, Type::INT8)]).await?;
    removed(&rows)
}

fn removed(rows: &[tokio_postgres::Row]) -> Result<i64> {
    let row = rows.first().ok_or_else(|| Error::internal("a count gave no row"))?;
    column(row, "removed")
}

impl Connection {
    /// Removes the keys of a queue that was just dropped, as far as that is quick: they are of no use, and what is left
    /// expires. It comes after the drop, because in one transaction with it the two could wait for senders in a ring.
    pub(super) async fn remove_keys_of_dropped(&mut self, queue: &QueueName) {
        if self.in_transaction() || !self.has_own_schema() {
            return;
        }
        let limit = STEP * 10;
        let gone =
            self.query(&REMOVE_OF_DROPPED, &[(&queue.as_str(), Type::TEXT), (&limit, Type::INT8)]).await;
        if let Err(error) = gone {
            let (queue, cause) = (queue.as_str(), error::chain(&error));
            tracing::debug!(queue, cause, "deduplication ids of a dropped queue stay until they expire");
        }
    }
}
