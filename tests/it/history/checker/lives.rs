//! A message that is moved has another id afterwards: its lives, of which one begins where the one before has ended.

use std::collections::{BTreeMap, BTreeSet};

use super::index::{Id, Index, Message, Moved, Settled};
use super::policies::CLOCKS;
use super::sends::ids_of_bodies;
use super::{Violation, violation};
use crate::history::operators::{Move, Shelf};
use crate::history::record::{Call, Micros};

/// Two lives of one message, one after the other.
pub(super) struct Pair<'i, 'a> {
    pub(super) body: &'a str,
    pub(super) former: Life<'i, 'a>,
    pub(super) next: Life<'i, 'a>,
}

/// A message while it has one id.
#[derive(Clone, Copy)]
pub(super) struct Life<'i, 'a> {
    pub(super) id: Id<'a>,
    pub(super) message: &'i Message<'a>,
}

/// The lives of all messages that were sent once, where messages are moved, in pairs. What came from another queue was
/// there before.
pub(super) fn pairs<'i, 'a>(index: &'i Index<'a>) -> Vec<Pair<'i, 'a>> {
    let ids = ids_of_bodies(index);
    let mut pairs = Vec::new();
    for (&(queue, body), here) in &ids {
        if !index.is_moved_into(queue) {
            continue;
        }
        let last_of = |source: &'a str| ids.get(&(source, body))?.last().map(|&msg_id| (source, msg_id));
        let origin = index.sources_of(queue).find_map(last_of);
        let lives = origin.into_iter().chain(here.iter().map(|&msg_id| (queue, msg_id)));
        let lives = lives.filter_map(|id| Some(Life { id, message: index.messages.get(&id)? }));
        let lives: Vec<Life<'i, 'a>> = lives.collect();
        pairs.extend(lives.windows(2).map(|pair| Pair { body, former: pair[0], next: pair[1] }));
    }
    pairs
}

/// The messages that have come back, or to another queue, under another id.
pub(super) fn former_lives<'a>(index: &Index<'a>) -> BTreeSet<Id<'a>> {
    pairs(index).iter().map(|pair| pair.former.id).collect()
}

impl<'i, 'a> Pair<'i, 'a> {
    /// Whether somebody may have moved the message from the one life to the next.
    pub(super) fn may_be_moved(&self, index: &Index<'_>) -> bool {
        let there_by = self.next.message.there_by();
        index.moves.iter().any(|moved| moved.call.asked <= there_by && self.fits(index, moved))
    }

    /// The calls that may have moved the message when it came to its queue; none if nobody knows when that was.
    pub(super) fn movers(&self, index: &'i Index<'a>) -> Vec<&'i Moved<'a>> {
        let Some(came_at) = self.next.message.came_at() else { return Vec::new() };
        let in_time =
            |moved: &&Moved<'_>| (moved.call.asked - CLOCKS..=moved.call.ends() + CLOCKS).contains(&came_at);
        index.moves.iter().filter(in_time).filter(|moved| self.fits(index, moved)).collect()
    }

    /// Whether a call moves messages such as this one from where it was to where it came.
    fn fits(&self, index: &Index<'_>, moved: &Moved<'_>) -> bool {
        !moved.moved.deletes
            && moved.moved.target() == self.next.id.0
            && may_take(index, moved, self.former.id, self.former.message)
    }

    fn calls(&self) -> Vec<&'a Call> {
        [self.former, self.next].into_iter().flat_map(|life| all_calls(life.message)).collect()
    }
}

/// Every call that has to do with a message.
pub(super) fn all_calls<'a>(message: &Message<'a>) -> Vec<&'a Call> {
    let reads = message.deliveries.iter().chain(&message.pops).map(|seen| seen.call);
    let settles = message.settles.iter().map(|settled| settled.call);
    message.sends.iter().map(|sent| sent.call).chain(reads).chain(settles).collect()
}

