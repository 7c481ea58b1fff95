//! What an administrator does: pgmq itself, indexes, partitioned archives, insert notifications.

use std::sync::Arc;

use super::{Broker, OnConnection, Operation};
use crate::domain::page::{Page, Paged};
use crate::domain::queue::{NotificationSettings, Partitioning};
use crate::domain::{Deadline, QueueName, Result};
use crate::pg::{Connection, Subject, Upgrade};

/// Installs or upgrades pgmq.
#[derive(Debug)]
pub struct InstallPgmq;

impl Operation for InstallPgmq {
    const NAME: &'static str = "install_pgmq";
    type Output = Upgrade;

    async fn run(self, broker: &Arc<Broker>, _: Deadline) -> Result<Upgrade> {
        broker.upgrader.upgrade(&broker.database).await
    }
}

/// Makes the index of grouped reads, of one queue or of all (`pgmq.create_fifo_index`, `pgmq.create_fifo_indexes_all`).
#[derive(Debug)]
pub struct CreateFifoIndex {
    /// Only this queue's.
    pub queue: Option<QueueName>,
}

impl OnConnection for CreateFifoIndex {
    const NAME: &'static str = "create_fifo_index";
    type Output = ();

    fn subject(&self) -> Subject<'_> {
        self.queue.as_ref().map_or("", QueueName::as_str).into()
    }

    async fn apply(&self, connection: &mut Connection) -> Result<()> {
        connection.create_fifo_index(self.queue.as_ref()).await
    }
}

/// Turns a queue's archive into a partitioned one (`pgmq.convert_archive_partitioned`).
#[derive(Debug)]
pub struct ConvertArchivePartitioned {
    /// The queue.
    pub queue: QueueName,
    /// How it is cut.
    pub partitioning: Partitioning,
    /// Handed to pgmq as it is.
    pub leading_partition: i32,
}

impl OnConnection for ConvertArchivePartitioned {
    const NAME: &'static str = "convert_archive_partitioned";
    type Output = ();

    fn subject(&self) -> Subject<'_> {
        self.queue.as_str().into()
    }

    async fn apply(&self, connection: &mut Connection) -> Result<()> {
        connection.convert_archive(&self.queue, &self.partitioning, self.leading_partition).await
    }
}

/// Notifies listeners of inserts (`pgmq.enable_notify_insert`).
#[derive(Debug)]
pub struct EnableNotifications {
    /// The queue.
    pub queue: QueueName,
    /// The least time between two notifications, in milliseconds.
    pub throttle_ms: i32,
}

impl OnConnection for EnableNotifications {
    const NAME: &'static str = "enable_notifications";
    type Output = NotificationSettings;

    fn subject(&self) -> Subject<'_> {
        self.queue.as_str().into()
    }

    async fn apply(&self, connection: &mut Connection) -> Result<NotificationSettings> {
        connection.enable_notifications(&self.queue, self.throttle_ms).await
    }
}

/// Changes the interval of notifications (`pgmq.update_notify_insert`).
#[derive(Debug)]
pub struct UpdateNotifications {
    /// The queue.
    pub queue: QueueName,
    /// The least time between two notifications, in milliseconds.
    pub throttle_ms: i32,
}

impl OnConnection for UpdateNotifications {
    const NAME: &'static str = "update_notifications";
    type Output = NotificationSettings;

    fn subject(&self) -> Subject<'_> {
        self.queue.as_str().into()
    }

    async fn apply(&self, connection: &mut Connection) -> Result<NotificationSettings> {
        connection.update_notifications(&self.queue, self.throttle_ms).await
    }
}

/// Ends the notifications of a queue (`pgmq.disable_notify_insert`).
#[derive(Debug)]
pub struct DisableNotifications {
    /// The queue.
    pub queue: QueueName,
}

impl OnConnection for DisableNotifications {
    const NAME: &'static str = "disable_notifications";
    type Output = ();

    fn subject(&self) -> Subject<'_> {
        self.queue.as_str().into()
    }

    async fn apply(&self, connection: &mut Connection) -> Result<()> {
        connection.disable_notifications(&self.queue).await
    }
}

/// A page of the queues with notifications (`pgmq.list_notify_insert_throttles`).
#[derive(Debug)]
pub struct ListNotifications {
    /// What the names begin with.
    pub prefix: String,
    /// Which page.
    pub page: Page,
}

impl OnConnection for ListNotifications {
    const NAME: &'static str = "list_notifications";
    type Output = Paged<NotificationSettings>;

    async fn apply(&self, connection: &mut Connection) -> Result<Self::Output> {
        connection.list_notifications(&self.prefix, &self.page).await
    }
}
