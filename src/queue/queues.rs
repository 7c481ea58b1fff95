//! Queues themselves: made, looked at, emptied, dropped.

use super::OnConnection;
use crate::domain::page::{Page, Paged};
use crate::domain::policy::PolicyField;
use crate::domain::queue::Partitioning;
use crate::domain::{
    DescribedQueue, Error, Kind, NewQueueName, Policy, QueueKind, QueueLayout, QueueName, Result,
};
use crate::engine::Changes;
use crate::pg::{Connection, Subject};

/// Makes a queue, or finds that it is there as asked (`pgmq.create` and its kin).
#[derive(Debug)]
pub struct CreateQueue {
    /// The queue.
    pub queue: NewQueueName,
    /// How it is stored.
    pub kind: QueueKind,
    /// How a partitioned one is cut; none where the caller left it open.
    pub partitioning: Option<Partitioning>,
    /// How its table is laid out, if it is made now.
    pub layout: QueueLayout,
    /// Its policy; none where the caller left it open.
    pub policy: Option<Policy>,
    /// An existing queue is an error.
    pub fail_if_exists: bool,
}

/// A queue that is there, and whether it was made just now.
#[derive(Debug)]
pub struct CreatedQueue {
    /// The queue.
    pub queue: DescribedQueue,
    /// It was made by this call.
    pub created: bool,
}

impl OnConnection for CreateQueue {
    const NAME: &'static str = "create_queue";
    type Output = CreatedQueue;

    async fn apply(&self, connection: &mut Connection) -> Result<CreatedQueue> {
        if connection.in_transaction() {
            return self.create_in_transaction(connection).await;
        }
        connection.begin().await?;
        let created = self.create_in_transaction(connection).await;
        connection.conclude(created, true).await
    }

    fn tell(&self, created: &CreatedQueue, changes: &mut Changes) {
        changes.remade(self.queue.as_existing());
        if created.created && !created.queue.policy.is_empty() {
            changes.policy_changed();
        }
    }
}

impl CreateQueue {
    async fn create_in_transaction(&self, connection: &mut Connection) -> Result<CreatedQueue> {
        let name = self.queue.as_existing();
        connection.lock_queue(name).await?;
        if let Some(existing) = connection.describe_queue(name).await? {
            self.check_existing(connection, &existing).await?;
            return Ok(CreatedQueue { queue: existing, created: false });
        }
        let partitioning = match &self.partitioning {
            Some(partitioning) => partitioning.clone(),
            None => Partitioning::parse(String::new(), String::new(), 0)
                .map_err(|invalid| Error::new(invalid.kind, invalid.description))?,
        };
        connection.create_queue(name, self.kind, &partitioning).await?;
        if self.layout == QueueLayout::Tuned {
            let made = connection.get_queue(name).await?;
            connection.tune(name, &made).await?;
        }
        if let Some(policy) = self.policy.as_ref().filter(|policy| !policy.is_empty()) {
            connection.update_policy(name, policy, &policy.set_fields()).await?;
        }
        Ok(CreatedQueue { queue: described(connection, name).await?, created: true })
    }

    async fn check_existing(&self, connection: &mut Connection, existing: &DescribedQueue) -> Result<()> {
        let DescribedQueue { queue: existing, policy } = existing;
        if self.fail_if_exists {
            return Err(Error::new(Kind::QueueAlreadyExists, format!("queue {:?} exists", existing.name))
                .with("queue", &existing.name));
        }
        let mismatch = |how: &str| {
            Error::new(Kind::QueueKindMismatch, format!("queue {:?} exists and is {how}", existing.name))
                .with("queue", &existing.name)
                .with("kind", existing.kind.name_in_contract())
        };
        // Everybody else is told that there is no such queue.
        if existing.layout.is_none() {
            return Err(mismatch(
                "without its table, which somebody has dropped; DropQueue removes the rest",
            ));
        }
        if existing.kind != self.kind {
            return Err(mismatch(existing.kind.word()));
        }
        if let Some(partitioning) = &self.partitioning
            && !connection.is_partitioned_as(self.queue.as_existing(), partitioning).await?
        {
            return Err(mismatch("partitioned in another way"));
        }
        let differs = self.policy.as_ref().and_then(|wanted| wanted.first_difference(policy));
        if let Some(field) = differs.map(PolicyField::name) {
            let how = format!("under another policy, with another {field}");
            return Err(mismatch(&how).with("policy_field", field));
        }
        Ok(())
    }
}

/// A queue that is there, with its policy.
async fn described(connection: &mut Connection, queue: &QueueName) -> Result<DescribedQueue> {
    let found = connection.describe_queue(queue).await?;
    found.ok_or_else(|| Error::queue_not_found(queue.as_str()))
}