/// Whether a move may have found a message on its shelf.
fn may_take(index: &Index<'_>, moved: &Moved<'_>, (queue, msg_id): Id<'_>, message: &Message<'_>) -> bool {
    let shelved = message
        .settles
        .iter()
        .any(|settled| settled.may_have_shelved() && settled.call.asked <= moved.call.ends());
    let shelved = shelved
        || match moved.moved.from {
            Shelf::Archive => false,
            Shelf::DeadLetters => {
                index.policies.least_receives(queue, Micros::MIN, moved.call.ends()).is_some()
            }
        };
    shelved && moved.moved.queue == queue && moved.moved.may_name(msg_id, message.archived_at())
}

/// Whether an archived message may have been deleted from its archive, by a call or by the policy.
pub(super) fn may_be_cleared(index: &Index<'_>, id: Id<'_>, message: &Message<'_>, until: Micros) -> bool {
    let (queue, _) = id;
    let archived =
        message.settles.iter().filter(|settled| settled.may_have_shelved()).map(|settled| settled.call.asked);
    let Some(archived) = archived.min() else { return false };
    let deleted = index
        .moves
        .iter()
        .any(|moved| moved.moved.deletes && moved.call.asked <= until && may_take(index, moved, id, message));
    let expired = index.policies.shortest_retention(queue, archived, until);
    deleted || expired.is_some_and(|kept| archived + kept <= until)
}

/// When a message was out of its archive for certain: deleted or replayed.
pub(super) fn left_archive_by(
    index: &Index<'_>,
    (queue, msg_id): Id<'_>,
    message: &Message<'_>,
) -> Option<Micros> {
    let archived = message.settles.iter().filter(|settled| settled.archived()).map(|settled| settled.call);
    let archived = archived.min_by_key(|call| call.answered)?;
    let takes_it = |moved: &&Moved<'_>| {
        let clean = moved.call.is_done() && !moved.moved.more && moved.moved.from == Shelf::Archive;
        let at = message.archived_at();
        let is_timed = moved.moved.after.is_some() || moved.moved.before.is_some();
        clean
            && moved.moved.queue == queue
            && moved.call.asked > archived.answered
            && moved.moved.may_name(msg_id, at)
            && (!is_timed || at.is_some())
    };
    index.moves.iter().filter(takes_it).map(|moved| moved.call.answered).min()
}

/// A message is in one place: what has come back is not where it was, and what is gone does not come back.
pub(super) fn what_is_moved_is_in_one_place(index: &Index<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for pair in pairs(index) {
        let (former, next) = (pair.former.message, pair.next.message);
        let (from, was) = pair.former.id;
        let there_by = next.there_by();
        let later = former.deliveries.iter().chain(&former.pops).find(|seen| seen.began() > there_by);
        let shown = former.shown.iter().find(|page| page.call.asked > there_by);
        let deleted = former.settles.iter().find(|settled| settled.removed() && !settled.may_have_shelved());
        let why = if !pair.may_be_moved(index) {
            "and nobody can have moved it".to_owned()
        } else if former.stored().next().is_some() {
            format!("and is still there as {was} of {from}")
        } else if let Some(seen) = later {
            format!("and was delivered as {was} of {from} by {} afterwards", seen.call.who)
        } else if let Some(page) = shown {
            format!("and was listed as {was} of {from} for {} afterwards", page.call.who)
        } else if deleted.is_some() {
            format!("and was deleted as {was} of {from}")
        } else {
            continue;
        };
        let (to, is) = pair.next.id;
        let what = format!("{} came to {to} as {is}, {why}", pair.body);
        found.push(violation("what_is_moved_is_in_one_place", what, &pair.calls()));
    }
    found
}

