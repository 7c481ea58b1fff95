//! Nobody pays for what others do: locked rows, refused messages in the same flush.

use super::index::Index;
use super::policies::TOO_LARGE;
use super::{Violation, violation};
use crate::history::operators::Move;
use crate::history::record::{AFTERMATH, Call, Fault, FaultKind, Part, Verdict};

/// Rows that another transaction holds make calls for those rows fail, and no others; and nothing collides.
pub(super) fn locks_hurt_nobody_else(index: &Index<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for call in &index.history.calls {
        let (Verdict::Refused(reason) | Verdict::Unknown(reason)) = &call.verdict else { continue };
        let what = match reason.as_str() {
            // What several statements do in one transaction may collide with another's.
            "CONFLICT" if !call.whole => "it collided with others",
            // What changes a whole table, and names no message, has to wait for everybody who uses it.
            "QUEUE_BUSY" if !call.whole && !call.parts.is_empty() && !touches_locked(index, call) => {
                "it was refused for rows that are none of its own"
            }
            _ => continue,
        };
        found.push(violation(
            "locks_hurt_nobody_else",
            format!("{} of {}: {what}", call.what, call.who),
            &[call],
        ));
    }
    found
}

fn touches_locked(index: &Index<'_>, call: &Call) -> bool {
    let held = index.history.faults.iter().filter_map(|fault| match &fault.what {
        FaultKind::Locked { queue, msg_ids } if fault.from <= call.answered && fault.to >= call.asked => {
            Some((queue, msg_ids))
        }
        _ => None,
    });
    // What a transaction has read is held until its end.
    let others = index.history.calls.iter().filter(|other| {
        other.whole
            && other.asked <= call.answered
            && other.answered >= call.asked
            && !std::ptr::eq(*other, call)
    });
    let in_transactions = others.flat_map(|other| &other.parts).flat_map(|part| match part {
        Part::Read(read) => {
            read.deliveries.iter().map(|delivery| (&read.queue, delivery.msg_id)).collect::<Vec<_>>()
        }
        Part::Settle(settle) => vec![(&settle.queue, settle.target.msg_id())],
        Part::Send(_) | Part::Empty(_) | Part::Update(_) | Part::Move(_) | Part::List(_) => Vec::new(),
    });
    let locked: Vec<(&String, i64)> = held
        .flat_map(|(queue, msg_ids)| msg_ids.iter().map(move |&msg_id| (queue, msg_id)))
        .chain(in_transactions)
        .collect();
    let faults = || index.history.faults.iter().filter(|fault| near(fault, call));
    // A restart or a lost connection leaves a transaction behind until Postgres notices.
    let is_disturbed = faults().any(|fault| fault.what.breaks_connections());
    let is_rebuilt =
        |of: &str| faults().any(|fault| matches!(&fault.what, FaultKind::Rebuilt { queue } if queue == of));
    call.parts.iter().any(|part| match part {
        Part::Settle(settle) => {
            is_disturbed
                || is_rebuilt(&settle.queue)
                || locked.contains(&(&settle.queue, settle.target.msg_id()))
        }
        // A deduplication id is held until the transaction that uses it has ended.
        Part::Send(send) => is_rebuilt(&send.queue) || is_disturbed && send.key.is_some(),
        Part::Read(read) => is_rebuilt(&read.queue),
        // It locks the whole table, or waits for whoever changes a policy, too.
        Part::Empty(_) | Part::Update(_) => true,
        Part::Move(moved) => {
            is_disturbed
                || is_rebuilt(&moved.queue)
                || is_rebuilt(moved.target())
                || shares_shelf(index, call, moved)
        }
        Part::List(list) => is_rebuilt(&list.queue),
    })
}

/// Whether others have moved messages off the same shelf at the same time, and may have taken those that a call has found.
fn shares_shelf(index: &Index<'_>, call: &Call, moved: &Move) -> bool {
    index.moves.iter().any(|other| {
        let is_same = other.moved.queue == moved.queue && other.moved.from == moved.from;
        let overlaps = other.call.asked <= call.answered && other.call.ends() >= call.asked;
        is_same && overlaps && !std::ptr::eq(other.call, call)
    })
}

fn near(fault: &Fault, call: &Call) -> bool {
    fault.from <= call.answered && fault.to + AFTERMATH >= call.asked
}

/// Errors that say something about the moment and nothing about the message.
const PASSING: &[&str] = &["OVERLOADED", "DATABASE_UNAVAILABLE", "DRAINING", "DATABASE_RESOURCES"];

/// A message that its table refuses is refused alone; others get what they would get without it.
pub(super) fn every_item_has_its_own_verdict(index: &Index<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for call in &index.history.calls {
        let is_doomed = call.sends().any(|send| send.doomed);
        let what = match &call.verdict {
            Verdict::Done if is_doomed => "a message was acknowledged that its table refuses",
            Verdict::Unknown(reason) if reason == "INTERNAL" => "it failed for no reason that it names",
            Verdict::Refused(reason)
                if !is_doomed
                    && !call.whole
                    && call.sends().next().is_some()
                    && !is_passing(index, call, reason) =>
            {
                "a message was refused that is right"
            }
            _ => continue,
        };
        let what = format!("{} of {}: {what}", call.what, call.who);
        found.push(violation("every_item_has_its_own_verdict", what, &[call]));
    }
    found
}

/// Whether a refusal may be right for any message. Busy is what [`locks_hurt_nobody_else`] looks at, and size what
/// [`super::policies::sends_are_as_large_as_the_policy_allows`] does.
fn is_passing(index: &Index<'_>, call: &Call, reason: &str) -> bool {
    PASSING.contains(&reason) || reason == TOO_LARGE || reason == "QUEUE_BUSY" && touches_locked(index, call)
}
