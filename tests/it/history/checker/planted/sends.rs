//! Lost messages, ghosts, and ids and keys that are mixed up.

use super::super::story::{QUEUE, SECOND, Story, read, refused, send, settle, unknown};
use crate::history::record::{Action, Delivery, Outcome, Part, Read, Send, Settle, Target, Verdict};

#[test]
fn an_acknowledged_message_that_is_nowhere_is_lost() {
    let mut story = Story::new();
    story.sent(1, "a");
    story.breaks("nothing_is_lost");

    story.left(1, "a");
    story.is_healthy();
}

#[test]
fn a_message_that_was_read_and_not_settled_is_lost_if_it_is_gone() {
    let mut story = Story::new();
    story.sent(1, "a");
    let held = story.read(1, "a", 1);
    story.breaks("nothing_is_lost");

    story.settled(Action::Delete, &held, Outcome::Done);
    story.is_healthy();
}

#[test]
fn an_archived_message_that_is_not_in_the_archive_is_lost() {
    let mut story = Story::new();
    story.sent(1, "a");
    let held = story.read(1, "a", 1);
    story.settled(Action::Archive, &held, Outcome::Done);
    story.breaks("nothing_is_lost");

    story.archived(1, "a");
    story.is_healthy();
}

#[test]
fn a_commit_whose_tag_nobody_read_loses_what_it_acknowledged() {
    // The database rolled back, and COMMIT succeeded with the tag ROLLBACK.
    let tell = |verdict: Verdict| {
        let mut story = Story::new();
        story.sent(1, "a");
        let held = story.read(1, "a", 1);
        let (msg_id, outcome) = match verdict {
            Verdict::Done => (Some(2), Some(Outcome::Done)),
            _ => (None, None),
        };
        let parts = vec![settle(Action::Delete, held.receipt(), outcome), send("b", msg_id)];
        story.whole(verdict, parts);
        story.left(1, "a");
        story
    };
    tell(Verdict::Done).breaks("nothing_is_lost");
    tell(Verdict::Done).breaks("nothing_returns_once_removed");
    tell(unknown()).is_healthy();
    tell(refused("TRANSACTION_FAILED")).is_healthy();
}

#[test]
fn what_was_refused_must_not_appear() {
    let tell = |verdict: Verdict| {
        let mut story = Story::new();
        story.call("Send", verdict, vec![send("a", None)]);
        story.left(1, "a");
        story
    };
    tell(refused("OVERLOADED")).breaks("nothing_comes_from_nowhere");
    tell(unknown()).is_healthy();
}

#[test]
fn what_nobody_sent_must_not_appear() {
    let mut story = Story::new();
    let held = story.read(1, "a", 1);
    story.settled(Action::Delete, &held, Outcome::Done);
    story.breaks("nothing_comes_from_nowhere");
}

#[test]
fn an_aborted_transaction_must_not_be_visible() {
    let tell = |verdict: Verdict| {
        let mut story = Story::new();
        story.whole(verdict, vec![send("a", None), send("b", None)]);
        let (one, two) = (story.read(1, "a", 1), story.read(2, "b", 1));
        story.settled(Action::Delete, &one, Outcome::Done);
        story.settled(Action::Delete, &two, Outcome::Done);
        story
    };
    tell(refused("STALE_RECEIPT")).breaks("nothing_comes_from_nowhere");
    tell(unknown()).is_healthy();
}

#[test]
fn half_a_transaction_must_not_be_visible() {
    let mut story = Story::new();
    story.whole(unknown(), vec![send("a", None), send("b", None)]);
    story.left(1, "a");
    story.breaks("whole_calls_happen_whole");

    story.left(2, "b");
    story.is_healthy();
}

#[test]
fn a_transaction_must_not_send_without_deleting() {
    let tell = |remains: bool| {
        let mut story = Story::new();
        story.sent(1, "a");
        let held = story.read(1, "a", 1);
        story.whole(unknown(), vec![settle(Action::Delete, held.receipt(), None), send("b", None)]);
        story.left(2, "b");
        if remains {
            story.left(1, "a");
        }
        story
    };
    tell(true).breaks("whole_calls_happen_whole");
    tell(false).is_healthy();
}

