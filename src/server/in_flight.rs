//! How many merged calls are under way, and when the processor falls behind with them.
//!
//! Behind merged statements ten thousand callers are no trouble for the database, but each of them costs the processor
//! the same, for HTTP/2 above all. What comes faster waits in front of everything else: in sockets, and in the line of
//! tasks that are ready to run, where no lane sees it. That line is measured: a task that sleeps is woken the later the
//! longer it is. A burst is let in and done. When for a second tasks have had to wait too long, no more calls are let in
//! than one merged statement takes, and the others are refused at once, before any work was spent on them. Refusing costs
//! time too, so the more are refused, the later they are asked to come again.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use crate::domain::{Error, Kind};
use crate::engine::Refusals;
use crate::queue::MergedCalls;

/// So many calls are always let in: one merged statement takes them.
const ALWAYS: usize = 1_024;

/// The longest that a task which is ready to run should wait.
const LATE: Duration = Duration::from_millis(30);

/// What lasts as long is no burst.
const LONG: Duration = Duration::from_secs(1);

/// What comes again within this time is the same crowd.
const SAME: Duration = Duration::from_secs(60);

/// So many calls at a time are as good as any number: nobody is refused any more.
const ANY: usize = 64 * ALWAYS;

/// So many calls at a time are no reason to measure.
const FEW: usize = ALWAYS / 4;

/// How long the measuring task sleeps while it does not measure.
const IDLE_SLEEP: Duration = Duration::from_millis(250);

/// How long it sleeps while it does.
const SLEEP: Duration = Duration::from_millis(20);

/// So many sleeps are judged together, by the one that was woken soonest.
const SLEEPS: u32 = 5;

/// The merged calls of a server.
#[derive(Debug)]
pub(super) struct InFlight {
    calls: AtomicUsize,
    /// The most that were under way since the last look.
    peak: AtomicUsize,
    /// How many are let in now.
    most: AtomicUsize,
    refusals: Mutex<Refusals>,
}

/// A call that was let in, counted until it is dropped.
#[derive(Debug)]
pub(super) struct Entered(Arc<InFlight>);

/// What the last look has found.
#[derive(Debug)]
struct Looked {
    /// How many are let in; none for any number.
    most: Option<usize>,
    /// Since when tasks run late, while everybody is let in.
    late_since: Option<Instant>,
    /// When everybody was let in again.
    ended: Option<Instant>,
}

