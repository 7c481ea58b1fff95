//! What is acknowledged is kept, what is refused is not, and nothing else appears.

use std::collections::{BTreeMap, BTreeSet};

use super::index::{Id, Index, Message, Sent, Settled};
use super::lives::{all_calls, former_lives, may_be_cleared, pairs};
use super::moves::is_redrive;
use super::{Violation, violation};
use crate::history::record::{Action, Call, Part};

/// An acknowledged message is in the queue or the archive at the end, or somebody may have removed it; and what was
/// archived is in the archive, unless it has come back, or may have been deleted there.
pub(super) fn nothing_is_lost(index: &Index<'_>) -> Vec<Violation> {
    let has_next = former_lives(index);
    let mut found = Vec::new();
    for (&(queue, msg_id), message) in &index.messages {
        if has_next.contains(&(queue, msg_id)) {
            continue;
        }
        let is_kept = message.stored().next().is_some();
        let is_known = !message.sends.is_empty() || index.is_moved_into(queue) && message.body().is_some();
        let cleared = || may_be_cleared(index, (queue, msg_id), message, index.history.ended);
        if is_known && !is_kept && !may_be_gone(index, queue, message) && !cleared() {
            let body = message.body().unwrap_or_default();
            let what =
                format!("message {msg_id} of {queue} ({body}) was there; nobody removed it, and it is gone");
            found.push(violation("nothing_is_lost", what, &all_calls(message)));
        }
        let archived = message.settles.iter().any(Settled::archived);
        if archived && message.in_archive.is_empty() && !index.may_be_dropped(queue) && !cleared() {
            let what = format!("message {msg_id} of {queue} was archived and is not in the archive");
            found.push(violation("nothing_is_lost", what, &all_calls(message)));
        }
        let is_dead =
            |settled: &Settled<'_>| settled.is_done() && settled.settle.action == Action::DeadLetter;
        if message.settles.iter().any(is_dead) && message.letters.is_empty() {
            let what = format!("message {msg_id} of {queue} became a dead letter and is none at the end");
            found.push(violation("nothing_is_lost", what, &all_calls(message)));
        }
    }
    found
}

fn may_be_gone(index: &Index<'_>, queue: &str, message: &Message<'_>) -> bool {
    // What is archived, or a dead letter, is not gone.
    let deleted = message.settles.iter().any(Settled::may_have_ended);
    let sent = message.sent_at().unwrap_or_else(|| message.there_by());
    let taken = !message.pops.is_empty() || index.may_have_popped_unseen(queue, sent);
    deleted || taken || index.emptied_since(queue, sent).next().is_some()
}

/// Every body that is delivered or stored was sent before, by a call that was not refused.
pub(super) fn nothing_comes_from_nowhere(index: &Index<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for (&(queue, msg_id), message) in &index.messages {
        let deliveries = message.deliveries.iter().chain(&message.pops).chain(&message.undone);
        let delivered = deliveries.map(|seen| (seen.delivery.body.as_str(), Some(seen)));
        let listed = message.shown.iter().map(|page| (page.shown.message.body.as_str(), None));
        let stored = message.stored().map(|body| (body, None)).chain(listed);
        for (body, seen) in delivered.chain(stored) {
            let sends = index.sends_of(queue, body);
            let why = match sends.as_slice() {
                [] => "and nobody sent it".to_owned(),
                _ if sends.iter().all(|sent| sent.call.is_refused()) => {
                    "though its send was refused".to_owned()
                }
                _ if seen
                    .is_some_and(|seen| sends.iter().all(|sent| sent.call.asked > seen.delivery.seen)) =>
                {
                    "before it was sent".to_owned()
                }
                _ => continue,
            };
            let verb = if seen.is_some() { "was delivered" } else { "is stored" };
            let calls: Vec<&Call> =
                sends.iter().map(|sent| sent.call).chain(seen.map(|seen| seen.call)).collect();
            let what = format!("message {msg_id} of {queue} ({body}) {verb}, {why}");
            found.push(violation("nothing_comes_from_nowhere", what, &calls));
            break;
        }
    }
    found
}

/// The ids that each body was seen under, whoever saw them.
pub(super) fn ids_of_bodies<'a>(index: &Index<'a>) -> BTreeMap<(&'a str, &'a str), BTreeSet<i64>> {
    let mut ids: BTreeMap<(&str, &str), BTreeSet<i64>> = BTreeMap::new();
    for (&(queue, msg_id), message) in &index.messages {
        // Who reads a message in a transaction that is rolled back has seen it all the same.
        let reads = message.deliveries.iter().chain(&message.pops).chain(&message.undone);
        let delivered = reads.map(|seen| seen.delivery.body.as_str());
        let listed = message.shown.iter().map(|page| page.shown.message.body.as_str());
        let letters = message.letters_shown.iter().map(|(_, letter)| letter.body.as_str());
        for body in delivered.chain(message.stored()).chain(listed).chain(letters) {
            ids.entry((queue, body)).or_default().insert(msg_id);
        }
    }
    ids
}

