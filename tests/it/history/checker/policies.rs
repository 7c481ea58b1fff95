//! What a policy says holds where a call leaves it open: as soon as it is set, and until it is changed.

use std::collections::HashMap;

use super::index::{Index, Message};
use super::sends::ids_of_bodies;
use super::{Violation, violation};
use crate::history::operators::Policy;
use crate::history::record::{Action, Call, History, Micros, Part, Send, Target, Verdict};

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

    /// The shortest and the longest that a deduplication id of a queue is remembered; `own` is what servers have by
    /// themselves.
    pub(super) fn windows(&self, queue: &str, from: Micros, to: Micros, own: Micros) -> (Micros, Micros) {
        let windows = || self.within(queue, from, to).map(|policy| policy.window.unwrap_or(own));
        (windows().min().unwrap_or(own), windows().max().unwrap_or(own))
    }

    /// The smallest and the largest body that is the largest one that a queue takes; what servers take by themselves is larger
    /// than any body of a history.
    fn largest(&self, queue: &str, from: Micros, to: Micros) -> (usize, usize) {
        let limits = || self.within(queue, from, to).map(|policy| policy.max_bytes.unwrap_or(usize::MAX));
        (limits().min().unwrap_or(usize::MAX), limits().max().unwrap_or(usize::MAX))
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

/// A read that leaves it to the policy waits for as long as the policy says before it ends without a message, and hardly
/// longer. The end of a server ends its reads early, and any disturbance may make them late.
pub(super) fn reads_wait_as_the_policy_says(index: &Index<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for call in index.history.calls.iter().filter(|call| call.is_done()) {
        let [Part::Read(read)] = call.parts.as_slice() else { continue };
        if !read.waits_by_policy {
            continue;
        }
        let (queue, asked, answered) = (&read.queue, call.asked, call.answered);
        let waits: Vec<Micros> =
            index.policies.within(queue, asked, answered).map(|policy| policy.wait).collect();
        let shortest = waits.iter().copied().min().unwrap_or_default();
        let longest = waits.iter().copied().max().unwrap_or_default();
        let waited = answered - asked;
        let is_early =
            read.deliveries.is_empty() && waited < shortest && !index.may_end_servers(asked, answered);
        let is_late =
            waited > longest + index.history.patience && !index.is_disturbed(queue, asked, answered);
        if is_early || is_late {
            let what = format!("a read of {queue} has waited for {waited} µs, and the policy says {waits:?}");
            found.push(violation("reads_wait_as_the_policy_says", what, &[call]));
        }
    }
    found
}

/// What is larger than the policy allows is refused for that, and nothing else is.
pub(super) fn sends_are_as_large_as_the_policy_allows(index: &Index<'_>) -> Vec<Violation> {
    let ids = ids_of_bodies(index);
    let mut found = Vec::new();
    for call in &index.history.calls {
        let until = if call.is_refused() { call.answered } else { call.ends() };
        let limits = |send: &Send| index.policies.largest(&send.queue, call.asked, until);
        let is_stored =
            |send: &Send| call.is_done() || ids.contains_key(&(send.queue.as_str(), send.body.as_str()));
        let what = match &call.verdict {
            Verdict::Refused(reason) if reason == TOO_LARGE => {
                let may_be_refused = call.sends().any(|send| send.body.len() > limits(send).0);
                (!may_be_refused).then_some("a message was refused that is not too large")
            }
            Verdict::Refused(_) => None,
            Verdict::Done | Verdict::Unknown(_) => {
                let large = call.sends().find(|send| send.body.len() > limits(send).1 && is_stored(send));
                large.map(|_| "a message was stored that is too large")
            }
        };
        if let Some(what) = what {
            let what = format!("{} of {}: {what}", call.what, call.who);
            found.push(violation("sends_are_as_large_as_the_policy_allows", what, &[call]));
        }
    }
    found
}

/// The reason of a refusal of what is too large.
pub(super) const TOO_LARGE: &str = "MESSAGE_TOO_LARGE";

/// The shortest and the longest that a message may have been invisible because it was sent with a delay.
pub(super) fn delay_of(index: &Index<'_>, queue: &str, message: &Message<'_>) -> Option<(Micros, Micros)> {
    let sent =
        message.sends.iter().filter(|sent| !sent.send.deduplicated).min_by_key(|sent| sent.call.asked)?;
    match sent.send.delay {
        0 => Some(index.policies.delay(queue, sent.call.asked, sent.call.answered)),
        delay => Some((delay, delay)),
    }
}
