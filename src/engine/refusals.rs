//! When callers who are refused should come again.
//!
//! A refusal costs little, but ten thousand callers who all come again soon cost the processor as much as the work that is
//! done for others. So the more are refused, the later they are asked to come, and no two of them at once: a crowd of any
//! size spreads itself until what its refusals cost no longer matters.

use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;

/// When to come again, if others are seldom refused.
const PAUSE: Duration = Duration::from_millis(250);

/// The same however many are.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// So many refusals a second cost little; the pause grows with their multiple.
const CHEAP: f64 = 250.0;

/// How long a refusal is remembered, on average.
const MEMORY: Duration = Duration::from_secs(1);

/// The refusals of the last moments.
#[derive(Debug, Default)]
pub struct Refusals {
    /// How many there were, each the less the longer it is ago: their number a second, if they go on.
    recent: f64,
    last: Option<Instant>,
}

impl Refusals {
    /// One more caller is refused. Returns how long it should wait.
    pub fn refuse(&mut self) -> Duration {
        let now = Instant::now();
        let ago = self.last.replace(now).map_or(Duration::ZERO, |last| now - last);
        self.recent = self.recent.mul_add((-ago.div_duration_f64(MEMORY)).exp(), 1.0);
        let pause = PAUSE.mul_f64((self.recent / CHEAP).max(1.0)).min(LONGEST_PAUSE);
        // Those that are refused together do not come together.
        pause.mul_f64(rand::rng().random_range(0.6..=1.4))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, sleep_until};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_few_come_again_soon_and_not_together() {
        let mut refusals = Refusals::default();
        let mut pauses = Vec::new();
        for _ in 0..1_000 {
            pauses.push(refusals.refuse());
            advance(Duration::from_millis(10)).await;
        }
        assert!(pauses.iter().all(|pause| *pause >= PAUSE.mul_f64(0.6) && *pause <= PAUSE.mul_f64(1.4)));
        let (least, most) = (pauses.iter().min().expect("a pause"), pauses.iter().max().expect("a pause"));
        assert!(*most - *least > PAUSE.mul_f64(0.7), "{least:?} to {most:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn many_come_again_late_and_are_forgotten_when_they_stay_away() {
        let mut refusals = Refusals::default();
        let many = (0..10_000).map(|_| refusals.refuse()).max().expect("a pause");
        assert!(many > LONGEST_PAUSE && many <= LONGEST_PAUSE.mul_f64(1.4), "{many:?}");
        advance(MEMORY * 10).await;
        assert!(refusals.refuse() <= PAUSE.mul_f64(1.4));
    }

    /// Ten thousand callers who are refused every time.
    #[tokio::test(start_paused = true)]
    async fn a_crowd_spreads_itself() {
        let mut refusals = Refusals::default();
        let begun = Instant::now();
        let mut crowd: std::collections::BinaryHeap<_> =
            (0..10_000).map(|_| std::cmp::Reverse(begun)).collect();
        let mut by_second = [0_u32; 20];
        while let Some(std::cmp::Reverse(comes)) = crowd.pop() {
            let second = usize::try_from((comes - begun).as_secs()).expect("a second");
            let Some(count) = by_second.get_mut(second) else { break };
            *count += 1;
            sleep_until(comes).await;
            crowd.push(std::cmp::Reverse(comes + refusals.refuse()));
        }
        // All at once in the first second, and evenly afterwards.
        let late = &by_second[8..];
        assert!(late.iter().all(|count| (1_000..5_000).contains(count)), "{by_second:?}");
    }
}
