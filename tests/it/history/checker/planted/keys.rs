//! Deduplication ids with windows that end, and calls whose answers were lost.

use super::super::story::{QUEUE, Story, refused, send, unknown};
use crate::history::record::{Part, Send, Verdict};

/// A send under the key, as an unanswered one if it has no id.
fn tried(story: &mut Story, verdict: Verdict) {
    let part =
        Send { key: Some("k".to_owned()), queue: QUEUE.to_owned(), body: "a".to_owned(), ..Send::default() };
    story.call("Send", verdict, vec![Part::Send(part)]);
}

fn left(story: &mut Story, msg_ids: &[i64]) {
    for &msg_id in msg_ids {
        story.left(msg_id, "a");
    }
}

#[test]
fn a_repeat_must_have_something_to_repeat() {
    let tell = |first: Verdict| {
        let mut story = Story::new();
        tried(&mut story, first);
        story.keyed(1, "a", true);
        left(&mut story, &[1]);
        story
    };
    tell(refused("OVERLOADED")).breaks("one_key_has_one_id");
    tell(unknown()).is_healthy();
}

#[test]
fn a_send_that_is_repeated_after_a_lost_answer_is_stored_once() {
    let tell = |deduplicated: bool, rows: &[i64]| {
        let mut story = Story::new();
        tried(&mut story, unknown());
        story.keyed(2, "a", deduplicated);
        story.wait(1);
        story.keyed(2, "a", true);
        left(&mut story, rows);
        story
    };
    tell(true, &[2]).is_healthy();
    tell(false, &[2]).is_healthy();
    tell(false, &[]).breaks("nothing_is_lost");
}

#[test]
fn a_window_begins_with_what_was_stored_and_not_with_its_repeats() {
    // Stored at 0, repeated at 50, stored anew at 70; a window is 60 long.
    let tell = |second: i64| {
        let mut story = Story::new();
        story.keyed(1, "a", false);
        story.wait(50);
        story.keyed(1, "a", true);
        story.wait(20);
        story.keyed(second, "a", second == 1);
        left(&mut story, &[1]);
        if second == 2 {
            story.left(2, "a");
        }
        story
    };
    tell(2).is_healthy();
    tell(1).breaks("one_key_has_one_id");
}

#[test]
fn a_key_must_not_be_forgotten_before_its_window_is_over() {
    let tell = |after: i64| {
        let mut story = Story::new();
        tried(&mut story, unknown());
        story.keyed(1, "a", true);
        story.wait(after);
        story.keyed(2, "a", false);
        left(&mut story, &[1, 2]);
        story
    };
    tell(30).breaks("one_key_has_one_id");
    tell(61).is_healthy();
}

#[test]
fn a_keyed_transaction_must_not_be_applied_again_after_a_lost_answer() {
    let tell = |repeated: bool, rows: &[i64]| {
        let mut story = Story::new();
        story.whole(unknown(), vec![send("a", None)]).key = Some("k".to_owned());
        for msg_id in [1, rows[rows.len() - 1]] {
            let call = story.whole(Verdict::Done, vec![send("a", Some(msg_id))]);
            (call.key, call.repeated) = (Some("k".to_owned()), repeated);
        }
        left(&mut story, rows);
        story
    };
    tell(true, &[1]).is_healthy();
    tell(false, &[1]).breaks("a_keyed_call_is_applied_once");
    tell(false, &[1, 2]).breaks("a_keyed_call_is_applied_once");
}
