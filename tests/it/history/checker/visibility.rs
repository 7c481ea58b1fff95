//! A message that is hidden is nobody else's until its time.

use super::index::{Index, Message, Seen, Settled};
use super::policies::delay_of;
use super::{Violation, violation};
use crate::history::record::{Action, Call, Micros, Target};

/// Between two deliveries of a message its visibility timeout ends: the one of the read, or the one that was set since.
/// A give-back that shortens somebody's timeout shows here too.
pub(super) fn hidden_messages_stay_hidden(index: &Index<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for (&(queue, msg_id), message) in &index.messages {
        for pair in message.deliveries.windows(2) {
            let (earlier, later) = (pair[0], pair[1]);
            if earlier.delivery.last_read_at == later.delivery.last_read_at {
                continue;
            }
            let Some(until) = hidden_until(message, &earlier, &later) else { continue };
            if later.delivery.last_read_at < until {
                let early = until - later.delivery.last_read_at;
                let what =
                    format!("message {msg_id} of {queue} was delivered again {early} µs before its time");
                let changes = changes(message, &earlier).map(|settled| settled.call);
                let calls: Vec<&Call> = [earlier.call, later.call].into_iter().chain(changes).collect();
                found.push(violation("hidden_messages_stay_hidden", what, &calls));
            }
        }
    }
    found
}

/// The changes of visibility by the receipt of a delivery.
fn changes<'m, 'a>(message: &'m Message<'a>, of: &Seen<'a>) -> impl Iterator<Item = &'m Settled<'a>> {
    let receipt = of.delivery.receipt();
    message.settles.iter().filter(move |settled| {
        settled.settle.target == receipt && !settled.settle.action.removes() && settled.may_have_happened()
    })
}

/// The moment until which a delivery hides its message at least; none if somebody may have made it visible.
fn hidden_until(message: &Message<'_>, earlier: &Seen<'_>, later: &Seen<'_>) -> Option<Micros> {
    let by_anybody = message.settles.iter().any(|settled| {
        let changes = matches!(settled.settle.target, Target::Id(_)) && !settled.settle.action.removes();
        changes && settled.may_have_happened() && settled.call.asked < later.delivery.seen
    });
    if by_anybody {
        return None;
    }
    let changes: Vec<&Settled<'_>> = changes(message, earlier).collect();
    let may_shorten =
        |settled: &&Settled<'_>| matches!(settled.settle.action, Action::Hide | Action::GiveBack);
    if changes.iter().filter(|settled| may_shorten(settled)).any(|settled| !settled.is_done()) {
        return None;
    }
    // Of changes that did not overlap the last one counts, of others any may be the last.
    let last = changes.iter().filter(|settled| {
        let replaced = |other: &&Settled<'_>| other.is_done() && other.call.asked > settled.call.answered;
        settled.is_done() && !changes.iter().any(replaced)
    });
    let set = last.map(|settled| settled.settle.vt.unwrap_or(Micros::MIN)).min();
    Some(set.unwrap_or(earlier.delivery.vt))
}

/// A message that was sent with a delay is not delivered before.
pub(super) fn delayed_messages_are_not_early(index: &Index<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for (&(queue, msg_id), message) in &index.messages {
        let delay = delay_of(index, queue, message).map_or(0, |(shortest, _)| shortest);
        let (Some(sent), Some(first)) = (message.sends.first(), message.deliveries.first()) else { continue };
        let by_id = |settled: &Settled<'_>| matches!(settled.settle.target, Target::Id(_));
        if message.settles.iter().any(by_id) {
            continue;
        }
        if first.delivery.last_read_at < first.delivery.enqueued_at + delay {
            let what = format!("message {msg_id} of {queue} was delivered before its delay was over");
            found.push(violation("delayed_messages_are_not_early", what, &[sent.call, first.call]));
        }
    }
    found
}

/// An extend leaves the message hidden at least as long as it was.
pub(super) fn extending_never_shortens(index: &Index<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for (&(queue, msg_id), message) in &index.messages {
        for settled in message.settles.iter().filter(|settled| settled.settle.action == Action::Extend) {
            let Target::Receipt { last_read_at, .. } = settled.settle.target else { continue };
            let (Some(own), Some(vt), true) =
                (message.delivery_at(last_read_at), settled.settle.vt, settled.is_done())
            else {
                continue;
            };
            // Only a release in between makes an earlier moment right.
            let released = message.settles.iter().any(|other| {
                matches!(other.settle.action, Action::Hide | Action::GiveBack)
                    && other.may_have_happened()
                    && other.call.asked < settled.call.answered
            });
            let before = message.settles.iter().filter(|other| {
                other.settle.target == settled.settle.target
                    && other.is_done()
                    && other.call.answered < settled.call.asked
            });
            let held = before
                .filter_map(|other| other.settle.vt)
                .max()
                .unwrap_or(own.delivery.vt)
                .max(own.delivery.vt);
            if vt < held && !released {
                let what = format!(
                    "an extend of message {msg_id} of {queue} shortened its time by {} µs",
                    held - vt
                );
                found.push(violation("extending_never_shortens", what, &[own.call, settled.call]));
            }
        }
    }
    found
}
