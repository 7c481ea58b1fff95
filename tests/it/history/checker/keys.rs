//! Deduplication ids: one message for each in its window, and the caller is told its id.

use std::collections::BTreeMap;

use super::index::{Index, Sent};
use super::policies::CLOCKS;
use super::{Violation, violation};
use crate::history::record::{Call, Micros, Part};

/// An acknowledged use of a key.
struct Use<'a, T> {
    /// What it was told.
    id: T,
    /// Whether it was told that an earlier use has stored it.
    repeats: bool,
    call: &'a Call,
}

/// All uses of one key.
struct Uses<'a, T> {
    acknowledged: Vec<Use<'a, T>>,
    /// Those of which nobody knows whether they have stored anything.
    unknown: Vec<&'a Call>,
}

impl<T> Default for Uses<'_, T> {
    fn default() -> Self {
        Self { acknowledged: Vec::new(), unknown: Vec::new() }
    }
}

/// Acknowledged sends of one key within the window have one id; those after it have another; and what repeats a send has
/// one that it repeats.
pub(super) fn one_key_has_one_id(index: &Index<'_>) -> Vec<Violation> {
    let mut keys: BTreeMap<(&str, &str), Uses<'_, i64>> = BTreeMap::new();
    for sent in index.bodies.values().flatten().filter(|sent| !sent.call.is_refused() && !sent.call.repeated)
    {
        let Sent { call, send } = *sent;
        let Some(key) = &send.key else { continue };
        let uses = keys.entry((&send.queue, key)).or_default();
        match send.msg_id.filter(|_| call.is_done()) {
            Some(id) => uses.acknowledged.push(Use { id, repeats: send.deduplicated, call }),
            None => uses.unknown.push(call),
        }
    }
    let own = index.history.deduplication_window;
    let mut found = Vec::new();
    for ((queue, key), uses) in keys {
        let windows = |from, to| index.policies.windows(queue, from, to, own);
        found.extend(
            wrong(&uses, windows).into_iter().map(|(why, calls)| {
                violation("one_key_has_one_id", format!("{key} in {queue}: {why}"), &calls)
            }),
        );
    }
    found
}

/// Repetitions of a whole call under one key give the same ids, and exist once.
pub(super) fn a_keyed_call_is_applied_once(index: &Index<'_>) -> Vec<Violation> {
    let mut keys: BTreeMap<&str, Uses<'_, Copies<'_>>> = BTreeMap::new();
    for call in index.history.calls.iter().filter(|call| !call.is_refused()) {
        let Some(key) = &call.key else { continue };
        let uses = keys.entry(key).or_default();
        if call.is_done() {
            uses.acknowledged.push(Use { id: ids(call), repeats: call.repeated, call });
        } else {
            uses.unknown.push(call);
        }
    }
    let window = index.history.deduplication_window;
    let mut found = Vec::new();
    for (key, uses) in keys {
        found.extend(
            wrong(&uses, |_, _| (window, window)).into_iter().map(|(why, calls)| {
                violation("a_keyed_call_is_applied_once", format!("{key}: {why}"), &calls)
            }),
        );
    }
    found
}

/// What a call has sent: queues and ids.
type Copies<'a> = Vec<(&'a str, Option<i64>)>;

fn ids(call: &Call) -> Copies<'_> {
    let each = call.parts.iter().filter_map(|part| match part {
        Part::Send(send) => Some((send.queue.as_str(), send.msg_id)),
        _ => None,
    });
    each.collect()
}

/// An id that was stored under a key, and between which moments that was.
struct Stored<'u, 'a, T> {
    id: &'u T,
    uses: Vec<&'u Use<'a, T>>,
    from: Micros,
    to: Micros,
    /// How long it is remembered at least.
    shortest: Micros,
}

/// What is wrong with the uses of one key, in words, with the calls that show it. What is stored between two moments is
/// remembered for a time between the two that `windows` gives.
fn wrong<'a, T: PartialEq>(
    uses: &Uses<'a, T>,
    windows: impl Fn(Micros, Micros) -> (Micros, Micros),
) -> Vec<(&'static str, Vec<&'a Call>)> {
    let mut found = Vec::new();
    let mut all: Vec<Stored<'_, 'a, T>> = Vec::new();
    for one in &uses.acknowledged {
        match all.iter_mut().find(|stored| *stored.id == one.id) {
            Some(stored) => stored.uses.push(one),
            None => all.push(Stored { id: &one.id, uses: vec![one], from: 0, to: 0, shortest: 0 }),
        }
    }
    for stored in &mut all {
        let own: Vec<&'a Call> = stored.uses.iter().map(|one| one.call).collect();
        let mut firsts: Vec<&'a Call> =
            stored.uses.iter().filter(|one| !one.repeats).map(|one| one.call).collect();
        firsts.dedup_by(|a, b| std::ptr::eq(*a, *b));
        if firsts.len() > 1 {
            found.push(("two calls have stored one message", firsts.clone()));
        }
        stored.to = own.iter().map(|call| call.answered).min().unwrap_or(Micros::MAX);
        let unheard = uses.unknown.iter().copied().filter(|call| call.asked <= stored.to);
        let began = match firsts.first() {
            Some(first) => Some(first.asked),
            None => unheard.map(|call| call.asked).min(),
        };
        let Some(began) = began else {
            found.push(("it was said to repeat a send that never was", own));
            continue;
        };
        let (shortest, longest) = windows(began, stored.to);
        stored.shortest = shortest;
        // Whoever repeats it asks before the window is over.
        let repeated = stored.uses.iter().filter(|one| one.repeats).map(|one| one.call.asked).max();
        stored.from = began.max(repeated.map_or(began, |asked| asked - longest - CLOCKS));
        let late = own.iter().find(|call| call.asked > stored.to + longest + CLOCKS);
        if let Some(late) = late {
            let calls = own.iter().copied().take(1).chain([*late]).collect();
            found.push(("the window was over, and the second message was not stored", calls));
        }
    }
    for (place, one) in all.iter().enumerate() {
        for other in &all[..place] {
            let may_follow = |first: &Stored<'_, 'a, T>, second: &Stored<'_, 'a, T>| {
                second.to - first.from >= first.shortest - CLOCKS
            };
            if !may_follow(one, other) && !may_follow(other, one) {
                let calls = other.uses.iter().chain(&one.uses).map(|one| one.call).collect();
                found.push(("the window was not over, and it was stored again", calls));
            }
        }
    }
    found
}
