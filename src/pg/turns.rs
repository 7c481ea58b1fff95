//! Turns at the pool's connections: first come, first served, but that one queue, and what is slow, leaves some to the others.
//!
//! A use of the pool is an operation on a subject, such as the deletes of one queue. A subject has three quarters of the pool
//! at most, whatever is done to it, and a use an eighth less. Whatever is slow has half of the pool together, and one such use
//! half of its share.
//!
//! A use is slow once it has had a connection for a second, or twice in succession for 250 ms: a single pause of a busy machine
//! proves nothing. Where the quickest of all turns take long, because the database is far away, 250 ms are ten times as long as
//! these take. It is slow until it is quick again, or for a minute after the last time. The time counts from a turn's first
//! statement, and one whose connection is lost is not judged: that is nobody's fault.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Who has a connection for so long twice in succession is slow.
pub const SLOW: Duration = Duration::from_millis(250);

/// Who has a connection for so long is slow at once.
const SLOW_AT_ONCE: Duration = Duration::from_secs(1);

/// Nobody is slow who takes less than so many times what the quickest take.
const TIMES_QUICKEST: u64 = 10;

/// For how long it is known who was slow.
const MEMORY: Duration = Duration::from_mins(1);

/// How much of its use's share a turn takes while the use is slow.
const SLOW_WEIGHT: usize = 2;

/// How many uses are remembered before those are forgotten that nobody has and that are not slow. Their names are queues' and
/// routing keys, so they are short.
const REMEMBERED: usize = 1_024;

