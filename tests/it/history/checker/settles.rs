//! What the answers to settles promise.

use super::index::{Index, Message, Settled};
use super::lives::former_lives;
use super::{Violation, violation};
use crate::history::record::{Action, Call, Micros, Outcome, Target};

/// Of all deletes and archives of a message one is DONE at most.
pub(super) fn a_message_is_removed_once(index: &Index<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for (&(queue, msg_id), message) in &index.messages {
        // Equal items of one call are one settle, and get equal answers.
        let mut calls: Vec<&Call> =
            message.settles.iter().filter(|settled| settled.removed()).map(|settled| settled.call).collect();
        // So are repetitions of one call under its key.
        calls.dedup_by(|a, b| std::ptr::eq(*a, *b) || a.key.is_some() && a.key == b.key);
        calls.extend(message.pops.iter().map(|seen| seen.call));
        if calls.len() > 1 {
            let what = format!("message {msg_id} of {queue} was removed {} times", calls.len());
            found.push(violation("a_message_is_removed_once", what, &calls));
        }
        let copies = message.stored().count();
        if copies > 1 {
            let what = format!("message {msg_id} of {queue} is stored {copies} times at the end");
            found.push(violation("a_message_is_removed_once", what, &calls));
        }
    }
    found
}

/// A receipt settles only while no newer delivery exists, and nothing once it has given its delivery back.
pub(super) fn only_the_newest_delivery_settles(index: &Index<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for (settled, message, id, last_read_at) in by_receipt(index) {
        if !settled.is_done() {
            continue;
        }
        let newer = message.deliveries.iter().find(|seen| {
            let is_newer = seen.delivery.last_read_at > last_read_at;
            // A change of visibility is followed by newer deliveries; only one that was there before makes it wrong.
            is_newer && (settled.settle.action.removes() || seen.delivery.seen < settled.call.asked)
        });
        if let Some(newer) = newer {
            let what = format!("an old receipt of message {} of {} settled it", id.1, id.0);
            found.push(violation("only_the_newest_delivery_settles", what, &[newer.call, settled.call]));
        }
        let given_back = message.settles.iter().find(|other| {
            other.settle.action == Action::GiveBack
                && other.settle.target == settled.settle.target
                && other.is_done()
                && other.call.answered < settled.call.asked
        });
        if let Some(given_back) = given_back {
            let what = format!("a receipt of message {} of {} settled what it had given back", id.1, id.0);
            found.push(violation("only_the_newest_delivery_settles", what, &[given_back.call, settled.call]));
        }
    }
    found
}

/// The receipt of a read that was rolled back is never DONE.
pub(super) fn rolled_back_reads_settle_nothing(index: &Index<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for (settled, message, id, last_read_at) in by_receipt(index) {
        let undone = message.undone.iter().find(|seen| seen.delivery.last_read_at == last_read_at);
        if let Some(undone) = undone
            && undone.call.is_refused()
            && settled.is_done()
            // Inside the transaction it is good until the end.
            && !std::ptr::eq(undone.call, settled.call)
        {
            let what = format!(
                "a receipt of message {} of {} is of a read that was rolled back, and settled it",
                id.1, id.0
            );
            found.push(violation("rolled_back_reads_settle_nothing", what, &[undone.call, settled.call]));
        }
    }
    found
}

/// STALE needs a newer delivery, seen or possibly unseen, or that its own was given back.
pub(super) fn stale_means_read_again(index: &Index<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for (settled, message, id, last_read_at) in by_receipt(index) {
        if settled.settle.outcome != Some(Outcome::Stale) || !settled.call.is_done() {
            continue;
        }
        // The receipt of a read that may not have happened never names anything.
        let Some(own) = message.delivery_at(last_read_at).filter(|own| !own.call.whole || own.call.is_done())
        else {
            continue;
        };
        let newer = message
            .deliveries
            .iter()
            .any(|seen| seen.delivery.last_read_at > last_read_at && seen.call.asked < settled.call.answered);
        let given_back =
            message.give_backs(own.delivery).any(|other| other.call.asked < settled.call.answered);
        if !newer
            && !given_back
            && !index.may_be_dropped(id.0)
            && !index.may_have_read_unseen(id.0, own.call.asked, settled.call.answered)
        {
            let what = format!("message {} of {} was STALE, and nobody else had read it", id.1, id.0);
            found.push(violation("stale_means_read_again", what, &[own.call, settled.call]));
        }
    }
    found
}

