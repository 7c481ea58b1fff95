//! What happens to queues on this replica, and whom it wakes.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use super::moves::Moves;
use super::wake::Wake;
use super::window::Window;
use crate::domain::queue::MoveCounts;
use crate::domain::{QueueName, Receipt, Timestamp};

/// How many reads of one queue may be under way: a slow one must not hold up the others, and more of them than that
/// would only be in each other's way.
const READS_OF_A_QUEUE: usize = 2;

/// The queues that somebody on this replica waits for, and those who tell other replicas.
#[derive(Clone, Default)]
pub struct Events {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    queues: Mutex<HashMap<QueueName, Weak<QueueEvents>>>,
    /// What other replicas were not told yet; nothing is kept while nobody asks for it.
    untold: Mutex<Option<HashMap<QueueName, Untold>>>,
    told: Notify,
    moves: Moves,
}

/// What other replicas were not told of a queue yet.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Untold {
    /// What happened.
    pub happening: Option<Happening>,
    /// When the first of the messages becomes visible that came since and are not yet. Who looks then, asks for the next.
    pub due: Option<Instant>,
}

/// What other replicas need to know of a queue. The greater one contains the lesser.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Happening {
    /// Messages were settled: their groups may go on, and slots are free.
    Settled,
    /// Messages came, became visible or changed their times.
    Arrived,
    /// The queue was made or dropped: nothing that is remembered of it holds.
    Remade,
}

/// What happens to one queue, for those who wait for it.
pub struct QueueEvents {
    name: QueueName,
    readers: Mutex<Vec<Reader>>,
    windows: Mutex<Vec<Weak<Window>>>,
    reads: Arc<Semaphore>,
    registry: Events,
}

struct Reader {
    wake: Weak<Wake>,
    interest: Interest,
}

/// What wakes a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Messages that can be read.
    Visible,
    /// The same, and settles, which let groups go on.
    Groups,
    /// Messages, as soon as they come.
    Sent,
}

impl Events {
    /// Follows a queue for as long as the value lives.
    pub fn follow(&self, queue: &QueueName) -> Arc<QueueEvents> {
        let mut queues = self.lock();
        if let Some(followed) = queues.get(queue).and_then(Weak::upgrade) {
            return followed;
        }
        let followed = Arc::new(QueueEvents {
            name: queue.clone(),
            readers: Mutex::default(),
            windows: Mutex::default(),
            reads: Arc::new(Semaphore::new(READS_OF_A_QUEUE)),
            registry: self.clone(),
        });
        queues.insert(queue.clone(), Arc::downgrade(&followed));
        followed
    }

    /// Tells that messages came, became visible, or that the queue itself changed.
    pub fn arrived(&self, queue: &QueueName) {
        self.note(queue, Happening::Arrived);
        self.wake_readers(queue);
    }

    /// Tells that a message came, or got another `vt`, that becomes visible at a moment: nobody finds it before.
    pub fn arrives_at(&self, queue: &QueueName, moment: Instant) {
        self.note_as(queue, |untold| {
            untold.due = Some(untold.due.map_or(moment, |due| due.min(moment)));
        });
        self.heard_due(queue, moment);
    }

    /// Tells that messages were settled: their slots are free, and their groups may go on.
    pub fn settled(&self, queue: &QueueName, msg_ids: &HashSet<i64>) {
        self.note(queue, Happening::Settled);
        if let Some(followed) = self.followed(queue) {
            for window in followed.windows() {
                window.free(msg_ids);
            }
            followed.wake(true);
        }
    }

    /// Tells that deliveries were released, and hold no slots any more. When their messages are there is told as of any
    /// others.
    pub fn released(&self, queue: &QueueName, receipts: impl Iterator<Item = Receipt> + Clone) {
        self.note(queue, Happening::Settled);
        if let Some(followed) = self.followed(queue) {
            for window in followed.windows() {
                window.free_deliveries(receipts.clone());
            }
        }
    }

    /// Tells that messages got another `vt`: those who count on the old one must look again.
    pub fn rescheduled(&self, queue: &QueueName) {
        self.arrived(queue);
        self.doubt(queue);
    }

