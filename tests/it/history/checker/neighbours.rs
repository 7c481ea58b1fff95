//! Nobody pays for what others do: locked rows, refused messages in the same flush.

use super::index::Index;
use super::{Violation, violation};
use crate::history::record::{Call, FaultKind, Part, Verdict};

/// Rows that another transaction holds make calls for those rows fail, and no others; and nothing collides.
pub(super) fn locks_hurt_nobody_else(index: &Index<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for call in &index.history.calls {
        let (Verdict::Refused(reason) | Verdict::Unknown(reason)) = &call.verdict else { continue };
        let what = match reason.as_str() {
            // What several statements do in one transaction may collide with another's.
            "CONFLICT" if !call.whole => "it collided with others",
            "QUEUE_BUSY" if !call.whole && !touches_locked(index, call) => {
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
        Part::Send(_) => Vec::new(),
    });
    let locked: Vec<(&String, i64)> = held
        .flat_map(|(queue, msg_ids)| msg_ids.iter().map(move |&msg_id| (queue, msg_id)))
        .chain(in_transactions)
        .collect();
    // A restart or a lost connection leaves a transaction behind until Postgres notices.
    let disturbed = index.is_disturbed(call.asked, call.answered);
    let has_faults = index.history.faults.iter().any(|fault| !matches!(fault.what, FaultKind::Locked { .. }));
    call.parts.iter().any(|part| match part {
        Part::Settle(settle) => {
            (disturbed && has_faults) || locked.contains(&(&settle.queue, settle.target.msg_id()))
        }
        Part::Send(_) | Part::Read(_) => false,
    })
}

/// Errors that say something about the moment and nothing about the message.
const PASSING: &[&str] = &["OVERLOADED", "DATABASE_UNAVAILABLE", "DRAINING", "DATABASE_RESOURCES"];

/// A message that its table refuses is refused alone; others get what they would get without it.
pub(super) fn every_item_has_its_own_verdict(index: &Index<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for call in &index.history.calls {
        let sends = || {
            call.parts.iter().filter_map(|part| match part {
                Part::Send(send) => Some(send),
                Part::Read(_) | Part::Settle(_) => None,
            })
        };
        let is_doomed = sends().any(|send| send.doomed);
        let what = match &call.verdict {
            Verdict::Done if is_doomed => "a message was acknowledged that its table refuses",
            Verdict::Unknown(reason) if reason == "INTERNAL" && !is_doomed => {
                "it failed for no reason of its own"
            }
            Verdict::Refused(reason)
                if !is_doomed
                    && !call.whole
                    && sends().next().is_some()
                    && !PASSING.contains(&reason.as_str()) =>
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
