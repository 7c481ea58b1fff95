//! How many merged calls are under way, and when the processor falls behind with them.
//!
//! Behind merged statements ten thousand callers are no trouble for the database, but each of them costs the processor
//! the same, for HTTP/2 above all. What comes faster waits for it: to be read, and to be answered, where no lane sees it.
//! So the calls are counted that wait for nothing else; how many come a second tells how long each of them waits. A
//! burst is let in and done. When they wait too long for longer than a burst takes, only so many are let in as will not, and the others are
//! refused at once, before any work was spent on them. Refusing costs time too, so the more are refused, the later they are
//! asked to come again. Calls that wait for the database or for the rest of their request take nobody's place here: both have
//! limits of their own.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::domain::{Error, Kind};
use crate::engine::{Lateness, Parked, Refusals};
use crate::queue::MergedCalls;

/// So many calls may wait for the processor however long it takes.
const FEW: usize = 512;

/// How long the others may.
const SOON: Duration = Duration::from_millis(10);

/// As long after the last of those who were refused was to come again, it is over.
const LONG: Duration = Duration::from_secs(1);

/// What comes again within this time is the same crowd.
const SAME: Duration = Duration::from_secs(60);

/// How often the calls that wait are counted.
const COUNT: Duration = Duration::from_millis(20);

/// So many counts are judged together.
const COUNTS: u32 = 5;

/// How often they are counted while they are few, and have been.
const SELDOM: Duration = Duration::from_millis(250);

/// The merged calls of a server.
#[derive(Debug)]
pub(super) struct InFlight {
    calls: AtomicUsize,
    /// Those of them that wait for something else.
    parked: Parked,
    /// How many were ever let in.
    entered: AtomicUsize,
    /// How many may wait for the processor now.
    most: AtomicUsize,
    refused: Mutex<Refused>,
}

/// A call that was let in, counted until it is dropped.
#[derive(Debug)]
pub(super) struct Entered(Arc<InFlight>);

/// Those who were refused.
#[derive(Debug, Default)]
struct Refused {
    refusals: Refusals,
    /// When the last of them is to come again, at least since when callers are refused.
    until: Option<Instant>,
}

/// What was counted for a while.
#[derive(Debug, Clone, Copy)]
struct Counted {
    /// How many calls waited for the processor, on average.
    waited: f64,
    /// How many were let in a second.
    a_second: f64,
}

/// What the last look has found.
#[derive(Debug, Default)]
struct Looked {
    /// How many may wait; none for any number.
    most: Option<usize>,
    /// How long too many have waited, while everybody is let in.
    lateness: Lateness,
    /// When everybody was let in again.
    ended: Option<Instant>,
}

impl InFlight {
    /// No calls yet; those that wait for the database are parked by whom they wait for.
    pub(super) fn new(parked: Parked) -> Arc<Self> {
        Arc::new(Self {
            calls: AtomicUsize::new(0),
            parked,
            entered: AtomicUsize::new(0),
            most: AtomicUsize::new(usize::MAX),
            refused: Mutex::default(),
        })
    }

    /// Where calls are parked that wait for something else than the processor.
    pub(super) fn parked(&self) -> &Parked {
        &self.parked
    }

    /// Lets in a call.
    ///
    /// # Errors
    /// `Overloaded`: nothing was applied.
    pub(super) fn enter(self: &Arc<Self>) -> Result<Entered, Error> {
        let most = self.most.load(Ordering::Relaxed);
        if most != usize::MAX && self.waiting() >= most {
            let pause = self.refused.lock().unwrap_or_else(PoisonError::into_inner).refuse();
            let why = "more calls come than the server can answer soon; nothing was applied";
            return Err(Error::new(Kind::Overloaded, why).retry_after(pause));
        }
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.entered.fetch_add(1, Ordering::Relaxed);
        Ok(Entered(Arc::clone(self)))
    }

    /// How many calls wait for the processor.
    fn waiting(&self) -> usize {
        self.calls.load(Ordering::Relaxed).saturating_sub(self.parked.count())
    }

