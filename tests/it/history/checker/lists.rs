//! Pages of messages: they show what is there, all of it, and change nothing.

use super::index::{Id, Index, Listed, Message, Seen, Settled};
use super::lives::{all_calls, may_be_cleared};
use super::policies::{CLOCKS, delay_of};
use super::{Violation, violation};
use crate::history::operators::{Shown, State};
use crate::history::record::{Action, Call, Micros, Target};

/// What is on a page can have been there: it was not removed before, or was archived before, and its count of reads, its
/// visibility and its state are what somebody has made of it.
pub(super) fn lists_show_what_is_there(index: &Index<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for listed in &index.lists {
        let queue = listed.list.queue.as_str();
        let mut last = listed.list.above;
        for shown in &listed.list.rows {
            let msg_id = shown.message.msg_id;
            let Some(message) = index.messages.get(&(queue, msg_id)) else { continue };
            let why = if msg_id <= last {
                Some("out of order")
            } else if !listed.list.msg_ids.is_empty() && !listed.list.msg_ids.contains(&msg_id) {
                Some("though its id was not asked for")
            } else if listed.list.archive {
                not_archived(message, listed.call)
            } else {
                not_in_queue(message, listed.call)
                    .or_else(|| wrong(index, (queue, msg_id), message, listed, shown))
            };
            last = msg_id;
            if let Some(why) = why {
                let what = format!("message {msg_id} of {queue} was listed for {}, {why}", listed.call.who);
                let calls: Vec<&Call> = all_calls(message).into_iter().chain([listed.call]).collect();
                found.push(violation("lists_show_what_is_there", what, &calls));
            }
        }
    }
    found
}

fn not_archived(message: &Message<'_>, list: &Call) -> Option<&'static str> {
    let may_be = |settled: &Settled<'_>| {
        settled.settle.action == Action::Archive
            && settled.may_have_happened()
            && settled.call.asked < list.answered
    };
    (!message.settles.iter().any(may_be)).then_some("and nobody had archived it")
}

fn not_in_queue(message: &Message<'_>, list: &Call) -> Option<&'static str> {
    let settled =
        message.settles.iter().any(|settled| settled.removed() && settled.call.answered < list.asked);
    let popped = message.pops.iter().any(|seen| seen.call.is_done() && seen.call.answered < list.asked);
    (settled || popped).then_some("though it had been removed")
}

/// What is wrong with how a message is shown.
fn wrong(
    index: &Index<'_>,
    id: Id<'_>,
    message: &Message<'_>,
    listed: &Listed<'_>,
    shown: &Shown,
) -> Option<&'static str> {
    let row = &shown.message;
    let (asked, answered) = (listed.call.asked, listed.call.answered);
    let fits = match listed.list.state {
        None => true,
        Some(State::Visible) => row.vt <= answered + CLOCKS,
        Some(State::InFlight) => row.read_ct > 0 && row.vt > asked - CLOCKS,
        Some(State::Delayed) => row.read_ct == 0 && row.vt > asked - CLOCKS,
    };
    if !fits {
        return Some("and is not in the state that was asked for");
    }
    // What is read in a transaction is read for others when that ends.
    let read_by = |seen: &Seen<'_>| if seen.call.whole { seen.call.answered } else { seen.delivery.seen };
    let before = message.deliveries.iter().filter(|seen| read_by(seen) < asked);
    let counts_at_least = |seen: &Seen<'_>| {
        let given_back = message.give_backs(seen.delivery).any(|settled| settled.call.asked < answered);
        seen.delivery.read_ct - i32::from(given_back)
    };
    if before.map(counts_at_least).max().unwrap_or(0) > row.read_ct {
        return Some("with fewer reads than there had been");
    }
    let until = message.deliveries.iter().filter(|seen| seen.delivery.last_read_at <= answered + CLOCKS);
    let counted = until.map(|seen| seen.delivery.read_ct).max().unwrap_or(0);
    if row.read_ct > counted && !may_be_read_unseen(index, id.0, message, answered) {
        return Some("with more reads than there had been");
    }
    let is_hidden_by_nobody = match message.delivery_at(row.last_read_at) {
        _ if index.policies.least_receives(id.0, Micros::MIN, Micros::MAX).is_some() => false,
        None if row.read_ct == 0 && row.last_read_at == 0 => {
            let by_id = message.settles.iter().any(|settled| matches!(settled.settle.target, Target::Id(_)));
            let longest = delay_of(index, id.0, message).map(|(_, longest)| longest);
            !by_id
                && longest.is_some_and(|longest| {
                    row.vt > row.enqueued_at.max(message.sends[0].call.answered) + longest + CLOCKS
                })
        }
        None => false,
        Some(seen) => {
            let may_be_changed = message.settles.iter().any(|settled| {
                let by_other = matches!(settled.settle.target, Target::Id(_)) || settled.call.is_unknown();
                let is_set = settled.settle.vt.is_some_and(|vt| vt == row.vt);
                !settled.settle.action.removes() && settled.may_have_happened() && (by_other || is_set)
            });
            row.vt != seen.delivery.vt && !seen.read.extends && !may_be_changed
        }
    };
    is_hidden_by_nobody.then_some("hidden until a moment that nobody has set")
}

