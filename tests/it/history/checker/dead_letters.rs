//! Messages go aside when they were handed over as often as they may be, and neither sooner nor later.

use super::index::Index;
use super::{Violation, violation};
use crate::history::record::{Call, Micros};

/// A message is delivered as often as its queue's policy allows, and never once more.
pub(super) fn nobody_gets_a_message_too_often(index: &Index<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for (&(queue, msg_id), message) in &index.messages {
        let Some(&most) = index.history.max_receives.get(queue) else { continue };
        let too_late =
            message.deliveries.iter().chain(&message.undone).find(|seen| seen.delivery.read_ct > most);
        if let Some(seen) = too_late {
            let times = seen.delivery.read_ct;
            let what = format!("message {msg_id} of {queue} was delivered for time {times} of {most}");
            found.push(violation("nobody_gets_a_message_too_often", what, &[seen.call]));
        }
    }
    found
}

/// A dead letter counts the deliveries that callers had, and, unless somebody asked for it, as many as its queue's policy
/// allows: each of them reached somebody, or may have.
pub(super) fn dead_letters_were_handed_over(index: &Index<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for (&(queue, msg_id), message) in &index.messages {
        let since = message.sent_at().unwrap_or(Micros::MIN / 2);
        let unseen = index.may_have_read_unseen(queue, since, Micros::MAX / 2);
        let had = i32::try_from(message.deliveries.len()).unwrap_or(i32::MAX);
        let most = index.history.max_receives.get(queue).copied();
        for letter in &message.letters {
            let times = letter.handed_over;
            let why = match most {
                None => "and its queue has no dead-letter queue".to_owned(),
                Some(most) if letter.worn_out && times < most => {
                    format!("after {times} of {most} hand-overs")
                }
                _ if times < had => format!("which counts {times} hand-overs, and callers had {had}"),
                _ if times > had && !unseen => {
                    format!("which counts {times} hand-overs, of which {had} reached somebody")
                }
                _ => continue,
            };
            let calls: Vec<&Call> = message.deliveries.iter().map(|seen| seen.call).collect();
            let what = format!("message {msg_id} of {queue} is a dead letter, {why}");
            found.push(violation("dead_letters_were_handed_over", what, &calls));
        }
    }
    found
}
