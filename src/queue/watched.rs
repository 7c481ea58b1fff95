//! The queues that somebody watches: one task follows each, for all who watch it on this replica, and they share their looks.

mod looks;

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
use crate::pg::{Glance, Sighting};
use looks::{Looks, Seen, Ticket};

/// The shortest time between two looks at one queue, beside those of rounds.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

/// The longest of a queue that is looked at by itself. It finds what plain SQL did, as the rounds of the others do.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Tables larger than this are looked at by themselves: without an index on `vt`, a look at times reads them whole.
const LARGE_BYTES: u64 = 4 * 1024 * 1024;

/// How much longer than such a look at times took the next one has to wait.
const REST: u32 = 20;

/// By how much a look reaches back after something was told: a release is committed a little after the moment at which
/// its messages become visible.
const OVERLAP: Duration = Duration::from_secs(2);

/// How long a look at one queue may take.
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
    looks: Arc<Looks>,
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
    state: Arc<str>,
}

/// Ends the watches of a task that panicked: nobody may wait for what does not come any more.
struct WhenPanicking(Weak<Watched>);

impl Drop for WhenPanicking {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(watched) = self.0.upgrade()
        {
            watched.end(&Error::internal("the task that watches a queue panicked"));
        }
    }
}

/// Looks at a queue again and again, when something was told, when a message falls due, and now and then.
struct Follower {
    broker: Arc<Broker>,
    queue: QueueName,
    wake: Arc<Wake>,
    known: Option<Known>,
    /// Something was told since times were looked at.
    told: bool,
    /// When the next message becomes visible.
    due: Option<Instant>,
    /// It is looked at by itself, because it is large, or because it could not be looked at together with others.
    apart: bool,
    /// When times may be looked at again by itself.
    times_rest: Instant,
}

/// In which way the next look is taken.
enum Way {
    AtOnce,
    /// It was taken in a round.
    Taken(Result<Seen>),
    Apart,
}

async fn follow(broker: Arc<Broker>, watched: Weak<Watched>, queue: QueueName) {
    let _when_panicking = WhenPanicking(Weak::clone(&watched));
    let followed = broker.events.follow(&queue);
    let wake = Arc::new(Wake::default());
    followed.add_reader(&wake, Interest::Sent);
    let mut follower = Follower {
        broker: Arc::clone(&broker),
        queue,
        wake,
        known: None,
        told: false,
        due: None,
        apart: false,
        times_rest: Instant::now(),
    };
    let mut way = Way::AtOnce;
    while watched.strong_count() > 0 && !broker.drain.is_cancelled() {
        let is_of_a_round = matches!(way, Way::Taken(_));
        let looked = follower.look(way).await;
        let Some(watched) = watched.upgrade() else { return };
        match looked {
            Ok((Some(sighting), times)) => {
                if let Err(gone) = follower.learn(sighting, times, &watched) {
                    return watched.end(&gone);
                }
                watched.ready.send_replace(true);
            }
            Ok((None, _)) => {}
            // It is gone, or whoever opens a watch meanwhile hears why it does not begin.
            Err(error) if !error.may_pass() => return watched.end(&error),
            // A watch outlives its database.
            Err(error) => follower.look_failed(&error),
        }
        drop(watched);
        if !is_of_a_round {
            sleep(SHORTEST_PAUSE).await;
        }
        way = follower.wait().await;
    }
}

impl Follower {
    /// Waits until the next look is due.
    async fn wait(&mut self) -> Way {
        let looks = &self.broker.watches.looks;
        let (mut ticket, mut round) = match self.apart {
            true => (None, Instant::now() + LONGEST_PAUSE.mul_f64(rand::rng().random_range(0.75..1.0))),
            // Asked for before it begins, so that all are there when somebody looks.
            false => (Some(looks.round.ask(self.glance())), looks.next_round()),
        };
        loop {
            let until = self.due.map_or(round, |due| due.min(round));
            // What is told does not wait for a round that is under way.
            tokio::select! {
                () = self.wake.wait(until.saturating_duration_since(Instant::now())) => {}
                () = self.broker.drain.cancelled() => return Way::AtOnce,
                seen = answered(ticket.as_mut()) => return Way::Taken(seen),
            }
            let told = self.wake.take();
            self.told |= told;
            if ticket.is_none() {
                return Way::Apart;
            }
            // In a round only what was committed since is looked for, and not what falls due.
            if told || until < round {
                return Way::AtOnce;
            }
            looks.round.begin(round, &self.broker);
            round = looks.next_round();
        }
    }

