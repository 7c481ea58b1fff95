//! Tells a burst from more than a lane can do.
//!
//! A burst is let in and done. Where parcels wait too long for so long that it is no burst, everybody would only wait
//! the longer the more are let in: then a lane takes no more than its next flush needs, which keeps it as fast and its
//! waits short, and refuses the others at once.

use std::time::Duration;

use tokio::time::Instant;

use crate::engine::Refusals;

/// The longest wait for a flush that needs no remedy.
pub(super) const FINE: Duration = Duration::from_millis(50);

/// What lasts as long is no burst. After as long without a refusal it is over.
pub(super) const LONG: Duration = Duration::from_secs(1);

/// How a lane copes.
#[derive(Debug, Default)]
pub(super) struct Overrun {
    /// Since when every flush left parcels behind and took some that had waited too long.
    late_since: Option<Instant>,
    refused_at: Option<Instant>,
    refusals: Refusals,
    is_on: bool,
}

/// What has changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Begins,
    Ends,
}

impl Overrun {
    /// Whether a lane takes only what its next flush needs.
    pub(super) fn is_on(&self) -> bool {
        self.is_on
    }

    /// A caller is refused. Returns when it should come again.
    pub(super) fn refuse(&mut self) -> Duration {
        self.refused_at = Some(Instant::now());
        self.refusals.refuse()
    }

    /// A flush has taken its parcels, of which the first came at this moment, and left others behind or not.
    pub(super) fn picked(&mut self, first_came: Instant, leaves_some: bool) -> Option<Turn> {
        let now = Instant::now();
        if self.is_on {
            let calm_since = self.refused_at.get_or_insert(now);
            if now - *calm_since < LONG {
                return None;
            }
            *self = Self::default();
            return Some(Turn::Ends);
        }
        if !leaves_some || now - first_came <= FINE {
            self.late_since = None;
            return None;
        }
        let late_since = *self.late_since.get_or_insert(now);
        if now - late_since < LONG {
            return None;
        }
        (self.is_on, self.refused_at, self.late_since) = (true, Some(now), None);
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
            assert_eq!(flushes(&mut overrun, 49, FINE * 2, true).await, []);
            assert_eq!(flushes(&mut overrun, 1, FINE * 2, false).await, []);
        }
        assert_eq!(flushes(&mut overrun, 500, FINE, true).await, []);
        assert_eq!(flushes(&mut overrun, 500, FINE * 9, false).await, []);
        assert!(!overrun.is_on());
    }

    #[tokio::test(start_paused = true)]
    async fn an_overrun_lasts_until_nobody_was_refused_for_long() {
        advance(LONG * 10).await;
        let mut overrun = Overrun::default();
        assert_eq!(flushes(&mut overrun, 51, FINE * 2, true).await, [Turn::Begins]);
        for _ in 0..10 {
            overrun.refuse();
            assert_eq!(flushes(&mut overrun, 49, FINE / 2, false).await, []);
            assert!(overrun.is_on());
        }
        overrun.refuse();
        assert_eq!(flushes(&mut overrun, 50, FINE / 2, false).await, [Turn::Ends]);
        assert!(!overrun.is_on());
    }
}