impl InFlight {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            calls: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            most: AtomicUsize::new(usize::MAX),
            refusals: Mutex::default(),
        })
    }

    /// Lets in a call.
    ///
    /// # Errors
    /// `Overloaded`: nothing was applied.
    pub(super) fn enter(self: &Arc<Self>) -> Result<Entered, Error> {
        let others = self.calls.fetch_add(1, Ordering::Relaxed);
        if others >= self.most.load(Ordering::Relaxed) {
            self.calls.fetch_sub(1, Ordering::Relaxed);
            let pause = self.refusals.lock().unwrap_or_else(PoisonError::into_inner).refuse();
            let why = "more calls come than the server can answer soon; nothing was applied";
            return Err(Error::new(Kind::Overloaded, why).retry_after(pause));
        }
        self.peak.fetch_max(others, Ordering::Relaxed);
        Ok(Entered(Arc::clone(self)))
    }

    /// Measures how late tasks run, for ever, and decides how many calls are let in.
    pub(super) async fn watch(self: Arc<Self>) {
        let mut looked = Looked::new();
        loop {
            // Few calls are let in however late they are, so an idle server need not know.
            if self.peak.swap(0, Ordering::Relaxed) < FEW {
                sleep(IDLE_SLEEP).await;
                self.look(&mut looked, Duration::ZERO);
                continue;
            }
            let mut soonest = Duration::MAX;
            for _ in 0..SLEEPS {
                let due = Instant::now() + SLEEP;
                sleep_until(due).await;
                soonest = soonest.min(due.elapsed());
            }
            self.look(&mut looked, soonest);
        }
    }

    fn look(&self, looked: &mut Looked, late: Duration) {
        match looked.next(Instant::now(), late > LATE) {
            Some(true) => tracing::warn!(?late, "more calls come than can be answered: callers are refused"),
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

impl Looked {
    fn new() -> Self {
        Self { most: None, late_since: None, ended: None }
    }

    /// Whether callers are refused from now on, if that changes. While they are, and tasks run in time, more are let in with
    /// every look: the crowd may have gone, and only letting in shows it.
    fn next(&mut self, now: Instant, late: bool) -> Option<bool> {
        let Some(most) = self.most else {
            if !late {
                self.late_since = None;
                return None;
            }
            let since = *self.late_since.get_or_insert(now);
            let is_same = self.ended.is_some_and(|ended| now - ended < SAME);
            if !is_same && now - since < LONG {
                return None;
            }
            (self.most, self.late_since) = (Some(ALWAYS), None);
            return (!is_same).then_some(true);
        };
        self.most = if late { Some(ALWAYS) } else { Some(most + most / 4).filter(|&most| most < ANY) };
        if self.most.is_none() {
            let was_told = self.ended.is_none_or(|ended| now - ended >= SAME);
            self.ended = Some(now);
            return was_told.then_some(false);
        }
        None
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

    /// Looks for a while, and says whether callers are refused at its end.
    async fn after(in_flight: &InFlight, looked: &mut Looked, looks: u32, late: Duration) -> bool {
        for _ in 0..looks {
            advance(STEP).await;
            in_flight.look(looked, late);
        }
        in_flight.most.load(Ordering::Relaxed) != usize::MAX
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
    async fn any_number_is_let_in_while_tasks_run_soon() {
        let (in_flight, mut looked) = (InFlight::new(), Looked::new());
        assert!(!after(&in_flight, &mut looked, 100, LATE).await);
        assert_eq!(enter(&in_flight, 50_000).1.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_let_in_and_what_lasts_is_not() {
        let (in_flight, mut looked) = (InFlight::new(), Looked::new());
        assert!(!after(&in_flight, &mut looked, 9, LATE * 2).await);
        assert!(!after(&in_flight, &mut looked, 1, LATE).await);
        assert!(!after(&in_flight, &mut looked, 9, LATE * 2).await);
        assert!(after(&in_flight, &mut looked, 2, LATE * 2).await);
        let (entered, refused) = enter(&in_flight, 3_000);
        assert_eq!((entered.len(), refused.len()), (ALWAYS, 3_000 - ALWAYS));
        assert!(refused.iter().all(|error| error.kind() == Kind::Overloaded));
        drop(entered);
        assert_eq!(enter(&in_flight, ALWAYS).1.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_crowd_is_not_waited_for_again() {
        let (in_flight, mut looked) = (InFlight::new(), Looked::new());
        assert!(after(&in_flight, &mut looked, 11, LATE * 2).await);
        assert!(!after(&in_flight, &mut looked, 25, Duration::ZERO).await);
        assert!(after(&in_flight, &mut looked, 1, LATE * 2).await);
        assert!(!after(&in_flight, &mut looked, 700, Duration::ZERO).await);
        assert!(!after(&in_flight, &mut looked, 9, LATE * 2).await);
    }

    #[tokio::test(start_paused = true)]
    async fn everybody_is_let_in_again_when_tasks_run_in_time() {
        let (in_flight, mut looked) = (InFlight::new(), Looked::new());
        assert!(after(&in_flight, &mut looked, 11, LATE * 2).await);
        assert!(after(&in_flight, &mut looked, 50, LATE * 2).await);
        // Callers who are refused all the time do not keep it up.
        for _ in 0..20 {
            let (_entered, refused) = enter(&in_flight, ANY);
            assert!(!refused.is_empty());
            if !after(&in_flight, &mut looked, 1, Duration::ZERO).await {
                break;
            }
        }
        assert_eq!(enter(&in_flight, 2 * ANY).1.len(), 0);
    }
}
