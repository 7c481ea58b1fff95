//! A purge removes what is there, and says how much that was.

use std::collections::BTreeSet;

use super::index::{Emptied, Id, Index, Message, Sent};
use super::{Violation, violation};
use crate::history::record::{Call, Micros};

/// The count of a purge lies between the messages that were certainly there and those that may have been.
pub(super) fn a_purge_counts_what_it_removes(index: &Index<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for (purge, queue, count) in purges(index) {
        let Some(count) = count else { continue };
        let of_queue: Vec<_> = index.messages.range((queue, i64::MIN)..=(queue, i64::MAX)).collect();
        let least = of_queue.iter().filter(|(id, message)| was_there(index, id, message, purge)).count();
        let most = of_queue.iter().filter(|(id, message)| may_have_been_there(index, id, message, purge));
        let seen: BTreeSet<&str> = of_queue.iter().flat_map(|(_, message)| bodies(message)).collect();
        let unseen = index.bodies.iter().filter(|((of, _), _)| *of == queue);
        let unseen = unseen.map(|((_, body), sends)| unseen_messages(sends, seen.contains(body), purge));
        let most = most.count() + unseen.sum::<usize>();
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        if !(least..=most).contains(&count) {
            let what = format!("a purge of {queue} removed {least} to {most} messages, and counted {count}");
            found.push(violation("a_purge_counts_what_it_removes", what, &[purge]));
        }
    }
    found
}

/// What was acknowledged before a purge is not delivered by a read that began after it, nor in the queue at the end.
pub(super) fn nothing_survives_a_purge(index: &Index<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for (purge, queue, _) in purges(index) {
        for ((_, msg_id), message) in index.messages.range((queue, i64::MIN)..=(queue, i64::MAX)) {
            let Some(sent) = first_acknowledged(message).filter(|sent| sent.answered < purge.asked) else {
                continue;
            };
            let later =
                message.deliveries.iter().chain(&message.pops).find(|seen| seen.began() > purge.answered);
            if later.is_some() || message.in_queue.is_some() {
                let what = format!("message {msg_id} of {queue} was there after it had been purged");
                let calls: Vec<&Call> =
                    [sent, purge].into_iter().chain(later.map(|seen| seen.call)).collect();
                found.push(violation("nothing_survives_a_purge", what, &calls));
            }
        }
    }
    found
}

/// All purges that were answered, with their queues and counts.
fn purges<'i, 'a>(
    index: &'i Index<'a>,
) -> impl Iterator<Item = (&'a Call, &'a str, Option<i64>)> + use<'i, 'a> {
    index
        .all_emptied()
        .filter(|emptied| emptied.call.is_done() && !emptied.empty.drops)
        .map(|Emptied { call, empty }| (*call, empty.queue.as_str(), empty.count))
}

fn bodies<'a>(message: &Message<'a>) -> impl Iterator<Item = &'a str> {
    let sent = message.sends.iter().map(|sent| sent.send.body.as_str());
    let reads = message.deliveries.iter().chain(&message.pops).chain(&message.undone);
    sent.chain(reads.map(|seen| seen.delivery.body.as_str()))
        .chain(message.in_queue)
        .chain(message.in_archive.iter().copied())
        .collect::<Vec<_>>()
        .into_iter()
}

/// How many messages of one body the sends of unknown outcome may have made before a purge, which nobody has seen. Under
/// a key each may have made one, in a window of its own, whatever is known of others.
fn unseen_messages(sends: &[Sent<'_>], is_seen: bool, purge: &Call) -> usize {
    let unheard = sends.iter().filter(|sent| sent.call.is_unknown() && sent.call.asked < purge.answered);
    let is_keyed = sends.iter().any(|sent| sent.send.key.is_some() || sent.call.key.is_some());
    match (is_keyed, is_seen) {
        (true, _) => unheard.count(),
        (false, true) => 0,
        (false, false) => unheard.count().min(1),
    }
}

fn first_acknowledged<'a>(message: &Message<'a>) -> Option<&'a Call> {
    message.sends.iter().map(|sent| sent.call).min_by_key(|call| call.answered)
}

/// Whether a message was certainly in its queue for the whole time of a purge.
fn was_there(index: &Index<'_>, (queue, _): &Id<'_>, message: &Message<'_>, purge: &Call) -> bool {
    let Some(sent) = first_acknowledged(message).filter(|sent| sent.answered < purge.asked) else {
        return false;
    };
    let settled = message
        .settles
        .iter()
        .any(|settled| settled.may_have_removed() && settled.call.asked < purge.answered);
    let began = message.sent_at().unwrap_or(sent.asked);
    let emptied = index
        .emptied_since(queue, began)
        .any(|other| !std::ptr::eq(other.call, purge) && other.call.asked < purge.answered);
    let popped = !message.pops.is_empty() || index.may_have_popped_unseen(queue, began);
    !settled && !emptied && !popped
}

/// Whether a message may have been in its queue at some time of a purge.
fn may_have_been_there(index: &Index<'_>, (queue, _): &Id<'_>, message: &Message<'_>, purge: &Call) -> bool {
    let settled =
        message.settles.iter().any(|settled| settled.removed() && settled.call.answered < purge.asked);
    let popped = message.pops.iter().any(|seen| seen.call.is_done() && seen.call.answered < purge.asked);
    let sent = first_acknowledged(message).map_or(Micros::MAX, |sent| sent.answered);
    let emptied = index.emptied_since(queue, sent).any(|other| {
        let before = other.call.answered < purge.asked && other.call.asked > sent;
        other.call.is_done() && before
    });
    let sent_before = message.sends.iter().any(|sent| sent.call.asked <= purge.answered);
    let may_be_sent_before = sent_before || message.sends.is_empty();
    may_be_sent_before && !settled && !popped && !emptied
}
