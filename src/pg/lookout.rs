//! One look at many idle queues: what came, what is visible, and what will be.

use std::fmt::Write;
use std::time::Duration;

use tokio_postgres::types::Type;

use super::database::Connection;
use super::row::column;
use super::statement::{Effect, Statement};
use crate::domain::{QueueName, Result, Sight, Timestamp, View};

/// What is cheap to know of every queue. `$1` names.
///
/// Whatever sends a message, takes its id from the table's sequence. The sequence moves before the sender commits, so
/// the transactions that run now are told too.
const GLANCE: &str = "SELECT w.ordinal, m.created_at,
  CASE t.relkind WHEN 'p' THEN (SELECT sum(pg_relation_size(p.inhrelid)) FROM pg_inherits AS p WHERE p.inhparent = t.oid)::bigint
    ELSE pg_relation_size(t.oid) END AS bytes,
  CASE WHEN has_sequence_privilege(s.oid, 'USAGE, SELECT') THEN pg_sequence_last_value(s.oid) END AS last_id,
  coalesce(has_sequence_privilege(s.oid, 'USAGE, SELECT'), false) AS is_readable, l.visible, l.wait_ms,
  pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS oldest_running,
  pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next_transaction
FROM unnest($1::text[]) WITH ORDINALITY AS w(name, ordinal)
LEFT JOIN pgmq.meta AS m ON m.queue_name = w.name
LEFT JOIN pg_class AS t ON t.relname = pgmq.format_table_name(m.queue_name, 'q')::name
  AND t.relnamespace = 'pgmq'::regnamespace
LEFT JOIN pg_depend AS d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = t.oid AND d.refobjsubid = 1
  AND d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
LEFT JOIN pg_class AS s ON s.oid = d.objid AND s.relkind = 'S'
LEFT JOIN looked AS l ON l.ordinal = w.ordinal";

impl Connection {
    /// Looks at many queues in one statement: at all of them whether anything was sent, and at those marked whether
    /// anything is visible or will be. The answers are in the order of the questions.
    ///
    /// # Errors
    /// Any failure concerns all queues; a queue that is gone is no failure unless it was dropped just now.
    pub async fn look_around(&mut self, queues: &[(QueueName, bool)]) -> Result<View> {
        let mut text = "-- pgmq-grpc: look_around
WITH looked(ordinal, visible, wait_ms) AS (SELECT 0::bigint, false, NULL::bigint"
            .to_owned();
        for (index, (queue, closely)) in queues.iter().enumerate() {
            if !closely {
                continue;
            }
            // A queue that is not there any more has no table to look at; the glance tells that it is gone.
            let Ok(table) = self.table(queue).await else {
                continue;
            };
            let (ordinal, table) = (index + 1, &table.queue);
            // Writing to a string cannot fail.
            let _ = write!(
                text,
                "
UNION ALL SELECT {ordinal}, EXISTS (SELECT FROM {table} AS q WHERE q.vt <= clock_timestamp()),
  (SELECT least(3600000, ceil(extract(epoch FROM min(q.vt) - clock_timestamp()) * 1000))::bigint
   FROM {table} AS q WHERE q.vt > clock_timestamp() AND q.vt < 'infinity')"
            );
        }
        text.push_str(")\n");
        text.push_str(GLANCE);
        let statement = Statement { text: text.into(), ..Statement::new("look_around", Effect::Reads, "") };
        let names: Vec<&str> = queues.iter().map(|(queue, _)| queue.as_str()).collect();
        let rows = match self.query(&statement, &[(&names, Type::TEXT_ARRAY)]).await {
            Ok(rows) => rows,
            Err(error) => {
                // One of the tables may be gone, and which one is not known.
                for (queue, _) in queues.iter().filter(|(_, closely)| *closely) {
                    self.catalog().forget(queue);
                }
                return Err(error);
            }
        };
        let mut view = View { sights: vec![None; queues.len()], oldest_running: 0, next_transaction: 0 };
        for row in &rows {
            view.oldest_running = column(row, "oldest_running")?;
            view.next_transaction = column(row, "next_transaction")?;
            let Some(created_at) = column::<Option<Timestamp>>(row, "created_at")? else {
                continue;
            };
            let wait_ms: Option<i64> = column(row, "wait_ms")?;
            let sight = Sight {
                created_at,
                last_id: column(row, "last_id")?,
                is_readable: column(row, "is_readable")?,
                bytes: column::<Option<i64>>(row, "bytes")?.unwrap_or(0).unsigned_abs(),
                visible: column(row, "visible")?,
                next_visible: wait_ms.map(|wait_ms| Duration::from_millis(wait_ms.max(0).unsigned_abs())),
            };
            let index = usize::try_from(column::<i64>(row, "ordinal")? - 1).unwrap_or(usize::MAX);
            if sight.visible == Some(true)
                && let Some((queue, _)) = queues.get(index)
                && let Ok(table) = self.table(queue).await
            {
                table.refused.reads.doubt();
            }
            if let Some(place) = view.sights.get_mut(index) {
                *place = Some(sight);
            }
        }
        Ok(view)
    }
}
