//! A database that is made believe, for those who read in virtual time.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::domain::bounds::VisibilityTimeout;
use crate::domain::{Delivery, Message, Ordering, Receipt, Sight, Taken, View};

/// The most bytes of a handover.
pub(crate) const PIECE: usize = 1 << 20;

/// Messages by id: when each is visible, and how often it was read.
#[derive(Default)]
pub(crate) struct Queue {
    pub(crate) messages: BTreeMap<i64, (Moment, i32)>,
    pub(crate) last_id: i64,
    pub(crate) created_at: i64,
    pub(crate) gone: bool,
}

/// A moment in virtual time.
pub(crate) type Moment = Duration;

#[derive(Default)]
pub(crate) struct World {
    pub(crate) queues: HashMap<QueueName, Queue>,
    pub(crate) statements: HashMap<&'static str, usize>,
    pub(crate) refuses: Option<Kind>,
    /// A statement at which the task that runs it panics, once.
    pub(crate) panics_at: Option<&'static str>,
    pub(crate) read_takes: Duration,
    /// So many reads come, one after the other, upon messages alone that can be neither read nor moved.
    pub(crate) in_vain: usize,
    /// The queues that are known to be slow.
    pub(crate) slow: HashSet<QueueName>,
    pub(crate) ask_takes: Duration,
    /// No queue is looked at closely, as where that was done lately or others stand in the line before it.
    pub(crate) from_afar: bool,
    pub(crate) at_once: usize,
    pub(crate) most_at_once: usize,
}

/// The database of these tests.
#[derive(Clone)]
pub(crate) struct Fake {
    world: Arc<Mutex<World>>,
    epoch: Instant,
}

impl Fake {
    pub(crate) fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    pub(crate) fn with<T>(&self, change: impl FnOnce(&mut World, Duration) -> T) -> T {
        change(&mut self.world.lock().expect("the world"), self.now())
    }

    /// Stores a message as plain SQL does: nobody is told.
    pub(crate) fn send_in(&self, name: &str, delay: Duration) -> i64 {
        self.with(|world, now| {
            let queue = world.queues.entry(queue(name)).or_default();
            queue.last_id += 1;
            queue.messages.insert(queue.last_id, (now + delay, 0));
            queue.last_id
        })
    }

    pub(crate) fn send(&self, name: &str) -> i64 {
        self.send_in(name, Duration::ZERO)
    }

    pub(crate) fn delete(&self, name: &str, msg_id: i64) {
        self.with(|world, _| world.queues.entry(queue(name)).or_default().messages.remove(&msg_id));
    }

    /// Counts a statement; panics if that is planned.
    fn begin(&self, statement: &'static str) {
        let panics = self.with(|world, _| {
            *world.statements.entry(statement).or_default() += 1;
            world.panics_at.take_if(|planned| *planned == statement).is_some()
        });
        assert!(!panics, "a panic that is planned");
    }

    pub(crate) fn count(&self, statement: &'static str) -> usize {
        self.with(|world, _| world.statements.get(statement).copied().unwrap_or(0))
    }

    /// The messages of a queue that are visible, and how often each was read.
    pub(crate) fn visible(&self, name: &str) -> Vec<(i64, i32)> {
        self.with(|world, now| {
            let messages = world.queues[&queue(name)].messages.iter();
            messages
                .filter(|(_, (visible, _))| *visible <= now)
                .map(|(id, (_, count))| (*id, *count))
                .collect()
        })
    }

    /// How long a delivery is still hidden.
    pub(crate) fn hidden_for(&self, delivery: &Delivery) -> Duration {
        moment_of(&delivery.message.vt).saturating_sub(self.now())
    }

    pub(crate) fn statements(&self) -> usize {
        self.with(|world, _| world.statements.values().sum())
    }
}

impl Source for Fake {
    fn open<'a>(
        &'a self,
        _: &'static str,
        _: Option<&'a QueueName>,
    ) -> BoxFuture<'a, Result<Box<dyn Session>>> {
        let refuses = self.with(|world, _| world.refuses);
        let session: Result<Box<dyn Session>> = match refuses {
            Some(kind) => {
                self.with(|world, _| *world.statements.entry("refused").or_default() += 1);
                Err(Error::new(kind, "refused"))
            }
            None => Ok(Box::new(self.clone())),
        };
        async move { session }.boxed()
    }

    fn is_slow(&self, _: &'static str, queue: &QueueName) -> bool {
        self.with(|world, _| world.slow.contains(queue))
    }
}

impl Session for Fake {
    fn read<'a>(&'a mut self, order: &'a ReadOrder, count: usize, _: usize) -> BoxFuture<'a, Result<Taken>> {
        async move {
            self.begin("read");
            let takes = self.with(|world, _| {
                world.at_once += 1;
                world.most_at_once = world.most_at_once.max(world.at_once);
                world.read_takes
            });
            // What comes while the answer is on its way is not in it.
            let taken = self.with(|world, now| take(world, order, count, now));
            sleep(takes).await;
            self.with(|world, _| world.at_once -= 1);
            taken
        }
        .boxed()
    }

