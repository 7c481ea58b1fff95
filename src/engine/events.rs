//! Who waits for which queue on this replica, and what wakes them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::watch;

use super::window::Window;
use crate::domain::{QueueName, Receipt};

/// The queues that somebody on this replica waits for.
#[derive(Clone, Default)]
pub struct Events {
    queues: Arc<Mutex<HashMap<QueueName, Weak<QueueEvents>>>>,
}

/// What happens to one queue, for those who wait for it.
pub struct QueueEvents {
    arrivals: watch::Sender<()>,
    settles: watch::Sender<()>,
    windows: Mutex<Vec<Weak<Window>>>,
    name: QueueName,
    registry: Events,
}

impl Events {
    /// Follows a queue for as long as the value lives.
    pub fn follow(&self, queue: &QueueName) -> Arc<QueueEvents> {
        let mut queues = self.lock();
        if let Some(followed) = queues.get(queue).and_then(Weak::upgrade) {
            return followed;
        }
        let followed = Arc::new(QueueEvents {
            arrivals: watch::Sender::new(()),
            settles: watch::Sender::new(()),
            windows: Mutex::new(Vec::new()),
            name: queue.clone(),
            registry: self.clone(),
        });
        queues.insert(queue.clone(), Arc::downgrade(&followed));
        followed
    }

    /// Tells that messages came, became visible, or that the queue itself changed.
    pub fn arrived(&self, queue: &QueueName) {
        if let Some(followed) = self.followed(queue) {
            followed.arrivals.send_replace(());
        }
    }

    /// Tells that messages were settled: their slots are free, and their groups may go on.
    pub fn settled(&self, queue: &QueueName, msg_ids: impl Iterator<Item = i64> + Clone) {
        if let Some(followed) = self.followed(queue) {
            for window in followed.windows() {
                window.free(msg_ids.clone());
            }
            followed.settles.send_replace(());
        }
    }

    /// Tells that deliveries were released: their slots are free, and their messages are there again or will be.
    pub fn released(&self, queue: &QueueName, receipts: impl Iterator<Item = Receipt> + Clone) {
        if let Some(followed) = self.followed(queue) {
            for window in followed.windows() {
                window.free_deliveries(receipts.clone());
            }
            followed.arrivals.send_replace(());
        }
    }

    /// Tells that messages got another `vt`: those who count on the old one must look again.
    pub fn rescheduled(&self, queue: &QueueName) {
        if let Some(followed) = self.followed(queue) {
            for window in followed.windows() {
                window.doubt();
            }
            followed.arrivals.send_replace(());
        }
    }

    fn followed(&self, queue: &QueueName) -> Option<Arc<QueueEvents>> {
        self.lock().get(queue).and_then(Weak::upgrade)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<QueueName, Weak<QueueEvents>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl QueueEvents {
    /// Begins to wait: whatever happens from now on ends the next [`Waiter::wait`]. A grouped read also waits for
    /// settles, because they let groups go on.
    pub fn waiter(self: &Arc<Self>, grouped: bool) -> Waiter {
        Waiter {
            arrivals: self.arrivals.subscribe(),
            settles: grouped.then(|| self.settles.subscribe()),
            _followed: Arc::clone(self),
        }
    }

    /// Adds a stream's window, whose slots this queue's settles free.
    pub fn add_window(&self, window: &Arc<Window>) {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        windows.retain(|window| window.strong_count() > 0);
        windows.push(Arc::downgrade(window));
    }

    fn windows(&self) -> Vec<Arc<Window>> {
        let windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        windows.iter().filter_map(Weak::upgrade).collect()
    }
}

impl Drop for QueueEvents {
    fn drop(&mut self) {
        let mut queues = self.registry.lock();
        // Somebody may have followed the queue anew since the last one left.
        if queues.get(&self.name).is_some_and(|followed| followed.strong_count() == 0) {
            queues.remove(&self.name);
        }
    }
}

/// Waits for what happens to a queue. What happens between two waits is not missed.
pub struct Waiter {
    arrivals: watch::Receiver<()>,
    settles: Option<watch::Receiver<()>>,
    _followed: Arc<QueueEvents>,
}

impl Waiter {
    /// Forgets what happened so far: a read that begins now will see it.
    pub fn reset(&mut self) {
        self.arrivals.mark_unchanged();
        if let Some(settles) = &mut self.settles {
            settles.mark_unchanged();
        }
    }

    /// Waits until something happened since the last [`Waiter::reset`], or for `longest`.
    pub async fn wait(&mut self, longest: Duration) {
        let settled = async {
            match &mut self.settles {
                Some(settles) => settles.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.arrivals.changed() => {}
            _ = settled => {}
            () = tokio::time::sleep(longest) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3_600);

    fn queue(name: &str) -> QueueName {
        QueueName::try_from(name.to_owned()).expect("a good name")
    }

    #[tokio::test(start_paused = true)]
    async fn an_arrival_between_reset_and_wait_is_not_missed() {
        let events = Events::default();
        let mut waiter = events.follow(&queue("a")).waiter(false);
        waiter.reset();
        events.arrived(&queue("a"));
        let before = tokio::time::Instant::now();
        waiter.wait(LONG).await;
        assert_eq!(before.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn settles_wake_grouped_waiters_only() {
        let events = Events::default();
        let followed = events.follow(&queue("a"));
        let (mut grouped, mut plain) = (followed.waiter(true), followed.waiter(false));
        events.settled(&queue("a"), [1].into_iter());
        let before = tokio::time::Instant::now();
        grouped.wait(LONG).await;
        assert_eq!(before.elapsed(), Duration::ZERO);
        plain.wait(LONG).await;
        assert_eq!(before.elapsed(), LONG);
    }

    #[test]
    fn a_queue_that_nobody_follows_is_forgotten() {
        let events = Events::default();
        drop(events.follow(&queue("a")));
        assert!(events.lock().is_empty());
        let first = events.follow(&queue("a"));
        let second = events.follow(&queue("a"));
        drop(first);
        assert_eq!(events.lock().len(), 1);
        drop(second);
        assert!(events.lock().is_empty());
    }
}