/// A send without a deduplication id makes at most one message, whatever its caller was told; so does each move.
pub(super) fn each_send_is_stored_once(index: &Index<'_>) -> Vec<Violation> {
    let mut moved: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut foreign = BTreeSet::new();
    for pair in pairs(index) {
        let (from, to) = (pair.former.id.0, pair.next.id.0);
        if from != to {
            foreign.insert((to, pair.body));
        }
        *moved.entry((to, pair.body)).or_default() += usize::from(pair.may_be_moved(index));
    }
    let mut found = Vec::new();
    for ((queue, body), ids) in ids_of_bodies(index) {
        let sends = index.bodies.get(&(queue, body)).map(Vec::as_slice).unwrap_or_default();
        let keyed = |sent: &Sent<'_>| sent.send.key.is_some() || sent.call.key.is_some();
        let sent = sends.iter().filter(|sent| !sent.call.is_refused()).count();
        let most = sent.max(usize::from(!foreign.contains(&(queue, body))));
        let most = most + moved.get(&(queue, body)).copied().unwrap_or_default();
        if ids.len() > most && !sends.iter().any(keyed) {
            let calls: Vec<&Call> = sends.iter().map(|sent| sent.call).collect();
            let what = format!("{body} was sent or moved to {queue} {most} times and stored as {ids:?}");
            found.push(violation("each_send_is_stored_once", what, &calls));
        }
    }
    found
}

/// An id belongs to one acknowledged send, or to repetitions under one key, and to its body everywhere.
pub(super) fn ids_belong_to_their_bodies(index: &Index<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for (id, message) in &index.messages {
        let Some(body) = message.body() else { continue };
        let sends = message.sends.iter().filter(|sent| sent.send.body != body);
        let deliveries = message.deliveries.iter().chain(&message.pops).chain(&message.undone);
        let deliveries = deliveries.filter(|seen| seen.delivery.body != body);
        let mut others: Vec<&Call> =
            sends.map(|sent| sent.call).chain(deliveries.map(|seen| seen.call)).collect();
        let listed = message.shown.iter().map(|page| page.shown.message.body.as_str());
        let stored = message.stored().chain(listed).any(|stored| stored != body);
        if !others.is_empty() || stored {
            others.extend(message.sends.iter().map(|sent| sent.call));
            let what = format!("message {} of {} is {body} to one and something else to another", id.1, id.0);
            found.push(violation("ids_belong_to_their_bodies", what, &others));
        }
        found.extend(shared_id(*id, message));
    }
    found
}

fn shared_id(id: Id<'_>, message: &Message<'_>) -> Option<Violation> {
    let [first, second, ..] = message.sends.as_slice() else { return None };
    let key_of = |sent: &Sent<'_>| sent.send.key.clone().or_else(|| sent.call.key.clone());
    let same_key = message.sends.iter().all(|sent| key_of(sent) == key_of(first)) && key_of(first).is_some();
    let what = format!("message {} of {} was acknowledged to two sends", id.1, id.0);
    (!same_key).then(|| violation("ids_belong_to_their_bodies", what, &[first.call, second.call]))
}

/// Of a call that happens whole, an unknown one included, no part is seen without the others.
pub(super) fn whole_calls_happen_whole(index: &Index<'_>) -> Vec<Violation> {
    let ids = ids_of_bodies(index);
    let elsewhere =
        ids.keys().flat_map(|&(queue, body)| index.sources_of(queue).map(move |from| (from, body)));
    let moved_elsewhere: BTreeSet<(&str, &str)> = elsewhere.collect();
    let mut first_asked = BTreeMap::new();
    for call in &index.history.calls {
        let first = first_asked.entry(call.key.as_deref()).or_insert(call.asked);
        *first = call.asked.min(*first);
    }
    let mut found = Vec::new();
    for call in index.history.calls.iter().filter(|call| call.whole && call.is_unknown()) {
        // Under a key, all of it may have been stored by an earlier call.
        let asked = call.key.as_deref().map_or(call.asked, |key| first_asked[&Some(key)]);
        // What has a key of its own may have been stored by another call.
        let own = call.sends().filter(|send| send.key.is_none());
        let sends = own.map(|send| (send.queue.as_str(), send.body.as_str()));
        // What came back to a queue was there before, too.
        let sends =
            sends.filter(|send| !index.bodies.get(send).is_some_and(|sends| sends.iter().any(is_redrive)));
        // What was moved elsewhere was there before, too.
        let (seen, unseen): (Vec<_>, Vec<_>) =
            sends.partition(|send| ids.contains_key(send) || moved_elsewhere.contains(send));
        // What was popped by a call that nobody heard of was never seen by anybody.
        let unseen = unseen.into_iter().find(|(queue, _)| {
            let emptied = index.emptied_since(queue, asked).next().is_some();
            !emptied && !index.may_have_popped_unseen(queue, asked)
        });
        if let (Some(seen), Some(unseen)) = (seen.first(), unseen) {
            let what = format!("of one call {} exists and {} does not", seen.1, unseen.1);
            found.push(violation("whole_calls_happen_whole", what, &[call]));
        }
        if let (Some(seen), Some(left)) = (seen.first(), left_behind(index, call)) {
            let what = format!(
                "of one call {} exists, and message {left}, which it removes, is still there",
                seen.1
            );
            found.push(violation("whole_calls_happen_whole", what, &[call]));
        }
    }
    found
}

/// A message that a call removes if it happens, and that is in its queue at the end.
fn left_behind(index: &Index<'_>, call: &Call) -> Option<i64> {
    call.parts.iter().find_map(|part| match part {
        Part::Settle(settle) if settle.action.removes() => {
            let msg_id = settle.target.msg_id();
            let message = index.messages.get(&(settle.queue.as_str(), msg_id))?;
            message.in_queue.map(|_| msg_id)
        }
        _ => None,
    })
}
