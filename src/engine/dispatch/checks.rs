//! Looks at whether clients still hold what they were given, for all streams of a queue at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::sleep;
use tokio_util::task::TaskTracker;

use super::source::Source;
use crate::domain::{Error, QueueName, Receipt, Result};
use crate::engine::window::Window;

/// The least time between two looks at a queue: however many streams ask, it costs ten statements a second.
const INTERVAL: Duration = Duration::from_millis(100);

/// The most deliveries of one look, but for a single window that holds more.
const DELIVERIES: usize = 10_000;

/// Gathers the windows that are to be checked. While one statement of a queue is under way, and shortly after it, more
/// gather for the next.
#[derive(Clone)]
pub(super) struct Checks {
    source: Arc<dyn Source>,
    tasks: TaskTracker,
    /// The queues at which a task looks, with what has come since its last statement.
    pending: Arc<Mutex<HashMap<QueueName, Vec<Check>>>>,
}

struct Check {
    window: Arc<Window>,
    /// How many of the deliveries that are looked at are its own.
    held: usize,
    done: oneshot::Sender<Result<()>>,
}

impl Checks {
    pub(super) fn new(source: Arc<dyn Source>, tasks: TaskTracker) -> Self {
        Self { source, tasks, pending: Arc::default() }
    }

    /// Corrects a window by what the database says of its deliveries.
    ///
    /// # Errors
    /// `QueueNotFound`; whatever kept the database from answering.
    pub(super) async fn check(&self, queue: &QueueName, window: &Arc<Window>) -> Result<()> {
        let (done, answer) = oneshot::channel();
        let check = Check { window: Arc::clone(window), held: 0, done };
        let is_first = {
            let mut pending = self.lock();
            let is_first = !pending.contains_key(queue);
            pending.entry(queue.clone()).or_default().push(check);
            is_first
        };
        if is_first {
            self.tasks.spawn(self.clone().work(queue.clone()));
        }
        answer.await.unwrap_or_else(|_| Err(Error::draining()))
    }

    async fn work(self, queue: QueueName) {
        while let Some((checks, receipts)) = self.next(&queue) {
            let mut looked = self.look(&queue, receipts).await.map(Vec::into_iter);
            for Check { window, held, done } in checks {
                let hidden = looked.as_mut().map(|hidden| hidden.by_ref().take(held));
                let corrected = hidden.map(|hidden| window.corrected(hidden));
                // Who does not wait any more needs no answer.
                let _ = done.send(corrected.map_err(|error| error.clone()));
            }
            sleep(INTERVAL).await;
        }
    }

    /// The windows to look at next, and their deliveries in the same order; nothing when all is done.
    fn next(&self, queue: &QueueName) -> Option<(Vec<Check>, Vec<Receipt>)> {
        let mut pending = self.lock();
        let gathered = pending.get_mut(queue)?;
        gathered.retain(|check| !check.done.is_closed());
        if gathered.is_empty() {
            pending.remove(queue);
            return None;
        }
        let (mut receipts, mut count) = (Vec::new(), 0);
        for check in gathered.iter_mut() {
            let held = check.window.receipts();
            if count > 0 && receipts.len() + held.len() > DELIVERIES {
                break;
            }
            check.held = held.len();
            receipts.extend(held);
            count += 1;
        }
        Some((gathered.drain(..count).collect(), receipts))
    }

    async fn look(
        &self,
        queue: &QueueName,
        receipts: Vec<Receipt>,
    ) -> Result<Vec<(Receipt, Option<Duration>)>> {
        let hidden =
            self.source.open("check_window", Some(queue)).await?.hidden_for(queue, &receipts).await?;
        Ok(receipts.into_iter().zip(hidden).collect())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<QueueName, Vec<Check>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
