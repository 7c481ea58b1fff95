//! What is moved from queue to queue is moved once, and arrives.

use std::collections::BTreeSet;

use super::index::{Index, Sent};
use super::sends::ids_of_bodies;
use super::{Violation, violation};
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

/// Whether the message came back by a redrive.
pub(super) fn is_redrive(sent: &Sent<'_>) -> bool {
    sent.call.what == "RedriveMessages"
}
