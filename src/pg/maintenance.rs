//! What an administrator does to queues: indexes, partitioned archives, insert notifications.

use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::database::Connection;
use super::queues::{partitioning_refused, partman_not_installed};
use super::row::column;
use super::statement::{Effect, Statement};
use super::version::Feature;
use crate::domain::page::{Page, Paged};
use crate::domain::queue::{NotificationSettings, Partitioning};
use crate::domain::{Error, Kind, QueueLayout, QueueName, Result, Timestamp};

const CREATE_FIFO_INDEX: Statement = Statement::new(
    "create_fifo_index",
    Effect::Repeatable,
    "-- pgmq-grpc: create_fifo_index
SELECT pgmq.create_fifo_index(queue_name => m.queue_name::text) FROM pgmq.meta AS m WHERE m.queue_name = $1::text",
)
.unlimited();

/// As `pgmq.create_fifo_indexes_all`, but one broken queue does not fail the others.
const CREATE_FIFO_INDEXES: Statement = Statement::new(
    "create_fifo_indexes_all",
    Effect::Repeatable,
    "-- pgmq-grpc: create_fifo_indexes_all
SELECT pgmq.create_fifo_index(queue_name => m.queue_name::text) FROM pgmq.meta AS m
WHERE to_regclass(format('pgmq.%I', left(lower('q_' || m.queue_name), 63))) IS NOT NULL ORDER BY m.queue_name",
)
.unlimited();

const CONVERT_ARCHIVE: Statement = Statement::new(
    "convert_archive_partitioned",
    Effect::Writes,
    "-- pgmq-grpc: convert_archive_partitioned
SELECT pgmq.convert_archive_partitioned(table_name => m.queue_name::text, partition_interval => $2::text,
  retention_interval => $3::text, leading_partition => $4::integer)
FROM pgmq.meta AS m WHERE m.queue_name = $1::text",
)
.unlimited();

const ENABLE_NOTIFICATIONS: Statement = Statement::new(
    "enable_notify_insert",
    Effect::Repeatable,
    "-- pgmq-grpc: enable_notify_insert
SELECT pgmq.enable_notify_insert(queue_name => m.queue_name::text, throttle_interval_ms => $2::integer)
FROM pgmq.meta AS m WHERE m.queue_name = $1::text",
);

const UPDATE_NOTIFICATIONS: Statement = Statement::new(
    "update_notify_insert",
    Effect::Repeatable,
    "-- pgmq-grpc: update_notify_insert
SELECT pgmq.update_notify_insert(queue_name => t.queue_name, throttle_interval_ms => $2::integer)
FROM pgmq.list_notify_insert_throttles() AS t WHERE t.queue_name = $1::text",
);

const DISABLE_NOTIFICATIONS: Statement = Statement::new(
    "disable_notify_insert",
    Effect::Repeatable,
    "-- pgmq-grpc: disable_notify_insert
SELECT pgmq.disable_notify_insert(queue_name => m.queue_name::text) FROM pgmq.meta AS m WHERE m.queue_name = $1::text",
);

