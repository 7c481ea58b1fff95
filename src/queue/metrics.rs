//! Measures of one queue and of all.

use super::{Broker, OnConnection};
use crate::domain::page::{Page, Paged};
use crate::domain::queue::MeasuredQueue;
use crate::domain::{Error, Kind, QueueName, Result};
use crate::pg::{Connection, Subject};

/// The measures of one queue (`pgmq.metrics`).
#[derive(Debug)]
pub struct GetQueueMetrics {
    /// The queue.
    pub queue: QueueName,
    /// Count the archive too.
    pub include_archive: bool,
}

impl OnConnection for GetQueueMetrics {
    const NAME: &'static str = "get_queue_metrics";
    type Output = MeasuredQueue;

    fn subject(&self) -> Subject<'_> {
        self.queue.as_str().into()
    }

    async fn apply(&self, connection: &mut Connection) -> Result<MeasuredQueue> {
        let measured = connection.metrics(&self.queue, self.include_archive).await?;
        Ok(MeasuredQueue { name: self.queue.to_string(), measured: Ok(measured) })
    }

    fn complete(measured: &mut MeasuredQueue, broker: &Broker) {
        count_moves(measured, broker);
    }
}

/// The measures of a page of queues (`pgmq.metrics_all`), each by itself, so that a broken one breaks nothing.
#[derive(Debug)]
pub struct ListQueueMetrics {
    /// What the names begin with.
    pub prefix: String,
    /// Which page.
    pub page: Page,
    /// Count the archives too.
    pub include_archive: bool,
}

impl OnConnection for ListQueueMetrics {
    const NAME: &'static str = "list_queue_metrics";
    type Output = Paged<MeasuredQueue>;

    async fn apply(&self, connection: &mut Connection) -> Result<Self::Output> {
        let queues = connection.list_queues(&self.prefix, &self.page).await?;
        let mut measured = Vec::with_capacity(queues.items.len());
        for queue in queues.items {
            connection.mark().await?;
            let metrics = match QueueName::try_from(queue.name.clone()) {
                Ok(name) => connection.metrics(&name, self.include_archive).await,
                Err(invalid) => Err(Error::new(invalid.kind, invalid.description)),
            };
            match metrics {
                // The whole call fails with the database, not with one queue.
                Err(error) if matches!(error.kind(), Kind::DatabaseUnavailable | Kind::DeadlineExceeded) => {
                    return Err(error);
                }
                Err(error) => {
                    connection.return_to_mark().await?;
                    measured.push(MeasuredQueue { name: queue.name, measured: Err(error) });
                }
                measures => measured.push(MeasuredQueue { name: queue.name, measured: measures }),
            }
        }
        Ok(Paged { items: measured, next_page_token: queues.next_page_token })
    }

    fn complete(measured: &mut Self::Output, broker: &Broker) {
        measured.items.iter_mut().for_each(|measured| count_moves(measured, broker));
    }
}

fn count_moves(measured: &mut MeasuredQueue, broker: &Broker) {
    if let (Ok(metrics), Ok(queue)) = (&mut measured.measured, QueueName::try_from(measured.name.clone())) {
        metrics.moved = broker.events.move_counts(&queue, metrics.created_at);
    }
}
