//! How many flushes of one queue may be under way, so that a busy queue leaves connections to the others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::domain::QueueName;

/// How many queues are remembered before the idle ones are forgotten.
const REMEMBERED: usize = 1_024;

/// The shares of all queues.
#[derive(Debug)]
pub struct Shares {
    flushes_per_queue: usize,
    queues: Mutex<HashMap<QueueName, Weak<Semaphore>>>,
}

/// The right to one flush, given back when dropped.
#[derive(Debug)]
pub struct Share {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Shares {
    /// At most so many flushes of one queue at a time, at least one.
    pub fn new(flushes_per_queue: usize) -> Self {
        Self { flushes_per_queue: flushes_per_queue.max(1), queues: Mutex::default() }
    }

    /// Waits until the queue may have one more flush, first come, first served.
    pub async fn take(&self, queue: &QueueName) -> Share {
        let permit = self.of(queue).acquire_owned().await;
        Share { _permit: permit.ok() }
    }

    fn of(&self, queue: &QueueName) -> Arc<Semaphore> {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = queues.get(queue).and_then(Weak::upgrade) {
            return known;
        }
        if queues.len() >= REMEMBERED {
            queues.retain(|_, known| known.strong_count() > 0);
        }
        let made = Arc::new(Semaphore::new(self.flushes_per_queue));
        queues.insert(queue.clone(), Arc::downgrade(&made));
        made
    }
}