/// `$1` prefix, `$2` last name of the page before, `$3` rows. Never notified is kept as the epoch.
const LIST_NOTIFICATIONS: Statement = Statement::new(
    "list_notify_insert_throttles",
    Effect::Reads,
    "-- pgmq-grpc: list_notify_insert_throttles
SELECT t.queue_name, t.throttle_interval_ms, nullif(t.last_notified_at, to_timestamp(0)) AS last_notified_at
FROM pgmq.list_notify_insert_throttles() AS t
WHERE starts_with(t.queue_name, $1::text) AND ($2::text IS NULL OR t.queue_name COLLATE \"C\" > $2::text)
ORDER BY t.queue_name COLLATE \"C\" LIMIT $3::bigint",
);

impl Connection {
    /// Makes the index that grouped reads use, of one queue (`pgmq.create_fifo_index`) or of all
    /// (`pgmq.create_fifo_indexes_all`).
    ///
    /// # Errors
    /// `QueueNotFound`; `QueueBusy`; `PgmqVersionUnsupported` before pgmq 1.9.
    pub async fn create_fifo_index(&mut self, queue: Option<&QueueName>) -> Result<()> {
        self.installation().await?.require(Feature::FifoIndexes)?;
        match queue {
            Some(queue) => self.on_queue(&CREATE_FIFO_INDEX, queue, &[]).await,
            None => self.query(&CREATE_FIFO_INDEXES, &[]).await.map(drop),
        }
    }

    /// Turns a queue's archive into a partitioned one (`pgmq.convert_archive_partitioned`); one that is stays as it is. That
    /// of a tuned queue gets an index on its ids.
    ///
    /// # Errors
    /// `QueueNotFound`; `QueueBusy`; `PartmanNotInstalled`; `InvalidPartitioning`.
    pub async fn convert_archive(
        &mut self,
        queue: &QueueName,
        partitioning: &Partitioning,
        leading_partition: i32,
    ) -> Result<()> {
        let layout = self.get_queue(queue).await?.layout;
        if !self.installation().await?.partman {
            return Err(partman_not_installed());
        }
        let parameters = [
            (&partitioning.interval as _, Type::TEXT),
            (&partitioning.retention as _, Type::TEXT),
            (&leading_partition as _, Type::INT4),
        ];
        self.on_queue(&CONVERT_ARCHIVE, queue, &parameters).await.map_err(partitioning_refused)?;
        match layout {
            Some(QueueLayout::Tuned) => self.index_archive(queue).await,
            _ => Ok(()),
        }
    }

    /// Notifies listeners of inserts, at most once an interval (`pgmq.enable_notify_insert`).
    ///
    /// # Errors
    /// `QueueNotFound`; `QueueBusy`; `PgmqVersionUnsupported` before pgmq 1.8.
    pub async fn enable_notifications(
        &mut self,
        queue: &QueueName,
        throttle_ms: i32,
    ) -> Result<NotificationSettings> {
        self.installation().await?.require(Feature::Notifications)?;
        self.on_queue(&ENABLE_NOTIFICATIONS, queue, &[(&throttle_ms, Type::INT4)]).await?;
        Ok(settings(queue, throttle_ms))
    }

    /// Changes the interval of a queue's notifications (`pgmq.update_notify_insert`).
    ///
    /// # Errors
    /// `QueueNotFound`; `NotificationsNotEnabled`; `PgmqVersionUnsupported` before pgmq 1.11.
    pub async fn update_notifications(
        &mut self,
        queue: &QueueName,
        throttle_ms: i32,
    ) -> Result<NotificationSettings> {
        self.installation().await?.require(Feature::NotificationSettings)?;
        self.get_queue(queue).await?;
        let parameters = [(&queue.as_str() as _, Type::TEXT), (&throttle_ms as _, Type::INT4)];
        let rows = self.query(&UPDATE_NOTIFICATIONS, &parameters).await?;
        if rows.is_empty() {
            return Err(Error::new(
                Kind::NotificationsNotEnabled,
                format!(
                    "notifications of queue {:?} are not enabled; EnableNotifications does it",
                    queue.as_str()
                ),
            )
            .with("queue", queue.as_str()));
        }
        Ok(settings(queue, throttle_ms))
    }

    /// Ends the notifications of a queue, if there were any (`pgmq.disable_notify_insert`).
    ///
    /// # Errors
    /// `QueueNotFound`; `QueueBusy`; `PgmqVersionUnsupported` before pgmq 1.8.
    pub async fn disable_notifications(&mut self, queue: &QueueName) -> Result<()> {
        self.installation().await?.require(Feature::Notifications)?;
        self.on_queue(&DISABLE_NOTIFICATIONS, queue, &[]).await
    }

    /// A page of the queues with notifications, by name (`pgmq.list_notify_insert_throttles`).
    ///
    /// # Errors
    /// `PgmqVersionUnsupported` before pgmq 1.11.
    pub async fn list_notifications(
        &mut self,
        prefix: &str,
        page: &Page,
    ) -> Result<Paged<NotificationSettings>> {
        self.installation().await?.require(Feature::NotificationSettings)?;
        let parameters =
            [(&prefix as _, Type::TEXT), (&page.after(0) as _, Type::TEXT), (&page.rows() as _, Type::INT8)];
        let rows = self.query(&LIST_NOTIFICATIONS, &parameters).await?;
        let listed = rows.iter().map(settings_of).collect::<Result<Vec<_>>>()?;
        Ok(page.cut(listed, |settings| settings.queue.len(), |settings| vec![settings.queue.clone()]))
    }

    /// Runs a statement whose `$1` is a queue that must be listed, and which gives one row for it.
    async fn on_queue(
        &mut self,
        statement: &Statement,
        queue: &QueueName,
        more: &[super::database::Parameter<'_>],
    ) -> Result<()> {
        let name = queue.as_str();
        let parameters = [&[(&name as _, Type::TEXT)], more].concat();
        let rows = self.query(statement, &parameters).await.map_err(|error| self.missing(queue, error))?;
        if rows.is_empty() {
            return Err(Error::queue_not_found(queue.as_str()));
        }
        Ok(())
    }
}

fn settings(queue: &QueueName, throttle_ms: i32) -> NotificationSettings {
    NotificationSettings {
        queue: queue.as_str().to_owned(),
        throttle_interval: millis(throttle_ms),
        last_notified_at: None,
    }
}

fn settings_of(row: &Row) -> Result<NotificationSettings> {
    Ok(NotificationSettings {
        queue: column(row, "queue_name")?,
        throttle_interval: millis(column(row, "throttle_interval_ms")?),
        last_notified_at: column::<Option<Timestamp>>(row, "last_notified_at")?,
    })
}

fn millis(interval_ms: i32) -> Duration {
    Duration::from_millis(u64::try_from(interval_ms).unwrap_or(0))
}