#[test]
fn a_send_must_not_be_repeated_behind_its_callers_back() {
    let mut story = Story::new();
    story.call("Send", unknown(), vec![send("a", None)]);
    story.left(1, "a");
    story.is_healthy();

    story.left(2, "a");
    story.breaks("each_send_is_stored_once");
}

#[test]
fn ids_must_not_be_given_to_the_wrong_callers() {
    let tell = |first: i64, second: i64| {
        let mut story = Story::new();
        story.sent(first, "a");
        story.sent(second, "b");
        story.left(1, "a");
        story.left(2, "b");
        story
    };
    tell(2, 1).breaks("ids_belong_to_their_bodies");
    tell(1, 1).breaks("ids_belong_to_their_bodies");
    tell(1, 2).is_healthy();
}

#[test]
fn bodies_must_not_be_joined_back_to_the_wrong_ids() {
    let tell = |body: &str| {
        let mut story = Story::new();
        story.sent(1, "a");
        story.sent(2, "b");
        let held = story.read(1, body, 1);
        story.settled(Action::Delete, &held, Outcome::Done);
        story.left(2, "b");
        story
    };
    tell("b").breaks("ids_belong_to_their_bodies");
    tell("a").is_healthy();
}

#[test]
fn one_key_must_not_have_two_ids() {
    let tell = |second: i64, after: i64| {
        let mut story = Story::new();
        story.keyed(1, "a", false);
        story.wait(after);
        story.keyed(second, "a", second == 1);
        story.left(1, "a");
        story.left(2, "a");
        story
            .history
            .at_the_end
            .get_mut(QUEUE)
            .expect("the queue")
            .queue
            .truncate(usize::try_from(second).unwrap());
        story
    };
    tell(2, 1).breaks("one_key_has_one_id");
    tell(1, 1).is_healthy();
    // After the window the same key stores a new message, or a send was swallowed.
    tell(1, 100).breaks("one_key_has_one_id");
    tell(2, 100).is_healthy();
}

#[test]
fn deduplication_by_do_nothing_swallows_a_message() {
    // The key's row was expired and not cleaned away yet: nothing is stored, and the caller hears of an old id.
    let tell = |second: i64| {
        let mut story = Story::new();
        story.keyed(1, "a", false);
        let held = story.read(1, "a", 1);
        story.settled(Action::Delete, &held, Outcome::Done);
        story.wait(100);
        story.keyed(second, "a", second == 1);
        if second == 2 {
            story.left(2, "a");
        }
        story
    };
    tell(1).breaks("one_key_has_one_id");
    tell(2).is_healthy();
    // Or of an id that the sequence gave and no row has.
    let mut swallowed = Story::new();
    swallowed.keyed(1, "a", true);
    swallowed.breaks("nothing_is_lost");
}

#[test]
fn two_calls_must_not_both_have_stored_one_message() {
    let tell = |deduplicated: bool| {
        let mut story = Story::new();
        story.keyed(1, "a", false);
        story.keyed(1, "a", deduplicated);
        story.left(1, "a");
        story
    };
    tell(false).breaks("one_key_has_one_id");
    tell(true).is_healthy();
}

#[test]
fn a_keyed_transaction_must_not_be_applied_twice() {
    let tell = |second: i64| {
        let mut story = Story::new();
        for msg_id in [1, second] {
            let call = story.whole(Verdict::Done, vec![send("a", Some(msg_id))]);
            call.key = Some("k".to_owned());
        }
        story.history.calls[1].repeated = second == 1;
        story.left(1, "a");
        if second == 2 {
            story.left(2, "a");
        }
        story
    };
    tell(2).breaks("a_keyed_call_is_applied_once");
    tell(1).is_healthy();
}