/// As many messages come back, or to another queue, as the answers to moves count.
pub(super) fn moves_count_what_they_move(index: &Index<'_>) -> Vec<Violation> {
    let mut came: BTreeMap<&str, usize> = BTreeMap::new();
    for ((queue, body), ids) in ids_of_bodies(index) {
        // What is only moved to a queue begins there with a move, and all else with a send.
        let is_foreign =
            index.sources_of(queue).next().is_some() && !index.bodies.contains_key(&(queue, body));
        *came.entry(queue).or_default() += ids.len() - usize::from(!is_foreign);
    }
    let targets: BTreeSet<&str> = index.moves.iter().map(|moved| moved.moved.target()).collect();
    let mut found = Vec::new();
    for queue in targets {
        let (counted, open) = counts(index, |moved| !moved.deletes && moved.target() == queue);
        let came = came.get(queue).copied().unwrap_or_default();
        let came = i64::try_from(came).unwrap_or(i64::MAX);
        // A life of which all deliveries were lost is one that nobody saw.
        let may_be_unseen = index.policies.least_receives(queue, Micros::MIN, Micros::MAX).is_some()
            || index.may_have_popped_unseen(queue, Micros::MIN)
            || index.emptied_since(queue, Micros::MIN).next().is_some();
        if came < counted && !may_be_unseen || came > counted + open {
            let what =
                format!("moves to {queue} count {counted} messages, or {open} more, and {came} have come");
            found.push(violation("moves_count_what_they_move", what, &[]));
        }
    }
    let sources: BTreeSet<&str> = index.moves.iter().map(|moved| moved.moved.queue.as_str()).collect();
    for queue in sources {
        let (counted, open) = counts(index, |moved| moved.deletes && moved.queue == queue);
        let (least, most) = cleared(index, queue);
        let expires = index.policies.shortest_retention(queue, Micros::MIN, Micros::MAX).is_some();
        if !expires && (least > counted + open || most < counted) {
            let what = format!(
                "deletes from the archive of {queue} count {counted} messages, or {open} more, and {least} to {most} are gone"
            );
            found.push(violation("moves_count_what_they_move", what, &[]));
        }
    }
    found.extend(index.moves.iter().filter_map(too_many));
    found
}

/// How many messages moves of a kind have counted, and how many more they may have moved whose answer was lost.
fn counts(index: &Index<'_>, of_kind: impl Fn(&Move) -> bool) -> (i64, i64) {
    let moves = index.moves.iter().map(|moved| moved.moved).filter(|moved| of_kind(moved));
    moves.fold((0, 0), |(counted, open), moved| match moved.count {
        Some(count) => (counted + count, open),
        None => (counted, open + moved.most),
    })
}

/// How many messages are gone from an archive, for certain and at most.
fn cleared(index: &Index<'_>, queue: &str) -> (i64, i64) {
    let has_next = former_lives(index);
    let (mut least, mut most) = (0, 0);
    for (id, message) in index.messages.range((queue, i64::MIN)..=(queue, i64::MAX)) {
        if has_next.contains(id) || message.stored().next().is_some() {
            continue;
        }
        let may_be_archived = message.settles.iter().any(Settled::may_have_shelved);
        most += i64::from(may_be_archived);
        least += i64::from(message.settles.iter().any(Settled::archived));
    }
    (least, most)
}

/// A move takes no more than it was told to.
fn too_many(moved: &Moved<'_>) -> Option<Violation> {
    let Moved { call, moved } = moved;
    let count = moved.count?;
    let mut ids = moved.msg_ids.clone();
    ids.sort_unstable();
    ids.dedup();
    let named = if ids.is_empty() { i64::MAX } else { i64::try_from(ids.len()).unwrap_or(i64::MAX) };
    let what = format!("a move of {} messages at most has moved {count}", moved.most.min(named));
    (count > moved.most.min(named)).then(|| violation("moves_count_what_they_move", what, &[call]))
}

/// What is archived leaves the archive when it is replayed or deleted, and does not stay there.
pub(super) fn moves_take_what_they_name(index: &Index<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for (id, message) in &index.messages {
        let Some(left) = left_archive_by(index, *id, message) else { continue };
        let shown = message.shown.iter().find(|page| page.archive && page.call.asked > left);
        let why = match shown {
            Some(_) => "and was listed there afterwards",
            None if !message.in_archive.is_empty() => "and is there at the end",
            None => continue,
        };
        let what = format!("message {} of {} was taken out of the archive, {why}", id.1, id.0);
        let calls: Vec<&Call> = all_calls(message).into_iter().chain(shown.map(|page| page.call)).collect();
        found.push(violation("moves_take_what_they_name", what, &calls));
    }
    found
}
