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

/// How many are remembered of a queue; what is beyond is found anew each time.
const MOST: usize = 10_000;

/// For how long one is passed over that was refused while others were not.
const PAUSE: Duration = Duration::from_mins(1);

/// The same as long as nothing says that others fare better: then it may be the rule that is wrong, and not the message.
const SHORT_PAUSE: Duration = Duration::from_secs(5);

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
    /// When some were left of what was read last in that way.
    left_at: Option<Instant>,
    /// Why the last one was refused.
    why: Option<Error>,
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

    /// Whether that was so since the last time.
    pub(super) fn take_doubt(&self) -> bool {
        self.doubt.load(Ordering::Relaxed) && self.doubt.swap(false, Ordering::Relaxed)
    }

    /// Those that are passed over now.
    pub(super) fn passed_over(&self) -> Vec<i64> {
        let now = Instant::now();
        self.lock().rows.iter().filter(|(_, row)| row.until > now).map(|(&msg_id, _)| msg_id).collect()
    }

    /// Why messages are passed over that may be refused for no fault of their own; none if there are no such messages.
    pub(super) fn why_suspected(&self) -> Option<Error> {
        let (now, state) = (Instant::now(), self.lock());
        let is_any = state.rows.values().any(|row| row.until > now && !row.alone);
        state.why.clone().filter(|_| is_any)
    }

    /// Whether others were not refused when one of these was.
    pub(super) fn is_any_alone(&self, msg_ids: &[i64]) -> bool {
        let state = self.lock();
        msg_ids.iter().any(|msg_id| state.rows.get(msg_id).is_some_and(|row| row.alone))
    }

    /// Others were not refused: those of which that was not known can be tried again, to go aside if they still are.
    pub(super) fn others_are_taken(&self) {
        let now = Instant::now();
        for row in self.lock().rows.values_mut().filter(|row| !row.alone) {
            *row = Row { until: now, alone: true };
        }
    }

    /// Of what a statement has locked, it has taken some and left others.
    pub(super) fn some_are_left(&self) {
        self.lock().left_at = Some(Instant::now());
    }

    /// Whether some were left just now while others were taken.
    pub(super) fn are_some_left(&self) -> bool {
        self.lock().left_at.is_some_and(|left_at| left_at.elapsed() < SHORT_PAUSE)
    }

    /// Forgets those of another queue of the name; whether there were any.
    pub(super) fn keep_incarnation(&self, queue_created_at: Timestamp) -> bool {
        let mut state = self.lock();
        let is_another = state.queue_created_at.replace(queue_created_at) != Some(queue_created_at);
        let forgets = is_another && !state.rows.is_empty();
        if forgets {
            state.rows.clear();
            self.are_known.store(false, Ordering::Relaxed);
        }
        forgets
    }

    /// Passes over some, `alone` if others were not refused.
    pub(super) fn pass_over(&self, msg_ids: impl IntoIterator<Item = i64>, alone: bool, why: &Error) {
        let until = Instant::now() + if alone { PAUSE } else { SHORT_PAUSE };
        let mut state = self.lock();
        state.why = Some(why.clone());
        for msg_id in msg_ids {
            if state.rows.len() < MOST || state.rows.contains_key(&msg_id) {
                state.rows.insert(msg_id, Row { until, alone });
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
