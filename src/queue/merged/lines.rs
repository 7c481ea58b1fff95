//! What one stream sends to one queue is stored in the order in which it was handed in.
//!
//! Two things could break that order: messages with and without deduplication ids go in statements of their own, and a
//! message whose id others hold is stored later than the rest of its statement. So all of a line goes the same way for as
//! long as any of it is under way, and what comes behind a message that is held waits with it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::held::HeldParcel;
use crate::domain::{OutgoingMessage, QueueName};

/// How many lines of a stream are remembered before the idle ones are forgotten.
const REMEMBERED: usize = 64;

/// The lines of one stream.
#[derive(Default)]
pub struct SendLines {
    lines: HashMap<QueueName, Arc<Line>>,
    /// How many lines there are when the idle ones are forgotten next.
    full: usize,
}

/// The place of some messages in a line.
pub struct Place {
    pub(super) line: Arc<Line>,
    /// Whether they go with messages that have deduplication ids.
    pub(super) keyed: bool,
}

/// A stream's messages for one queue that are under way.
#[derive(Default)]
pub(super) struct Line(Mutex<State>);

#[derive(Default)]
struct State {
    /// Whether its messages go with those that have deduplication ids.
    keyed: bool,
    /// What waits for a deduplication id that others hold, and what is behind it.
    held: Option<VecDeque<HeldParcel>>,
}

impl SendLines {
    /// The place of the next messages for a queue.
    pub fn place(&mut self, queue: &QueueName, messages: &[OutgoingMessage]) -> Place {
        let line = self.line(queue);
        // One is the map's, and one is this.
        let is_idle = Arc::strong_count(&line) == 2;
        let keyed = {
            let mut state = line.lock();
            if is_idle {
                state.keyed = messages.iter().any(|message| message.deduplication_id().is_some());
            }
            state.keyed
        };
        Place { line, keyed }
    }

    /// The line of a queue.
    pub(super) fn line(&mut self, queue: &QueueName) -> Arc<Line> {
        if self.lines.len() >= self.full {
            self.lines.retain(|_, line| Arc::strong_count(line) > 1);
            self.full = REMEMBERED.max(2 * self.lines.len());
        }
        Arc::clone(self.lines.entry(queue.clone()).or_default())
    }
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether something of the line is held.
    pub(super) fn is_held(&self) -> bool {
        self.lock().held.is_some()
    }

    /// Adds a parcel to what is held. Whether it is the first, which somebody has to look after.
    pub(super) fn hold(&self, parcel: HeldParcel) -> bool {
        let mut state = self.lock();
        let is_first = state.held.is_none();
        state.held.get_or_insert_default().push_back(parcel);
        is_first
    }

    /// Takes held parcels of so many messages, or a single larger one. If there is none, the line is free from now on.
    pub(super) fn take_held(&self, most: usize) -> Vec<HeldParcel> {
        let mut state = self.lock();
        let mut taken = Vec::new();
        let mut messages = 0;
        while let Some(parcel) = state.held.as_mut().and_then(VecDeque::pop_front) {
            messages += parcel.open();
            taken.push(parcel);
            if messages >= most {
                break;
            }
        }
        if taken.is_empty() {
            state.held = None;
        }
        taken
    }

    /// Gives back parcels that are still held, in front of the others.
    pub(super) fn put_back(&self, parcels: Vec<HeldParcel>) {
        let mut state = self.lock();
        let held = state.held.get_or_insert_default();
        parcels.into_iter().rev().for_each(|parcel| held.push_front(parcel));
    }

    /// Forgets what is held: nobody looks after it any more.
    pub(super) fn forget(&self) {
        let forgotten = self.lock().held.take();
        drop(forgotten);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{DeduplicationId, Schedule};

    fn plain() -> OutgoingMessage {
        let parsed = OutgoingMessage::parse("1".to_owned(), String::new(), "", Schedule::NOW, 10);
        parsed.expect("a good message")
    }

    fn with_id(id: &str) -> OutgoingMessage {
        plain().under(DeduplicationId::parse(id.to_owned()).expect("a good id"))
    }

    fn queue(name: &str) -> QueueName {
        QueueName::try_from(name.to_owned()).expect("a good name")
    }

    #[test]
    fn a_line_goes_one_way_until_nothing_is_under_way() {
        let mut lines = SendLines::default();
        for (first, second) in [(with_id("1"), plain()), (plain(), with_id("1"))] {
            let is_keyed = first.deduplication_id().is_some();
            let under_way = lines.place(&queue("a"), &[plain(), first]);
            assert_eq!(under_way.keyed, is_keyed);
            assert_eq!(lines.place(&queue("a"), std::slice::from_ref(&second)).keyed, is_keyed);
            assert_eq!(lines.place(&queue("b"), std::slice::from_ref(&second)).keyed, !is_keyed);
            drop(under_way);
            assert_eq!(lines.place(&queue("a"), &[second]).keyed, !is_keyed);
        }
    }

    #[test]
    fn lines_of_queues_that_a_stream_has_left_are_forgotten() {
        let mut lines = SendLines::default();
        let busy = lines.place(&queue("busy"), &[with_id("1")]);
        for number in 0..10_000 {
            lines.place(&queue(&format!("q{number}")), &[plain()]);
        }
        assert!(lines.lines.len() <= REMEMBERED, "{}", lines.lines.len());
        assert!(lines.place(&queue("busy"), &[plain()]).keyed);
        drop(busy);
    }
}
