//! One pair of eyes for all idle queues of this replica: it finds what nobody announces, by one statement a second
//! whatever the number of queues.
//!
//! Every send, whoever sends, takes an id from the queue's sequence, and to see that it moved is cheap. It moves before
//! the sender commits, so a queue whose sequence moved stays under suspicion, and is looked at closely, until all
//! transactions have ended that ran then. What became visible without a send (`pgmq.set_vt` by plain SQL, a row that was
//! locked) takes a close look to see, which is had by as many queues a second as fit, in turn.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::Rng;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::source::Source;
use crate::domain::{Error, Kind, QueueName, Result, Sight, Timestamp, View, error};
use crate::engine::Events;

/// The longest time between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// How many queues are looked at closely at a time.
const CLOSE_LOOKS: usize = 64;

/// Tables larger than this are looked at closely less often: without an index on `vt`, a look reads them whole.
const LARGE_BYTES: u64 = 4 * 1024 * 1024;

/// How many looks apart a large table is looked at closely.
const LARGE_PAUSE: u64 = 30;

/// How many looks there are without close ones after one that failed, because of a table that is locked or gone.
const CAREFUL: u64 = 1;

/// How many looks apart a table is looked at closely that could not be, alone.
const UNREADABLE_PAUSE: u64 = 30;

/// Of how many looks at least one wakes the readers of a queue where something is visible that they cannot get.
const MOST_FRUITLESS: u64 = 4;

/// After how many looks at the latest readers look again at a queue under suspicion that is not looked at closely.
const LONGEST_DOUBT: u64 = 32;

/// Looks at the queues that are watched.
#[derive(Clone)]
pub(super) struct Lookout {
    source: Arc<dyn Source>,
    events: Events,
    tasks: TaskTracker,
    drain: CancellationToken,
    post: Arc<Mutex<Post>>,
}

/// What the lookout knows.
#[derive(Default)]
pub(super) struct Post {
    watched: HashMap<QueueName, Watched>,
    manned: bool,
    looks: u64,
    careful_until: u64,
    /// The queues that the look under way looks at closely.
    close: Vec<QueueName>,
    /// Parts of close looks that failed, to be tried one by one until the table is found that nobody can look at.
    doubted: VecDeque<Vec<QueueName>>,
}

#[derive(Default)]
struct Watched {
    watchers: usize,
    seen: Option<(Timestamp, Option<i64>)>,
    /// The first transaction that had not begun when the sequence was last seen to move, and at which look that was.
    suspicion: Option<(i64, u64)>,
    /// The suspicion is that of the first sight, just after readers have looked.
    fresh: bool,
    looked: u64,
    large: bool,
    fruitless: u64,
    /// Its table could not be looked at; at this look it is tried again.
    unreadable_until: Option<u64>,
}

/// Keeps a queue under watch while it lives.
pub(super) struct Watch {
    post: Arc<Mutex<Post>>,
    queue: QueueName,
}

/// What to do for a queue after a look.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Advice {
    /// Its readers should look now.
    pub(super) wake: bool,
    /// And after so long.
    pub(super) after: Option<Duration>,
}

impl Lookout {
    pub(super) fn new(
        source: Arc<dyn Source>,
        events: Events,
        tasks: TaskTracker,
        drain: CancellationToken,
    ) -> Self {
        Self { source, events, tasks, drain, post: Arc::default() }
    }

    /// Watches a queue.
    pub(super) fn watch(&self, queue: &QueueName) -> Watch {
        let mut post = lock(&self.post);
        post.watched.entry(queue.clone()).or_default().watchers += 1;
        if !post.manned {
            post.manned = true;
            self.tasks.spawn(self.clone().run());
        }
        Watch { post: Arc::clone(&self.post), queue: queue.clone() }
    }

    async fn run(self) {
        let _when_panicking = WhenPanicking(self.clone());
        loop {
            tokio::select! {
                () = sleep(INTERVAL.mul_f64(rand::rng().random_range(0.75..1.0))) => {}
                () = self.drain.cancelled() => return,
            }
            let Some(queues) = lock(&self.post).next() else {
                return;
            };
            let looked = self.look(&queues).await;
            let now = Instant::now();
            match looked {
                Ok(view) => {
                    let advice = lock(&self.post).judge(&queues, &view);
                    for (queue, advice) in advice {
                        if advice.wake {
                            self.events.wake_readers(queue);
                        }
                        if let Some(after) = advice.after {
                            self.events.wake_readers_at(queue, now + after);
                        }
                    }
                }
                Err(error) => {
                    lock(&self.post).failed(is_outage(&error));
                    // Those who wait for an answer find out by reading; the others try again until it works.
                    if is_outage(&error) {
                        queues.iter().for_each(|(queue, _)| self.events.wake_readers(queue));
                    }
                    tracing::debug!(error = error::chain(&error), "idle queues could not be looked at");
                }
            }
        }
    }

    async fn look(&self, queues: &[(QueueName, bool)]) -> Result<View> {
        self.source.open("look_around", None).await?.look_around(queues).await
    }
}

