//! Turns at the pool's connections: first come, first served, but that what is slow leaves some to the others.
//!
//! A use of the pool is an operation on a subject, such as the deletes of one queue. It has three quarters of the pool at
//! most. One that has had a connection for long is slow from then on, until it is quick again, or for a minute after the last
//! time. Whatever is slow has half of the pool together, and one such use half of its share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Who has a connection for so long is slow.
pub const SLOW: Duration = Duration::from_millis(250);

/// For how long it is known who was slow.
const MEMORY: Duration = Duration::from_mins(1);

/// How much of its use's share a turn takes while the use is slow.
const SLOW_WEIGHT: usize = 2;

/// How many uses are remembered before those are forgotten that nobody has and that are not slow.
const REMEMBERED: usize = 1_024;

/// The turns at a pool.
pub(super) struct Turns {
    all: Arc<Semaphore>,
    /// What slow uses have together.
    slow: Arc<Semaphore>,
    /// What any one use has.
    share: usize,
    uses: Mutex<Uses>,
    /// What the times below count from.
    began: Instant,
}

#[derive(Default)]
struct Uses {
    of_operations: HashMap<&'static str, HashMap<String, Arc<Use>>>,
    count: usize,
    /// The count at which the next look is due for those that can be forgotten.
    look_at: usize,
}

/// What is known of a use.
struct Use {
    share: Arc<Semaphore>,
    /// Until when it is known to be slow, in milliseconds.
    slow_until_ms: AtomicU64,
}

/// The right to one connection, given back when dropped. How long it was had tells whether its use is slow.
pub(super) struct Turn {
    turns: Arc<Turns>,
    of: Option<Arc<Use>>,
    since: Instant,
    _permits: Permits,
}

/// One of all, and for a known use those of its share and, where it is slow, of what is slow.
type Permits = (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>, Option<OwnedSemaphorePermit>);

