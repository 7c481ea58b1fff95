//! What happens to thousands at once is logged once a second, with a count.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

const PAUSE: Duration = Duration::from_secs(1);

/// Lets one through a second.
#[derive(Debug)]
pub struct Seldom(Mutex<State>);

#[derive(Debug)]
struct State {
    last: Option<Instant>,
    held_back: u64,
}

impl Seldom {
    /// Has let none through yet.
    #[expect(clippy::new_without_default, reason = "made for statics only")]
    pub const fn new() -> Self {
        Self(Mutex::new(State { last: None, held_back: 0 }))
    }

    /// Whether this one is to be logged: then how many were not since the one before.
    pub fn take(&self) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if state.last.is_some_and(|last| now - last < PAUSE) {
            state.held_back += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_a_second_goes_through_and_counts_the_others() {
        let seldom = Seldom::new();
        assert_eq!((seldom.take(), seldom.take(), seldom.take()), (Some(0), None, None));
        tokio::time::advance(PAUSE).await;
        assert_eq!((seldom.take(), seldom.take()), (Some(2), None));
    }
}