/// Mans the post again after a panic. It counts as a failed look, so that a queue that leads to it does not hide the others.
struct WhenPanicking(Lookout);

impl Drop for WhenPanicking {
    fn drop(&mut self) {
        if std::thread::panicking() {
            lock(&self.0.post).failed(false);
            self.0.tasks.spawn(self.0.clone().run());
        }
    }
}

impl Post {
    /// The queues to look at, and whether closely; none ends the watch.
    pub(super) fn next(&mut self) -> Option<Vec<(QueueName, bool)>> {
        self.watched.retain(|_, watched| watched.watchers > 0);
        if self.watched.is_empty() {
            self.manned = false;
            return None;
        }
        self.looks += 1;
        let (looks, careful) = (self.looks, self.looks < self.careful_until);
        let part = if careful { Some(Vec::new()) } else { self.next_part() };
        let mut line: Vec<(&QueueName, &Watched)> = self.watched.iter().collect();
        // Those under suspicion first, then those that were not looked at for longest.
        line.sort_unstable_by_key(|(_, watched)| {
            (watched.seen.is_some() && watched.suspicion.is_none(), watched.looked)
        });
        let mut close = 0;
        let chosen = line.into_iter().map(|(queue, watched)| {
            let rests = watched.large && looks < watched.looked + LARGE_PAUSE;
            let closely = match &part {
                Some(part) => part.contains(queue),
                None => !rests && watched.unreadable_until.is_none() && close < CLOSE_LOOKS,
            };
            close += usize::from(closely);
            (queue.clone(), closely)
        });
        let chosen: Vec<(QueueName, bool)> = chosen.collect();
        self.close = chosen.iter().filter(|(_, closely)| *closely).map(|(queue, _)| queue.clone()).collect();
        Some(chosen)
    }

    /// A few queues to be looked at closely without others, because one of them may spoil the look.
    fn next_part(&mut self) -> Option<Vec<QueueName>> {
        let looks = self.looks;
        let is_due = |(_, watched): &(&QueueName, &Watched)| {
            watched.unreadable_until.is_some_and(|until| until <= looks)
        };
        let again = || self.watched.iter().find(is_due).map(|(queue, _)| vec![queue.clone()]);
        self.doubted.pop_front().or_else(again)
    }

    /// What a look means for each queue.
    pub(super) fn judge<'a>(
        &mut self,
        queues: &'a [(QueueName, bool)],
        view: &View,
    ) -> Vec<(&'a QueueName, Advice)> {
        let looks = self.looks;
        let mut given = Vec::new();
        for ((queue, _), sight) in queues.iter().zip(&view.sights) {
            let Some(watched) = self.watched.get_mut(queue) else {
                continue;
            };
            let advice = match sight {
                Some(sight) => watched.judge(sight, view, looks),
                // It is gone: a read finds out and tells.
                None => Advice { wake: true, after: None },
            };
            if advice != Advice::default() {
                given.push((queue, advice));
            }
        }
        given
    }

    /// After a failure the next look is without close ones, and then the halves are tried, so that one queue cannot hide
    /// the others. An outage is nobody's fault.
    pub(super) fn failed(&mut self, is_outage: bool) {
        self.careful_until = self.looks + 1 + CAREFUL;
        let close = std::mem::take(&mut self.close);
        match close.as_slice() {
            [] => {}
            _ if is_outage => {}
            [queue] => {
                if let Some(watched) = self.watched.get_mut(queue) {
                    watched.unreadable_until = Some(self.looks + UNREADABLE_PAUSE);
                }
            }
            queues => {
                let (first, second) = queues.split_at(queues.len() / 2);
                self.doubted.push_front(second.to_vec());
                self.doubted.push_front(first.to_vec());
            }
        }
    }
}

impl Watched {
    fn judge(&mut self, sight: &Sight, view: &View, looks: u64) -> Advice {
        let seen = (sight.created_at, sight.last_id);
        let never_used = sight.last_id.is_none() && sight.is_readable;
        let moved = self.seen != Some(seen) || !sight.is_readable;
        self.fresh = if moved { self.seen.is_none() } else { self.fresh };
        // What is new here was read just before it was watched, unless it was committed in between.
        let replaced = self.seen.is_some_and(|(created_at, _)| created_at != sight.created_at);
        self.seen = Some(seen);
        self.large = sight.bytes > LARGE_BYTES;
        if moved && !never_used {
            self.suspicion = Some((view.next_transaction, looks));
        }
        let Some(visible) = sight.visible else {
            // Not looked at closely, so under suspicion the readers have to look by themselves: often in the beginning,
            // and once more at its end. Those of a new queue have just looked.
            let age = self.suspicion.map_or(0, |(_, since)| looks - since);
            let suspected = self.end_suspicion(view, looks);
            let ended = self.suspicion.is_none();
            let due = ended || if age < 2 { !self.fresh } else { age.is_power_of_two() };
            return Advice { wake: suspected && due || replaced, after: None };
        };
        self.looked = looks;
        self.unreadable_until = None;
        self.end_suspicion(view, looks);
        self.fruitless = if visible && !moved { self.fruitless + 1 } else { 0 };
        let wake =
            replaced || visible && (self.fruitless <= 1 || self.fruitless.is_multiple_of(MOST_FRUITLESS));
        Advice { wake, after: sight.next_visible }
    }

