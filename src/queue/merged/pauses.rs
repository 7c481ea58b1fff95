//! When to try again what others hold, and when to give it up.

use std::time::Duration;

use rand::Rng;
use tokio::time::{Instant, sleep};

/// How long somebody waits for what others hold.
const PATIENCE: Duration = Duration::from_secs(2);

/// The first pause, and how long they become as they double. They are short, because what many use in turn may be free
/// for moments only.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(50));

/// The pauses of somebody who waits.
#[derive(Debug)]
pub(super) struct Pauses {
    since: Instant,
    next: Duration,
}

impl Pauses {
    /// The wait begins now.
    pub(super) fn new() -> Self {
        Self { since: Instant::now(), next: PAUSES.0 }
    }

    /// Whether the wait has been long enough to give up.
    pub(super) fn are_over(&self) -> bool {
        self.waited() >= PATIENCE
    }

    /// How long the wait has been.
    pub(super) fn waited(&self) -> Duration {
        self.since.elapsed()
    }

    /// Pauses, not quite as long as others do.
    pub(super) async fn pause(&mut self) {
        let share = rand::rng().random_range(0.5..=1.5);
        sleep(self.next.mul_f64(share)).await;
        self.next = (self.next * 2).min(PAUSES.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_end_after_two_seconds_and_come_often() {
        let begun = Instant::now();
        let mut pauses = Pauses::new();
        let mut count = 0;
        while !pauses.are_over() {
            let before = Instant::now();
            pauses.pause().await;
            assert!(before.elapsed() <= PAUSES.1 * 2);
            count += 1;
        }
        assert!(begun.elapsed() < PATIENCE + PAUSES.1 * 2, "{:?}", begun.elapsed());
        assert!((25..=90).contains(&count), "{count}");
    }
}