    fn next_visible<'a>(
        &'a mut self,
        name: &'a QueueName,
        after: Timestamp,
    ) -> BoxFuture<'a, Result<Option<Duration>>> {
        self.begin("next_visible");
        let (next, takes) = self.with(|world, _| {
            let after = moment_of(&after);
            let messages = world.queues.entry(name.clone()).or_default().messages.values();
            let next = messages.map(|(visible, _)| *visible).filter(|visible| *visible > after).min();
            (next, world.ask_takes)
        });
        async move {
            sleep(takes).await;
            Ok(next.map(|visible| visible.saturating_sub(self.now())))
        }
        .boxed()
    }

    fn give_back<'a>(&'a mut self, name: &'a QueueName, given: &'a [Delivery]) -> BoxFuture<'a, Result<()>> {
        self.begin("give_back");
        self.with(|world, now| {
            let queue = world.queues.entry(name.clone()).or_default();
            for delivery in given {
                let (vt, read_ct) = (moment_of(&delivery.message.vt), delivery.message.read_ct);
                let same = |message: &&mut (Moment, i32)| **message == (vt, read_ct);
                if let Some(message) = queue.messages.get_mut(&delivery.message.msg_id).filter(same) {
                    *message = (now, read_ct - 1);
                }
            }
        });
        async { Ok(()) }.boxed()
    }

    fn hidden_for<'a>(
        &'a mut self,
        _: &'a QueueName,
        receipts: &'a [Receipt],
    ) -> BoxFuture<'a, Result<Vec<Option<Duration>>>> {
        self.begin("hidden_for");
        async move { Ok(vec![None; receipts.len()]) }.boxed()
    }

    fn look_around<'a>(&'a mut self, queues: &'a [(QueueName, bool)]) -> BoxFuture<'a, Result<View>> {
        self.begin("look_around");
        let view = self.with(|world, now| {
            let from_afar = world.from_afar;
            let mut sight = |(name, closely): &(QueueName, bool)| {
                let closely = *closely && !from_afar;
                let queue = world.queues.entry(name.clone()).or_default();
                let visible = queue.messages.values().any(|(visible, _)| *visible <= now);
                let next = queue.messages.values().map(|(visible, _)| *visible).filter(|at| *at > now).min();
                (!queue.gone).then(|| Sight {
                    created_at: Timestamp::from_unix_micros(queue.created_at),
                    last_id: Some(queue.last_id),
                    is_readable: true,
                    bytes: 0,
                    visible: closely.then_some(visible),
                    next_visible: next.filter(|_| closely).map(|at| at - now),
                })
            };
            let sights = queues.iter().map(&mut sight).collect();
            View { sights, oldest_running: 2, next_transaction: 2 }
        });
        async move { Ok(view) }.boxed()
    }
}

fn moment_of(timestamp: &Timestamp) -> Moment {
    Duration::from_micros(timestamp.unix_micros().unsigned_abs())
}

fn take(world: &mut World, order: &ReadOrder, count: usize, now: Duration) -> Result<Taken> {
    let (held, in_vain) = (order.visibility_timeout.span(), world.in_vain > 0);
    world.in_vain = world.in_vain.saturating_sub(1);
    let count = if in_vain { 0 } else { count };
    let queue = world.queues.entry(order.queue.clone()).or_default();
    if queue.gone {
        return Err(Error::queue_not_found(order.queue.as_str()));
    }
    let moment = |at: Duration| Timestamp::from_unix_micros(i64::try_from(at.as_micros()).expect("a moment"));
    let created_at = Timestamp::from_unix_micros(queue.created_at);
    let visible = queue.messages.iter_mut().filter(|(_, (visible, _))| *visible <= now).take(count);
    let deliveries = visible.map(|(&msg_id, message)| {
        // As exact as the database's.
        let now = moment_of(&moment(now));
        *message = (now + held, message.1 + 1);
        let (enqueued_at, last_read_at) = (moment(Duration::ZERO), Some(moment(now)));
        let receipt = Receipt::new(&order.queue, created_at, msg_id, message.1, enqueued_at, last_read_at);
        let vt = moment(now + held);
        let message = Message {
            msg_id,
            read_ct: message.1,
            enqueued_at,
            last_read_at,
            vt,
            message: Some("{}".to_owned()),
            headers: None,
        };
        Delivery { message, receipt }
    });
    let deliveries = deliveries.collect();
    Ok(Taken {
        deliveries,
        queue_created_at: created_at,
        before_read: moment(now),
        cut: in_vain,
        set_aside: Vec::new(),
        refused: None,
        in_vain,
    })
}

pub(crate) struct Stage {
    pub(crate) fake: Fake,
    pub(crate) events: Events,
    pub(crate) dispatch: Dispatch,
    pub(crate) drain: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

pub(crate) fn stage() -> Stage {
    let fake = Fake { world: Arc::default(), epoch: Instant::now() };
    let (events, tasks, drain) = (Events::default(), TaskTracker::new(), CancellationToken::new());
    let dispatch = Dispatch::new(Arc::new(fake.clone()), &events, &tasks, &drain, 6);
    Stage { fake, events, dispatch, drain, tasks }
}

pub(crate) fn queue(name: &str) -> QueueName {
    QueueName::try_from(name.to_owned()).expect("a good name")
}

pub(crate) fn order(name: &str) -> ReadOrder {
    ReadOrder {
        queue: queue(name),
        visibility_timeout: VisibilityTimeout::parse(Duration::from_secs(30)).expect("a good timeout"),
        ordering: Ordering::Unordered,
        conditional: None,
    }
}

impl Stage {
    pub(crate) fn subscribe(&self, name: &str) -> Subscription {
        let created_at = Timestamp::from_unix_micros(0);
        self.dispatch.subscribe(&order(name), created_at, PIECE).expect("a subscription")
    }

    pub(crate) async fn read_once(&self, name: &str, count: usize, wait: Duration) -> Result<Vec<i64>> {
        let until = Instant::now() + wait;
        let read = self.dispatch.read_once(&order(name), count, until).await?;
        Ok(ids(read))
    }
}

pub(crate) fn ids(handover: Handover) -> Vec<i64> {
    handover.hand_over().iter().map(|delivery| delivery.message.msg_id).collect()
}
