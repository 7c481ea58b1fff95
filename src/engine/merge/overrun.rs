//! Tells a burst from more than a lane can do.
//!
//! A burst is let in and done. Where parcels wait too long for so long that it is no burst, everybody would only wait
//! the longer the more are let in: then a lane takes no more than its next flush needs, which keeps it as fast and its
//! waits short, and refuses the others at once.

use std::time::Duration;

use tokio::time::Instant;

use crate::engine::{Lateness, Refusals};

/// The longest wait for a flush that needs no remedy.
pub(super) const FINE: Duration = Duration::from_millis(50);

/// As long after the last of those who were refused was to come again, it is over.
const LONG: Duration = Duration::from_secs(1);

/// How a lane copes.
#[derive(Debug, Default)]
pub(super) struct Overrun {
    /// How long flushes have left parcels behind and taken some that had waited too long.
    lateness: Lateness,
    /// Until when those who were refused may come again; none where nobody is to be refused.
    lasts_until: Option<Instant>,
    refusals: Refusals,
}

/// What has changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Begins,
    Ends,
}

impl Overrun {
    /// Whether a flush that has taken its parcels, of which the first came at this moment, tells of too much.
    pub(super) fn is_late(first_came: Instant, leaves_some: bool) -> bool {
        leaves_some && first_came.elapsed() > FINE
    }

    /// Whether a lane takes only what its next flush needs.
    pub(super) fn is_on(&self) -> bool {
        self.lasts_until.is_some_and(|until| Instant::now() < until)
    }

    /// Whether it was on and is not any more, which nobody has told yet.
    pub(super) fn has_ended(&self) -> bool {
        self.lasts_until.is_some() && !self.is_on()
    }

    /// Whether there is nothing to remember.
    pub(super) fn is_over(&self) -> bool {
        self.lateness.is_forgotten() && !self.is_on()
    }

    /// A caller is refused. Returns when it should come again.
    pub(super) fn refuse(&mut self) -> Duration {
        let pause = self.refusals.refuse();
        self.lasts_until = self.lasts_until.max(Some(Instant::now() + pause + LONG));
        pause
    }

    /// A flush has taken its parcels, of which the first came at this moment, and left others behind or not.
    pub(super) fn picked(&mut self, first_came: Instant, leaves_some: bool) -> Option<Turn> {
        let now = Instant::now();
        if self.is_on() {
            return None;
        }
        if self.lasts_until.take().is_some() {
            return Some(Turn::Ends);
        }
        let late = if Self::is_late(first_came, leaves_some) { now - first_came } else { Duration::ZERO };
        if !self.lateness.note(late) {
            return None;
        }
        (self.lasts_until, self.lateness) = (Some(now + LONG), Lateness::default());
        Some(Turn::Begins)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    /// Flushes every 20 ms for so many times, whose first parcels have waited so long.
    async fn flushes(overrun: &mut Overrun, count: u32, waited: Duration, leaves_some: bool) -> Vec<Turn> {
        let mut turns = Vec::new();
        for _ in 0..count {
            advance(Duration::from_millis(20)).await;
            turns.extend(overrun.picked(Instant::now() - waited, leaves_some));
        }
        turns
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_short_or_quick_or_leaves_nothing_is_no_overrun() {
        advance(LONG * 10).await;
        let mut overrun = Overrun::default();
        for _ in 0..10 {
            assert_eq!(flushes(&mut overrun, 45, FINE * 2, true).await, []);
            assert_eq!(flushes(&mut overrun, 3_000, FINE * 2, false).await, []);
        }
        assert_eq!(flushes(&mut overrun, 500, FINE, true).await, []);
        assert_eq!(flushes(&mut overrun, 500, FINE * 9, false).await, []);
        assert!(!overrun.is_on());
    }

    #[tokio::test(start_paused = true)]
    async fn an_overrun_lasts_until_those_who_were_refused_could_come_again() {
        advance(LONG * 10).await;
        let mut overrun = Overrun::default();
        assert_eq!(flushes(&mut overrun, 46, FINE * 2, true).await, [Turn::Begins]);
        for _ in 0..10 {
            let pause = overrun.refuse();
            advance(pause).await;
            assert_eq!(flushes(&mut overrun, 49, FINE / 2, false).await, []);
            assert!(overrun.is_on());
        }
        let pause = (0..5_000).map(|_| overrun.refuse()).max().expect("a pause");
        advance(pause).await;
        assert_eq!(flushes(&mut overrun, 50, FINE / 2, false).await, [Turn::Ends]);
        assert!(!overrun.is_on() && overrun.is_over());
    }
}
