//! Dispatchers in virtual time, on a database that is made believe.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::domain::bounds::VisibilityTimeout;
use crate::domain::{Delivery, Message, Ordering, Receipt, Sight, Taken, View};

const PIECE: usize = 1 << 20;
const HOUR: Duration = Duration::from_secs(3_600);

/// Messages by id: when each is visible, and how often it was read.
#[derive(Default)]
struct Queue {
    messages: BTreeMap<i64, (Moment, i32)>,
    last_id: i64,
    created_at: i64,
    gone: bool,
}

/// A moment in virtual time.
type Moment = Duration;

#[derive(Default)]
struct World {
    queues: HashMap<QueueName, Queue>,
    statements: HashMap<&'static str, usize>,
    refuses: Option<Kind>,
    read_takes: Duration,
    at_once: usize,
    most_at_once: usize,
}

/// The database of these tests.
#[derive(Clone)]
struct Fake {
    world: Arc<Mutex<World>>,
    epoch: Instant,
}

impl Fake {
    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    fn with<T>(&self, change: impl FnOnce(&mut World, Duration) -> T) -> T {
        change(&mut self.world.lock().expect("the world"), self.now())
    }

    /// Stores a message as plain SQL does: nobody is told.
    fn send_in(&self, name: &str, delay: Duration) -> i64 {
        self.with(|world, now| {
            let queue = world.queues.entry(queue(name)).or_default();
            queue.last_id += 1;
            queue.messages.insert(queue.last_id, (now + delay, 0));
            queue.last_id
        })
    }

    fn send(&self, name: &str) -> i64 {
        self.send_in(name, Duration::ZERO)
    }

    fn delete(&self, name: &str, msg_id: i64) {
        self.with(|world, _| world.queues.entry(queue(name)).or_default().messages.remove(&msg_id));
    }

    fn count(&self, statement: &'static str) -> usize {
        self.with(|world, _| world.statements.get(statement).copied().unwrap_or(0))
    }

    fn statements(&self) -> usize {
        self.with(|world, _| world.statements.values().sum())
    }
}

