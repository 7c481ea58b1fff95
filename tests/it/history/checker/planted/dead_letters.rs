//! Dead letters too early, too late, twice, and lost.

use super::super::story::{QUEUE, Story, list, refused, settle, unknown};
use crate::history::operators::{List, Policy, Shown};
use crate::history::record::{Action, DeadLetter, Delivery, Outcome, Part, Verdict, WORN_OUT};

/// A queue whose messages are handed over twice at most, and one message that was handed over so often.
fn handed_over(times: i32) -> (Story, Vec<Delivery>) {
    let mut story = Story::new();
    let policy = Policy { max_receives: Some(2), ..Policy::default() };
    story.history.policies.insert(QUEUE.to_owned(), policy);
    story.sent(1, "a");
    let deliveries = (1..=times).map(|time| {
        story.wait(31);
        story.read(1, "a", time)
    });
    let deliveries = deliveries.collect();
    (story, deliveries)
}

fn bury(story: &mut Story, handed_over: i32, worn_out: bool) {
    let (queue, body) = (QUEUE.to_owned(), "a".to_owned());
    let reason = if worn_out { WORN_OUT } else { "asked for" }.to_owned();
    story.history.dead_letters.push(DeadLetter { queue, msg_id: 1, body, handed_over, reason });
}

#[test]
fn a_message_must_not_go_aside_too_early() {
    let (mut story, _) = handed_over(1);
    bury(&mut story, 1, true);
    story.breaks("dead_letters_were_handed_over");

    let (mut story, _) = handed_over(2);
    bury(&mut story, 2, true);
    story.is_healthy();
}

#[test]
fn a_give_back_must_not_count_as_a_hand_over() {
    let (mut story, _) = handed_over(1);
    bury(&mut story, 2, true);
    story.breaks("dead_letters_were_handed_over");
}

#[test]
fn a_hand_over_that_its_caller_gave_back_must_not_count() {
    let tell = |count: i32| {
        let (mut story, held) = handed_over(1);
        let now = story.now;
        story.hidden(Action::GiveBack, &held[0], now);
        let again = story.read(1, "a", 1);
        story.settled(Action::DeadLetter, &again, Outcome::Done);
        bury(&mut story, count, false);
        story
    };
    tell(1).is_healthy();
    tell(2).breaks("dead_letters_were_handed_over");
}

#[test]
fn a_hand_over_that_nobody_heard_of_may_count() {
    let (mut story, _) = handed_over(1);
    story.call("ReadBatch", unknown(), vec![super::super::story::read(Vec::new())]);
    bury(&mut story, 2, true);
    story.is_healthy();
}

#[test]
fn a_dead_letter_must_count_what_callers_had() {
    let (mut story, held) = handed_over(2);
    story.settled(Action::DeadLetter, &held[1], Outcome::Done);
    bury(&mut story, 1, false);
    story.breaks("dead_letters_were_handed_over");
}

#[test]
fn a_message_must_not_be_handed_over_once_too_often() {
    let (mut story, _) = handed_over(3);
    story.left(1, "a");
    story.breaks("nobody_gets_a_message_too_often");

    let (mut story, _) = handed_over(2);
    story.left(1, "a");
    story.is_healthy();
}

#[test]
fn a_message_must_not_be_in_both_queues() {
    let (mut story, _) = handed_over(2);
    bury(&mut story, 2, true);
    story.is_healthy();
    story.left(1, "a");
    story.breaks("a_message_is_removed_once");

    let (mut story, _) = handed_over(2);
    bury(&mut story, 2, true);
    bury(&mut story, 2, true);
    story.breaks("a_message_is_removed_once");
}

#[test]
fn a_dead_letter_must_not_be_lost() {
    let (mut story, _) = handed_over(2);
    story.breaks("nothing_is_lost");
    story.left(1, "a");
    story.is_healthy();

    let (mut story, held) = handed_over(1);
    story.settled(Action::DeadLetter, &held[0], Outcome::Done);
    story.breaks("nothing_is_lost");
    bury(&mut story, 1, false);
    story.is_healthy();
}

#[test]
fn a_dead_letter_of_unknown_outcome_is_in_one_of_the_two_queues() {
    let tell = || {
        let (mut story, held) = handed_over(1);
        story.call("DeadLetter", unknown(), vec![settle(Action::DeadLetter, held[0].receipt(), None)]);
        story
    };
    tell().breaks("nothing_is_lost");
    let mut story = tell();
    story.left(1, "a");
    story.is_healthy();
    let mut story = tell();
    bury(&mut story, 1, false);
    story.is_healthy();
}

#[test]
fn a_dead_letter_must_not_return() {
    let (mut story, held) = handed_over(1);
    story.settled(Action::DeadLetter, &held[0], Outcome::Done);
    bury(&mut story, 1, false);
    story.wait(31);
    story.read(1, "a", 2);
    story.breaks("nothing_returns_once_removed");
}

#[test]
fn what_went_aside_at_a_read_is_not_found() {
    let (mut story, held) = handed_over(2);
    story.settled(Action::Delete, &held[1], Outcome::NotFound);
    bury(&mut story, 2, true);
    story.is_healthy();
}

#[test]
fn a_queue_without_a_policy_has_no_dead_letters() {
    let mut story = Story::new();
    story.sent(1, "a");
    story.read(1, "a", 1);
    bury(&mut story, 1, true);
    story.breaks("dead_letters_were_handed_over");
}

#[test]
fn a_transaction_that_is_rolled_back_must_not_set_aside() {
    let tell = |verdict| {
        let (mut story, held) = handed_over(1);
        story.whole(verdict, vec![settle(Action::DeadLetter, held[0].receipt(), None)]);
        bury(&mut story, 1, false);
        story
    };
    tell(refused("rolled back")).breaks("dead_letters_were_handed_over");
    tell(unknown()).is_healthy();
}

#[test]
fn a_dead_letter_must_not_be_listed_before_its_time() {
    let tell = |times: i32| {
        let (mut story, _) = handed_over(2);
        bury(&mut story, 2, true);
        let letter = DeadLetter { handed_over: times, ..story.history.dead_letters[0].clone() };
        let row = Shown { letter: Some(letter), ..story.shown_in_archive(9, "a", 0) };
        let Part::List(page) = list(false, vec![row]) else { unreachable!("a list") };
        let page = List { queue: "dead".to_owned(), ..page };
        story.call("ListMessages", Verdict::Done, vec![Part::List(page)]);
        story
    };
    tell(2).is_healthy();
    tell(1).breaks("dead_letters_were_handed_over");
}
