//! Which messages the database refuses to have read or popped, as by a trigger that minds one row.
//!
//! They stay visible in their queue, so each statement for many messages would fail because of them. They are remembered by
//! this replica alone, for as long as they are passed over; to forget one costs no more than a statement that fails.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::{Error, QueueName, Seldom, Timestamp};

/// How many are remembered of a queue one by one. Where there are more, all are passed over up to the last one.
const MOST: usize = 10_000;

/// For how long one is passed over that was refused while others were not.
const PAUSE: Duration = Duration::from_mins(1);

/// With each so many that are known, that is a minute longer, so that the first are not due again before the last are found.
const MANY: usize = 1_000;

/// The same as long as nothing says that others fare better: then it may be the rule that is wrong, and not the message.
const SHORT_PAUSE: Duration = Duration::from_secs(5);

/// How long no doubt is looked into after the first one that was; twice as long after each that follows, up to [`PAUSE`].
const SHORT_TRUST: Duration = Duration::from_secs(1);

/// What is refused of a queue.
#[derive(Debug, Default)]
pub(super) struct Refused {
    pub(super) reads: RefusedRows,
    pub(super) pops: RefusedRows,
}

/// The messages of a queue of which one kind of change is refused.
#[derive(Debug, Default)]
pub(super) struct RefusedRows {
    /// So that a queue without any costs no lock.
    are_known: AtomicBool,
    /// Something was visible that nobody had read.
    doubt: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    rows: HashMap<i64, Row>,
    /// When the queue was made that they are of.
    queue_created_at: Option<Timestamp>,
    /// When some were left of what was read last in that way, and how many.
    left: Option<(Instant, usize)>,
    /// Why the last one was refused.
    why: Option<Error>,
    /// Up to which id all are passed over, and until when.
    up_to: Option<(i64, Instant)>,
    /// Until when no doubt is looked into, and for how long since the last one was.
    trust: Option<(Instant, Duration)>,
}

#[derive(Debug)]
struct Row {
    /// Until when it is passed over.
    until: Instant,
    /// Others were not refused meanwhile.
    alone: bool,
}

impl RefusedRows {
    /// Whether any are known.
    pub(super) fn are_known(&self) -> bool {
        self.are_known.load(Ordering::Relaxed)
    }

    /// Something is visible of a queue that its readers take for empty.
    pub(super) fn doubt(&self) {
        self.doubt.store(true, Ordering::Relaxed);
    }

    /// Whether that was so since the last time, and is to be looked into. That costs a scan, and where the first message of
    /// a group is in flight the others are visible and nothing is refused: so the less often, the longer nothing is found.
    pub(super) fn take_doubt(&self) -> bool {
        if !self.doubt.load(Ordering::Relaxed) {
            return false;
        }
        let (now, mut state) = (Instant::now(), self.lock());
        let trust = match state.trust {
            Some((until, _)) if now < until => return false,
            Some((_, trust)) => PAUSE.min(trust * 2),
            None => SHORT_TRUST,
        };
        state.trust = Some((now + trust, trust));
        self.doubt.swap(false, Ordering::Relaxed)
    }

    /// Those that are passed over now, beside all up to [`RefusedRows::up_to`].
    pub(super) fn passed_over(&self) -> Vec<i64> {
        let (now, up_to, state) = (Instant::now(), self.up_to(), self.lock());
        let rows = state.rows.iter().filter(|(msg_id, row)| row.until > now && **msg_id > up_to);
        rows.map(|(&msg_id, _)| msg_id).collect()
    }

    /// Up to which id all are passed over now.
    pub(super) fn up_to(&self) -> i64 {
        let now = Instant::now();
        self.lock().up_to.filter(|(_, until)| *until > now).map_or(i64::MIN, |(msg_id, _)| msg_id)
    }

    /// Why messages are passed over that may be refused for no fault of their own; none if there are no such messages.
    pub(super) fn why_suspected(&self) -> Option<Error> {
        let (now, state) = (Instant::now(), self.lock());
        let is_any = state.rows.values().any(|row| row.until > now && !row.alone);
        state.why.clone().filter(|_| is_any)
    }

    /// Whether others were not refused when this one was.
    pub(super) fn is_alone(&self, msg_id: i64) -> bool {
        self.lock().rows.get(&msg_id).is_some_and(|row| row.alone)
    }

