//! Short histories written by hand, for the tests of the rules.
//!
//! A story has one clock, which every step moves on by a millisecond; databases and callers agree on it.

use super::{Violation, check};
use crate::history::operators::{List, Move, Shelf, Shown};
use crate::history::record::{
    Action, Call, Delivery, Empty, Fault, FaultKind, History, Micros, Outcome, Part, Read, Row, Send, Settle,
    Tables, Target, Verdict,
};

/// The queue of all stories.
pub(super) const QUEUE: &str = "orders";

/// A second of a story's clock.
pub(super) const SECOND: Micros = 1_000_000;

/// A history that is being told.
pub(super) struct Story {
    pub(super) history: History,
    pub(super) now: Micros,
}

impl Story {
    pub(super) fn new() -> Self {
        let mut history =
            History { deduplication_window: 60 * SECOND, patience: 2 * SECOND, ..History::default() };
        history.at_the_end.insert(QUEUE.to_owned(), Tables::default());
        Self { history, now: 1_000_000 * SECOND }
    }

    /// A moment later.
    pub(super) fn tick(&mut self) -> Micros {
        self.now += 1_000;
        self.history.ended = self.now;
        self.now
    }

    /// Some time later.
    pub(super) fn wait(&mut self, seconds: i64) {
        self.now += seconds * SECOND;
        self.history.ended = self.now;
    }

    /// A call that takes a millisecond.
    pub(super) fn call(&mut self, what: &'static str, verdict: Verdict, parts: Vec<Part>) -> &mut Call {
        let asked = self.tick();
        let answered = self.tick();
        let who = format!("caller {}", self.history.calls.len());
        let call =
            Call { who, what, asked, answered, verdict, whole: false, key: None, repeated: false, parts };
        self.history.calls.push(call);
        self.history.calls.last_mut().expect("the call")
    }

    /// A call all of whose parts happen or none.
    pub(super) fn whole(&mut self, verdict: Verdict, parts: Vec<Part>) -> &mut Call {
        let call = self.call("Transact", verdict, parts);
        call.whole = true;
        call
    }

    /// A send that is acknowledged.
    pub(super) fn sent(&mut self, msg_id: i64, body: &str) -> &mut Call {
        self.call("Send", Verdict::Done, vec![send(body, Some(msg_id))])
    }

    /// An acknowledged send of a group.
    pub(super) fn sent_to_group(&mut self, msg_id: i64, body: &str) {
        let Part::Send(plain) = send(body, Some(msg_id)) else { unreachable!("a send") };
        let part = Part::Send(Send { group: Some("g".to_owned()), ..plain });
        self.call("Send", Verdict::Done, vec![part]);
    }

    /// A send with a deduplication id.
    pub(super) fn keyed(&mut self, msg_id: i64, body: &str, deduplicated: bool) {
        let Part::Send(plain) = send(body, Some(msg_id)) else { unreachable!("a send") };
        let part = Part::Send(Send { key: Some("k".to_owned()), deduplicated, ..plain });
        self.call("Send", Verdict::Done, vec![part]);
    }

    /// A delivery that hides its message for 30 s, as a value.
    pub(super) fn delivery(&mut self, msg_id: i64, body: &str, read_ct: i32) -> Delivery {
        let last_read_at = self.tick();
        Delivery {
            msg_id,
            read_ct,
            enqueued_at: 1_000_000 * SECOND,
            last_read_at,
            vt: last_read_at + 30 * SECOND,
            body: body.to_owned(),
            seen: last_read_at,
        }
    }

    /// A read that gives one message.
    pub(super) fn read(&mut self, msg_id: i64, body: &str, read_ct: i32) -> Delivery {
        let asked = self.tick();
        let delivery = self.delivery(msg_id, body, read_ct);
        let call = self.call("ReadBatch", Verdict::Done, vec![read(vec![delivery.clone()])]);
        call.asked = asked;
        delivery
    }

    /// The same by a read of heads.
    pub(super) fn read_head(&mut self, msg_id: i64, body: &str) -> Delivery {
        let delivery = self.read(msg_id, body, 1);
        if let Some(Part::Read(read)) = self.history.calls.last_mut().and_then(|call| call.parts.last_mut()) {
            read.heads = true;
        }
        delivery
    }