/// What an operation is done to.
#[derive(Debug, Clone)]
pub enum Subject<'a> {
    /// A queue, or with an empty name nothing in particular.
    Queue(&'a str),
    /// Several queues, each once, in the order of their names.
    Queues(Vec<&'a str>),
    /// The queues of a routing key, which are not known before. Beside its own share each key has one of what all keys have
    /// together, with all that is done to nothing in particular: new ones can come with every call.
    Topic(&'a str),
}

impl<'a> From<&'a str> for Subject<'a> {
    fn from(queue: &'a str) -> Self {
        Self::Queue(queue)
    }
}

/// The turns at a pool.
pub(super) struct Turns {
    all: Arc<Semaphore>,
    /// What slow uses have together.
    slow: Arc<Semaphore>,
    /// What any one subject has.
    bound: usize,
    /// What any one use has.
    share: usize,
    uses: Mutex<Uses>,
    /// How long the quickest turns of late have taken, in microseconds.
    quickest_us: AtomicU64,
    /// What the times below count from.
    began: Instant,
}

#[derive(Default)]
struct Uses {
    of_operations: HashMap<&'static str, HashMap<String, Arc<Use>>>,
    bounds: HashMap<String, Weak<Semaphore>>,
    count: usize,
    /// The count at which the next look is due for those that can be forgotten.
    look_at: usize,
}

/// What is known of a use.
struct Use {
    share: Arc<Semaphore>,
    /// What it has with all others of its subject.
    bound: Arc<Semaphore>,
    /// Until when it is known to be slow, in milliseconds.
    slow_until_ms: AtomicU64,
    /// When a turn ended that was slow, since when there was no quick one; 0 for none.
    late_ms: AtomicU64,
}

/// The right to one connection, given back when dropped. How long it was used tells whether its uses are slow.
pub(super) struct Turn {
    turns: Arc<Turns>,
    uses: Vec<Arc<Use>>,
    /// When its first statement began.
    since: Option<Instant>,
    is_slow: bool,
    _permits: Vec<OwnedSemaphorePermit>,
}

impl Turns {
    /// Turns at so many connections.
    pub(super) fn new(connections: usize) -> Arc<Self> {
        let bound = connections - connections / 4;
        Arc::new(Self {
            all: Arc::new(Semaphore::new(connections)),
            slow: Arc::new(Semaphore::new((connections / 2).max(1))),
            bound,
            share: bound - connections / 8,
            uses: Mutex::default(),
            // Until the first one is known: whoever is slow then is slow anywhere.
            quickest_us: AtomicU64::new(micros(SLOW_AT_ONCE) / TIMES_QUICKEST),
            began: Instant::now(),
        })
    }

    /// How many are free.
    pub(super) fn free(&self) -> usize {
        self.all.available_permits()
    }

    /// Waits for a turn that is nobody's in particular.
    pub(super) async fn take(self: &Arc<Self>) -> Result<Turn, AcquireError> {
        let turn = Arc::clone(&self.all).acquire_owned().await?;
        Ok(self.turn(Vec::new(), vec![turn]))
    }

    /// Waits for a turn of a use: first at its own share, then among the slow ones if it is one, then at its subject's, and last
    /// among all. Several subjects are waited for in the order of their names. So whoever has a later one waits for none of
    /// the earlier, and nobody waits in a ring.
    pub(super) async fn take_for(
        self: &Arc<Self>,
        operation: &'static str,
        subject: &Subject<'_>,
    ) -> Result<Turn, AcquireError> {
        let uses = self.uses_of(operation, subject);
        loop {
            let is_slow = self.is_any_slow(&uses);
            let weight = if is_slow { SLOW_WEIGHT.min(self.share) } else { 1 };
            let weight = u32::try_from(weight).unwrap_or(1);
            let mut permits = Vec::with_capacity(2 * uses.len() + 2);
            for of in &uses {
                permits.push(Arc::clone(&of.share).acquire_many_owned(weight).await?);
            }
            // Before the bounds: who waits among the slow ones keeps no quick one of the same subject from its turn.
            if is_slow {
                permits.push(Arc::clone(&self.slow).acquire_owned().await?);
            }
            for of in &uses {
                permits.push(Arc::clone(&of.bound).acquire_owned().await?);
            }
            permits.push(Arc::clone(&self.all).acquire_owned().await?);
            // It may have become known meanwhile, by those before it.
            if is_slow || !self.is_any_slow(&uses) {
                return Ok(self.turn(uses, permits));
            }
        }
    }

    fn turn(self: &Arc<Self>, uses: Vec<Arc<Use>>, permits: Vec<OwnedSemaphorePermit>) -> Turn {
        Turn { turns: Arc::clone(self), uses, since: None, is_slow: false, _permits: permits }
    }

    /// Whether an operation is known to be slow with a subject, by its name.
    pub(super) fn is_slow(&self, operation: &'static str, name: &str) -> bool {
        let uses = self.lock();
        let of = uses.of_operations.get(operation).and_then(|subjects| subjects.get(name));
        of.is_some_and(|of| of.is_slow(self.now_ms()))
    }

    fn is_any_slow(&self, uses: &[Arc<Use>]) -> bool {
        let now_ms = self.now_ms();
        uses.iter().any(|of| of.is_slow(now_ms))
    }

    fn uses_of(&self, operation: &'static str, subject: &Subject<'_>) -> Vec<Arc<Use>> {
        match subject {
            Subject::Queue(name) => vec![self.of(operation, name, name)],
            Subject::Queues(names) => names.iter().map(|name| self.of(operation, name, name)).collect(),
            Subject::Topic(key) => vec![self.of(operation, key, "")],
        }
    }

    fn of(&self, operation: &'static str, name: &str, bound: &str) -> Arc<Use> {
        let mut uses = self.lock();
        let uses = &mut *uses;
        let known = uses.of_operations.get(operation).and_then(|subjects| subjects.get(name));
        if let Some(known) = known {
            return Arc::clone(known);
        }
        if uses.count >= uses.look_at.max(REMEMBERED) {
            uses.forget(self.now_ms());
        }
        let bound = match uses.bounds.get(bound).and_then(Weak::upgrade) {
            Some(known) => known,
            None => {
                let made = Arc::new(Semaphore::new(self.bound));
                uses.bounds.insert(bound.to_owned(), Arc::downgrade(&made));
                made
            }
        };
        let made = Arc::new(Use {
            share: Arc::new(Semaphore::new(self.share)),
            bound,
            slow_until_ms: AtomicU64::new(0),
            late_ms: AtomicU64::new(0),
        });
        uses.count += 1;
        uses.of_operations.entry(operation).or_default().insert(name.to_owned(), Arc::clone(&made));
        made
    }

    /// How long a turn is that is slow, after one more that took so long.
    fn limit(&self, took: Duration) -> Duration {
        let known_us = self.quickest_us.load(Ordering::Relaxed);
        // It follows a quicker turn at once, and slower ones within some hundreds.
        let quickest_us = micros(took).min(known_us + known_us / 64 + 10);
        self.quickest_us.store(quickest_us, Ordering::Relaxed);
        Duration::from_micros(TIMES_QUICKEST.saturating_mul(quickest_us)).clamp(SLOW, SLOW_AT_ONCE)
    }

    fn lock(&self) -> MutexGuard<'_, Uses> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        self.ms(Instant::now())
    }

    fn ms(&self, moment: Instant) -> u64 {
        millis(moment.saturating_duration_since(self.began))
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

const fn micros(time: Duration) -> u64 {
    time.as_secs() * 1_000_000 + time.subsec_micros() as u64
}

impl Uses {
    /// Forgets what nobody has and what is not slow.
    fn forget(&mut self, now_ms: u64) {
        self.count = 0;
        for subjects in self.of_operations.values_mut() {
            subjects.retain(|_, of| Arc::strong_count(of) > 1 || of.is_slow(now_ms));
            self.count += subjects.len();
        }
        self.bounds.retain(|_, bound| bound.strong_count() > 0);
        // So that it is seldom, however many are in use.
        self.look_at = 2 * self.count;
    }
}

impl Use {
    fn is_slow(&self, now_ms: u64) -> bool {
        now_ms < self.slow_until_ms.load(Ordering::Relaxed)
    }

    /// Whether a turn that was slow and began then is one too many.
    fn is_late_again(&self, since_ms: u64) -> bool {
        let late_ms = self.late_ms.load(Ordering::Relaxed);
        late_ms != 0 && since_ms >= late_ms
    }
}

impl Turn {
    /// A statement is about to run; with the first one the time begins.
    pub(super) fn runs(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    /// What it is used for is slow, although it was ended soon.
    pub(super) fn found_slow(&mut self) {
        self.is_slow = true;
    }

    /// What has happened tells nothing of its uses.
    pub(super) fn pardon(&mut self) {
        self.since = None;
        self.is_slow = false;
    }

    /// Goes on for another use, and judges those before. For the same one the time goes on, too.
    pub(super) fn goes_on_for(&mut self, operation: &'static str, queue: &str) {
        let next = self.turns.of(operation, queue, queue);
        if matches!(self.uses.as_slice(), [one] if Arc::ptr_eq(one, &next)) {
            return;
        }
        self.judge();
        self.pardon();
        self.uses = vec![next];
    }

    fn judge(&self) {
        let Some(since) = self.since else { return };
        let took = since.elapsed();
        let limit = self.turns.limit(took);
        let (now_ms, since_ms) = (self.turns.now_ms(), self.turns.ms(since));
        for of in &self.uses {
            let is_late = took >= limit;
            let again = is_late && (of.is_slow(now_ms) || of.is_late_again(since_ms));
            if self.is_slow || took >= SLOW_AT_ONCE || again {
                of.slow_until_ms.store(now_ms + millis(MEMORY), Ordering::Relaxed);
            } else if !is_late {
                of.slow_until_ms.store(0, Ordering::Relaxed);
                of.late_ms.store(0, Ordering::Relaxed);
            } else if of.late_ms.load(Ordering::Relaxed) == 0 {
                of.late_ms.store(now_ms.max(1), Ordering::Relaxed);
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.judge();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::poll_immediate;
    use tokio::task::JoinSet;
    use tokio::time::sleep;

    use super::*;

    const QUICK: Duration = Duration::from_millis(1);

    /// A turn in which a statement runs.
    async fn turn<'a>(turns: &Arc<Turns>, operation: &'static str, subject: impl Into<Subject<'a>>) -> Turn {
        let mut turn = turns.take_for(operation, &subject.into()).await.expect("a turn");
        turn.runs();
        turn
    }

    /// All turns that are to be had at once.
    async fn all_now<'a>(
        turns: &Arc<Turns>,
        operation: &'static str,
        subjects: impl Iterator<Item = Subject<'a>>,
    ) -> Vec<Turn> {
        let mut taken = Vec::new();
        for subject in subjects {
            match poll_immediate(turn(turns, operation, subject)).await {
                Some(turn) => taken.push(turn),
                None => break,
            }
        }
        taken
    }

    async fn sends_now(turns: &Arc<Turns>, queue: &str) -> Vec<Turn> {
        all_now(turns, "send", std::iter::repeat(Subject::Queue(queue))).await
    }

    async fn takes(turns: &Arc<Turns>, queue: &str, time: Duration) {
        let turn = turn(turns, "send", queue).await;
        sleep(time).await;
        drop(turn);
    }

    #[tokio::test(start_paused = true)]
    async fn one_queue_leaves_a_quarter_of_the_pool_to_others_and_one_use_an_eighth_to_its_queue() {
        let turns = Turns::new(8);
        let sends = sends_now(&turns, "orders").await;
        let deletes = all_now(&turns, "delete", std::iter::repeat(Subject::Queue("orders"))).await;
        let others = sends_now(&turns, "others").await;
        assert_eq!((sends.len(), deletes.len(), others.len(), turns.free()), (5, 1, 2, 0));
        // A pool that has no quarter serves anyone.
        for connections in 1..4 {
            assert_eq!(sends_now(&Turns::new(connections), "orders").await.len(), connections);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn however_many_routing_keys_there_are_others_find_turns() {
        let turns = Turns::new(8);
        let keys: Vec<String> = (0..8).map(|number| format!("orders.{number}")).collect();
        let topics = all_now(&turns, "send_topic", keys.iter().map(|key| Subject::Topic(key))).await;
        assert_eq!((topics.len(), sends_now(&turns, "orders").await.len()), (6, 2));
        drop(topics);
        // And one key leaves turns to another.
        let one = all_now(&turns, "send_topic", std::iter::repeat(Subject::Topic("orders.1"))).await;
        assert_eq!(one.len(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn what_concerns_several_queues_has_the_share_of_each() {
        let turns = Turns::new(8);
        let tenants: Vec<String> = (0..8).map(|number| format!("tenant_{number}")).collect();
        let with_audit = || tenants.iter().map(|tenant| Subject::Queues(vec!["audit", tenant]));
        let taken = all_now(&turns, "transact", with_audit()).await;
        assert_eq!((taken.len(), sends_now(&turns, "orders").await.len()), (5, 3));
        sleep(SLOW_AT_ONCE).await;
        drop(taken);
        // Whichever of them it was, those that come with others are slow, too.
        let mut slow = all_now(&turns, "transact", with_audit().skip(5)).await;
        assert_eq!((slow.len(), sends_now(&turns, "orders").await.len()), (2, 5));
        slow.iter_mut().for_each(Turn::pardon);
        drop(slow);
        // Who is quick without it is slow no more.
        drop(turn(&turns, "transact", "tenant_0").await);
        assert!(!turns.is_slow("transact", "tenant_0") && turns.is_slow("transact", "audit"));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_in_a_ring() {
        let turns = Turns::new(8);
        let mut waiting = JoinSet::new();
        for number in 0..500 {
            let turns = Arc::clone(&turns);
            waiting.spawn(async move {
                let (first, last) = (number % 4, number / 4 % 4);
                let names = ["a", "b", "c", "d"];
                let operation = if number % 2 == 0 { "transact" } else { "send_batch" };
                let subject = match first <= last {
                    true => Subject::Queues(names[first..=last].to_vec()),
                    false => Subject::Topic(names[first]),
                };
                let turn = turn(&turns, operation, subject).await;
                sleep(SLOW * u32::try_from(number % 7).expect("a few")).await;
                drop(turn);
            });
        }
        let ended = tokio::time::timeout(Duration::from_hours(1), waiting.join_all()).await;
        assert_eq!((ended.expect("an end").len(), turns.free()), (500, 8));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_slow_leaves_half_of_the_pool_to_those_who_are_quick() {
        let turns = Turns::new(8);
        let slow = ["a", "b", "c"];
        for queue in slow {
            takes(&turns, queue, SLOW_AT_ONCE).await;
            assert!(turns.is_slow("send", queue) && !turns.is_slow("delete", queue));
        }
        takes(&turns, "quick", QUICK).await;
        assert!(!turns.is_slow("send", "quick"));
        let mut taken = Vec::new();
        for (queue, most) in slow.into_iter().zip([2, 2, 0]) {
            taken.push(sends_now(&turns, queue).await);
            assert_eq!(taken.last().map(Vec::len), Some(most), "{queue}");
        }
        assert_eq!(sends_now(&turns, "quick").await.len(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn one_pause_proves_nothing_and_two_in_succession_do() {
        let turns = Turns::new(8);
        takes(&turns, "other", QUICK).await;
        // Whoever is under way has the same pause.
        let together = sends_now(&turns, "orders").await;
        sleep(SLOW).await;
        drop(together);
        assert!(!turns.is_slow("send", "orders"));
        takes(&turns, "orders", QUICK).await;
        takes(&turns, "orders", SLOW).await;
        assert!(!turns.is_slow("send", "orders"));
        takes(&turns, "orders", SLOW).await;
        assert!(turns.is_slow("send", "orders"));
        takes(&turns, "orders", SLOW).await;
        assert!(turns.is_slow("send", "orders"));
    }

    #[tokio::test(start_paused = true)]
    async fn with_a_database_that_is_far_away_everything_takes_longer() {
        let turns = Turns::new(8);
        let round_trip = Duration::from_millis(50);
        for _ in 0..50 {
            takes(&turns, "orders", round_trip).await;
        }
        for _ in 0..3 {
            takes(&turns, "orders", 6 * round_trip).await;
            assert!(!turns.is_slow("send", "orders"));
        }
        for _ in 0..2 {
            takes(&turns, "orders", 12 * round_trip).await;
        }
        assert!(turns.is_slow("send", "orders"));
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_quick_again_is_slow_no_more_and_who_is_not_seen_is_forgotten() {
        let turns = Turns::new(8);
        for queue in ["again", "gone", "still"] {
            takes(&turns, queue, SLOW_AT_ONCE).await;
        }
        takes(&turns, "again", QUICK).await;
        sleep(MEMORY / 2).await;
        takes(&turns, "still", SLOW_AT_ONCE).await;
        sleep(MEMORY / 2).await;
        let slow = ["again", "gone", "still"].map(|queue| turns.is_slow("send", queue));
        assert_eq!(slow, [false, false, true]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_in_which_nothing_ran_says_nothing() {
        let turns = Turns::new(8);
        let idle = turns.take_for("send", &"orders".into()).await.expect("a turn");
        sleep(10 * SLOW_AT_ONCE).await;
        drop(idle);
        assert!(!turns.is_slow("send", "orders"));
        takes(&turns, "orders", SLOW_AT_ONCE).await;
        drop(turns.take_for("send", &"orders".into()).await.expect("a turn"));
        assert!(turns.is_slow("send", "orders"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_connection_says_nothing_and_a_statement_that_was_ended_does() {
        let turns = Turns::new(8);
        let mut lost = turn(&turns, "send", "orders").await;
        sleep(10 * SLOW_AT_ONCE).await;
        lost.pardon();
        drop(lost);
        assert!(!turns.is_slow("send", "orders"));
        let mut ended = turn(&turns, "send", "orders").await;
        ended.found_slow();
        drop(ended);
        assert!(turns.is_slow("send", "orders"));
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_hear_that_they_are_slow() {
        const TIME: Duration = Duration::from_secs(5);
        let turns = Turns::new(8);
        let orders: Vec<_> = (0..25)
            .map(|_| {
                let turns = Arc::clone(&turns);
                tokio::spawn(async move { takes(&turns, "orders", TIME).await })
            })
            .collect();
        sleep(SLOW).await;
        // Whenever others come, they find turns, also after the first of the slow ones have ended.
        let began = Instant::now();
        let mut longest = Duration::ZERO;
        while !orders.iter().all(tokio::task::JoinHandle::is_finished) {
            let asked = Instant::now();
            drop(turn(&turns, "send", "quick").await);
            longest = longest.max(asked.elapsed());
            assert!(turns.free() >= 3);
            sleep(QUICK).await;
        }
        assert_eq!(longest, Duration::ZERO);
        // Five, and then two at a time.
        assert!(began.elapsed() >= 10 * TIME, "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_goes_on_for_another_use_is_judged_for_both() {
        let turns = Turns::new(8);
        let mut turn = turns.take().await.expect("a turn");
        turn.runs();
        sleep(SLOW_AT_ONCE).await;
        for (queue, time) in [("slow", SLOW_AT_ONCE / 2), ("slow", SLOW_AT_ONCE / 2), ("quick", QUICK)] {
            turn.goes_on_for("send", queue);
            turn.runs();
            sleep(time).await;
        }
        drop(turn);
        assert!(turns.is_slow("send", "slow") && !turns.is_slow("send", "quick"));
    }

    #[tokio::test(start_paused = true)]
    async fn of_many_uses_only_those_are_remembered_that_matter() {
        let turns = Turns::new(8);
        takes(&turns, "slow", SLOW_AT_ONCE).await;
        let held = turn(&turns, "send", "held").await;
        for number in 0..3 * REMEMBERED {
            takes(&turns, &number.to_string(), QUICK).await;
        }
        let uses = turns.lock();
        let queues = &uses.of_operations["send"];
        assert!(queues.contains_key("slow") && queues.contains_key("held"));
        assert!(queues.len() == uses.count && uses.count <= REMEMBERED, "{}", uses.count);
        assert!(uses.bounds.len() <= 2 * REMEMBERED, "{}", uses.bounds.len());
        drop(uses);
        drop(held);
    }
}