impl Source for Fake {
    fn open(&self, _: &'static str) -> BoxFuture<'_, Result<Box<dyn Session>>> {
        let refuses = self.with(|world, _| world.refuses);
        let session: Result<Box<dyn Session>> = match refuses {
            Some(kind) => Err(Error::new(kind, "refused")),
            None => Ok(Box::new(self.clone())),
        };
        async move { session }.boxed()
    }
}

impl Session for Fake {
    fn read<'a>(&'a mut self, order: &'a ReadOrder, count: usize, _: usize) -> BoxFuture<'a, Result<Taken>> {
        async move {
            let takes = self.with(|world, _| {
                *world.statements.entry("read").or_default() += 1;
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
        let next = self.with(|world, now| {
            *world.statements.entry("next_visible").or_default() += 1;
            let after = Duration::from_micros(after.unix_micros().unsigned_abs());
            let messages = world.queues.entry(name.clone()).or_default().messages.values();
            let next = messages.map(|(visible, _)| *visible).filter(|visible| *visible > after).min();
            next.map(|visible| visible.saturating_sub(now))
        });
        async move { Ok(next) }.boxed()
    }

    fn give_back<'a>(&'a mut self, name: &'a QueueName, given: &'a [Delivery]) -> BoxFuture<'a, Result<()>> {
        self.with(|world, now| {
            *world.statements.entry("give_back").or_default() += 1;
            let queue = world.queues.entry(name.clone()).or_default();
            for delivery in given {
                if let Some(message) = queue.messages.get_mut(&delivery.message.msg_id) {
                    *message = (now, message.1 - 1);
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
        self.with(|world, _| *world.statements.entry("hidden_for").or_default() += 1);
        async move { Ok(vec![None; receipts.len()]) }.boxed()
    }

    fn look_around<'a>(&'a mut self, queues: &'a [(QueueName, bool)]) -> BoxFuture<'a, Result<View>> {
        let view = self.with(|world, now| {
            *world.statements.entry("look_around").or_default() += 1;
            let mut sight = |(name, closely): &(QueueName, bool)| {
                let queue = world.queues.entry(name.clone()).or_default();
                let visible = queue.messages.values().any(|(visible, _)| *visible <= now);
                let next = queue.messages.values().map(|(visible, _)| *visible).filter(|at| *at > now).min();
                (!queue.gone).then(|| Sight {
                    created_at: Timestamp::from_unix_micros(queue.created_at),
                    last_id: Some(queue.last_id),
                    is_readable: true,
                    bytes: 0,
                    visible: closely.then_some(visible),
                    next_visible: next.filter(|_| *closely).map(|at| at - now),
                })
            };
            let sights = queues.iter().map(&mut sight).collect();
            View { sights, oldest_running: 2, next_transaction: 2 }
        });
        async move { Ok(view) }.boxed()
    }
}

fn take(world: &mut World, order: &ReadOrder, count: usize, now: Duration) -> Result<Taken> {
    let held = order.visibility_timeout.span();
    let queue = world.queues.entry(order.queue.clone()).or_default();
    if queue.gone {
        return Err(Error::queue_not_found(order.queue.as_str()));
    }
    let moment = |at: Duration| Timestamp::from_unix_micros(i64::try_from(at.as_micros()).expect("a moment"));
    let created_at = Timestamp::from_unix_micros(queue.created_at);
    let visible = queue.messages.iter_mut().filter(|(_, (visible, _))| *visible <= now).take(count);
    let deliveries = visible.map(|(&msg_id, message)| {
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
    Ok(Taken { deliveries, queue_created_at: created_at, before_read: moment(now), cut: false })
}

struct Stage {
    fake: Fake,
    events: Events,
    dispatch: Dispatch,
    drain: CancellationToken,
    tasks: TaskTracker,
}

fn stage() -> Stage {
    let fake = Fake { world: Arc::default(), epoch: Instant::now() };
    let (events, tasks, drain) = (Events::default(), TaskTracker::new(), CancellationToken::new());
    let dispatch = Dispatch::new(Arc::new(fake.clone()), &events, &tasks, &drain, 6);
    Stage { fake, events, dispatch, drain, tasks }
}

fn queue(name: &str) -> QueueName {
    QueueName::try_from(name.to_owned()).expect("a good name")
}

fn order(name: &str) -> ReadOrder {
    ReadOrder {
        queue: queue(name),
        visibility_timeout: VisibilityTimeout::parse(Duration::from_secs(30)).expect("a good timeout"),
        ordering: Ordering::Unordered,
        conditional: None,
    }
}

impl Stage {
    fn subscribe(&self, name: &str) -> Subscription {
        let created_at = Timestamp::from_unix_micros(0);
        self.dispatch.subscribe(&order(name), created_at, PIECE).expect("a subscription")
    }

    async fn read_once(&self, name: &str, count: usize, wait: Duration) -> Result<Vec<i64>> {
        let until = Instant::now() + wait;
        let read = self.dispatch.read_once(&order(name), count, until, std::future::pending()).await?;
        Ok(ids(read))
    }
}

fn ids(handover: Handover) -> Vec<i64> {
    handover.hand_over().iter().map(|delivery| delivery.message.msg_id).collect()
}

#[tokio::test(start_paused = true)]
async fn without_a_demand_there_is_no_query() {
    let stage = stage();
    stage.fake.send("a");
    let _subscription = stage.subscribe("a");
    sleep(HOUR).await;
    assert_eq!(stage.fake.statements(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_demand_is_met_once_and_by_no_more_than_it_says() {
    let stage = stage();
    for _ in 0..5 {
        stage.fake.send("a");
    }
    let mut subscription = stage.subscribe("a");
    subscription.set_demand(3);
    assert_eq!(ids(subscription.next().await.expect("messages")), [1, 2, 3]);
    assert!(timeout(HOUR, subscription.next()).await.is_err());
    subscription.set_demand(3);
    let next = ids(subscription.next().await.expect("messages"));
    assert_eq!(next.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn callers_who_ask_at_the_same_time_share_reads() {
    let stage = stage();
    for _ in 0..64 {
        stage.fake.send("a");
    }
    stage.fake.with(|world, _| world.read_takes = Duration::from_millis(5));
    let reads = (0..64).map(|_| stage.read_once("a", 1, Duration::ZERO));
    let got = futures_util::future::join_all(reads).await;
    let mut got: Vec<i64> = got.into_iter().flat_map(|read| read.expect("a read")).collect();
    got.sort_unstable();
    assert_eq!(got, (1..=64).collect::<Vec<_>>());
    assert!(stage.fake.count("read") <= 3, "{}", stage.fake.count("read"));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_does_not_wait_is_answered_by_a_read_that_began_after_it() {
    let stage = stage();
    stage.fake.with(|world, _| world.read_takes = Duration::from_secs(1));
    let (first, second) = tokio::join!(stage.read_once("a", 1, Duration::ZERO), async {
        // The first read has looked and is on its way back.
        sleep(Duration::from_millis(500)).await;
        let sent = stage.fake.send("a");
        (sent, stage.read_once("a", 1, Duration::ZERO).await)
    });
    assert_eq!(first.expect("an answer"), Vec::<i64>::new());
    assert_eq!(second.1.expect("an answer"), [second.0]);
}

#[tokio::test(start_paused = true)]
async fn what_a_gone_subscriber_was_given_goes_back_and_does_not_count() {
    let stage = stage();
    stage.fake.with(|world, _| world.read_takes = Duration::from_millis(10));
    for _ in 0..20 {
        stage.fake.send("a");
    }
    let leaving = stage.subscribe("a");
    leaving.set_demand(20);
    sleep(Duration::from_millis(5)).await;
    drop(leaving);
    sleep(Duration::from_secs(1)).await;
    stage.fake.with(|world, now| {
        for (visible, read_ct) in world.queues[&queue("a")].messages.values() {
            assert!(*visible <= now && *read_ct == 0);
        }
    });
    assert_eq!(stage.fake.count("give_back"), 1);
}

#[tokio::test(start_paused = true)]
async fn plain_sends_are_found_within_a_second_by_one_statement_a_second_for_all_queues() {
    let stage = stage();
    let names: Vec<String> = (0..200).map(|number| format!("q{number}")).collect();
    let mut subscriptions: Vec<Subscription> = names.iter().map(|name| stage.subscribe(name)).collect();
    for subscription in &subscriptions {
        subscription.set_demand(10);
    }
    sleep(Duration::from_secs(60)).await;
    let before = stage.fake.statements();
    sleep(Duration::from_secs(100)).await;
    let idle = stage.fake.statements() - before;
    assert!(idle <= 150, "{idle} statements in 100 s of nothing");
    for place in [0, 77, 199] {
        stage.fake.send(&names[place]);
        let found = timeout(Duration::from_millis(1_050), subscriptions[place].next()).await;
        assert_eq!(ids(found.expect("found in time").expect("messages")), [1]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_told_to_those_who_ask_once_and_outlived_by_the_others() {
    let stage = stage();
    let mut stream = stage.subscribe("a");
    stream.set_demand(1);
    stage.fake.with(|world, _| world.refuses = Some(Kind::DatabaseUnavailable));
    let asked = stage.read_once("a", 1, HOUR).await;
    assert_eq!(asked.expect_err("a failure").kind(), Kind::DatabaseUnavailable);
    assert!(timeout(HOUR, stream.next()).await.is_err());
    stage.fake.with(|world, _| world.refuses = None);
    let sent = stage.fake.send("a");
    let next = timeout(Duration::from_secs(2), stream.next()).await.expect("resumed");
    assert_eq!(ids(next.expect("messages")), [sent]);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_hears_of_an_outage_and_of_a_drain_that_it_waited_in_vain() {
    let stage = stage();
    let (failed, ()) = tokio::join!(stage.read_once("a", 1, HOUR), async {
        sleep(Duration::from_secs(30)).await;
        stage.fake.with(|world, _| world.refuses = Some(Kind::DatabaseUnavailable));
    });
    assert_eq!(failed.expect_err("a failure").kind(), Kind::DatabaseUnavailable);
    stage.fake.with(|world, _| world.refuses = None);
    let (drained, ()) = tokio::join!(stage.read_once("a", 1, HOUR), async {
        sleep(Duration::from_secs(30)).await;
        stage.drain.cancel();
    });
    assert_eq!(drained.expect("an empty answer"), Vec::<i64>::new());
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_is_gone_or_made_anew_ends_its_subscribers() {
    let stage = stage();
    for change in [|queue: &mut Queue| queue.gone = true, |queue: &mut Queue| queue.created_at = 5] {
        let mut subscription = stage.subscribe("a");
        subscription.set_demand(1);
        sleep(Duration::from_secs(10)).await;
        stage.fake.with(|world, _| {
            change(world.queues.entry(queue("a")).or_default());
        });
        let ended = timeout(Duration::from_secs(3), subscription.next()).await.expect("an end");
        assert_eq!(ended.err().expect("an error").kind(), Kind::QueueNotFound);
        stage.fake.with(|world, _| drop(world.queues.remove(&queue("a"))));
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_subscribers_and_dispatchers() {
    let stage = stage();
    let mut subscription = stage.subscribe("a");
    subscription.set_demand(1);
    sleep(Duration::from_secs(10)).await;
    stage.drain.cancel();
    stage.tasks.close();
    timeout(Duration::from_secs(1), stage.tasks.wait()).await.expect("an end of all tasks");
    assert_eq!(subscription.next().await.err().expect("an error").kind(), Kind::Draining);
}

#[tokio::test(start_paused = true)]
async fn reads_leave_connections_to_others() {
    let stage = stage();
    stage.fake.with(|world, _| world.read_takes = Duration::from_millis(100));
    let subscriptions: Vec<Subscription> =
        (0..50).map(|number| stage.subscribe(&format!("q{number}"))).collect();
    for subscription in &subscriptions {
        subscription.set_demand(1);
    }
    sleep(Duration::from_secs(10)).await;
    assert_eq!(stage.fake.with(|world, _| world.most_at_once), 6);
}

#[tokio::test(start_paused = true)]
async fn a_queue_is_not_read_in_endlessly_many_ways() {
    let stage = stage();
    let in_way = |number: usize| ReadOrder { conditional: Some(format!("[{number}]")), ..order("a") };
    let created_at = Timestamp::from_unix_micros(0);
    let subscribe = |number: usize| stage.dispatch.subscribe(&in_way(number), created_at, PIECE);
    let held: Vec<Subscription> =
        (0..CLASSES_OF_A_QUEUE).map(|number| subscribe(number).expect("a subscription")).collect();
    assert_eq!(subscribe(99).err().expect("a refusal").kind(), Kind::Overloaded);
    assert!(subscribe(0).is_ok());
    drop(held);
    assert!(subscribe(99).is_ok());
}

/// Whatever happens in whatever order, a visible message does not wait for longer than it may while somebody wants it.
#[tokio::test(start_paused = true)]
async fn no_wake_up_is_lost() {
    for seed in 0..60 {
        let mut random = StdRng::seed_from_u64(seed);
        let stage = stage();
        stage.fake.with(|world, _| world.read_takes = Duration::from_millis(random.random_range(0..40)));
        let mut stream = stage.subscribe("a");
        let mut held = Vec::new();
        for _ in 0..60 {
            sleep(Duration::from_millis(random.random_range(0..1_500))).await;
            stream.set_demand(random.random_range(1..4));
            let (delay, longest) = match random.random_range(0..4) {
                // Announced, at once and later.
                0 => (Duration::ZERO, Duration::from_millis(250)),
                1 => (Duration::from_millis(random.random_range(0..3_000)), Duration::from_millis(250)),
                // Not announced.
                2 => (Duration::ZERO, Duration::from_millis(1_100)),
                _ => (Duration::from_millis(random.random_range(0..3_000)), Duration::from_millis(1_100)),
            };
            let announced = longest < Duration::from_secs(1);
            let sent = stage.fake.send_in("a", delay);
            match announced {
                true if delay.is_zero() => stage.events.arrived(&queue("a")),
                true => stage.events.arrives_at(&queue("a"), Instant::now() + delay),
                false => {}
            }
            let due = Instant::now() + delay;
            loop {
                let next = timeout(Duration::from_secs(40), stream.next()).await;
                let next = next.unwrap_or_else(|_| panic!("seed {seed}: message {sent} never came"));
                let came = ids(next.expect("messages"));
                held.extend(&came);
                if came.contains(&sent) {
                    break;
                }
                stream.set_demand(1);
            }
            let late = due.elapsed();
            assert!(late <= longest + Duration::from_millis(80), "seed {seed}: {late:?} late");
            for msg_id in held.drain(..) {
                stage.fake.delete("a", msg_id);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_windows_of_many_streams_are_checked_together() {
    let stage = stage();
    let at = Timestamp::from_unix_micros(1);
    let full = |msg_id| {
        let window = Arc::new(Window::new(1));
        let receipt = Receipt::new(&queue("a"), at, msg_id, 1, at, Some(at));
        window.take(std::iter::once(receipt), HOUR);
        window
    };
    let windows: Vec<Arc<Window>> = (1..=200).map(full).collect();
    let name = queue("a");
    let checks = windows.iter().map(|window| stage.dispatch.check_window(&name, window));
    for checked in futures_util::future::join_all(checks).await {
        checked.expect("a check");
    }
    assert!(windows.iter().all(|window| window.in_flight() == 0));
    // The first goes at once, and the others gather behind it.
    assert!(stage.fake.with(|world, _| world.statements["hidden_for"]) <= 2);
}