/// Whether a read that reached nobody may have been counted for a time: a stream's, whose messages wait in the server until
/// somebody takes them, or one whose answer was lost.
fn may_be_read_unseen(index: &Index<'_>, queue: &str, message: &Message<'_>, at: Micros) -> bool {
    let since = message.sent_at().unwrap_or(Micros::MIN / 2);
    index.is_streamed(queue) || index.may_have_read_unseen(queue, since, at)
}

/// A page leaves out nothing that was there all the time in which it was made.
pub(super) fn lists_leave_nothing_out(index: &Index<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for Listed { call, list } in &index.lists {
        let queue = list.queue.as_str();
        let shown: Vec<i64> = list.rows.iter().map(|row| row.message.msg_id).collect();
        for (id, message) in index.messages.range((queue, i64::MIN)..=(queue, i64::MAX)) {
            if !list.covers(id.1) || shown.contains(&id.1) {
                continue;
            }
            let was_there = match list.archive {
                true => was_archived(index, *id, message, call),
                false => was_in_queue(index, *id, message, call),
            };
            if was_there {
                let place = if list.archive { "the archive of " } else { "" };
                let what = format!(
                    "message {} of {queue} was in {place}it, and a list for {} leaves it out",
                    id.1, call.who
                );
                let calls: Vec<&Call> = all_calls(message).into_iter().chain([*call]).collect();
                found.push(violation("lists_leave_nothing_out", what, &calls));
            }
        }
    }
    found
}

/// Whether a message was certainly in its queue for the whole time of a call.
fn was_in_queue(index: &Index<'_>, (queue, _): Id<'_>, message: &Message<'_>, call: &Call) -> bool {
    let before = message.sends.iter().any(|sent| sent.call.answered < call.asked)
        || message.deliveries.iter().any(|seen| seen.delivery.seen < call.asked);
    let delivered_later = message.deliveries.iter().any(|seen| seen.began() > call.answered);
    let removed_later = message
        .settles
        .iter()
        .any(|settled| settled.removed() && !settled.call.repeated && settled.call.asked > call.answered);
    // What is dropped and made anew counts as another queue, but not for who lists it by its name.
    let is_there = before && !index.may_be_dropped(queue);
    is_there && (message.in_queue.is_some() || delivered_later || removed_later)
}

/// Whether a message was certainly in its archive for the whole time of a call.
fn was_archived(index: &Index<'_>, id: Id<'_>, message: &Message<'_>, call: &Call) -> bool {
    let before = message
        .settles
        .iter()
        .any(|settled| settled.archived() && !settled.call.repeated && settled.call.answered < call.asked);
    if !before || index.may_be_dropped(id.0) {
        return false;
    }
    let listed_later = message.shown.iter().any(|page| page.archive && page.call.asked > call.answered);
    let may_be_moved = index.moves.iter().any(|moved| {
        moved.moved.queue == id.0
            && moved.call.asked < call.answered
            && moved.moved.may_name(id.1, message.archived_at())
    });
    let may_be_gone = may_be_moved || may_be_cleared(index, id, message, call.answered + CLOCKS);
    !message.in_archive.is_empty() || listed_later || !may_be_gone
}

/// What is archived for longer than the policy keeps it goes, sooner or later.
pub(super) fn old_messages_leave_the_archive(index: &Index<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for Listed { call, list } in index.lists.iter().filter(|listed| listed.list.archive) {
        for shown in &list.rows {
            let Some(archived_at) = shown.archived_at else { continue };
            let longest: Option<Vec<Micros>> = index
                .policies
                .within(&list.queue, archived_at, call.answered)
                .map(|policy| policy.retention)
                .collect();
            let Some(kept) = longest.and_then(|kept| kept.into_iter().max()) else { continue };
            let too_late = archived_at + kept + ROUND + index.history.patience;
            if call.asked > too_late && !index.is_disturbed(&list.queue, archived_at + kept, call.answered) {
                let what = format!(
                    "message {} was in the archive of {} {} µs after it was archived, which keeps it for {kept} µs",
                    shown.message.msg_id,
                    list.queue,
                    call.asked - archived_at
                );
                found.push(violation("old_messages_leave_the_archive", what, &[call]));
            }
        }
    }
    found
}

/// How often servers look for what is too old, at least.
const ROUND: Micros = 10_000_000;
