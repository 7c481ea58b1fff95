//! The queues that somebody watches: one task looks at each, for all who watch it on this replica.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use rand::Rng;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};

use super::Broker;
use crate::domain::error::chain;
use crate::domain::{Deadline, Error, Kind, QueueName, Result, Timestamp};
use crate::engine::{Interest, Wake};
use crate::pg::Sighting;

/// The shortest time between two looks at one queue.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

/// The longest, which finds what plain SQL did.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How much longer than a look at times took the next one has to wait: without an index it reads the whole table.
const REST: u32 = 20;

/// By how much a look reaches back after something was told: a release is committed a little after the moment at which
/// its messages become visible.
const OVERLAP: Duration = Duration::from_secs(2);

/// How long one look may take.
const LOOK_TIME: Duration = Duration::from_secs(30);

/// What happened to a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventKind {
    /// Messages were sent, whenever they become visible.
    Sent,
    /// Messages became visible.
    Visible,
}

/// All watched queues.
#[derive(Clone, Default)]
pub struct Watches {
    queues: Arc<Mutex<HashMap<QueueName, Weak<Watched>>>>,
}

/// One watched queue, for as long as somebody holds it.
pub struct Watched {
    name: QueueName,
    inboxes: Mutex<Vec<Weak<Inbox>>>,
    /// The first look was taken: what happens from now on is told.
    ready: watch::Sender<bool>,
    registry: Watches,
}

/// What one watcher has not been told yet.
#[derive(Default)]
pub struct Inbox {
    pending: Mutex<Pending>,
    told: Notify,
}

#[derive(Default)]
struct Pending {
    events: BTreeMap<(QueueName, EventKind), Timestamp>,
    ended: Option<Error>,
}

