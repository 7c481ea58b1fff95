//! Each delivery is one caller's, counts once, and comes before the message's end.

use std::collections::BTreeMap;

use super::index::{Id, Index, Seen, Settled};
use super::{Violation, violation};
use crate::history::record::{Call, Micros};

/// What a receipt names reaches one call, once.
pub(super) fn a_delivery_reaches_one_call(index: &Index<'_>) -> Vec<Violation> {
    let mut first: BTreeMap<(Id<'_>, i32, Micros, Micros), &Seen<'_>> = BTreeMap::new();
    let mut found = Vec::new();
    for (id, message) in &index.messages {
        for seen in &message.deliveries {
            let delivery = seen.delivery;
            let name = (*id, delivery.read_ct, delivery.enqueued_at, delivery.last_read_at);
            if let Some(other) = first.insert(name, seen) {
                let what = format!("one delivery of message {} of {} reached two callers", id.1, id.0);
                found.push(violation("a_delivery_reaches_one_call", what, &[other.call, seen.call]));
            }
        }
    }
    found
}

/// `read_ct` grows with every delivery that is not given back, and by no more than the deliveries that there may have been.
pub(super) fn read_counts_count_deliveries(index: &Index<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for (&(queue, msg_id), message) in &index.messages {
        let mut earlier: Option<&Seen<'_>> = None;
        for seen in &message.deliveries {
            let counted = earlier.map_or(0, |earlier| earlier.delivery.read_ct);
            let given_back = || earlier.iter().flat_map(|earlier| message.give_backs(earlier.delivery));
            let least = counted - i32::from(given_back().next().is_some());
            let most = counted - i32::from(given_back().any(Settled::is_done));
            let since = earlier.map_or(Micros::MIN / 2, |earlier| earlier.call.asked);
            let now = seen.delivery.read_ct;
            let why = if now <= least {
                Some("it does not count the delivery before it")
            } else if now > most + 1 && !index.may_have_read_unseen(queue, since, seen.delivery.seen) {
                Some("it counts deliveries that reached nobody")
            } else {
                None
            };
            if let Some(why) = why {
                let what = format!("message {msg_id} of {queue} has read_ct {now} after {counted}: {why}");
                let calls: Vec<&Call> =
                    earlier.map(|earlier| earlier.call).into_iter().chain([seen.call]).collect();
                found.push(violation("read_counts_count_deliveries", what, &calls));
            }
            earlier = Some(seen);
        }
    }
    found
}

/// A message that was removed is not delivered by a read that began later, and is not in the queue at the end.
pub(super) fn nothing_returns_once_removed(index: &Index<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for (&(queue, msg_id), message) in &index.messages {
        let settled = message.settles.iter().filter(|settled| settled.removed()).map(|settled| settled.call);
        let popped = message.pops.iter().filter(|seen| seen.call.is_done()).map(|seen| seen.call);
        let Some(removal) = settled.chain(popped).min_by_key(|call| call.answered) else { continue };
        let later =
            message.deliveries.iter().chain(&message.pops).find(|seen| seen.began() > removal.answered);
        if let Some(seen) = later {
            let what = format!("message {msg_id} of {queue} was removed, and delivered later");
            found.push(violation("nothing_returns_once_removed", what, &[removal, seen.call]));
        } else if message.in_queue.is_some() {
            let what = format!("message {msg_id} of {queue} was removed, and is in the queue at the end");
            found.push(violation("nothing_returns_once_removed", what, &[removal]));
        }
    }
    found
}