    /// Tells that messages got another `vt`, at which nobody finds them yet, but on whose old one somebody may count.
    pub fn rescheduled_to(&self, queue: &QueueName, moment: Instant) {
        self.note(queue, Happening::Settled);
        self.arrives_at(queue, moment);
        self.doubt(queue);
    }

    fn doubt(&self, queue: &QueueName) {
        for window in self.followed(queue).iter().flat_map(|followed| followed.windows()) {
            window.doubt();
        }
    }

    /// Counts messages that were moved.
    pub fn moved(&self, queue: &QueueName, moved: MoveCounts) {
        self.shared.moves.add(queue, moved);
    }

    /// How many messages this replica has moved of the queue that was made at a moment.
    pub fn move_counts(&self, queue: &QueueName, created_at: Timestamp) -> MoveCounts {
        self.shared.moves.of(queue, created_at)
    }

    /// Tells that the queue was made or dropped.
    pub fn remade(&self, queue: &QueueName) {
        self.shared.moves.remade(queue);
        self.rescheduled(queue);
        self.note(queue, Happening::Remade);
    }

    /// Another replica may have told anything, which was not heard: everybody looks again.
    pub fn heard_everything(&self) {
        let followed: Vec<QueueName> = self.lock().keys().cloned().collect();
        for queue in followed {
            self.heard(&queue, Happening::Arrived);
            self.heard(&queue, Happening::Settled);
        }
    }

    /// Takes over what another replica told, which is not told on.
    pub fn heard(&self, queue: &QueueName, happening: Happening) {
        if happening == Happening::Remade {
            self.shared.moves.remade(queue);
        }
        if let Some(followed) = self.followed(queue) {
            for window in followed.windows() {
                window.suspect();
            }
            followed.wake(happening == Happening::Settled);
        }
    }

    /// Takes over from another replica that messages came which become visible at a moment.
    pub fn heard_due(&self, queue: &QueueName, moment: Instant) {
        if let Some(followed) = self.followed(queue) {
            followed.wake_at(moment, true);
        }
    }

    /// Wakes a queue's readers for a reason that other replicas see by themselves, such as a moment that has come.
    pub fn wake_readers(&self, queue: &QueueName) {
        if let Some(followed) = self.followed(queue) {
            followed.wake(false);
        }
    }

    /// Wakes a queue's readers at a moment.
    pub fn wake_readers_at(&self, queue: &QueueName, moment: Instant) {
        if let Some(followed) = self.followed(queue) {
            followed.wake_at(moment, false);
        }
    }

    /// Waits until something happened here, and takes all that other replicas were not told yet. For one announcer:
    /// from its first call on everything is kept for it, one entry a queue.
    pub async fn to_announce(&self) -> HashMap<QueueName, Untold> {
        loop {
            let told = self.shared.told.notified();
            {
                let mut untold = self.shared.untold.lock().unwrap_or_else(PoisonError::into_inner);
                let untold = untold.get_or_insert_default();
                if !untold.is_empty() {
                    return std::mem::take(untold);
                }
            }
            told.await;
        }
    }

    fn note(&self, queue: &QueueName, happening: Happening) {
        self.note_as(queue, |untold| untold.happening = untold.happening.max(Some(happening)));
    }

    fn note_as(&self, queue: &QueueName, note: impl FnOnce(&mut Untold)) {
        let mut untold = self.shared.untold.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(untold) = untold.as_mut() else {
            return;
        };
        match untold.get_mut(queue) {
            Some(known) => note(known),
            None => note(untold.entry(queue.clone()).or_default()),
        }
        self.shared.told.notify_one();
    }