#[test]
fn a_message_must_not_come_before_its_delay_is_over() {
    let tell = |after: i64| {
        let mut story = Story::new();
        let part = Send {
            queue: QUEUE.to_owned(),
            body: "a".to_owned(),
            delay: 5 * SECOND,
            msg_id: Some(1),
            ..Send::default()
        };
        story.call("Send", Verdict::Done, vec![Part::Send(part)]);
        story.wait(after);
        let held = story.read(1, "a", 1);
        story.settled(Action::Delete, &held, Outcome::Done);
        story
    };
    tell(1).breaks("delayed_messages_are_not_early");
    tell(6).is_healthy();
}

#[test]
fn a_replay_must_not_keep_its_id() {
    // The archived message came back under its id with read_ct 0: old receipts are good again.
    let tell = |msg_id: i64, body: &str| {
        let mut story = Story::new();
        story.sent(1, "a");
        let held = story.read(1, "a", 1);
        story.settled(Action::Archive, &held, Outcome::Done);
        story.archived(1, "a");
        if body == "b" {
            story.sent(msg_id, "b");
        }
        let again = story.read(msg_id, body, 1);
        story.settled(Action::Delete, &again, Outcome::Done);
        story
    };
    tell(1, "a").breaks("nothing_returns_once_removed");
    tell(1, "a").breaks("a_message_is_removed_once");
    tell(1, "a").breaks("read_counts_count_deliveries");
    tell(2, "b").is_healthy();
}

/// A message goes aside, comes back by a redrive, and is read under these ids.
fn redriven(verdict: &Verdict, came_as: &[i64]) -> Story {
    let outcome = Some(Outcome::Done).filter(|_| *verdict == Verdict::Done);
    let aside = |outcome| Settle {
        queue: "aside".to_owned(),
        action: Action::Delete,
        target: Target::Id(7),
        by_policy: false,
        outcome,
        vt: None,
    };
    let mut story = Story::new();
    story.sent(1, "a");
    story.read(1, "a", 1);
    let Part::Send(sent) = send("a", Some(7)) else { unreachable!("a send") };
    let parts = vec![
        settle(Action::Delete, Target::Id(1), Some(Outcome::Done)),
        Part::Send(Send { queue: "aside".to_owned(), ..sent }),
    ];
    story.whole(Verdict::Done, parts);
    let parts = vec![Part::Settle(aside(outcome)), send("a", None)];
    story.call("RedriveMessages", verdict.clone(), parts).whole = true;
    for &msg_id in came_as {
        let again = story.read(msg_id, "a", 1);
        story.settled(Action::Delete, &again, Outcome::Done);
    }
    story
}

#[test]
fn a_redriven_message_must_arrive_once_and_under_a_new_id() {
    redriven(&Verdict::Done, &[2]).is_healthy();
    redriven(&Verdict::Done, &[]).breaks("what_is_redriven_arrives");
    redriven(&Verdict::Done, &[2, 3]).breaks("each_send_is_stored_once");
    redriven(&Verdict::Done, &[1]).breaks("nothing_returns_once_removed");
    redriven(&Verdict::Done, &[1]).breaks("what_is_redriven_arrives");
    redriven(&unknown(), &[]).is_healthy();
    redriven(&unknown(), &[2]).is_healthy();
    redriven(&unknown(), &[2, 3]).breaks("each_send_is_stored_once");
}

#[test]
fn a_popped_message_is_gone_and_not_lost() {
    let tell = |verdict: Verdict, deliveries: Vec<Delivery>| {
        let mut story = Story::new();
        story.sent(1, "a");
        let pop = Read { queue: QUEUE.to_owned(), pops: true, deliveries, ..Read::default() };
        story.call("Pop", verdict, vec![Part::Read(pop)]);
        story
    };
    let popped = Story::new().delivery(1, "a", 0);
    let popped = Delivery { seen: Story::new().now + SECOND, ..popped };
    tell(Verdict::Done, vec![popped]).is_healthy();
    tell(unknown(), Vec::new()).is_healthy();
    tell(Verdict::Done, Vec::new()).breaks("nothing_is_lost");
}

#[test]
fn a_read_of_nothing_breaks_nothing() {
    let mut story = Story::new();
    story.call("ReadBatch", Verdict::Done, vec![read(Vec::new())]);
    story.is_healthy();
}
