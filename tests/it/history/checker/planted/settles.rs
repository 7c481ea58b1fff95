//! Settles that are answered wrongly.

use super::super::story::{Story, read, refused, settle, unknown};
use crate::history::record::{Action, Delivery, Outcome, Part, Read, Target, Verdict};

#[test]
fn a_message_must_not_be_deleted_twice() {
    let tell = |second: Outcome| {
        let mut story = Story::new();
        story.sent(1, "a");
        let held = story.read(1, "a", 1);
        story.settled(Action::Delete, &held, Outcome::Done);
        story.settled(Action::Delete, &held, second);
        story
    };
    tell(Outcome::Done).breaks("a_message_is_removed_once");
    tell(Outcome::NotFound).is_healthy();
}

#[test]
fn a_repeated_transaction_deletes_once() {
    let tell = |key: Option<&str>| {
        let mut story = Story::new();
        story.sent(1, "a");
        let held = story.read(1, "a", 1);
        for repeated in [false, true] {
            let parts = vec![settle(Action::Delete, held.receipt(), Some(Outcome::Done))];
            let call = story.whole(Verdict::Done, parts);
            (call.key, call.repeated) = (key.map(str::to_owned), repeated);
        }
        story
    };
    tell(Some("k")).is_healthy();
    tell(None).breaks("a_message_is_removed_once");
}

#[test]
fn a_message_must_not_be_both_in_its_queue_and_in_the_archive() {
    let mut story = Story::new();
    story.sent(1, "a");
    story.left(1, "a");
    story.archived(1, "a");
    story.breaks("a_message_is_removed_once");
}

#[test]
fn equal_items_of_one_call_are_one_settle() {
    let mut story = Story::new();
    story.sent(1, "a");
    let held = story.read(1, "a", 1);
    let item = || settle(Action::Delete, held.receipt(), Some(Outcome::Done));
    story.call("Delete", Verdict::Done, vec![item(), item()]);
    story.is_healthy();
}

/// A message that was read twice, and the answers to a delete by each receipt, the old one first.
fn read_twice(old: Outcome, new: Outcome) -> Story {
    let mut story = Story::new();
    story.sent(1, "a");
    let first = story.read(1, "a", 1);
    story.wait(31);
    let second = story.read(1, "a", 2);
    story.settled(Action::Delete, &first, old);
    story.settled(Action::Delete, &second, new);
    story
}

#[test]
fn an_old_receipt_must_not_settle() {
    read_twice(Outcome::Done, Outcome::NotFound).breaks("only_the_newest_delivery_settles");
    read_twice(Outcome::Stale, Outcome::Done).is_healthy();
}

#[test]
fn results_joined_back_by_msg_id_make_an_old_receipt_done() {
    // Both receipts were in one merge; the row that came back was taken for both.
    let story = read_twice(Outcome::Done, Outcome::Done);
    story.breaks("a_message_is_removed_once");
    story.breaks("only_the_newest_delivery_settles");
}

#[test]
fn an_old_receipt_must_not_hide_what_another_holds() {
    let tell = |outcome: Outcome| {
        let mut story = Story::new();
        story.sent(1, "a");
        let first = story.read(1, "a", 1);
        story.wait(31);
        let second = story.read(1, "a", 2);
        story.settled(Action::Hide, &first, outcome);
        story.settled(Action::Delete, &second, Outcome::Done);
        story
    };
    tell(Outcome::Done).breaks("only_the_newest_delivery_settles");
    tell(Outcome::Stale).is_healthy();
}

/// A message that was given back and read again, with the same count, and the answer to a delete by the old receipt.
#[test]
fn a_receipt_that_gave_back_must_not_settle() {
    let tell = |is_read: bool, old: Outcome| {
        let mut story = Story::new();
        story.sent(1, "a");
        let first = story.read(1, "a", 1);
        let now = story.now;
        story.hidden(Action::GiveBack, &first, now);
        if is_read {
            story.read(1, "a", 1);
        }
        story.settled(Action::Delete, &first, old);
        if old == Outcome::Stale {
            story.left(1, "a");
        }
        story
    };
    for is_read in [false, true] {
        tell(is_read, Outcome::Done).breaks("only_the_newest_delivery_settles");
        tell(is_read, Outcome::Stale).is_healthy();
    }
}

/// A read that was rolled back, the next read of the same row, and the answer to a delete by the first one's receipt.
fn read_again_after_a_rollback(answer: Outcome) -> Story {
    let mut story = Story::new();
    story.sent(1, "a");
    let undone = story.delivery(1, "a", 1);
    story.whole(refused("rolled back"), vec![read(vec![undone.clone()])]);
    let again = story.read(1, "a", 1);
    story.settled(Action::Delete, &undone, answer);
    let rest = if answer == Outcome::Done { Outcome::NotFound } else { Outcome::Done };
    story.settled(Action::Delete, &again, rest);
    story
}

