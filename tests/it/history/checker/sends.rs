//! What is acknowledged is kept, what is refused is not, and nothing else appears.

use std::collections::{BTreeMap, BTreeSet};

use super::index::{Id, Index, Message, Sent, Settled};
use super::moves::is_redrive;
use super::{Violation, violation};
use crate::history::record::{Action, Call, Part};

/// An acknowledged message is in the queue or the archive at the end, or somebody may have removed it; and what was
/// archived is in the archive.
pub(super) fn nothing_is_lost(index: &Index<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for (&(queue, msg_id), message) in &index.messages {
        let is_kept = message.stored().next().is_some();
        let evidence = || {
            let settles = message.settles.iter().map(|settled| settled.call);
            let reads = message.deliveries.iter().map(|seen| seen.call);
            message.sends.iter().map(|sent| sent.call).chain(reads).chain(settles).collect::<Vec<_>>()
        };
        if let Some(sent) = message.sends.iter().min_by_key(|sent| sent.call.asked)
            && !is_kept
            && !may_be_gone(index, queue, message, sent)
        {
            let body = &sent.send.body;
            let what = format!(
                "message {msg_id} of {queue} ({body}) was acknowledged; nobody removed it, and it is gone"
            );
            found.push(violation("nothing_is_lost", what, &evidence()));
        }
        let archived = message.settles.iter().any(Settled::archived);
        if archived && message.in_archive.is_empty() && !index.may_be_dropped(queue) {
            let what = format!("message {msg_id} of {queue} was archived and is not in the archive");
            found.push(violation("nothing_is_lost", what, &evidence()));
        }
        let is_dead =
            |settled: &Settled<'_>| settled.is_done() && settled.settle.action == Action::DeadLetter;
        if message.settles.iter().any(is_dead) && message.letters.is_empty() {
            let what = format!("message {msg_id} of {queue} became a dead letter and is none at the end");
            found.push(violation("nothing_is_lost", what, &evidence()));
        }
    }
    found
}

fn may_be_gone(index: &Index<'_>, queue: &str, message: &Message<'_>, sent: &Sent<'_>) -> bool {
    // What is archived, or a dead letter, is not gone.
    let deleted = message.settles.iter().any(Settled::may_have_ended);
    let taken = !message.pops.is_empty() || index.may_have_popped_unseen(queue, sent.call.asked);
    deleted || taken || index.emptied_since(queue, sent.call.asked).next().is_some()
}

/// Every body that is delivered or stored was sent before, by a call that was not refused.
pub(super) fn nothing_comes_from_nowhere(index: &Index<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for (&(queue, msg_id), message) in &index.messages {
        let deliveries = message.deliveries.iter().chain(&message.pops).chain(&message.undone);
        let delivered = deliveries.map(|seen| (seen.delivery.body.as_str(), Some(seen)));
        let stored = message.stored().map(|body| (body, None));
        for (body, seen) in delivered.chain(stored) {
            let sends = index.bodies.get(&(queue, body)).map(Vec::as_slice).unwrap_or_default();
            let why = match sends {
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
        let delivered =
            message.deliveries.iter().chain(&message.pops).map(|seen| seen.delivery.body.as_str());
        for body in delivered.chain(message.stored()) {
            ids.entry((queue, body)).or_default().insert(msg_id);
        }
    }
    ids
}

/// A send without a deduplication id makes at most one message, whatever its caller was told; so does a redrive.
pub(super) fn each_send_is_stored_once(index: &Index<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for ((queue, body), ids) in ids_of_bodies(index) {
        let sends = index.bodies.get(&(queue, body)).map(Vec::as_slice).unwrap_or_default();
        let keyed = |sent: &Sent<'_>| sent.send.key.is_some() || sent.call.key.is_some();
        let most = sends.iter().filter(|sent| !sent.call.is_refused()).count().max(1);
        if ids.len() > most && !sends.iter().any(keyed) {
            let calls: Vec<&Call> = sends.iter().map(|sent| sent.call).collect();
            let what = format!("{body} was sent to {queue} {most} times and stored as {ids:?}");
            found.push(violation("each_send_is_stored_once", what, &calls));
        }
    }
    found
}

/// An id belongs to one acknowledged send, or to repetitions under one key, and to its body everywhere.
pub(super) fn ids_belong_to_their_bodies(index: &Index<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for (id, message) in &index.messages {
        let Some(body) = body_of(message) else { continue };
        let sends = message.sends.iter().filter(|sent| sent.send.body != body);
        let deliveries = message.deliveries.iter().chain(&message.pops).chain(&message.undone);
        let deliveries = deliveries.filter(|seen| seen.delivery.body != body);
        let mut others: Vec<&Call> =
            sends.map(|sent| sent.call).chain(deliveries.map(|seen| seen.call)).collect();
        let stored = message.stored().any(|stored| stored != body);
        if !others.is_empty() || stored {
            others.extend(message.sends.iter().map(|sent| sent.call));
            let what = format!("message {} of {} is {body} to one and something else to another", id.1, id.0);
            found.push(violation("ids_belong_to_their_bodies", what, &others));
        }
        found.extend(shared_id(*id, message));
    }
    found
}

fn body_of<'a>(message: &Message<'a>) -> Option<&'a str> {
    let sent = message.sends.first().map(|sent| sent.send.body.as_str());
    sent.or_else(|| message.deliveries.first().map(|seen| seen.delivery.body.as_str()))
        .or_else(|| message.stored().next())
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
        let (seen, unseen): (Vec<_>, Vec<_>) = sends.partition(|send| ids.contains_key(send));
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