    /// Looks, and gives whether it was at times, too.
    async fn look(&mut self, way: Way) -> Result<(Seen, bool)> {
        let (looks, database) = (&self.broker.watches.looks, &self.broker.database);
        let seen = match way {
            Way::AtOnce => looks.told.answer(database, looks.told.ask(self.glance())).await?,
            Way::Taken(seen) => seen?,
            Way::Apart => return self.look_apart().await,
        };
        Ok((seen, true))
    }

    async fn look_apart(&mut self) -> Result<(Seen, bool)> {
        let started = Instant::now();
        let times = started >= self.times_rest;
        let mut connection = self
            .broker
            .database
            .connect_for("watch", self.queue.as_str(), Deadline::within(LOOK_TIME))
            .await?;
        let sighting = connection.look(&self.glance(), times).await?;
        if times {
            self.times_rest = Instant::now() + (started.elapsed() * REST).max(SHORTEST_PAUSE);
        }
        Ok((Some(sighting), times))
    }

    fn glance(&self) -> Glance {
        let overlap = if self.told { OVERLAP } else { Duration::ZERO };
        let since = self.known.as_ref().map(|known| known.times_at.before(overlap));
        let state = self.known.as_ref().map(|known| Arc::clone(&known.state));
        Glance { queue: self.queue.clone(), since, state }
    }

    /// Tells what is new, and keeps what is known.
    ///
    /// # Errors
    /// `QueueNotFound` if the queue was made anew.
    fn learn(&mut self, sighting: Sighting, times: bool, watched: &Watched) -> Result<()> {
        let known = self.known.take();
        if known.as_ref().is_some_and(|known| known.created_at != sighting.queue_created_at) {
            return Err(Error::queue_not_found(self.queue.as_str()));
        }
        tell(watched, &self.queue, known.as_ref(), &sighting);
        let times_at = match known {
            Some(known) if !times => known.times_at,
            _ => sighting.looked_at,
        };
        if times {
            self.told = false;
            self.due = sighting.next_visible.map(|wait| Instant::now() + wait);
        }
        self.apart = sighting.bytes > LARGE_BYTES;
        self.known = Some(Known {
            created_at: sighting.queue_created_at,
            newest: sighting.newest,
            times_at,
            state: sighting.state,
        });
        Ok(())
    }

    fn look_failed(&mut self, error: &Error) {
        self.due = None;
        // What concerns the database as a whole does not set anybody apart.
        self.apart |= matches!(error.kind(), Kind::QueueBusy | Kind::Conflict | Kind::DeadlineExceeded);
        let queue = self.queue.as_str();
        tracing::debug!(queue, error = chain(error), "a watched queue could not be looked at");
    }
}

async fn answered(ticket: Option<&mut Ticket>) -> Result<Seen> {
    match ticket {
        Some(ticket) => ticket.answered().await,
        None => std::future::pending().await,
    }
}

fn tell(watched: &Watched, queue: &QueueName, known: Option<&Known>, sighting: &Sighting) {
    let Some(known) = known else { return };
    let sent = has_new(&known.newest, &sighting.newest);
    if !sent && !sighting.became_visible {
        return;
    }
    for inbox in watched.inboxes() {
        if sent {
            inbox.tell(queue, EventKind::Sent, sighting.seen_at);
        }
        if sighting.became_visible {
            inbox.tell(queue, EventKind::Visible, sighting.seen_at);
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
