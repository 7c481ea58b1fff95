//! What one reader must know while it waits: that something may be there, and when something will be.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// How exactly a moment within the next minute is remembered; later ones are rounded more.
const FINE: Duration = Duration::from_millis(50);

/// The most moments that are remembered. Of more, the latest are forgotten: the reader asks the database for the next
/// moment long before.
const CAPACITY: usize = 4_096;

/// A reader's alarm. It is a level, not a pulse: what is told while the reader is busy is there when it looks.
#[derive(Default)]
pub struct Wake {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    look: bool,
    due: BTreeSet<Instant>,
}

impl Wake {
    /// Tells that something may be there now.
    pub fn now(&self) {
        self.lock().look = true;
        self.changed.notify_one();
    }

    /// Tells that something will be there at a moment.
    pub fn at(&self, moment: Instant) {
        let moment = rounded_up(moment);
        let mut state = self.lock();
        let sooner = state.due.first().is_none_or(|first| moment < *first);
        state.due.insert(moment);
        if state.due.len() > CAPACITY {
            state.due.pop_last();
        }
        drop(state);
        if sooner {
            self.changed.notify_one();
        }
    }

    /// Tells the reader to think again, though nothing new may be there.
    pub fn nudge(&self) {
        self.changed.notify_one();
    }

    /// Takes note of what has been told so far, because a read begins now that will see it, and gives whether there was
    /// something.
    pub fn take(&self) -> bool {
        let now = Instant::now();
        let mut state = self.lock();
        let mut was_due = std::mem::take(&mut state.look);
        while state.due.first().is_some_and(|first| *first <= now) {
            state.due.pop_first();
            was_due = true;
        }
        was_due
    }

    /// Forgets the moments, because the database is about to tell the next one, and gives them.
    pub fn take_moments(&self) -> BTreeSet<Instant> {
        std::mem::take(&mut self.lock().due)
    }

    /// Remembers moments again, beside those that were told since.
    pub fn put_back(&self, moments: BTreeSet<Instant>) {
        let mut state = self.lock();
        // Few were told since, and many may come back.
        let told = std::mem::replace(&mut state.due, moments);
        state.due.extend(told);
        while state.due.len() > CAPACITY {
            state.due.pop_last();
        }
    }

    /// Whether something may be there.
    pub fn is_due(&self) -> bool {
        let state = self.lock();
        state.look || state.due.first().is_some_and(|first| *first <= Instant::now())
    }

    /// The next moment at which something will be there, as far as it is known.
    pub fn next(&self) -> Option<Instant> {
        self.lock().due.first().copied()
    }

    /// Waits until something was told since the last wait.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Waits until something may be there, or for `longest`.
    pub async fn wait(&self, longest: Duration) {
        let until = Instant::now() + longest;
        while !self.is_due() && Instant::now() < until {
            let moment = self.next().map_or(until, |next| next.min(until));
            // Whatever ends it, the state says what is to be done.
            let _ = tokio::time::timeout_at(moment, self.changed()).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A moment a little later, shared by those that are close together, so that few are remembered.
fn rounded_up(moment: Instant) -> Instant {
    let now = Instant::now();
    let ahead = moment.saturating_duration_since(now);
    if ahead <= FINE {
        return moment;
    }
    // Counted from a moment that does not move, or nothing would ever be rounded alike.
    let epoch = *EPOCH.get_or_init(|| now);
    let grain = if ahead <= Duration::from_secs(60) { FINE } else { FINE * 4 };
    // Where time is virtual, that moment may be another test's, and later.
    let since = moment
        .checked_duration_since(epoch)
        .map(|since| since.as_millis().next_multiple_of(grain.as_millis()));
    let Some(millis) = since.and_then(|since| u64::try_from(since).ok()) else {
        return moment;
    };
    (epoch + Duration::from_millis(millis)).max(moment)
}

static EPOCH: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_told_before_the_wait_ends_it() {
        let wake = Wake::default();
        wake.now();
        wake.changed().await;
        assert!(wake.is_due());
        assert!(wake.take() && !wake.is_due() && !wake.take());
    }

    #[tokio::test(start_paused = true)]
    async fn a_moment_is_due_when_it_has_come_and_at_most_a_little_later() {
        let wake = Wake::default();
        let moment = Instant::now() + Duration::from_millis(1_234);
        wake.at(moment);
        let next = wake.next().expect("a moment");
        assert!(next >= moment && next <= moment + FINE, "{:?}", next - moment);
        assert!(!wake.is_due());
        tokio::time::sleep_until(next).await;
        assert!(wake.is_due() && wake.take());
        assert!(!wake.is_due() && wake.next().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn many_moments_take_little_memory() {
        let wake = Wake::default();
        for millis in 0..3_000_000 {
            wake.at(Instant::now() + Duration::from_millis(millis));
        }
        let state = wake.lock();
        assert!(state.due.len() <= CAPACITY, "{}", state.due.len());
        assert!(state.due.first().is_some_and(|first| *first <= Instant::now()));
    }
}
