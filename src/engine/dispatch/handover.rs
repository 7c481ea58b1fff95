//! Messages between the database and the transport: nobody's yet, and given back if they never get there.

use std::collections::HashMap;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::source::Source;
use crate::domain::bounds::MAX_BATCH;
use crate::domain::{Delivery, QueueName, Result, error};
use crate::engine::Events;

/// The time in which a give-back is tried again; after that the messages' timeouts bring them back.
const GIVE_BACK_TIME: Duration = Duration::from_secs(10);

/// The pause before a give-back is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Messages that were read and not yet handed to the transport. Dropped, they become visible again at once, and the
/// read does not count.
pub struct Handover {
    returns: Returns,
    queue: QueueName,
    deliveries: Vec<Delivery>,
}

impl Handover {
    /// Takes charge of messages that were read from a queue.
    pub(super) fn new(returns: &Returns, queue: &QueueName, deliveries: Vec<Delivery>) -> Self {
        Self { returns: returns.clone(), queue: queue.clone(), deliveries }
    }

    /// The messages, still ours.
    pub fn deliveries(&self) -> &[Delivery] {
        &self.deliveries
    }

    /// Hands the messages to the transport: from here on they are the client's.
    pub fn hand_over(mut self) -> Vec<Delivery> {
        mem::take(&mut self.deliveries)
    }
}

impl Drop for Handover {
    fn drop(&mut self) {
        if !self.deliveries.is_empty() {
            self.returns.give_back(&self.queue, mem::take(&mut self.deliveries));
        }
    }
}

/// Gives back what nobody took. While one statement of a queue is under way, more gathers for the next.
#[derive(Clone)]
pub(super) struct Returns {
    source: Arc<dyn Source>,
    events: Events,
    tasks: TaskTracker,
    /// The queues at whose give-back a task works, with what has come since its last statement.
    pending: Arc<Mutex<HashMap<QueueName, Vec<Delivery>>>>,
}

impl Returns {
    pub(super) fn new(source: Arc<dyn Source>, events: Events, tasks: TaskTracker) -> Self {
        Self { source, events, tasks, pending: Arc::default() }
    }

    /// Makes messages visible again, as if they had not been read.
    pub(super) fn give_back(&self, queue: &QueueName, mut deliveries: Vec<Delivery>) {
        if deliveries.is_empty() {
            return;
        }
        {
            let mut pending = self.lock();
            if let Some(gathered) = pending.get_mut(queue) {
                gathered.append(&mut deliveries);
                return;
            }
            pending.insert(queue.clone(), deliveries);
        }
        let (returns, queue) = (self.clone(), queue.clone());
        self.tasks.spawn(async move {
            while let Some(deliveries) = returns.next(&queue) {
                returns.work(&queue, &deliveries).await;
            }
        });
    }

    /// What to give back next; nothing when all is done.
    fn next(&self, queue: &QueueName) -> Option<Vec<Delivery>> {
        let mut pending = self.lock();
        let gathered = pending.get_mut(queue)?;
        if gathered.is_empty() {
            pending.remove(queue);
            return None;
        }
        let rest = gathered.split_off(gathered.len().min(MAX_BATCH));
        Some(mem::replace(gathered, rest))
    }

    async fn work(&self, queue: &QueueName, deliveries: &[Delivery]) {
        let until = Instant::now() + GIVE_BACK_TIME;
        while let Err(error) = self.try_once(queue, deliveries).await {
            if !error.may_pass() || Instant::now() > until {
                let (queue, error) = (queue.as_str(), error::chain(&error));
                tracing::warn!(queue, error, messages = deliveries.len(), "messages could not be given back");
                return;
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        self.events.arrived(queue);
    }

    async fn try_once(&self, queue: &QueueName, deliveries: &[Delivery]) -> Result<()> {
        self.source.open("give_back", Some(queue)).await?.give_back(queue, deliveries).await
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<QueueName, Vec<Delivery>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