impl Turns {
    /// Turns at so many connections.
    pub(super) fn new(connections: usize) -> Arc<Self> {
        Arc::new(Self {
            all: Arc::new(Semaphore::new(connections)),
            slow: Arc::new(Semaphore::new((connections / 2).max(1))),
            share: connections - connections / 4,
            uses: Mutex::default(),
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
        Ok(Turn { turns: Arc::clone(self), of: None, since: Instant::now(), _permits: (turn, None, None) })
    }

    /// Waits for a turn of a use: first at its own share, then among the slow ones if it is one, and last among all. Whoever
    /// has a later one waits for none of the earlier, so that nobody waits in a ring.
    pub(super) async fn take_for(
        self: &Arc<Self>,
        operation: &'static str,
        subject: &str,
    ) -> Result<Turn, AcquireError> {
        let of = self.of(operation, subject);
        loop {
            let is_slow = of.is_slow(self.now_ms());
            let weight = if is_slow { SLOW_WEIGHT.min(self.share) } else { 1 };
            let weight = u32::try_from(weight).unwrap_or(1);
            let share = Arc::clone(&of.share).acquire_many_owned(weight).await?;
            let slow = match is_slow {
                true => Some(Arc::clone(&self.slow).acquire_owned().await?),
                false => None,
            };
            let turn = Arc::clone(&self.all).acquire_owned().await?;
            // It may have become known meanwhile, by those before it.
            if is_slow || !of.is_slow(self.now_ms()) {
                let permits = (turn, Some(share), slow);
                let turns = Arc::clone(self);
                return Ok(Turn { turns, of: Some(of), since: Instant::now(), _permits: permits });
            }
        }
    }

    /// Whether a use is known to be slow.
    pub(super) fn is_slow(&self, operation: &'static str, subject: &str) -> bool {
        let uses = self.lock();
        let of = uses.of_operations.get(operation).and_then(|subjects| subjects.get(subject));
        of.is_some_and(|of| of.is_slow(self.now_ms()))
    }

    fn of(&self, operation: &'static str, subject: &str) -> Arc<Use> {
        let mut uses = self.lock();
        let uses = &mut *uses;
        let known = uses.of_operations.get(operation).and_then(|subjects| subjects.get(subject));
        if let Some(known) = known {
            return Arc::clone(known);
        }
        if uses.count >= uses.look_at.max(REMEMBERED) {
            let now_ms = self.now_ms();
            uses.count = 0;
            for subjects in uses.of_operations.values_mut() {
                subjects.retain(|_, of| Arc::strong_count(of) > 1 || of.is_slow(now_ms));
                uses.count += subjects.len();
            }
            // So that it is seldom, however many are in use.
            uses.look_at = 2 * uses.count;
        }
        let share = Arc::new(Semaphore::new(self.share));
        let made = Arc::new(Use { share, slow_until_ms: AtomicU64::new(0) });
        uses.count += 1;
        uses.of_operations.entry(operation).or_default().insert(subject.to_owned(), Arc::clone(&made));
        made
    }

    fn lock(&self) -> MutexGuard<'_, Uses> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        millis(self.began.elapsed())
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Use {
    fn is_slow(&self, now_ms: u64) -> bool {
        now_ms < self.slow_until_ms.load(Ordering::Relaxed)
    }
}

impl Turn {
    /// The time counts from now: the connection is there.
    pub(super) fn begin(&mut self) {
        self.since = Instant::now();
    }

    /// Goes on for another use, and judges the one before. For the same one the time goes on, too.
    pub(super) fn goes_on_for(&mut self, operation: &'static str, subject: &str) {
        let next = self.turns.of(operation, subject);
        if self.of.as_ref().is_some_and(|of| Arc::ptr_eq(of, &next)) {
            return;
        }
        self.judge();
        self.of = Some(next);
        self.begin();
    }

    fn judge(&self) {
        let Some(of) = &self.of else { return };
        let is_slow = self.since.elapsed() >= SLOW;
        let until_ms = if is_slow { self.turns.now_ms() + millis(MEMORY) } else { 0 };
        of.slow_until_ms.store(until_ms, Ordering::Relaxed);
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
    use tokio::time::sleep;

    use super::*;

    const QUICK: Duration = Duration::from_millis(1);

    async fn turn(turns: &Arc<Turns>, subject: &str) -> Turn {
        turns.take_for("send", subject).await.expect("a turn")
    }

    /// A turn, if it is to be had at once.
    async fn turn_now(turns: &Arc<Turns>, subject: &str) -> Option<Turn> {
        poll_immediate(turns.take_for("send", subject)).await.map(|taken| taken.expect("a turn"))
    }

    async fn all_turns_now(turns: &Arc<Turns>, subject: &str) -> Vec<Turn> {
        let mut taken = Vec::new();
        while let Some(turn) = turn_now(turns, subject).await {
            taken.push(turn);
        }
        taken
    }

    async fn takes(turns: &Arc<Turns>, subject: &str, time: Duration) {
        let turn = turn(turns, subject).await;
        sleep(time).await;
        drop(turn);
    }

    #[tokio::test(start_paused = true)]
    async fn one_use_leaves_a_quarter_of_the_pool_to_others() {
        let turns = Turns::new(8);
        let orders = all_turns_now(&turns, "orders").await;
        let others = all_turns_now(&turns, "others").await;
        assert_eq!((orders.len(), others.len(), turns.free()), (6, 2, 0));
        // A pool that has no quarter serves anyone.
        for connections in 1..4 {
            assert_eq!(all_turns_now(&Turns::new(connections), "orders").await.len(), connections);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_slow_leaves_half_of_the_pool_to_those_who_are_quick() {
        let turns = Turns::new(8);
        let slow = ["a", "b", "c"];
        for subject in slow {
            takes(&turns, subject, SLOW).await;
            assert!(turns.is_slow("send", subject) && !turns.is_slow("delete", subject));
        }
        takes(&turns, "quick", QUICK).await;
        assert!(!turns.is_slow("send", "quick"));
        let mut taken = Vec::new();
        for (subject, most) in slow.into_iter().zip([3, 1, 0]) {
            taken.push(all_turns_now(&turns, subject).await);
            assert_eq!(taken.last().map(Vec::len), Some(most), "{subject}");
        }
        assert_eq!(all_turns_now(&turns, "quick").await.len(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_quick_again_is_slow_no_more_and_who_is_not_seen_is_forgotten() {
        let turns = Turns::new(8);
        for subject in ["again", "gone", "still"] {
            takes(&turns, subject, SLOW).await;
        }
        takes(&turns, "again", QUICK).await;
        sleep(MEMORY / 2).await;
        takes(&turns, "still", SLOW).await;
        sleep(MEMORY / 2).await;
        let slow = ["again", "gone", "still"].map(|subject| turns.is_slow("send", subject));
        assert_eq!(slow, [false, false, true]);
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_hear_that_they_are_slow() {
        let turns = Turns::new(8);
        let orders: Vec<_> = (0..32)
            .map(|_| {
                let turns = Arc::clone(&turns);
                tokio::spawn(async move { takes(&turns, "orders", 20 * SLOW).await })
            })
            .collect();
        sleep(SLOW).await;
        let quick = turn_now(&turns, "quick").await.expect("a turn");
        drop(quick);
        // Whenever others come, they find turns, also after the first of the slow ones have ended.
        let began = Instant::now();
        let mut longest = Duration::ZERO;
        while !orders.iter().all(tokio::task::JoinHandle::is_finished) {
            let asked = Instant::now();
            drop(turn(&turns, "quick").await);
            longest = longest.max(asked.elapsed());
            assert!(turns.free() >= 2);
            sleep(QUICK).await;
        }
        assert_eq!(longest, Duration::ZERO);
        // Six, and then three at a time.
        assert!(began.elapsed() >= 9 * 20 * SLOW, "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_goes_on_for_another_use_is_judged_for_both() {
        let turns = Turns::new(8);
        let mut turn = turns.take().await.expect("a turn");
        sleep(SLOW).await;
        turn.goes_on_for("send", "slow");
        sleep(SLOW / 2).await;
        turn.goes_on_for("send", "slow");
        sleep(SLOW / 2).await;
        turn.goes_on_for("send", "quick");
        sleep(QUICK).await;
        drop(turn);
        assert!(turns.is_slow("send", "slow") && !turns.is_slow("send", "quick"));
    }

    #[tokio::test(start_paused = true)]
    async fn of_many_uses_only_those_are_remembered_that_matter() {
        let turns = Turns::new(8);
        takes(&turns, "slow", SLOW).await;
        let held = turn(&turns, "held").await;
        for number in 0..3 * REMEMBERED {
            takes(&turns, &number.to_string(), QUICK).await;
        }
        let uses = turns.lock();
        let subjects = &uses.of_operations["send"];
        assert!(subjects.contains_key("slow") && subjects.contains_key("held"));
        assert!(subjects.len() == uses.count && uses.count <= REMEMBERED, "{}", uses.count);
        drop(uses);
        drop(held);
    }
}
