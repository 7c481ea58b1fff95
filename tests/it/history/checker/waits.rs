//! Nobody waits for a message that is there.

use super::index::{Index, Message, Settled};
use super::policies::delay_of;
use super::{Violation, violation};
use crate::history::record::{Call, Micros, Part, Target};

/// A read that waits does not end empty, or late, beside a message that was visible all the time and was delivered or found
/// only later. Only undisturbed reads are judged that would take any message.
pub(super) fn nobody_waits_beside_a_message(index: &Index<'_>) -> Vec<Violation> {
    let patience = index.history.patience;
    let mut found = Vec::new();
    for call in &index.history.calls {
        let [Part::Read(read)] = call.parts.as_slice() else { continue };
        let got = read.deliveries.first().map_or(call.answered, |delivery| delivery.last_read_at);
        let judged = call.is_done() && read.takes_any && !read.pops && got - call.asked > patience;
        if !judged || index.is_disturbed(&read.queue, call.asked, got) {
            continue;
        }
        let missed = index.messages.iter().filter(|((queue, _), _)| *queue == read.queue).find(
            |((queue, _), message)| {
                let spans = visible_for_certain(index, queue, message).into_iter();
                spans
                    .map(|(from, to)| (from.max(call.asked), to.min(got)))
                    .any(|(from, to)| to - from > patience)
            },
        );
        if let Some(((queue, msg_id), message)) = missed {
            let what = format!("a read of {queue} waited beside message {msg_id}, which was visible");
            let calls: Vec<&Call> = message.sends.iter().map(|sent| sent.call).chain([call]).collect();
            found.push(violation("nobody_waits_beside_a_message", what, &calls));
        }
    }
    found
}

/// Spans in which a message was certainly visible: from its send or its last visibility timeout to its next delivery.
fn visible_for_certain(index: &Index<'_>, queue: &str, message: &Message<'_>) -> Vec<(Micros, Micros)> {
    let removes = |settled: &Settled<'_>| settled.settle.action.removes();
    let by_receipt = |settled: &Settled<'_>| matches!(settled.settle.target, Target::Receipt { .. });
    // Changes of visibility and settles by anybody are too many stories to tell.
    if !message.settles.iter().all(|settled| removes(settled) && by_receipt(settled)) {
        return Vec::new();
    }
    let mut spans = Vec::new();
    let delay = delay_of(index, queue, message).map_or(0, |(_, longest)| longest);
    let mut last = message.sends.iter().map(|sent| (0, sent.call.answered + delay)).min();
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
