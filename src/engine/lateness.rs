//! Tells a burst from what stays.
//!
//! A burst is let in and done, and what stays is refused in part. What tells them apart is how long something is late, but a
//! crowd comes in waves, as its own clients find the time, and between two of them nobody waits. One call in a hundred that
//! waits is what a caller notices, so what counts is a second in a minute: the time in which something was late adds up, and
//! is forgotten over a minute.

use std::time::Duration;

use tokio::time::Instant;

/// What is late for as long is no burst.
const LONG: Duration = Duration::from_secs(1);

/// In this many times as long it is forgotten.
const MEMORY: u32 = 60;

/// How long something was late of late.
#[derive(Debug, Default)]
pub struct Lateness {
    late_for: Duration,
    noted: Option<Instant>,
}

impl Lateness {
    /// Notes how it is now: how long it has been late, nothing if it is not. Says whether it is late for too long to be a
    /// burst. One note alone, however long it has been, is not enough.
    pub fn note(&mut self, late: Duration) -> bool {
        let now = Instant::now();
        let since_last = self.noted.replace(now).map_or(late, |noted| now - noted);
        self.forget(since_last.saturating_sub(late));
        self.late_for += late.min(since_last).min(LONG / 2);
        self.late_for >= LONG
    }

    /// Whether it was not late, or so long ago that it no longer counts.
    pub fn is_forgotten(&self) -> bool {
        self.noted.is_none_or(|noted| noted.elapsed() / MEMORY >= self.late_for)
    }

    fn forget(&mut self, time: Duration) {
        self.late_for = self.late_for.saturating_sub(time / MEMORY);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const STEP: Duration = Duration::from_millis(50);

    /// How many of the steps, late or not in turn as told, pass until it is no burst.
    async fn steps_until_long(late: impl Iterator<Item = bool>) -> Option<usize> {
        let mut lateness = Lateness::default();
        for (index, late) in late.enumerate() {
            advance(STEP).await;
            if lateness.note(if late { STEP } else { Duration::ZERO }) {
                return Some(index + 1);
            }
        }
        None
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_late_for_a_second_is_no_burst() {
        assert_eq!(steps_until_long(std::iter::repeat_n(true, 19)).await, None);
        assert_eq!(steps_until_long(std::iter::repeat_n(true, 99)).await, Some(20));
    }

    #[tokio::test(start_paused = true)]
    async fn waves_add_up_and_what_is_rare_does_not() {
        assert_eq!(steps_until_long((0..999).map(|step| step % 2 == 0)).await, Some(41));
        assert_eq!(steps_until_long((0..9_999).map(|step| step % 10 == 0)).await, Some(231));
        assert_eq!(steps_until_long((0..9_999).map(|step| step % 100 < 19)).await, Some(103));
        assert_eq!(steps_until_long((0..99_999).map(|step| step % 1_200 < 19)).await, None);
        assert_eq!(steps_until_long((0..99_999).map(|step| step % 61 == 0)).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn one_late_look_is_not_enough_and_two_are() {
        let mut lateness = Lateness::default();
        assert!(!lateness.note(LONG * 9));
        advance(LONG * 3).await;
        assert!(lateness.note(LONG * 3));
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_forgotten_in_sixty_times_the_time() {
        let mut lateness = Lateness::default();
        assert!(lateness.is_forgotten());
        advance(STEP).await;
        lateness.note(STEP);
        assert!(!lateness.is_forgotten());
        advance(STEP * MEMORY).await;
        assert!(lateness.is_forgotten());
        lateness.note(Duration::ZERO);
        advance(STEP).await;
        lateness.note(STEP);
        advance(STEP).await;
        assert!(!lateness.is_forgotten());
    }
}