    fn followed(&self, queue: &QueueName) -> Option<Arc<QueueEvents>> {
        self.lock().get(queue).and_then(Weak::upgrade)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<QueueName, Weak<QueueEvents>>> {
        self.shared.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl QueueEvents {
    /// The queue.
    pub fn queue(&self) -> &QueueName {
        &self.name
    }

    /// Adds a reader, to be woken by what happens from now on.
    pub fn add_reader(&self, wake: &Arc<Wake>, interest: Interest) {
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        readers.retain(|reader| reader.wake.strong_count() > 0);
        readers.push(Reader { wake: Arc::downgrade(wake), interest });
    }

    /// Adds a stream's window, whose slots this queue's settles free.
    pub fn add_window(&self, window: &Arc<Window>) {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        windows.retain(|window| window.strong_count() > 0);
        windows.push(Arc::downgrade(window));
    }

    /// The right to read, which only so many have at a time.
    pub(super) fn reads(&self) -> Arc<Semaphore> {
        Arc::clone(&self.reads)
    }

    fn wake(&self, by_a_settle: bool) {
        for reader in self.readers.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            if (reader.interest == Interest::Groups || !by_a_settle)
                && let Some(wake) = reader.wake.upgrade()
            {
                wake.now();
            }
        }
    }

    fn wake_at(&self, moment: Instant, is_news: bool) {
        for reader in self.readers.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            if let Some(wake) = reader.wake.upgrade() {
                match reader.interest {
                    Interest::Sent if is_news => wake.now(),
                    _ => wake.at(moment),
                }
            }
        }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn queue(name: &str) -> QueueName {
        QueueName::try_from(name.to_owned()).expect("a good name")
    }

    #[test]
    fn settles_wake_grouped_readers_only() {
        let events = Events::default();
        let followed = events.follow(&queue("a"));
        let (grouped, plain) = (Arc::new(Wake::default()), Arc::new(Wake::default()));
        followed.add_reader(&grouped, Interest::Groups);
        followed.add_reader(&plain, Interest::Visible);
        events.settled(&queue("a"), &HashSet::from([1]));
        assert!(grouped.is_due() && !plain.is_due());
        events.arrived(&queue("a"));
        assert!(plain.is_due());
    }

    #[tokio::test(start_paused = true)]
    async fn a_delayed_message_wakes_readers_when_it_is_due() {
        let events = Events::default();
        let followed = events.follow(&queue("a"));
        let wake = Arc::new(Wake::default());
        followed.add_reader(&wake, Interest::Visible);
        let watch = Arc::new(Wake::default());
        followed.add_reader(&watch, Interest::Sent);
        events.arrives_at(&queue("a"), Instant::now() + Duration::from_secs(5));
        assert!(!wake.is_due() && watch.is_due());
        tokio::time::advance(Duration::from_millis(5_050)).await;
        assert!(wake.is_due());
    }

    #[tokio::test(start_paused = true)]
    async fn what_happens_here_is_announced_once_and_what_was_heard_is_not() {
        let events = Events::default();
        events.arrived(&queue("before"));
        let mut first = Box::pin(events.to_announce());
        assert!(futures_util::poll!(&mut first).is_pending());
        events.settled(&queue("a"), &HashSet::from([1]));
        events.arrived(&queue("a"));
        events.settled(&queue("a"), &HashSet::from([2]));
        events.settled(&queue("b"), &HashSet::from([1]));
        events.heard(&queue("c"), Happening::Arrived);
        let told = first.await;
        let only = |happening| Untold { happening: Some(happening), due: None };
        assert_eq!(
            told,
            HashMap::from([(queue("a"), only(Happening::Arrived)), (queue("b"), only(Happening::Settled))])
        );
        assert!(futures_util::poll!(Box::pin(events.to_announce())).is_pending());
    }

    #[tokio::test(start_paused = true)]
    async fn of_delayed_messages_the_first_moment_is_announced() {
        let events = Events::default();
        let mut told = Box::pin(events.to_announce());
        assert!(futures_util::poll!(&mut told).is_pending());
        let second = Duration::from_secs(1);
        for seconds in [3, 2, 5] {
            events.arrives_at(&queue("a"), Instant::now() + second * seconds);
        }
        let due = Some(Instant::now() + second * 2);
        assert_eq!(told.await, HashMap::from([(queue("a"), Untold { happening: None, due })]));
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