    /// Counts calls, for ever, and decides how many may wait.
    pub(super) async fn watch(self: Arc<Self>) {
        let mut looked = Looked::default();
        loop {
            if looked.most.is_none() && looked.lateness.is_forgotten() && self.waiting() < FEW {
                sleep(SELDOM).await;
                continue;
            }
            let (began, entered) = (Instant::now(), self.entered.load(Ordering::Relaxed));
            let mut waited = 0;
            for _ in 0..COUNTS {
                sleep(COUNT).await;
                waited += self.waiting();
            }
            let entered = self.entered.load(Ordering::Relaxed).wrapping_sub(entered);
            let a_second = entered as f64 / began.elapsed().as_secs_f64();
            self.look(&mut looked, Counted { waited: waited as f64 / f64::from(COUNTS), a_second });
        }
    }

    fn look(&self, looked: &mut Looked, counted: Counted) {
        let now = Instant::now();
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let come = refused.until.is_none_or(|until| now >= until + LONG);
        tracing::trace!(?counted, most = ?looked.most, calls = self.calls.load(Ordering::Relaxed), "merged calls");
        match looked.next(now, counted, come) {
            Some(true) => {
                refused.until = refused.until.max(Some(now));
                tracing::warn!(?counted, "more calls come than can be answered: callers are refused");
            }
            Some(false) => tracing::info!("callers are refused no more"),
            None => {}
        }
        self.most.store(looked.most.unwrap_or(usize::MAX), Ordering::Relaxed);
    }
}

impl MergedCalls for InFlight {
    fn under_way(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    fn are_refused(&self) -> bool {
        self.most.load(Ordering::Relaxed) != usize::MAX
    }
}

impl Refused {
    /// One more is refused. Returns how long it should wait.
    fn refuse(&mut self) -> Duration {
        let pause = self.refusals.refuse();
        self.until = self.until.max(Some(Instant::now() + pause));
        pause
    }
}

impl Counted {
    /// How many calls may wait if none of them is to wait long.
    fn most(self) -> usize {
        ((self.a_second * SOON.as_secs_f64()) as usize).max(FEW)
    }