    /// Others were not refused: those of which that was not known can be tried again, to go aside if they still are.
    pub(super) fn others_are_taken(&self) {
        let now = Instant::now();
        for row in self.lock().rows.values_mut().filter(|row| !row.alone) {
            *row = Row { until: now, alone: true };
        }
    }

    /// Of what a statement has locked, it has taken some and left so many.
    pub(super) fn some_are_left(&self, count: usize) {
        self.lock().left = Some((Instant::now(), count));
    }

    /// Whether so many may be those that were left just now while others were taken. More are not: then a rule may have come
    /// that refuses all.
    pub(super) fn are_left(&self, count: usize) -> bool {
        self.lock().left.is_some_and(|(at, left)| count <= left && at.elapsed() < SHORT_PAUSE)
    }

    /// Forgets those of another queue of the name; whether there were any.
    pub(super) fn keep_incarnation(&self, queue_created_at: Timestamp) -> bool {
        let mut state = self.lock();
        let is_another = state.queue_created_at.replace(queue_created_at) != Some(queue_created_at);
        let forgets = is_another && !(state.rows.is_empty() && state.up_to.is_none());
        if forgets {
            state.rows.clear();
            state.up_to = None;
            self.are_known.store(false, Ordering::Relaxed);
        }
        forgets
    }

    /// Passes over some, `alone` if others were not refused.
    pub(super) fn pass_over(&self, msg_ids: impl IntoIterator<Item = i64>, alone: bool, why: &Error) {
        let mut state = self.lock();
        let minutes = u32::try_from(1 + state.rows.len() / MANY).unwrap_or(u32::MAX);
        let until = Instant::now() + if alone { PAUSE * minutes } else { SHORT_PAUSE };
        state.why = Some(why.clone());
        state.trust = None;
        for msg_id in msg_ids {
            if state.rows.len() < MOST || state.rows.contains_key(&msg_id) {
                state.rows.insert(msg_id, Row { until, alone });
            } else if state.up_to.is_none_or(|(up_to, _)| up_to < msg_id) {
                state.up_to = Some((msg_id, until));
            }
        }
        self.are_known.store(!state.rows.is_empty(), Ordering::Relaxed);
    }

    /// Forgets those that need not be passed over any more, but for some that are there and not tried yet.
    pub(super) fn forget_all_but(&self, there: &[i64]) {
        let now = Instant::now();
        let mut state = self.lock();
        state.rows.retain(|msg_id, row| row.until > now || there.contains(msg_id));
        self.are_known.store(!state.rows.is_empty(), Ordering::Relaxed);
    }

    /// Says once a second how many there are, and why.
    pub(super) fn warn(&self, queue: &QueueName) {
        static WARNED: Seldom = Seldom::new();
        let state = self.lock();
        let Some(why) = state.why.as_ref().filter(|_| !state.rows.is_empty()) else {
            return;
        };
        if WARNED.take().is_some() {
            let (queue, messages, error) =
                (queue.as_str(), state.rows.len(), crate::domain::error::chain(why));
            tracing::warn!(queue, messages, error, "messages are passed over that the database refuses");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn where_more_are_refused_than_are_remembered_all_are_passed_over_up_to_the_last() {
        let (rows, why) = (RefusedRows::default(), crate::pg::error::swallowed());
        let most = i64::try_from(MOST).expect("a number");
        rows.pass_over(1..=most, true, &why);
        assert_eq!((rows.passed_over().len(), rows.up_to()), (MOST, i64::MIN));
        rows.pass_over(most + 1..=most + 100, true, &why);
        assert_eq!((rows.passed_over().len(), rows.up_to()), (0, most + 100));
        advance(PAUSE).await;
        // The first, which came without any that were known, are tried again only after the last, too.
        assert_eq!((rows.passed_over().len(), rows.up_to()), (0, most + 100));
        advance(PAUSE * 10).await;
        assert_eq!((rows.passed_over().len(), rows.up_to()), (0, i64::MIN));
    }

    #[tokio::test(start_paused = true)]
    async fn the_longer_nothing_is_refused_the_less_often_a_doubt_is_looked_into() {
        let rows = RefusedRows::default();
        assert!(!rows.take_doubt());
        let mut looked_into = 0;
        for _ in 0..600 {
            rows.doubt();
            looked_into += usize::from(rows.take_doubt());
            advance(Duration::from_secs(1)).await;
        }
        assert!((10..=17).contains(&looked_into), "{looked_into}");
        rows.pass_over([7], false, &crate::pg::error::swallowed());
        rows.doubt();
        assert!(rows.take_doubt());
    }
}