#[test]
fn a_receipt_of_three_parts_settles_what_another_holds() {
    let story = read_again_after_a_rollback(Outcome::Done);
    story.breaks("rolled_back_reads_settle_nothing");
    story.breaks("only_the_newest_delivery_settles");
    read_again_after_a_rollback(Outcome::Stale).is_healthy();
}

#[test]
fn a_read_whose_commit_is_unknown_may_be_undone() {
    let mut story = Story::new();
    story.sent(1, "a");
    let unsure = story.delivery(1, "a", 1);
    story.whole(unknown(), vec![read(vec![unsure.clone()])]);
    let again = story.read(1, "a", 1);
    story.settled(Action::Delete, &unsure, Outcome::Stale);
    story.settled(Action::Delete, &again, Outcome::Done);
    story.is_healthy();
}

#[test]
fn stale_without_a_newer_delivery_is_a_lie() {
    let mut story = Story::new();
    story.sent(1, "a");
    let held = story.read(1, "a", 1);
    story.settled(Action::Delete, &held, Outcome::Stale);
    story.left(1, "a");
    story.breaks("stale_means_read_again");
}

#[test]
fn stale_may_come_from_a_read_that_was_given_up() {
    let mut story = Story::new();
    story.sent(1, "a");
    let held = story.read(1, "a", 1);
    story.wait(31);
    story.call("ReadBatch", unknown(), vec![read(Vec::new())]);
    story.settled(Action::Delete, &held, Outcome::Stale);
    story.left(1, "a");
    story.is_healthy();
}

#[test]
fn stale_may_come_from_what_a_slow_stream_gave_back() {
    let tell = |seen_after: i64| {
        let mut story = Story::new();
        story.sent(1, "a");
        let mut held = story.delivery(1, "a", 1);
        story.wait(seen_after);
        held.seen = story.tick();
        let Part::Read(given) = read(vec![held.clone()]) else { unreachable!("a read") };
        story.call("Consume", Verdict::Done, vec![Part::Read(Read { stream: true, ..given })]);
        story.settled(Action::Delete, &held, Outcome::Stale);
        story.left(1, "a");
        story
    };
    tell(16).is_healthy();
    tell(14).breaks("stale_means_read_again");
}

#[test]
fn not_found_while_the_message_is_there_is_a_lie() {
    let tell = |remains: bool| {
        let mut story = Story::new();
        story.sent(1, "a");
        let held = story.read(1, "a", 1);
        story.call("Delete", unknown(), vec![settle(Action::Delete, held.receipt(), None)]);
        story.settled(Action::Delete, &held, Outcome::NotFound);
        if remains {
            story.left(1, "a");
        }
        story
    };
    tell(true).breaks("not_found_means_gone");
    tell(false).is_healthy();
}

#[test]
fn not_found_before_anybody_removed_it_is_a_lie() {
    let tell = |reversed: bool| {
        let mut story = Story::new();
        story.sent(1, "a");
        let held = story.read(1, "a", 1);
        let mut outcomes = [Outcome::Done, Outcome::NotFound];
        if reversed {
            outcomes.reverse();
        }
        for outcome in outcomes {
            story.settled(Action::Delete, &held, outcome);
        }
        story
    };
    tell(true).breaks("not_found_means_gone");
    tell(false).is_healthy();
}

#[test]
fn not_found_and_delivered_again_is_a_lie() {
    let mut story = Story::new();
    story.sent(1, "a");
    let held = story.read(1, "a", 1);
    story.settled(Action::Hide, &held, Outcome::NotFound);
    story.wait(31);
    let again = story.read(1, "a", 2);
    story.settled(Action::Delete, &again, Outcome::Done);
    story.breaks("not_found_means_gone");
}

#[test]
fn an_id_that_nobody_knows_is_not_found() {
    let mut story = Story::new();
    let unknown = settle(Action::Delete, Target::Id(99), Some(Outcome::NotFound));
    story.call("Delete", Verdict::Done, vec![unknown]);
    story.is_healthy();
}

#[test]
fn a_settle_of_unknown_outcome_may_have_happened() {
    let tell = |remains: bool| {
        let mut story = Story::new();
        story.sent(1, "a");
        let held: Delivery = story.read(1, "a", 1);
        story.call("Delete", unknown(), vec![settle(Action::Delete, held.receipt(), None)]);
        if remains {
            story.left(1, "a");
        }
        story
    };
    tell(true).is_healthy();
    tell(false).is_healthy();
}

#[test]
fn a_refused_delete_must_not_remove() {
    let mut story = Story::new();
    story.sent(1, "a");
    let held = story.read(1, "a", 1);
    story.call("Delete", refused("OVERLOADED"), vec![settle(Action::Delete, held.receipt(), None)]);
    story.breaks("nothing_is_lost");

    story.left(1, "a");
    story.is_healthy();
}
