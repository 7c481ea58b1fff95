//! One class of reads of one queue: its subscribers, and what its dispatcher knows.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::share::{Ask, Share};
use crate::domain::{Ordering, ReadOrder, Timestamp};
use crate::engine::events::{Interest, QueueEvents};
use crate::engine::wake::Wake;

/// The first pause before an empty queue that just gave something is read again, for what nobody announces.
const FIRST_POLL: Duration = Duration::from_millis(25);

/// The longest such pause, after which the queue is left to the lookout.
const LAST_POLL: Duration = Duration::from_millis(800);

/// How often the next moment is asked for at most.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

/// How much longer than the question for the next moment takes it is not asked again, so that it costs a bounded share
/// of the database's time however long the queue is.
const PAUSE_FACTOR: u32 = 50;

/// Into how many spans such a pause is cut, each with one read at most for moments that were known before the question. A
/// read that finds nothing costs about as much as the question.
const SPANS_OF_A_PAUSE: u32 = 10;

/// A class of reads, shared by its subscribers and its dispatcher.
pub(super) struct Class {
    pub(super) order: ReadOrder,
    pub(super) wake: Arc<Wake>,
    pub(super) followed: Arc<QueueEvents>,
    state: Mutex<State>,
}

/// What a dispatcher knows of its queue, and who wants what of it.
pub(super) struct State {
    pub(super) share: Share,
    /// The database's clock from before the last read that came back short, while the next moment after it is not known.
    unasked: Option<Timestamp>,
    ask_from: Instant,
    /// The next read for what nobody announces, and the pause after it; none when the lookout has taken over.
    poll: Option<(Instant, Duration)>,
    /// Nothing is tried before, after a failure.
    not_before: Option<Instant>,
}

/// What a dispatcher does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Nobody subscribes.
    Linger,
    /// Nobody wants anything: no query.
    Rest,
    /// Something may be there.
    Read,
    /// It is empty: ask when the next message becomes visible.
    AskNextVisible(Timestamp),
    /// It is empty, until something is told or a moment comes.
    Wait(Option<Instant>),
}

/// What a read found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// As much as was asked for: there may be more.
    Full,
    /// Less: the queue is empty, as it was at this moment of the database's clock.
    Short { before_read: Timestamp, something: bool },
}

impl Class {
    pub(super) fn new(order: ReadOrder, followed: Arc<QueueEvents>) -> Self {
        let whole = order.ordering.reads_groups_together();
        let wake = Arc::new(Wake::default());
        let interest = match order.ordering {
            Ordering::Unordered => Interest::Visible,
            Ordering::Grouped | Ordering::GroupedRoundRobin | Ordering::GroupedHead => Interest::Groups,
        };
        followed.add_reader(&wake, interest);
        let state = State {
            share: Share::new(whole),
            unasked: None,
            ask_from: Instant::now(),
            poll: None,
            not_before: None,
        };
        Self { order, wake, followed, state: Mutex::new(state) }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to do next.
    pub(super) fn next_step(&self) -> Step {
        let mut state = self.lock();
        if state.share.is_empty() {
            return Step::Linger;
        }
        if !state.share.has_demand() {
            return Step::Rest;
        }
        let now = Instant::now();
        if let Some(not_before) = state.not_before.filter(|not_before| *not_before > now) {
            return Step::Wait(Some(not_before));
        }
        let poll = state.poll.map(|(at, _)| at);
        if self.wake.is_due() || poll.is_some_and(|at| at <= now) {
            return Step::Read;
        }
        match state.unasked {
            Some(before_read) if state.ask_from <= now => Step::AskNextVisible(before_read),
            unasked => {
                let ask = unasked.map(|_| state.ask_from);
                Step::Wait([self.wake.next(), poll, ask].into_iter().flatten().min())
            }
        }
    }

    /// Whether the queue has been empty for long enough to be left to the lookout.
    pub(super) fn is_idle(&self) -> bool {
        self.lock().poll.is_none()
    }

    /// Begins a read, if anybody still wants something. What is told from here on is not missed.
    pub(super) fn begin_read(&self) -> Option<Ask> {
        let mut state = self.lock();
        let ask = state.share.begin_read()?;
        self.wake.take();
        state.not_before = None;
        Some(ask)
    }

    /// Takes note of what a read found.
    pub(super) fn found(&self, found: Found) {
        let Found::Short { before_read, something } = found else {
            self.wake.now();
            return;
        };
        let mut state = self.lock();
        state.unasked = Some(before_read);
        let pause = match (something, state.poll) {
            (true, _) => Some(FIRST_POLL),
            (false, poll) => poll.map(|(_, pause)| pause * 2).filter(|pause| *pause <= LAST_POLL),
        };
        state.poll = pause.map(|pause| (Instant::now() + pause, pause));
    }

    /// Begins to ask for the next moment. What was known of moments is given: some of it may be wanted after the answer.
    pub(super) fn begin_ask(&self) -> BTreeSet<Instant> {
        self.lock().unasked = None;
        self.wake.take_moments()
    }

    /// Takes note of the next moment and of how long the answer took. Of the moments that were known before the question,
    /// those before the next one are over, and those until the question may be asked again are what remains to go by.
    pub(super) fn asked(&self, next_visible: Option<Duration>, took: Duration, mut known: BTreeSet<Instant>) {
        let now = Instant::now();
        let pause = (took * PAUSE_FACTOR).max(SHORTEST_PAUSE);
        let ask_from = now + pause;
        self.lock().ask_from = ask_from;
        let Some(next) = next_visible.map(|wait| now + wait) else { return };
        let mut soon = known.split_off(&next);
        let mut kept = soon.split_off(&ask_from);
        kept.extend(spaced(soon, pause / SPANS_OF_A_PAUSE));
        self.wake.put_back(kept);
        self.wake.at(next);
    }

    /// Takes note that the next moment could not be told.
    pub(super) fn ask_failed(&self, before_read: Timestamp, known: BTreeSet<Instant>) {
        self.lock().unasked.get_or_insert(before_read);
        self.wake.put_back(known);
    }

    /// Tries again at once after a failure, because somebody wants to know.
    pub(super) fn resume(&self) {
        self.lock().not_before = None;
        self.wake.now();
    }

    /// Leaves the database alone for a while, and then looks.
    pub(super) fn pause(&self, pause: Duration) {
        self.lock().not_before = Some(Instant::now() + pause);
        self.wake.now();
    }
}

/// The last of the moments of each span, which begins with the first moment after the span before.
fn spaced(moments: BTreeSet<Instant>, span: Duration) -> impl Iterator<Item = Instant> {
    let mut spans: Vec<(Instant, Instant)> = Vec::new();
    for moment in moments {
        match spans.last_mut() {
            Some((first, last)) if moment - *first < span => *last = moment,
            _ => spans.push((moment, moment)),
        }
    }
    spans.into_iter().map(|(_, last)| last)
}
