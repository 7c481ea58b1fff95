//! The order inside FIFO groups.

use std::collections::BTreeMap;

use super::index::{Index, Message, Seen, Sent};
use super::{Violation, violation};
use crate::history::record::{Call, Part};

/// A read of heads gives no message of a group while an earlier one exists. Earlier is what was acknowledged before the
/// other was sent, or stands before it in one call or one stream.
pub(super) fn groups_keep_their_order(index: &Index<'_>) -> Vec<Violation> {
    let mut groups: BTreeMap<(&str, &str), Vec<(&Message<'_>, Sent<'_>)>> = BTreeMap::new();
    for (&(queue, _), message) in &index.messages {
        if let Some(sent) = message.sends.first()
            && let Some(group) = &sent.send.group
        {
            groups.entry((queue, group)).or_default().push((message, *sent));
        }
    }
    let mut found = Vec::new();
    for ((queue, group), mut members) in groups {
        let place = |sent: &Sent<'_>| sent.send.place.as_ref().map(|(_, place)| *place);
        members.sort_by_key(|(_, sent)| (sent.call.asked, place(sent), position(sent)));
        for (place, (later, sent)) in members.iter().enumerate() {
            for seen in later.deliveries.iter().filter(|seen| seen.read.heads) {
                let earlier = members[..place]
                    .iter()
                    .rev()
                    .find(|(message, other)| comes_before(other, sent) && existed_at(message, seen));
                if let Some((message, other)) = earlier {
                    let what = format!(
                        "{} of group {group} in {queue} was delivered while {} was there",
                        sent.send.body, other.send.body
                    );
                    let ends = message.settles.iter().filter(|settled| settled.removed());
                    let mut calls: Vec<&Call> = vec![other.call, sent.call, seen.call];
                    calls.extend(ends.map(|settled| settled.call));
                    found.push(violation("groups_keep_their_order", what, &calls));
                }
            }
        }
    }
    found
}

fn position(sent: &Sent<'_>) -> usize {
    let is_it = |part: &Part| matches!(part, Part::Send(send) if std::ptr::eq(send, sent.send));
    sent.call.parts.iter().position(is_it).unwrap_or_default()
}

fn comes_before(earlier: &Sent<'_>, later: &Sent<'_>) -> bool {
    if std::ptr::eq(earlier.call, later.call) {
        return position(earlier) < position(later);
    }
    // A stream's messages are sent in its order, without waiting for each other's answers.
    if let (Some((stream, place)), Some((other, after))) = (&earlier.send.place, &later.send.place)
        && stream == other
    {
        return place < after;
    }
    earlier.call.answered < later.call.asked
}

/// Whether a message was certainly in its queue when another was read.
fn existed_at(message: &Message<'_>, seen: &Seen<'_>) -> bool {
    let read_at = seen.delivery.last_read_at;
    let delivered_later = message.deliveries.iter().any(|other| other.delivery.last_read_at > read_at);
    let removed_later = message.settles.iter().any(|settled| {
        settled.removed() && !settled.call.repeated && settled.call.asked > seen.delivery.seen
    });
    message.in_queue.is_some() || delivered_later || removed_later
}