impl Inbox {
    /// Waits until there is something, and takes it.
    ///
    /// # Errors
    /// `QueueNotFound` once a watched queue is gone, or why one cannot be watched, after what was told before.
    pub async fn take(&self) -> Result<Vec<(QueueName, EventKind, Timestamp)>> {
        loop {
            let told = self.told.notified();
            {
                let mut pending = self.lock();
                if !pending.events.is_empty() {
                    let events = std::mem::take(&mut pending.events);
                    return Ok(events.into_iter().map(|((queue, kind), at)| (queue, kind, at)).collect());
                }
                if let Some(error) = pending.ended.take() {
                    return Err(error);
                }
            }
            told.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, queue: &QueueName, kind: EventKind, at: Timestamp) {
        self.lock().events.insert((queue.clone(), kind), at);
        self.told.notify_one();
    }

    fn end(&self, error: Error) {
        self.lock().ended = Some(error);
        self.told.notify_one();
    }
}

impl Watches {
    /// Watches a queue for an inbox, for as long as the value lives.
    pub fn watch(&self, broker: &Arc<Broker>, queue: &QueueName, inbox: &Arc<Inbox>) -> Arc<Watched> {
        let mut queues = self.lock();
        if let Some(watched) = queues.get(queue).and_then(Weak::upgrade) {
            watched.add(inbox);
            return watched;
        }
        let watched = Arc::new(Watched {
            name: queue.clone(),
            inboxes: Mutex::default(),
            ready: watch::Sender::new(false),
            registry: self.clone(),
        });
        watched.add(inbox);
        queues.insert(queue.clone(), Arc::downgrade(&watched));
        broker.tasks.spawn(follow(Arc::clone(broker), Arc::downgrade(&watched), queue.clone()));
        watched
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<QueueName, Weak<Watched>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watched {
    /// Waits until what happens is told.
    pub async fn ready(&self) {
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }

    fn add(&self, inbox: &Arc<Inbox>) {
        let mut inboxes = self.lock();
        inboxes.retain(|inbox| inbox.strong_count() > 0);
        inboxes.push(Arc::downgrade(inbox));
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Inbox>>> {
        self.inboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn inboxes(&self) -> Vec<Arc<Inbox>> {
        let mut inboxes = self.lock();
        inboxes.retain(|inbox| inbox.strong_count() > 0);
        inboxes.iter().filter_map(Weak::upgrade).collect()
    }

    /// The queue is gone or closed to us: who watches it from now on begins anew.
    fn end(&self, error: &Error) {
        let mut queues = self.registry.lock();
        if queues.get(&self.name).is_some_and(|watched| std::ptr::eq(watched.as_ptr(), self)) {
            queues.remove(&self.name);
        }
        drop(queues);
        for inbox in self.inboxes() {
            inbox.end(error.clone());
        }
        self.ready.send_replace(true);
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let mut queues = self.registry.lock();
        if queues.get(&self.name).is_some_and(|watched| std::ptr::eq(watched.as_ptr(), self)) {
            queues.remove(&self.name);
        }
    }
}

/// What is known of a queue from the looks before.
struct Known {
    created_at: Timestamp,
    newest: Vec<i64>,
    times_at: Timestamp,
}

/// Ends the watches of a task that panicked: nobody may wait for what does not come any more.
struct WhenPanicking<'a>(&'a Weak<Watched>);

impl Drop for WhenPanicking<'_> {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(watched) = self.0.upgrade()
        {
            watched.end(&Error::internal("the task that watches a queue panicked"));
        }
    }
}

/// Looks at a queue again and again, when something was told, when a message falls due, and now and then.
async fn follow(broker: Arc<Broker>, watched: Weak<Watched>, queue: QueueName) {
    let _when_panicking = WhenPanicking(&watched);
    let followed = broker.events.follow(&queue);
    let wake = Arc::new(Wake::default());
    followed.add_reader(&wake, Interest::Sent);
    let mut known: Option<Known> = None;
    let mut times_rest = Instant::now();
    let mut told = false;
    while watched.strong_count() > 0 && !broker.drain.is_cancelled() {
        wake.take();
        let started = Instant::now();
        let times = started >= times_rest;
        let looked = look(&broker, &queue, known.as_ref(), times, told).await;
        let mut pause = LONGEST_PAUSE.mul_f64(rand::rng().random_range(0.75..1.0));
        match looked {
            Ok(sighting) => {
                told &= !times;
                if times {
                    times_rest = Instant::now() + (started.elapsed() * REST).max(SHORTEST_PAUSE);
                    pause = pause.min(sighting.next_visible.unwrap_or(pause));
                }
                let Some(watched) = watched.upgrade() else { return };
                if known.as_ref().is_some_and(|known| known.created_at != sighting.queue_created_at) {
                    return watched.end(&Error::queue_not_found(queue.as_str()));
                }
                tell(&watched, &queue, known.as_ref(), &sighting);
                let times_at = match &known {
                    Some(known) if !times => known.times_at,
                    _ => sighting.looked_at,
                };
                known =
                    Some(Known { created_at: sighting.queue_created_at, newest: sighting.newest, times_at });
                watched.ready.send_replace(true);
            }
            Err(error) if error.kind() == Kind::QueueNotFound => {
                if let Some(watched) = watched.upgrade() {
                    watched.end(&error);
                }
                return;
            }
            // Whoever opens a watch meanwhile hears why it does not begin.
            Err(error) if !error.may_pass() => {
                if let Some(watched) = watched.upgrade() {
                    watched.end(&error);
                }
                return;
            }
            // A watch outlives its database.
            Err(error) => {
                tracing::debug!(
                    queue = queue.as_str(),
                    error = chain(&error),
                    "a watch waits for the database"
                );
            }
        }
        sleep(SHORTEST_PAUSE).await;
        tokio::select! {
            () = wake.wait(pause.saturating_sub(SHORTEST_PAUSE)) => told |= wake.is_due(),
            () = broker.drain.cancelled() => {}
        }
    }
}

async fn look(
    broker: &Broker,
    queue: &QueueName,
    known: Option<&Known>,
    times: bool,
    told: bool,
) -> Result<Sighting> {
    let overlap = if told { OVERLAP } else { Duration::ZERO };
    let since = known.map(|known| known.times_at.before(overlap));
    let mut connection = broker.database.connect("watch", Deadline::within(LOOK_TIME)).await?;
    connection.look(queue, since, times).await
}

fn tell(watched: &Watched, queue: &QueueName, known: Option<&Known>, sighting: &Sighting) {
    let Some(known) = known else { return };
    let sent = has_new(&known.newest, &sighting.newest);
    if !sent && !sighting.became_visible {
        return;
    }
    for inbox in watched.inboxes() {
        if sent {
            inbox.tell(queue, EventKind::Sent, sighting.looked_at);
        }
        if sighting.became_visible {
            inbox.tell(queue, EventKind::Visible, sighting.looked_at);
        }
    }
}

/// Whether ids are there that were not before. Those below the lowest that was seen before were below a full list then.
fn has_new(before: &[i64], now: &[i64]) -> bool {
    let lowest = if before.len() < 100 { i64::MIN } else { before.last().copied().unwrap_or(i64::MIN) };
    let seen: HashSet<i64> = before.iter().copied().collect();
    now.iter().any(|msg_id| *msg_id > lowest && !seen.contains(msg_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lower_id_that_comes_later_is_new_too() {
        assert!(!has_new(&[], &[]));
        assert!(has_new(&[], &[1]));
        assert!(has_new(&[5, 3], &[5, 4, 3]));
        assert!(!has_new(&[5, 3], &[5]));
        assert!(!has_new(&[5, 3], &[]));
    }

    #[test]
    fn an_old_message_that_comes_into_view_is_not_new() {
        let before: Vec<i64> = (101..=200).rev().collect();
        let after_deletes: Vec<i64> = (52..=151).rev().collect();
        assert!(!has_new(&before, &after_deletes));
        assert!(has_new(&before, &(102..=201).rev().collect::<Vec<_>>()));
    }

    #[test]
    fn a_lasting_watch_keeps_nothing_of_short_ones() {
        let watched = Watched {
            name: QueueName::try_from("a".to_owned()).expect("a good name"),
            inboxes: Mutex::default(),
            ready: watch::Sender::new(true),
            registry: Watches::default(),
        };
        let lasting = Arc::new(Inbox::default());
        watched.add(&lasting);
        for _ in 0..1_000 {
            watched.add(&Arc::new(Inbox::default()));
        }
        assert!(watched.lock().len() <= 2, "{}", watched.lock().len());
        assert_eq!(watched.inboxes().len(), 1);
    }

    #[tokio::test]
    async fn an_inbox_gives_each_kind_once_and_then_the_end() {
        let queue = QueueName::try_from("a".to_owned()).expect("a good name");
        let inbox = Inbox::default();
        let at = Timestamp::from_unix_micros;
        inbox.tell(&queue, EventKind::Sent, at(1));
        inbox.tell(&queue, EventKind::Sent, at(2));
        inbox.tell(&queue, EventKind::Visible, at(2));
        inbox.end(Error::queue_not_found("a"));
        let told = inbox.take().await.expect("events");
        assert_eq!(told, [(queue.clone(), EventKind::Sent, at(2)), (queue, EventKind::Visible, at(2))]);
        assert_eq!(inbox.take().await.expect_err("the end").kind(), Kind::QueueNotFound);
    }
}
