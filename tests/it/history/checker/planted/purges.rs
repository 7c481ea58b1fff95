//! Queues that are purged, or dropped and made anew.

use super::super::story::{Story, empty, send, unknown};
use crate::history::record::{Action, Outcome, Part, Send, Verdict};

#[test]
fn a_purge_must_count_what_it_removes() {
    let tell = |count: i64| {
        let mut story = Story::new();
        story.sent(1, "a");
        story.sent(2, "b");
        story.call("Send", unknown(), vec![send("c", None)]);
        let held = story.read(1, "a", 1);
        story.settled(Action::Delete, &held, Outcome::Done);
        story.call("PurgeQueue", Verdict::Done, vec![empty(false, Some(count))]);
        story.sent(3, "d");
        story.left(3, "d");
        story
    };
    // Without the deleted one, and with or without the one of unknown outcome.
    tell(1).is_healthy();
    tell(2).is_healthy();
    tell(0).breaks("a_purge_counts_what_it_removes");
    tell(3).breaks("a_purge_counts_what_it_removes");
}

#[test]
fn a_purge_may_count_what_a_lost_answer_had_stored_under_a_key() {
    let tell = |count: i64| {
        let mut story = Story::new();
        let keyed = || {
            let Part::Send(plain) = send("a", None) else { unreachable!("a send") };
            Part::Send(Send { key: Some("k".to_owned()), ..plain })
        };
        story.call("Send", unknown(), vec![keyed()]);
        story.call("PurgeQueue", Verdict::Done, vec![empty(false, Some(count))]);
        story.wait(100);
        story.keyed(7, "a", false);
        story.left(7, "a");
        story
    };
    tell(0).is_healthy();
    tell(1).is_healthy();
    tell(2).breaks("a_purge_counts_what_it_removes");
}

#[test]
fn a_purge_may_remove_a_part_of_what_a_keyed_call_had_stored_before_it_was_repeated() {
    let keyed = |story: &mut Story, verdict: Verdict, ids: [Option<i64>; 2]| {
        story.whole(verdict, vec![send("a", ids[0]), send("b", ids[1])]).key = Some("k".to_owned());
    };
    let mut story = Story::new();
    keyed(&mut story, Verdict::Done, [Some(1), Some(2)]);
    let held = story.read(1, "a", 1);
    story.settled(Action::Delete, &held, Outcome::Done);
    story.call("PurgeQueue", Verdict::Done, vec![empty(false, Some(1))]);
    story.wait(100);
    keyed(&mut story, unknown(), [None, None]);
    story.is_healthy();

    let mut half = Story::new();
    keyed(&mut half, unknown(), [None, None]);
    keyed(&mut half, unknown(), [None, None]);
    half.left(1, "a");
    half.breaks("whole_calls_happen_whole");
}

#[test]
fn nothing_must_survive_a_purge() {
    let tell = |again: bool| {
        let mut story = Story::new();
        story.sent(1, "a");
        story.call("PurgeQueue", Verdict::Done, vec![empty(false, Some(1))]);
        if again {
            story.read(1, "a", 1);
        }
        story
    };
    tell(false).is_healthy();
    tell(true).breaks("nothing_survives_a_purge");

    let mut kept = tell(false);
    kept.left(1, "a");
    kept.breaks("nothing_survives_a_purge");
}

#[test]
fn a_purge_does_not_excuse_what_came_later() {
    let mut story = Story::new();
    story.call("PurgeQueue", Verdict::Done, vec![empty(false, Some(0))]);
    story.sent(1, "a");
    story.breaks("nothing_is_lost");
}

#[test]
fn what_was_purged_is_not_found() {
    let mut story = Story::new();
    story.sent(1, "a");
    let held = story.read(1, "a", 1);
    story.call("PurgeQueue", Verdict::Done, vec![empty(false, Some(1))]);
    story.settled(Action::Delete, &held, Outcome::NotFound);
    story.is_healthy();
}

#[test]
fn the_receipts_of_a_dropped_queue_must_be_stale() {
    let tell = |outcome: Outcome| {
        let mut story = Story::new();
        story.sent(1, "a");
        let held = story.read(1, "a", 1);
        story.call("DropQueue", Verdict::Done, vec![empty(true, None)]);
        story.settled(Action::Delete, &held, outcome);
        story
    };
    tell(Outcome::Done).breaks("dropped_queues_settle_nothing");
    tell(Outcome::NotFound).breaks("dropped_queues_settle_nothing");
    tell(Outcome::Stale).is_healthy();
}
