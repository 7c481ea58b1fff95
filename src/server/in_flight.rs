//! How many short calls are under way, and when they are more than the server can answer soon.
//!
//! Behind a merged statement ten thousand callers are no trouble for the database, but each of them costs the processor
//! the same: what comes faster than it is answered waits in front of the statements, where no lane sees it. So the calls
//! are counted where they come in, before any work was spent on them. A burst is let in and answered. Where for a second
//! more calls are under way than are answered in 50 ms, only as many are let in from then on, and the others are refused
//! at once; the more are refused, the later they are asked to come again, because refusing costs time too.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;

use crate::domain::{Error, Kind};

/// In which time the calls that are let in are answered.
const SOON: Duration = Duration::from_millis(50);

/// So many calls are always let in: a merged statement takes them at once.
const ALWAYS: usize = 1_024;

/// What lasts as long is no burst. After as long without a refusal everybody is let in again.
const LONG: Duration = Duration::from_secs(1);

/// How often the calls are looked at.
const LOOK: Duration = Duration::from_millis(100);

/// When a refused caller should come again, if others are seldom refused.
const PAUSE: Duration = Duration::from_millis(250);

/// The same if many are.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// So many refusals a second cost little; the pause grows with their multiple.
const CHEAP_REFUSALS: f64 = 1_000.0;

/// The short calls of a server.
#[derive(Debug)]
pub(super) struct InFlight {
    calls: AtomicUsize,
    answered: AtomicU64,
    refused: AtomicU64,
    /// How many are let in now.
    most: AtomicUsize,
    pause_ms: AtomicU64,
    looked: Mutex<Looked>,
}

/// A call that was let in, counted until it is dropped.
#[derive(Debug)]
pub(super) struct Entered(Arc<InFlight>);

/// What the last look has found.
#[derive(Debug)]
struct Looked {
    at: Instant,
    answered: u64,
    refused: u64,
    /// Since when too many calls are under way, while everybody is let in.
    crowded_since: Option<Instant>,
    /// Since when nobody was refused, while not everybody is let in.
    calm_since: Option<Instant>,
    refuses: bool,
}

impl InFlight {
    pub(super) fn new() -> Arc<Self> {
        let looked = Looked {
            at: Instant::now(),
            answered: 0,
            refused: 0,
            crowded_since: None,
            calm_since: None,
            refuses: false,
        };
        Arc::new(Self {
            calls: AtomicUsize::new(0),
            answered: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            most: AtomicUsize::new(usize::MAX),
            pause_ms: AtomicU64::new(millis(PAUSE)),
            looked: Mutex::new(looked),
        })
    }

    /// Lets in a call.
    ///
    /// # Errors
    /// `Overloaded`: nothing was applied.
    pub(super) fn enter(self: &Arc<Self>) -> Result<Entered, Error> {
        let others = self.calls.fetch_add(1, Ordering::Relaxed);
        self.look(others);
        if others >= self.most.load(Ordering::Relaxed) {
            self.calls.fetch_sub(1, Ordering::Relaxed);
            self.refused.fetch_add(1, Ordering::Relaxed);
            let pause_ms = self.pause_ms.load(Ordering::Relaxed);
            let pause_ms = rand::rng().random_range(pause_ms * 3 / 5..=pause_ms * 7 / 5);
            let why = "more calls are under way than the server can answer soon; nothing was applied";
            return Err(Error::new(Kind::Overloaded, why).retry_after(Duration::from_millis(pause_ms)));
        }
        Ok(Entered(Arc::clone(self)))
    }

