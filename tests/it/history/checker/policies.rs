//! What a policy says holds where a call leaves it open: as soon as it is set, and until it is changed.

use std::collections::HashMap;

use super::index::{Index, Message};
use super::{Violation, violation};
use crate::history::operators::Policy;
use crate::history::record::{Action, Call, History, Micros, Part, Target};

/// How far the clocks of the database and of this process may be apart.
pub(super) const CLOCKS: Micros = 250_000;

/// The policies of all queues, each with the moments between which it may have been in force.
pub(super) struct Policies<'a> {
    of_queues: HashMap<&'a str, Vec<InForce<'a>>>,
}

struct InForce<'a> {
    policy: &'a Policy,
    /// The change to it may have happened from then on, until then.
    from: Micros,
    by: Micros,
    /// Nobody goes by it any more.
    to: Micros,
}

impl<'a> Policies<'a> {
    pub(super) fn of(history: &'a History) -> Self {
        let mut of_queues: HashMap<&str, Vec<InForce<'_>>> = HashMap::new();
        for (queue, policy) in &history.policies {
            let first = InForce { policy, from: Micros::MIN, by: Micros::MIN, to: Micros::MAX };
            of_queues.insert(queue, vec![first]);
        }
        let mut calls: Vec<&Call> = history.calls.iter().filter(|call| !call.is_refused()).collect();
        calls.sort_by_key(|call| call.asked);
        for call in calls {
            for part in &call.parts {
                let Part::Update(update) = part else { continue };
                let known = of_queues.entry(&update.queue).or_default();
                if call.is_done() {
                    // A change under way may come after this one.
                    for old in known.iter_mut().filter(|old| old.by <= call.asked) {
                        old.to = old.to.min(call.answered + history.policy_lag);
                    }
                }
                let (policy, from, by) = (&update.policy, call.asked, call.ends());
                known.push(InForce { policy, from, by, to: Micros::MAX });
            }
        }
        Self { of_queues }
    }

    /// The policies of a queue by which a server may have gone at some moment of a span.
    pub(super) fn within(&self, queue: &str, from: Micros, to: Micros) -> impl Iterator<Item = &'a Policy> {
        let known = self.of_queues.get(queue).map(Vec::as_slice).unwrap_or_default();
        known.iter().filter(move |known| known.from <= to && known.to >= from).map(|known| known.policy)
    }

    /// How often a message of a queue may be handed over at most; none if there is no limit, or may be none.
    pub(super) fn most_receives(&self, queue: &str, from: Micros, to: Micros) -> Option<i32> {
        let limits: Option<Vec<i32>> =
            self.within(queue, from, to).map(|policy| policy.max_receives).collect();
        limits?.into_iter().max()
    }

    /// The least number of hand-overs after which a message may go aside; none if there is no limit at all.
    pub(super) fn least_receives(&self, queue: &str, from: Micros, to: Micros) -> Option<i32> {
        self.within(queue, from, to).filter_map(|policy| policy.max_receives).min()
    }

    /// The shortest and the longest that a message stays invisible which is sent without a delay.
    pub(super) fn delay(&self, queue: &str, from: Micros, to: Micros) -> (Micros, Micros) {
        let delays = || self.within(queue, from, to).map(|policy| policy.delay);
        (delays().min().unwrap_or(0), delays().max().unwrap_or(0))
    }

    /// The shortest time for which a queue keeps what it archives; none if it always keeps it for ever.
    pub(super) fn shortest_retention(&self, queue: &str, from: Micros, to: Micros) -> Option<Micros> {
        self.within(queue, from, to).filter_map(|policy| policy.retention).min()
    }
}

/// A release that leaves its delay to the policy hides its message for as long as the policy's backoff says, by the count of
/// the delivery.
pub(super) fn releases_wait_as_the_policy_says(index: &Index<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for (&(queue, msg_id), message) in &index.messages {
        for settled in message.settles.iter().filter(|settled| settled.settle.by_policy && settled.is_done())
        {
            let (Target::Receipt { read_ct, .. }, Some(vt)) = (settled.settle.target, settled.settle.vt)
            else {
                continue;
            };
            let (asked, answered) = (settled.call.asked, settled.call.answered);
            let mut spans: Vec<(Micros, Micros)> = index
                .policies
                .within(queue, asked, answered)
                .map(|policy| policy.backoff.map_or((0, 0), |backoff| backoff.span(read_ct)))
                .collect();
            if spans.is_empty() {
                spans.push((0, 0));
            }
            let fits = |&(shortest, longest): &(Micros, Micros)| {
                (asked + shortest - CLOCKS..=answered + longest + CLOCKS).contains(&vt)
            };
            if settled.settle.action == Action::Hide && !spans.iter().any(fits) {
                let what = format!(
                    "message {msg_id} of {queue} was released at its read {read_ct} until {} µs after that was asked for, and its policy says {spans:?}",
                    vt - asked
                );
                found.push(violation("releases_wait_as_the_policy_says", what, &[settled.call]));
            }
        }
    }
    found
}

/// A read that leaves it to the policy hides its messages for as long as the policy says.
pub(super) fn reads_hide_as_the_policy_says(index: &Index<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for (&(queue, msg_id), message) in &index.messages {
        for seen in message.deliveries.iter().filter(|seen| seen.read.by_policy) {
            let spans: Vec<Micros> = index
                .policies
                .within(queue, seen.call.asked, seen.call.answered)
                .filter_map(|policy| policy.visibility)
                .collect();
            let hidden = seen.delivery.vt - seen.delivery.last_read_at;
            if !spans.is_empty() && !spans.iter().any(|span| (hidden - span).abs() < CLOCKS) {
                let what = format!(
                    "a read has hidden message {msg_id} of {queue} for {hidden} µs, and the policy says {spans:?}"
                );
                found.push(violation("reads_hide_as_the_policy_says", what, &[seen.call]));
            }
        }
    }
    found
}

/// The shortest and the longest that a message may have been invisible because it was sent with a delay.
pub(super) fn delay_of(index: &Index<'_>, queue: &str, message: &Message<'_>) -> Option<(Micros, Micros)> {
    let sent =
        message.sends.iter().filter(|sent| !sent.send.deduplicated).min_by_key(|sent| sent.call.asked)?;
    match sent.send.delay {
        0 => Some(index.policies.delay(queue, sent.call.asked, sent.call.answered)),
        delay => Some((delay, delay)),
    }
}
