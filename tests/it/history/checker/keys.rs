//! Deduplication ids: one message for each in its window, and the caller is told its id.

use std::collections::BTreeMap;

use super::index::{AFTERMATH, Index, Sent};
use super::{Violation, violation};
use crate::history::record::{Call, Micros, Part};

/// Acknowledged sends of one key within the window have one id; those after it have another.
pub(super) fn one_key_has_one_id(index: &Index<'_>) -> Vec<Violation> {
    let mut keys: BTreeMap<(&str, &str), Vec<(i64, Sent<'_>)>> = BTreeMap::new();
    for (&(queue, msg_id), message) in &index.messages {
        for sent in &message.sends {
            if let Some(key) = &sent.send.key {
                keys.entry((queue, key)).or_default().push((msg_id, *sent));
            }
        }
    }
    let window = index.history.deduplication_window;
    let mut found = Vec::new();
    for ((queue, key), mut sends) in keys {
        sends.sort_by_key(|(_, sent)| sent.call.asked);
        for (place, (msg_id, sent)) in sends.iter().enumerate() {
            for (other_id, other) in &sends[..place] {
                if let Some(why) = compare(window, (*other_id, other.call), (*msg_id, sent.call)) {
                    let what = format!("{key} in {queue} has ids {other_id} and {msg_id}: {why}");
                    found.push(violation("one_key_has_one_id", what, &[other.call, sent.call]));
                }
            }
            // Somebody stored it: a repetition says so, the first send does not.
            let first = |(id, other): &&(i64, Sent<'_>)| *id == *msg_id && !other.send.deduplicated;
            let firsts: Vec<&Call> = sends.iter().filter(first).map(|(_, other)| other.call).collect();
            if !sent.send.deduplicated && firsts.len() > 1 && std::ptr::eq(firsts[0], sent.call) {
                let what = format!("{key} in {queue}: message {msg_id} was stored by two calls");
                found.push(violation("one_key_has_one_id", what, &firsts));
            }
        }
    }
    found
}

fn compare(
    window: Micros,
    (first, earlier): (i64, &Call),
    (second, later): (i64, &Call),
) -> Option<&'static str> {
    if first != second && later.answered - earlier.asked < window {
        return Some("the window was not over");
    }
    // Between calls of one id lies a window at most, however long the work of one that was given up took.
    if first == second && later.asked - earlier.answered > window + AFTERMATH {
        return Some("the window was over, and the second message was not stored");
    }
    None
}

/// Repetitions of a whole call under one key give the same ids, and exist once.
pub(super) fn a_keyed_call_is_applied_once(index: &Index<'_>) -> Vec<Violation> {
    let mut keys: BTreeMap<&str, Vec<&Call>> = BTreeMap::new();
    for call in index.history.calls.iter().filter(|call| call.is_done()) {
        if let Some(key) = &call.key {
            keys.entry(key).or_default().push(call);
        }
    }
    let mut found = Vec::new();
    for (key, calls) in keys {
        for pair in calls.windows(2) {
            let apart = pair[1].answered - pair[0].asked;
            if ids(pair[0]) != ids(pair[1]) && apart < index.history.deduplication_window {
                let what = format!("{key}: {:?} and then {:?}", ids(pair[0]), ids(pair[1]));
                found.push(violation("a_keyed_call_is_applied_once", what, pair));
            }
        }
    }
    found
}

fn ids(call: &Call) -> Vec<Option<i64>> {
    let sends = call.parts.iter().filter_map(|part| match part {
        Part::Send(send) => Some(send.msg_id),
        Part::Read(_) | Part::Settle(_) => None,
    });
    sends.collect()
}