    /// A settle that is answered.
    pub(super) fn settled(&mut self, action: Action, delivery: &Delivery, outcome: Outcome) -> &mut Call {
        self.call("Settle", Verdict::Done, vec![settle(action, delivery.receipt(), Some(outcome))])
    }

    /// A change of visibility that is answered.
    pub(super) fn hidden(&mut self, action: Action, delivery: &Delivery, vt: Micros) {
        let Part::Settle(plain) = settle(action, delivery.receipt(), Some(Outcome::Done)) else {
            unreachable!("a settle")
        };
        self.call("Settle", Verdict::Done, vec![Part::Settle(Settle { vt: Some(vt), ..plain })]);
    }

    /// Something is done to the system, now.
    pub(super) fn fault(&mut self, what: FaultKind) {
        let from = self.tick();
        let to = self.tick();
        self.history.faults.push(Fault { what, from, to });
    }

    /// What the queue holds at the end.
    pub(super) fn left(&mut self, msg_id: i64, body: &str) {
        self.tables().queue.push(Row { msg_id, body: body.to_owned() });
    }

    /// What the archive holds at the end.
    pub(super) fn archived(&mut self, msg_id: i64, body: &str) {
        self.tables().archive.push(Row { msg_id, body: body.to_owned() });
    }

    fn tables(&mut self) -> &mut Tables {
        self.history.at_the_end.get_mut(QUEUE).expect("the queue")
    }

    /// An archived message, read once, as a list shows it.
    pub(super) fn shown_in_archive(&mut self, msg_id: i64, body: &str, archived_at: Micros) -> Shown {
        Shown { message: self.delivery(msg_id, body, 1), archived_at: Some(archived_at), letter: None }
    }

    /// Checks that nothing is wrong with the story.
    #[track_caller]
    pub(super) fn is_healthy(&self) {
        let violations = check(&self.history);
        assert!(violations.is_empty(), "{}", listed(&violations));
    }

    /// Checks that a rule finds what is wrong, and names it.
    #[track_caller]
    pub(super) fn breaks(&self, rule: &str) {
        let violations = check(&self.history);
        assert!(
            violations.iter().any(|violation| violation.rule == rule),
            "{rule} found nothing: {}",
            listed(&violations)
        );
    }
}

fn listed(violations: &[Violation]) -> String {
    violations.iter().map(ToString::to_string).collect()
}

/// An error that leaves the outcome open.
pub(super) fn unknown() -> Verdict {
    Verdict::Unknown("OUTCOME_UNKNOWN".to_owned())
}

/// An error that says that nothing was applied.
pub(super) fn refused(reason: &str) -> Verdict {
    Verdict::Refused(reason.to_owned())
}

pub(super) fn send(body: &str, msg_id: Option<i64>) -> Part {
    Part::Send(Send { queue: QUEUE.to_owned(), body: body.to_owned(), msg_id, ..Send::default() })
}

pub(super) fn read(deliveries: Vec<Delivery>) -> Part {
    Part::Read(Read { queue: QUEUE.to_owned(), takes_any: true, deliveries, ..Read::default() })
}

pub(super) fn settle(action: Action, target: Target, outcome: Option<Outcome>) -> Part {
    Part::Settle(Settle { queue: QUEUE.to_owned(), action, target, by_policy: false, outcome, vt: None })
}

/// A purge or a drop of the queue.
pub(super) fn empty(drops: bool, count: Option<i64>) -> Part {
    Part::Empty(Empty { queue: QUEUE.to_owned(), drops, count })
}

/// A list of all messages of the queue, or of its archive.
pub(super) fn list(archive: bool, rows: Vec<Shown>) -> Part {
    let (queue, msg_ids) = (QUEUE.to_owned(), Vec::new());
    Part::List(List { queue, archive, state: None, msg_ids, above: i64::MIN, is_last: true, rows })
}

/// A replay of all that is archived, not answered yet.
pub(super) fn moved() -> Move {
    let (queue, msg_ids) = (QUEUE.to_owned(), Vec::new());
    let (from, deletes) = (Shelf::Archive, false);
    Move {
        queue,
        from,
        to: None,
        deletes,
        msg_ids,
        after: None,
        before: None,
        most: 100,
        count: None,
        more: false,
    }
}