/// Changes fields of a queue's policy.
#[derive(Debug)]
pub struct UpdateQueue {
    /// The queue.
    pub queue: QueueName,
    /// The values of the fields that change, and of no others.
    pub policy: Policy,
    /// The fields that change, at least one; those without a value are cleared.
    pub fields: Vec<PolicyField>,
}

impl OnConnection for UpdateQueue {
    const NAME: &'static str = "update_queue";
    type Output = DescribedQueue;

    fn subject(&self) -> Subject<'_> {
        self.queue.as_str().into()
    }

    async fn apply(&self, connection: &mut Connection) -> Result<DescribedQueue> {
        if connection.in_transaction() {
            return self.update(connection).await;
        }
        connection.begin().await?;
        let updated = self.update(connection).await;
        connection.conclude(updated, true).await
    }

    fn tell(&self, _: &DescribedQueue, changes: &mut Changes) {
        changes.policy_changed();
    }
}

impl UpdateQueue {
    async fn update(&self, connection: &mut Connection) -> Result<DescribedQueue> {
        connection.update_policy(&self.queue, &self.policy, &self.fields).await?;
        described(connection, &self.queue).await
    }
}

/// Changes how a queue's table is laid out.
#[derive(Debug)]
pub struct SetQueueLayout {
    /// The queue.
    pub queue: QueueName,
    /// The layout that it gets.
    pub layout: QueueLayout,
}

impl OnConnection for SetQueueLayout {
    const NAME: &'static str = "set_queue_layout";
    type Output = DescribedQueue;

    fn subject(&self) -> Subject<'_> {
        self.queue.as_str().into()
    }

    async fn apply(&self, connection: &mut Connection) -> Result<DescribedQueue> {
        let found = described(connection, &self.queue).await?;
        // A queue on its half way back to pgmq's layout does not look tuned any more, and is not there yet.
        if (found.queue.layout, self.layout) == (Some(QueueLayout::Tuned), QueueLayout::Tuned) {
            return Ok(found);
        }
        connection.set_layout(&self.queue, self.layout).await?;
        described(connection, &self.queue).await
    }
}

/// One queue as `pgmq.meta` lists it, with its policy.
#[derive(Debug)]
pub struct GetQueue {
    /// The queue.
    pub queue: QueueName,
}

impl OnConnection for GetQueue {
    const NAME: &'static str = "get_queue";
    type Output = DescribedQueue;

    fn subject(&self) -> Subject<'_> {
        self.queue.as_str().into()
    }

    async fn apply(&self, connection: &mut Connection) -> Result<DescribedQueue> {
        described(connection, &self.queue).await
    }
}

/// A page of queues by name, with their policies (`pgmq.list_queues`).
#[derive(Debug)]
pub struct ListQueues {
    /// What the names begin with.
    pub prefix: String,
    /// Only those whose policy names this dead-letter queue.
    pub dead_letter_queue: Option<QueueName>,
    /// Which page.
    pub page: Page,
}

impl OnConnection for ListQueues {
    const NAME: &'static str = "list_queues";
    type Output = Paged<DescribedQueue>;

    async fn apply(&self, connection: &mut Connection) -> Result<Paged<DescribedQueue>> {
        connection.describe_queues(&self.prefix, self.dead_letter_queue.as_ref(), &self.page).await
    }
}

/// Drops a queue with its archive and bindings (`pgmq.drop_queue`).
#[derive(Debug)]
pub struct DropQueue {
    /// The queue.
    pub queue: QueueName,
}

impl OnConnection for DropQueue {
    const NAME: &'static str = "drop_queue";
    type Output = ();

    fn subject(&self) -> Subject<'_> {
        self.queue.as_str().into()
    }

    async fn apply(&self, connection: &mut Connection) -> Result<()> {
        connection.drop_queue(&self.queue).await
    }

    fn tell(&self, (): &(), changes: &mut Changes) {
        changes.remade(&self.queue);
    }
}

/// Deletes all messages of a queue (`pgmq.purge_queue`).
#[derive(Debug)]
pub struct PurgeQueue {
    /// The queue.
    pub queue: QueueName,
}

impl OnConnection for PurgeQueue {
    const NAME: &'static str = "purge_queue";
    type Output = i64;

    fn subject(&self) -> Subject<'_> {
        self.queue.as_str().into()
    }

    async fn apply(&self, connection: &mut Connection) -> Result<i64> {
        connection.begin().await?;
        let purged = connection.purge_queue(&self.queue).await;
        connection.conclude(purged, false).await
    }

    fn tell(&self, _: &i64, changes: &mut Changes) {
        changes.rescheduled(&self.queue);
    }
}
