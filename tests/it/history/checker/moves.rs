//! What is moved from queue to queue is moved once, and arrives.

use std::collections::{BTreeMap, BTreeSet};

use super::index::{Index, Sent};
use super::lives::{Pair, pairs};
use super::sends::ids_of_bodies;
use super::{Violation, violation};
use crate::history::operators::Shelf;
use crate::history::record::{Call, Micros};

/// Each redrive that moved a message has made a new one, under an id that no send was told.
pub(super) fn what_is_redriven_arrives(index: &Index<'_>) -> Vec<Violation> {
    let ids = ids_of_bodies(index);
    let mut found = Vec::new();
    for (&(queue, body), sends) in &index.bodies {
        let redriven: Vec<&Call> = sends
            .iter()
            .filter(|sent| is_redrive(sent))
            .map(|sent| sent.call)
            .filter(|call| call.is_done())
            .collect();
        let told: BTreeSet<i64> = sends.iter().filter_map(|sent| sent.send.msg_id).collect();
        let arrived = ids.get(&(queue, body)).map_or(0, |ids| ids.difference(&told).count());
        let taken = index.may_have_popped_unseen(queue, Micros::MIN)
            || index.emptied_since(queue, Micros::MIN).next().is_some();
        if arrived < redriven.len() && !taken {
            let what =
                format!("{body} was redriven to {queue} {} times, and came {arrived} times", redriven.len());
            found.push(violation("what_is_redriven_arrives", what, &redriven));
        }
    }
    found
}

/// From which queue to which one messages were moved, when that was asked for, and by whom.
type By<'a> = (&'a str, &'a str, Micros, &'a str);

/// The messages that one call moves to a queue keep their order. Only those are judged that no other call can have moved.
pub(super) fn moves_keep_the_order(index: &Index<'_>) -> Vec<Violation> {
    let pairs = pairs(index);
    let mut moved: BTreeMap<By<'_>, Vec<(i64, &Pair<'_, '_>)>> = BTreeMap::new();
    for pair in &pairs {
        let movers = pair.movers(index);
        let [mover] = movers.as_slice() else { continue };
        let (from, msg_id) = pair.former.id;
        let place = match mover.moved.from {
            Shelf::Archive => Some(msg_id),
            // Where letters come back, one may have been another letter before.
            Shelf::DeadLetters => pair.former.message.id_as_letter.filter(|_| !index.is_moved_into(from)),
        };
        let by = (from, pair.next.id.0, mover.call.asked, mover.call.who.as_str());
        moved.entry(by).or_default().extend(place.map(|place| (place, pair)));
    }
    let mut found = Vec::new();
    for ((from, to, _, who), mut messages) in moved {
        messages.sort_by_key(|(place, _)| *place);
        for two in messages.windows(2) {
            let [(_, first), (_, second)] = two else { continue };
            if first.next.id.1 > second.next.id.1 {
                let what = format!(
                    "{who} moved {} and {} from {from} to {to}, and the second one came first, as {} before {}",
                    first.body, second.body, second.next.id.1, first.next.id.1
                );
                let calls: Vec<&Call> = first.movers(index).into_iter().map(|mover| mover.call).collect();
                found.push(violation("moves_keep_the_order", what, &calls));
            }
        }
    }
    found
}

/// What came out of a dead-letter queue is no dead letter any more.
pub(super) fn what_is_redriven_is_no_letter(index: &Index<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for listed in index.lists.iter().filter(|listed| index.is_moved_into(&listed.list.queue)) {
        let queue = &listed.list.queue;
        for letter in listed.list.rows.iter().filter_map(|row| row.letter.as_ref()) {
            let what = format!("{} came to {queue}, and has the header of a dead letter", letter.body);
            found.push(violation("what_is_redriven_is_no_letter", what, &[listed.call]));
        }
    }
    found
}

/// Whether the message came back by a redrive.
pub(super) fn is_redrive(sent: &Sent<'_>) -> bool {
    sent.call.what == "RedriveMessages"
}