    fn are_too_many(self) -> bool {
        self.waited > (2 * self.most()) as f64
    }
}

impl Looked {
    /// Whether callers are refused from now on, if that changes. They are until all who were refused have come.
    fn next(&mut self, now: Instant, counted: Counted, all_have_come: bool) -> Option<bool> {
        if self.most.is_some() {
            self.most = (!all_have_come).then(|| counted.most());
            if self.most.is_some() {
                return None;
            }
            self.ended = Some(now);
            return Some(false);
        }
        let late = if counted.are_too_many() { COUNT * COUNTS } else { Duration::ZERO };
        let stays = self.lateness.note(late);
        let is_same = self.ended.is_some_and(|ended| now - ended < SAME);
        if late.is_zero() || !(stays || is_same) {
            return None;
        }
        (self.most, self.lateness) = (Some(counted.most()), Lateness::default());
        Some(true)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const STEP: Duration = Duration::from_millis(100);

    /// Many calls that are answered slowly.
    const TOO_MANY: Counted = Counted { waited: 3_000.0, a_second: 30_000.0 };

    /// As many, of which a faster server makes short work.
    const MANY: Counted = Counted { waited: 3_000.0, a_second: 300_000.0 };

    const NONE: Counted = Counted { waited: 0.0, a_second: 0.0 };

    fn in_flight() -> (Arc<InFlight>, Parked, Looked) {
        let parked = Parked::default();
        (InFlight::new(parked.clone()), parked, Looked::default())
    }

    /// Looks for a while, and says whether callers are refused at its end.
    async fn after(in_flight: &InFlight, looked: &mut Looked, looks: u32, counted: Counted) -> bool {
        for _ in 0..looks {
            advance(STEP).await;
            in_flight.look(looked, counted);
        }
        in_flight.are_refused()
    }

    fn enter(in_flight: &Arc<InFlight>, count: usize) -> (Vec<Entered>, Vec<Error>) {
        let (mut entered, mut refused) = (Vec::new(), Vec::new());
        for _ in 0..count {
            match in_flight.enter() {
                Ok(call) => entered.push(call),
                Err(error) => refused.push(error),
            }
        }
        (entered, refused)
    }

    #[tokio::test(start_paused = true)]
    async fn any_number_is_let_in_while_it_is_answered_soon() {
        let (in_flight, _, mut looked) = in_flight();
        assert!(!after(&in_flight, &mut looked, 100, MANY).await);
        assert_eq!(enter(&in_flight, 50_000).1.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_let_in_and_what_lasts_is_not() {
        let (in_flight, _, mut looked) = in_flight();
        for _ in 0..5 {
            assert!(!after(&in_flight, &mut looked, 9, TOO_MANY).await);
            assert!(!after(&in_flight, &mut looked, 600, MANY).await);
        }
        assert!(after(&in_flight, &mut looked, 10, TOO_MANY).await);
        let (entered, refused) = enter(&in_flight, 3_000);
        assert_eq!((entered.len(), refused.len()), (FEW, 3_000 - FEW));
        assert!(refused.iter().all(|error| error.kind() == Kind::Overloaded));
        drop(entered);
        assert_eq!(enter(&in_flight, FEW).1.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_that_comes_in_waves_is_no_burst() {
        let (in_flight, _, mut looked) = in_flight();
        for _ in 0..4 {
            assert!(!after(&in_flight, &mut looked, 2, TOO_MANY).await);
            assert!(!after(&in_flight, &mut looked, 18, NONE).await);
        }
        assert!(after(&in_flight, &mut looked, 4, TOO_MANY).await);
    }

    #[tokio::test(start_paused = true)]
    async fn the_faster_calls_are_answered_the_more_are_let_in() {
        let (in_flight, _, mut looked) = in_flight();
        assert!(after(&in_flight, &mut looked, 11, TOO_MANY).await);
        for a_second in [100_000_u32, 400_000, 200_000] {
            let counted = Counted { waited: 500.0, a_second: a_second.into() };
            assert!(!enter(&in_flight, 20_000).1.is_empty());
            assert!(after(&in_flight, &mut looked, 1, counted).await);
            assert_eq!(enter(&in_flight, 20_000).0.len(), a_second as usize / 100);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn calls_that_wait_for_the_database_take_nobodys_place() {
        let (in_flight, parked, mut looked) = in_flight();
        let (mut blocked, _) = enter(&in_flight, 5_000);
        let waits: Vec<_> = blocked.iter().map(|_| parked.park()).collect();
        assert_eq!(in_flight.waiting(), 0);
        assert!(after(&in_flight, &mut looked, 11, TOO_MANY).await);
        let (others, refused) = enter(&in_flight, 1_000);
        assert_eq!((others.len(), refused.len()), (FEW, 1_000 - FEW));
        drop(others);
        // Once answered, they wait for the processor as the others do.
        drop(waits);
        assert_eq!(enter(&in_flight, 1).1.len(), 1);
        blocked.truncate(FEW - 1);
        assert_eq!(enter(&in_flight, 1).0.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_when_those_who_were_refused_have_come() {
        let (in_flight, _, mut looked) = in_flight();
        assert!(after(&in_flight, &mut looked, 11, TOO_MANY).await);
        // Every time somebody is refused, it lasts longer.
        for _ in 0..20 {
            let (_entered, refused) = enter(&in_flight, FEW + 1);
            assert_eq!(refused.len(), 1);
            assert!(after(&in_flight, &mut looked, 9, NONE).await);
        }
        assert!(!after(&in_flight, &mut looked, 20, NONE).await);
        // The same crowd is not waited for again, and another one is.
        assert!(after(&in_flight, &mut looked, 1, TOO_MANY).await);
        assert!(!after(&in_flight, &mut looked, 700, NONE).await);
        assert!(!after(&in_flight, &mut looked, 9, TOO_MANY).await);
    }
}