    /// Ends the suspicion once nothing can be committed any more that was sent before it, and gives whether readers should
    /// look because of it: the longer somebody's transaction keeps it up, the less often.
    fn end_suspicion(&mut self, view: &View, looks: u64) -> bool {
        let Some((next_transaction, since)) = self.suspicion else {
            return false;
        };
        let age = looks - since;
        // One look more, for a sender that had its id and was about to become a transaction.
        let ends = view.oldest_running >= next_transaction && age > 1;
        if ends {
            self.suspicion = None;
        }
        ends || age <= 2 || age.is_power_of_two() || age.is_multiple_of(LONGEST_DOUBT)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It is forgotten at the next look, so that a reader who looks and comes back finds what was known.
        if let Some(watched) = lock(&self.post).watched.get_mut(&self.queue) {
            watched.watchers -= 1;
        }
    }
}

/// Whether a failure concerns the database as a whole.
fn is_outage(error: &Error) -> bool {
    matches!(error.kind(), Kind::DatabaseUnavailable | Kind::OutcomeUnknown | Kind::OutcomeUnknownRetrySafe)
}

fn lock(post: &Mutex<Post>) -> MutexGuard<'_, Post> {
    post.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks once; whoever is looked at closely with `unreadable` fails. Gives who was looked at closely.
    fn look(post: &mut Post, unreadable: &QueueName) -> (Vec<QueueName>, bool) {
        let queues = post.next().expect("queues");
        let close: Vec<QueueName> =
            queues.iter().filter(|(_, closely)| *closely).map(|(queue, _)| queue.clone()).collect();
        if close.contains(unreadable) {
            post.failed(false);
            return (close, false);
        }
        let sight = |(_, closely): &(QueueName, bool)| {
            Some(Sight {
                created_at: Timestamp::from_unix_micros(1),
                last_id: Some(1),
                is_readable: true,
                bytes: 0,
                visible: closely.then_some(false),
                next_visible: None,
            })
        };
        let sights = queues.iter().map(sight).collect();
        post.judge(&queues, &View { sights, oldest_running: 2, next_transaction: 2 });
        (close, true)
    }

    #[test]
    fn readers_of_many_new_queues_look_again_once_and_not_at_all_where_nothing_was_sent() {
        let mut watched = Watched::default();
        let sight = |last_id| Sight {
            created_at: Timestamp::from_unix_micros(1),
            last_id,
            is_readable: true,
            bytes: 0,
            visible: None,
            next_visible: None,
        };
        let view = |running| View { sights: Vec::new(), oldest_running: running, next_transaction: 9 };
        let wakes = |watched: &mut Watched, last_id, looks, running| {
            watched.judge(&sight(last_id), &view(running), looks).wake
        };
        assert!((1..9).all(|looks| !wakes(&mut watched, None, looks, 9)));
        // The first message moves the sequence, and is looked for until nobody can be about to commit it.
        assert_eq!(
            [10, 11, 12, 13].map(|looks| wakes(&mut watched, Some(1), looks, 9)),
            [true, true, true, false]
        );

        let mut watched = Watched::default();
        assert_eq!(
            [1, 2, 3, 4].map(|looks| wakes(&mut watched, Some(7), looks, 9)),
            [false, false, true, false]
        );
        let mut watched = Watched::default();
        // While somebody's transaction lasts they look more and more rarely; at its end they do.
        let looked = (1..40).filter(|looks| wakes(&mut watched, Some(7), *looks, 8)).count();
        assert_eq!(looked, 5);
        assert!(wakes(&mut watched, Some(7), 40, 9) && !wakes(&mut watched, Some(7), 41, 9));
    }

    #[test]
    fn one_table_that_cannot_be_looked_at_does_not_keep_from_the_others() {
        let name = |number| QueueName::try_from(format!("q{number}")).expect("a good name");
        let mut post = Post::default();
        for number in 0..CLOSE_LOOKS {
            post.watched.entry(name(number)).or_default().watchers = 1;
        }
        let bad = name(17);
        let failures = (0..40).filter(|_| !look(&mut post, &bad).1).count();
        // All together, then halves down to the one, and that one again after a while.
        assert!((7..=9).contains(&failures), "{failures}");
        let (close, succeeded) = (0..2).map(|_| look(&mut post, &bad)).last().expect("a look");
        assert!(succeeded && close.len() == CLOSE_LOOKS - 1, "{}", close.len());
        // Once it can be looked at again it is one of them.
        let nobody = name(CLOSE_LOOKS);
        for _ in 0..UNREADABLE_PAUSE * 2 {
            assert!(look(&mut post, &nobody).1);
        }
        assert_eq!(look(&mut post, &nobody).0.len(), CLOSE_LOOKS);
    }
}
