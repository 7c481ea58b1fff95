//! What operators do in a history: they change policies, look into queues, and move what was set aside.

use super::record::{DeadLetter, Delivery, Micros};

/// What holds in a queue where a call leaves it open.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Policy {
    /// How long a read hides its messages; none if every read says it.
    pub(crate) visibility: Option<Micros>,
    /// How long a message that is sent stays invisible.
    pub(crate) delay: Micros,
    pub(crate) backoff: Option<Backoff>,
    /// How often a message is handed over before it becomes a dead letter.
    pub(crate) max_receives: Option<i32>,
    /// How long what is archived is kept; none for ever.
    pub(crate) retention: Option<Micros>,
    /// How long a read waits for a message.
    pub(crate) wait: Micros,
    /// The most bytes of a body; none if the server's own limit holds.
    pub(crate) max_bytes: Option<usize>,
    /// How long a deduplication id is remembered; none if the server's own window holds.
    pub(crate) window: Option<Micros>,
}

/// How long a release hides its message that says nothing itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Backoff {
    pub(crate) minimum: Micros,
    pub(crate) maximum: Micros,
    pub(crate) multiplier: f64,
    pub(crate) jitter: f64,
}

impl Backoff {
    /// The shortest and the longest that a message is hidden which was read so often.
    pub(crate) fn span(self, read_ct: i32) -> (Micros, Micros) {
        let longest =
            (self.minimum as f64 * self.multiplier.powi((read_ct - 1).max(0))).min(self.maximum as f64);
        ((longest * (1.0 - self.jitter)) as Micros, longest as Micros)
    }
}

/// A queue gets this policy as a whole.
#[derive(Debug, Clone)]
pub(crate) struct Update {
    pub(crate) queue: String,
    pub(crate) policy: Policy,
}

/// Where messages are that no reader gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shelf {
    /// The archive of the queue that they were in.
    Archive,
    /// The dead-letter queue of the queue that they were in.
    DeadLetters,
}

/// Messages moved back into their queue or into another one, or deleted for good: as many as the call finds.
#[derive(Debug, Clone)]
pub(crate) struct Move {
    /// The queue that they were in.
    pub(crate) queue: String,
    pub(crate) from: Shelf,
    /// The queue that gets them, if it is another one.
    pub(crate) to: Option<String>,
    /// They do not come back to the queue.
    pub(crate) deletes: bool,
    /// Only these, by their ids on the shelf; any, if there are none.
    pub(crate) msg_ids: Vec<i64>,
    /// Only what was archived then or later, by the database's clock.
    pub(crate) after: Option<Micros>,
    /// Only what was archived earlier.
    pub(crate) before: Option<Micros>,
    /// So many at most.
    pub(crate) most: i64,
    /// How many they were, if the answer says so.
    pub(crate) count: Option<i64>,
    /// There may be more, says the answer.
    pub(crate) more: bool,
}

impl Move {
    /// The queue that gets the messages, if they are not deleted.
    pub(crate) fn target(&self) -> &str {
        self.to.as_deref().unwrap_or(&self.queue)
    }

    /// Whether it may take a message by its id on the shelf, and the moment when it was archived, if that is known.
    pub(crate) fn may_name(&self, msg_id: i64, archived_at: Option<Micros>) -> bool {
        let by_id =
            self.from == Shelf::DeadLetters || self.msg_ids.is_empty() || self.msg_ids.contains(&msg_id);
        let by_time = archived_at.is_none_or(|at| {
            self.after.is_none_or(|after| at >= after) && self.before.is_none_or(|before| at < before)
        });
        by_id && by_time
    }
}

/// A page of a queue's messages or of its archive's.
#[derive(Debug, Clone)]
pub(crate) struct List {
    pub(crate) queue: String,
    pub(crate) archive: bool,
    pub(crate) state: Option<State>,
    /// Only these; any, if there are none.
    pub(crate) msg_ids: Vec<i64>,
    /// Only ids above this one.
    pub(crate) above: i64,
    /// Whether nothing comes after it.
    pub(crate) is_last: bool,
    pub(crate) rows: Vec<Shown>,
}

/// The state of a message that is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Visible,
    InFlight,
    Delayed,
}

/// One message of a page.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    /// As it stood there; nobody has read it by that.
    pub(crate) message: Delivery,
    pub(crate) archived_at: Option<Micros>,
    /// What its header says of where it was.
    pub(crate) letter: Option<DeadLetter>,
}

impl List {
    /// Whether a message must be on this page, if it was there all the time of the call.
    pub(crate) fn covers(&self, msg_id: i64) -> bool {
        let asked_for = self.state.is_none() && (self.msg_ids.is_empty() || self.msg_ids.contains(&msg_id));
        let through = match self.rows.last() {
            _ if self.is_last => i64::MAX,
            Some(row) => row.message.msg_id,
            None => self.above,
        };
        asked_for && (self.above + 1..=through).contains(&msg_id)
    }
}