    /// Decides now and then how many are let in. Who finds somebody else at it does without.
    fn look(&self, under_way: usize) {
        let mut looked = match self.looked.try_lock() {
            Ok(looked) => looked,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let now = Instant::now();
        let span = now - looked.at;
        if span < LOOK {
            return;
        }
        let (answered, refused) =
            (self.answered.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed));
        let a_second = |count: u64| count as f64 / span.as_secs_f64();
        let rate = a_second(answered.saturating_sub(looked.answered));
        let refusals = a_second(refused.saturating_sub(looked.refused));
        let soon = ((rate * SOON.as_secs_f64()) as usize).max(ALWAYS);
        (looked.at, looked.answered, looked.refused) = (now, answered, refused);
        match looked.next(now, under_way > soon, refusals > 0.0) {
            Some(true) => tracing::warn!(under_way, "more comes than can be answered: callers are refused"),
            Some(false) => tracing::info!("callers are refused no more"),
            None => {}
        }
        let most = if looked.refuses { soon } else { usize::MAX };
        self.most.store(most, Ordering::Relaxed);
        let pause = PAUSE.mul_f64((refusals / CHEAP_REFUSALS).max(1.0)).min(LONGEST_PAUSE);
        self.pause_ms.store(millis(pause), Ordering::Relaxed);
    }
}

impl Looked {
    /// Whether callers are refused from now on, if that changes.
    fn next(&mut self, now: Instant, crowded: bool, some_were_refused: bool) -> Option<bool> {
        let since = if self.refuses { &mut self.calm_since } else { &mut self.crowded_since };
        let changes = if self.refuses { !some_were_refused } else { crowded };
        if !changes {
            *since = None;
            return None;
        }
        if now - *since.get_or_insert(now) < LONG {
            return None;
        }
        *since = None;
        self.refuses = !self.refuses;
        Some(self.refuses)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
        self.0.answered.fetch_add(1, Ordering::Relaxed);
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, sleep};

    use super::*;

    /// Each call takes so long, and its caller comes again at once, or when it was asked to.
    fn callers(in_flight: &Arc<InFlight>, count: usize, call: Duration) {
        for _ in 0..count {
            let in_flight = Arc::clone(in_flight);
            tokio::spawn(async move {
                loop {
                    match in_flight.enter() {
                        Ok(_entered) => sleep(call).await,
                        Err(error) => sleep(error.retry_delay().expect("a delay")).await,
                    }
                }
            });
        }
    }

    fn under_way(in_flight: &InFlight) -> usize {
        in_flight.calls.load(Ordering::Relaxed)
    }

    #[tokio::test(start_paused = true)]
    async fn calls_that_are_answered_soon_are_never_refused() {
        let in_flight = InFlight::new();
        callers(&in_flight, 5_000, Duration::from_millis(20));
        sleep(Duration::from_secs(10)).await;
        assert_eq!(in_flight.refused.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn few_calls_are_never_refused_however_slow_they_are() {
        let in_flight = InFlight::new();
        callers(&in_flight, 1_000, Duration::from_secs(3));
        sleep(Duration::from_secs(20)).await;
        assert_eq!(in_flight.refused.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_let_in_and_what_lasts_is_not() {
        let in_flight = InFlight::new();
        callers(&in_flight, 10_000, Duration::from_millis(400));
        sleep(Duration::from_millis(900)).await;
        assert_eq!((under_way(&in_flight), in_flight.refused.load(Ordering::Relaxed)), (10_000, 0));
        sleep(Duration::from_secs(10)).await;
        assert!(under_way(&in_flight) <= ALWAYS + 300, "{}", under_way(&in_flight));
        assert!(in_flight.refused.load(Ordering::Relaxed) > 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_pause_grows_with_the_refusals() {
        let in_flight = InFlight::new();
        callers(&in_flight, 50_000, Duration::from_millis(400));
        sleep(Duration::from_secs(30)).await;
        let before = in_flight.refused.load(Ordering::Relaxed);
        sleep(Duration::from_secs(30)).await;
        let refusals = (in_flight.refused.load(Ordering::Relaxed) - before) / 30;
        assert!((1_000..20_000).contains(&refusals), "{refusals} refusals a second");
    }

    #[tokio::test(start_paused = true)]
    async fn everybody_is_let_in_again_after_the_crowd_has_gone() {
        let in_flight = InFlight::new();
        in_flight.looked.lock().expect("a lock").refuses = true;
        advance(LOOK).await;
        drop(in_flight.enter());
        assert_eq!(in_flight.most.load(Ordering::Relaxed), ALWAYS);
        for _ in 0..12 {
            advance(LOOK).await;
            drop(in_flight.enter());
        }
        assert_eq!(in_flight.most.load(Ordering::Relaxed), usize::MAX);
    }
}
