//! Messages go aside when they were handed over as often as they may be, and neither sooner nor later.

use super::index::{Index, Seen, Settled};
use super::{Violation, violation};
use crate::history::record::{Action, Call, DeadLetter, Micros, WORN_OUT};

/// A message is delivered as often as its queue's policy allows, and never once more.
pub(super) fn nobody_gets_a_message_too_often(index: &Index<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for (&(queue, msg_id), message) in &index.messages {
        for seen in message.deliveries.iter().chain(&message.undone) {
            let times = seen.delivery.read_ct;
            let Some(most) = index.policies.most_receives(queue, seen.began(), seen.delivery.seen) else {
                continue;
            };
            if times > most {
                let what = format!("message {msg_id} of {queue} was delivered for time {times} of {most}");
                found.push(violation("nobody_gets_a_message_too_often", what, &[seen.call]));
                break;
            }
        }
    }
    found
}

/// A dead letter counts the deliveries that callers had and did not give back, and, unless somebody asked for it, as many as its queue's policy
/// allows: each of them reached somebody, or may have.
pub(super) fn dead_letters_were_handed_over(index: &Index<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for (&(queue, msg_id), message) in &index.messages {
        let since = message.sent_at().unwrap_or(Micros::MIN / 2);
        let unseen = index.may_have_read_unseen(queue, since, Micros::MAX / 2);
        let given_back = |seen: &&Seen<'_>| message.give_backs(seen.delivery).any(Settled::is_done);
        let may_be_given_back = |seen: &&Seen<'_>| message.give_backs(seen.delivery).next().is_some();
        let had = message.deliveries.len();
        let at_least = had - message.deliveries.iter().filter(may_be_given_back).count();
        let at_most = had - message.deliveries.iter().filter(given_back).count();
        let last = message.deliveries.last().map_or(since, Seen::began);
        let least = index.policies.least_receives(queue, last, Micros::MAX);
        let shown = message.letters_shown.iter().map(|&(_, letter)| letter);
        let letters: Vec<&DeadLetter> = message.letters.iter().copied().chain(shown).collect();
        for letter in letters {
            let times = letter.handed_over;
            let count = usize::try_from(times).unwrap_or_default();
            let worn_out = letter.reason == WORN_OUT;
            let asked_for = message
                .settles
                .iter()
                .any(|settled| settled.settle.action == Action::DeadLetter && settled.may_have_happened());
            let why = match least {
                None => "and its queue has no dead-letter queue".to_owned(),
                Some(least) if worn_out && times < least => {
                    format!("after {times} of {least} hand-overs")
                }
                _ if count < at_least => {
                    format!("which counts {times} hand-overs, and callers had {at_least}")
                }
                _ if count > at_most && !unseen => {
                    format!("which counts {times} hand-overs, of which {at_most} reached somebody")
                }
                _ if !worn_out && !asked_for => format!("and nobody can have said {:?}", letter.reason),
                _ => continue,
            };
            let calls: Vec<&Call> = super::lives::all_calls(message);
            let what = format!("message {msg_id} of {queue} is a dead letter, {why}");
            found.push(violation("dead_letters_were_handed_over", what, &calls));
            break;
        }
    }
    found
}
