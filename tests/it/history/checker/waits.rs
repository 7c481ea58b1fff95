//! Nobody waits for a message that is there.

use std::collections::BTreeMap;

use super::index::{Id, Index, Message, Settled};
use super::lives::{Pair, pairs};
use super::policies::delay_of;
use super::{Violation, violation};
use crate::history::record::{Call, Micros, Part, Read, Target};

/// A read that waits does not end empty, or late, beside a message that was visible all the time and was delivered or found
/// only later; nor is a stream open beside one whose client has room. Only undisturbed reads are judged that would take any
/// message.
pub(super) fn nobody_waits_beside_a_message(index: &Index<'_>) -> Vec<Violation> {
    let patience = index.history.patience;
    let arrivals = arrivals(index);
    let mut found = Vec::new();
    for call in &index.history.calls {
        let [Part::Read(read)] = call.parts.as_slice() else { continue };
        let Some((from, to)) = waited(call, read) else { continue };
        if to - from <= patience || index.is_disturbed(&read.queue, from, to) {
            continue;
        }
        let missed =
            index.messages.iter().filter(|((queue, _), _)| *queue == read.queue).find(|(id, message)| {
                let spans = visible_for_certain(index, id.0, message, arrivals.get(id).copied()).into_iter();
                spans
                    .map(|(since, until)| (since.max(from), until.min(to)))
                    .any(|(from, to)| to - from > patience)
            });
        if let Some(((queue, msg_id), message)) = missed {
            let what = format!("a read of {queue} waited beside message {msg_id}, which was visible");
            let calls: Vec<&Call> = message.sends.iter().map(|sent| sent.call).chain([call]).collect();
            found.push(violation("nobody_waits_beside_a_message", what, &calls));
        }
    }
    found
}

/// From when to when a read would have taken any message.
fn waited(call: &Call, read: &Read) -> Option<(Micros, Micros)> {
    if !read.takes_any || read.pops {
        return None;
    }
    if read.stream {
        return Some((read.open_since?, call.answered));
    }
    let got = read.deliveries.first().map_or(call.answered, |delivery| delivery.last_read_at);
    call.is_done().then_some((call.asked, got))
}

/// By when each message that was moved was visible where it came, if that is certain.
fn arrivals<'a>(index: &Index<'a>) -> BTreeMap<Id<'a>, Micros> {
    let arrival = |pair: &Pair<'_, 'a>| {
        let movers = pair.movers(index);
        let are_done = movers.iter().all(|moved| moved.call.is_done());
        let last = movers.iter().map(|moved| moved.call.answered).max();
        Some((pair.next.id, last.filter(|_| are_done)?))
    };
    pairs(index).iter().filter_map(arrival).collect()
}

/// Spans in which a message was certainly visible: from its send, its arrival by a move, or its last visibility timeout to its
/// next delivery.
fn visible_for_certain(
    index: &Index<'_>,
    queue: &str,
    message: &Message<'_>,
    arrived: Option<Micros>,
) -> Vec<(Micros, Micros)> {
    let removes = |settled: &Settled<'_>| settled.settle.action.removes();
    let by_receipt = |settled: &Settled<'_>| matches!(settled.settle.target, Target::Receipt { .. });
    // Changes of visibility and settles by anybody are too many stories to tell.
    if !message.settles.iter().all(|settled| removes(settled) && by_receipt(settled)) {
        return Vec::new();
    }
    let mut spans = Vec::new();
    let delay = delay_of(index, queue, message).map_or(0, |(_, longest)| longest);
    let sent = message.sends.iter().map(|sent| sent.call.answered + delay).min();
    let mut last = sent.or(arrived).map(|visible| (0, visible));
    for seen in &message.deliveries {
        let delivery = seen.delivery;
        // A read in between that nobody heard of has hidden the message for a time.
        if let Some((counted, visible)) = last
            && delivery.read_ct == counted + 1
        {
            spans.push((visible, delivery.last_read_at));
        }
        // Nobody knows until when the server has extended it.
        last = (!seen.read.extends).then_some((delivery.read_ct, delivery.vt));
    }
    if let Some((_, visible)) = last {
        match (message.pops.first(), message.in_queue) {
            (Some(pop), _) => spans.push((visible, pop.call.asked)),
            (None, Some(_)) => spans.push((visible, Micros::MAX)),
            (None, None) => {}
        }
    }
    spans
}
