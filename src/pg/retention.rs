//! Removes archived messages for which the policy of their queue has no more room in time, a few at a time.

use std::time::{Duration, Instant};

use rand::Rng;
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;

use super::database::Database;
use super::policies::policy_of_queue;
use super::row::column;
use super::statement::{Effect, Statement};
use crate::domain::{Deadline, Error, QueueName, Result, error};

/// The most messages that one statement removes.
const STEP: i64 = 1_000;

/// The longest pause between two rounds.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The longest that one step may take.
const STEP_TIME: Duration = Duration::from_secs(15);

/// Only one server at a time removes: the lock ends with the statement. The moment is the statement's and not the clock's, so
/// that pgmq's index on `archived_at` finds what is old without a look at the rest. What others have locked is skipped. The
/// archive may have partitions, in which places are not unique. What the server remembers of the policy may be of a queue that was
/// there before, or of the moment before it was changed, so the database is asked again.
const REMOVE: Statement = Statement::new(
    "remove_archived",
    Effect::Repeatable,
    concat!(
        "-- pgmq-grpc: remove_archived
WITH turn AS MATERIALIZED (SELECT pg_try_advisory_xact_lock(8102083524853886834) AS mine),
policy AS MATERIALIZED (SELECT EXISTS (SELECT FROM pgmq_grpc.queue_policy AS p JOIN pgmq.meta AS m ON ",
        policy_of_queue!(),
        "
  WHERE m.queue_name = $3::text AND p.archive_retention_ms = $1::bigint) AS holds),
old AS MATERIALIZED (
  SELECT a.tableoid AS part, a.ctid AS place FROM {a} AS a
  WHERE (SELECT t.mine AND p.holds FROM turn AS t, policy AS p) AND a.archived_at < statement_timestamp() - $1::bigint * interval '1 millisecond'
  ORDER BY a.archived_at LIMIT $2::bigint FOR UPDATE SKIP LOCKED),
gone AS (
  DELETE FROM {a} AS a WHERE a.ctid = ANY (ARRAY(SELECT o.place FROM old AS o))
    AND EXISTS (SELECT FROM old AS o WHERE o.part = a.tableoid AND o.place = a.ctid)
  RETURNING 1)
SELECT count(*) AS removed FROM gone"
    ),
);

/// Removes what has been archived for longer than its queue's policy keeps it, until the token is cancelled.
///
/// At most a thousand messages a statement, queue by queue in turn; after each statement it rests for as long as that took, so
/// all of it uses at most half of one connection's time.
pub async fn remove_archived(database: Database, stop: CancellationToken) {
    let policies = database.policies();
    let work = async {
        loop {
            tokio::time::sleep(pause(policies.shortest_retention_ms())).await;
            let mut queues = policies.queues_with_retention();
            while !queues.is_empty() {
                let mut unfinished = Vec::new();
                for queue in queues {
                    // It may have been changed since the step before.
                    let Some(retention_ms) = policies.policy_of(&queue).archive_retention_ms else {
                        continue;
                    };
                    let began = Instant::now();
                    let removed =
                        remove_step(&database, &queue, retention_ms).await.unwrap_or_else(|error| {
                            let (queue, cause) = (queue.as_str(), error::chain(&error));
                            tracing::debug!(queue, cause, "old archived messages stay for now");
                            0
                        });
                    tokio::time::sleep(began.elapsed()).await;
                    if removed == STEP {
                        unfinished.push(queue);
                    }
                }
                queues = unfinished;
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

/// Soon after the first message can be too old, but no more often than every second. Servers do not look together.
fn pause(shortest_ms: Option<i64>) -> Duration {
    let quarter =
        shortest_ms.map_or(LONGEST_PAUSE, |millis| Duration::from_millis(millis.unsigned_abs() / 4));
    quarter.clamp(Duration::from_secs(1), LONGEST_PAUSE).mul_f64(rand::rng().random_range(0.75..1.0))
}

async fn remove_step(database: &Database, queue: &QueueName, retention_ms: i64) -> Result<i64> {
    let mut connection = database.connect("remove_archived", Deadline::within(STEP_TIME)).await?;
    let table = connection.table(queue).await?;
    let name = queue.as_str();
    let parameters = [(&retention_ms as _, Type::INT8), (&STEP as _, Type::INT8), (&name as _, Type::TEXT)];
    let removed = connection.query(&REMOVE.on(&table), &parameters).await;
    let rows = removed.map_err(|error| connection.missing(queue, error))?;
    let row = rows.first().ok_or_else(|| Error::internal("a count gave no row"))?;
    column(row, "removed")
}