/// Once its queue was dropped, a receipt is STALE, whatever a new queue of the name holds.
pub(super) fn dropped_queues_settle_nothing(index: &Index<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for (settled, _, (queue, msg_id), _) in by_receipt(index) {
        let dropped = index
            .emptied_since(queue, Micros::MIN)
            .find(|emptied| emptied.empty.drops && emptied.call.is_done());
        let Some(dropped) = dropped.filter(|dropped| dropped.call.answered < settled.call.asked) else {
            continue;
        };
        if settled.call.is_done() && settled.settle.outcome != Some(Outcome::Stale) {
            let outcome = settled.settle.outcome;
            let what = format!("message {msg_id} of {queue}, which was dropped, was {outcome:?}");
            found.push(violation("dropped_queues_settle_nothing", what, &[dropped.call, settled.call]));
        }
    }
    found
}

/// NOT_FOUND needs somebody who removed the message, and it never shows again.
pub(super) fn not_found_means_gone(index: &Index<'_>) -> Vec<Violation> {
    let has_next = former_lives(index);
    let mut found = Vec::new();
    for (&(queue, msg_id), message) in &index.messages {
        for settled in &message.settles {
            if settled.settle.outcome != Some(Outcome::NotFound) || !settled.call.is_done() {
                continue;
            }
            let has_moved = has_next.contains(&(queue, msg_id));
            if let Some(why) = not_gone(index, queue, message, settled, has_moved) {
                let mut calls = why.1;
                calls.push(settled.call);
                let what = format!("message {msg_id} of {queue} was NOT_FOUND, {}", why.0);
                found.push(violation("not_found_means_gone", what, &calls));
            }
        }
    }
    found
}

fn not_gone<'a>(
    index: &Index<'a>,
    queue: &str,
    message: &Message<'a>,
    settled: &Settled<'a>,
    has_moved: bool,
) -> Option<(&'static str, Vec<&'a Call>)> {
    let answered = settled.call.answered;
    let later = message.deliveries.iter().find(|seen| seen.began() > answered);
    if let Some(seen) = later {
        return Some(("and delivered later", vec![seen.call]));
    }
    if message.in_queue.is_some() {
        return Some(("and is in the queue at the end", Vec::new()));
    }
    if message.sends.is_empty() && message.deliveries.is_empty() {
        // An id that nobody knows: nothing is to be said.
        return None;
    }
    let removed = message.settles.iter().any(|other| other.may_have_removed() && other.call.asked < answered);
    let popped = message.pops.iter().any(|seen| seen.call.asked < answered);
    let sent = message.sends.iter().map(|sent| sent.call.asked).min().unwrap_or(Micros::MIN / 2);
    let emptied = index.emptied_since(queue, sent).any(|emptied| emptied.call.asked < answered);
    let gone = removed
        || popped
        || emptied
        || !message.letters.is_empty()
        || has_moved
        || index.may_have_popped_unseen(queue, sent);
    (!gone).then(|| ("and nobody had removed it", message.deliveries.iter().map(|seen| seen.call).collect()))
}

/// All settles by receipt, with their messages and the moments of the reads that the receipts name.
fn by_receipt<'i, 'a>(
    index: &'i Index<'a>,
) -> impl Iterator<Item = (&'i Settled<'a>, &'i Message<'a>, (&'a str, i64), Micros)> {
    index.messages.iter().flat_map(|(id, message)| {
        message.settles.iter().filter_map(move |settled| match settled.settle.target {
            Target::Receipt { last_read_at, .. } => Some((settled, message, *id, last_read_at)),
            Target::Id(_) => None,
        })
    })
}
