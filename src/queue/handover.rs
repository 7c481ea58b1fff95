//! Messages between the database and the transport: nobody's yet, and given back if they never get there.

use std::mem;
use std::sync::Arc;

use super::Broker;
use crate::domain::{Deadline, Delivery, QueueName};

/// The time that a give-back may take; it waits for a connection like everybody.
const GIVE_BACK_TIME: std::time::Duration = std::time::Duration::from_secs(10);

/// Messages that were read and not yet handed to the transport. Dropped, they become visible again at once, and the
/// read does not count.
pub struct Handover {
    broker: Arc<Broker>,
    queue: QueueName,
    deliveries: Vec<Delivery>,
}

impl Handover {
    /// Takes charge of messages that were read from a queue.
    pub fn new(broker: &Arc<Broker>, queue: &QueueName, deliveries: Vec<Delivery>) -> Self {
        Self { broker: Arc::clone(broker), queue: queue.clone(), deliveries }
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
        if self.deliveries.is_empty() {
            return;
        }
        let deliveries = mem::take(&mut self.deliveries);
        let (broker, queue) = (Arc::clone(&self.broker), self.queue.clone());
        self.broker.tasks.spawn(async move {
            let deadline = Deadline::within(GIVE_BACK_TIME);
            let given_back = async {
                let mut connection = broker.database.connect("give_back", deadline).await?;
                connection.give_back(&queue, &deliveries).await
            };
            match given_back.await {
                Ok(()) => broker.events.arrived(&queue),
                // Their visibility timeouts bring them back.
                Err(error) => tracing::warn!(
                    queue = queue.as_str(),
                    messages = deliveries.len(),
                    error = crate::domain::error::chain(&error),
                    "messages could not be given back"
                ),
            }
        });
    }
}
