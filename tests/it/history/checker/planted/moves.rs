//! Archived messages and dead letters that are lost on their way back, come twice, or are deleted too early.

use super::super::story::{QUEUE, SECOND, Story, list, moved, refused, unknown};
use crate::history::operators::{Move, Policy, Shelf};
use crate::history::record::{Action, DeadLetter, Delivery, Micros, Outcome, Part, Verdict, WORN_OUT};

/// A message that was archived.
fn archived() -> Story {
    let mut story = Story::new();
    story.sent(1, "a");
    let held = story.read(1, "a", 1);
    story.settled(Action::Archive, &held, Outcome::Done);
    story
}

fn answered(moved: Move, count: i64) -> Vec<Part> {
    vec![Part::Move(Move { count: Some(count), ..moved })]
}

/// An archived message that was replayed, with this answer.
fn replayed(verdict: &Verdict) -> Story {
    let mut story = archived();
    let count = (*verdict == Verdict::Done).then_some(1);
    story.call("ReplayArchivedMessages", verdict.clone(), vec![Part::Move(Move { count, ..moved() })]);
    story
}

fn take(story: &mut Story, msg_id: i64) -> Delivery {
    let held = story.read(msg_id, "a", 1);
    story.settled(Action::Delete, &held, Outcome::Done);
    held
}

#[test]
fn a_replayed_message_must_come_back() {
    let mut story = replayed(&Verdict::Done);
    story.breaks("nothing_is_lost");
    story.breaks("moves_count_what_they_move");
    take(&mut story, 2);
    story.is_healthy();
}

#[test]
fn a_replayed_message_must_not_stay_in_the_archive() {
    let mut story = replayed(&Verdict::Done);
    story.archived(1, "a");
    take(&mut story, 2);
    story.breaks("what_is_moved_is_in_one_place");
    story.breaks("moves_take_what_they_name");
}

#[test]
fn a_replayed_message_must_not_come_twice() {
    let mut story = replayed(&Verdict::Done);
    take(&mut story, 2);
    take(&mut story, 3);
    story.breaks("each_send_is_stored_once");
    story.breaks("what_is_moved_is_in_one_place");
    story.breaks("moves_count_what_they_move");
}

#[test]
fn a_replayed_message_must_not_come_under_an_old_id() {
    let mut story = replayed(&Verdict::Done);
    take(&mut story, 1);
    story.breaks("nothing_returns_once_removed");
    story.breaks("moves_count_what_they_move");
}

#[test]
fn a_replay_of_unknown_outcome_is_in_one_of_two_places() {
    replayed(&unknown()).breaks("nothing_is_lost");
    let mut story = replayed(&unknown());
    story.archived(1, "a");
    story.is_healthy();
    let mut story = replayed(&unknown());
    take(&mut story, 2);
    story.is_healthy();
    let mut story = replayed(&unknown());
    story.archived(1, "a");
    take(&mut story, 2);
    story.breaks("what_is_moved_is_in_one_place");
}

#[test]
fn a_refused_replay_must_move_nothing() {
    let mut story = replayed(&refused("OVERLOADED"));
    story.archived(1, "a");
    story.is_healthy();
    let mut story = replayed(&refused("OVERLOADED"));
    take(&mut story, 2);
    story.breaks("each_send_is_stored_once");
}

#[test]
fn a_replay_must_count_what_it_moves() {
    let tell = |count: i64| {
        let mut story = archived();
        story.call("ReplayArchivedMessages", Verdict::Done, answered(moved(), count));
        take(&mut story, 2);
        story
    };
    tell(1).is_healthy();
    tell(0).breaks("moves_count_what_they_move");
    tell(2).breaks("moves_count_what_they_move");
}

#[test]
fn a_repeated_replay_by_ids_must_move_nothing_more() {
    let tell = |second: i64| {
        let mut story = archived();
        for count in [1, second] {
            let named = Move { msg_ids: vec![1, 1], ..moved() };
            story.call("ReplayArchivedMessages", Verdict::Done, answered(named, count));
        }
        take(&mut story, 2);
        if second > 0 {
            take(&mut story, 3);
        }
        story
    };
    tell(0).is_healthy();
    // The one that came first was deleted, and not archived again: nobody can have moved it.
    tell(1).breaks("what_is_moved_is_in_one_place");
    let mut story = archived();
    story.call("ReplayArchivedMessages", Verdict::Done, answered(Move { msg_ids: vec![1, 1], ..moved() }, 2));
    story.breaks("moves_count_what_they_move");
}

#[test]
fn a_message_may_be_archived_and_replayed_again() {
    let mut story = replayed(&Verdict::Done);
    let held = story.read(2, "a", 1);
    story.settled(Action::Archive, &held, Outcome::Done);
    story.call("ReplayArchivedMessages", Verdict::Done, answered(moved(), 1));
    take(&mut story, 3);
    story.is_healthy();
}

#[test]
fn the_former_life_of_a_replayed_message_must_not_go_on() {
    let mut story = archived();
    story.call("ReplayArchivedMessages", Verdict::Done, answered(moved(), 1));
    take(&mut story, 2);
    story.wait(31);
    story.read(1, "a", 2);
    story.breaks("what_is_moved_is_in_one_place");
}

#[test]
fn a_replay_must_not_move_what_it_does_not_name() {
    let tell = |named: Move| {
        let mut story = archived();
        story.call("ReplayArchivedMessages", Verdict::Done, answered(named, 1));
        take(&mut story, 2);
        story
    };
    tell(Move { msg_ids: vec![1], ..moved() }).is_healthy();
    tell(Move { msg_ids: vec![9], ..moved() }).breaks("each_send_is_stored_once");
}

/// A message that is shown in the archive with the moment of its archiving, and what came of it.
fn shown_and_replayed(named: impl Fn(Micros) -> Move) -> Story {
    let mut story = archived();
    let archived_at = story.now;
    let row = story.shown_in_archive(1, "a", archived_at);
    story.call("ListArchivedMessages", Verdict::Done, vec![list(true, vec![row])]);
    story.call("ReplayArchivedMessages", Verdict::Done, answered(named(archived_at), 1));
    take(&mut story, 2);
    story
}

#[test]
fn a_replay_must_not_move_what_was_archived_at_another_time() {
    shown_and_replayed(|at| Move { after: Some(at), before: Some(at + 1), ..moved() }).is_healthy();
    shown_and_replayed(|at| Move { after: Some(at + 1), ..moved() }).breaks("each_send_is_stored_once");
    shown_and_replayed(|at| Move { before: Some(at), ..moved() }).breaks("each_send_is_stored_once");
}

#[test]
fn what_is_deleted_from_an_archive_is_not_lost() {
    let tell = |named: Move, count: i64, remains: bool| {
        let mut story = archived();
        let named = Move { deletes: true, ..named };
        story.call("DeleteArchivedMessages", Verdict::Done, answered(named, count));
        if remains {
            story.archived(1, "a");
        }
        story
    };
    tell(moved(), 1, false).is_healthy();
    tell(moved(), 0, false).breaks("moves_count_what_they_move");
    tell(moved(), 1, true).breaks("moves_count_what_they_move");
    tell(moved(), 1, true).breaks("moves_take_what_they_name");
    tell(Move { more: true, ..moved() }, 0, true).is_healthy();
    tell(Move { msg_ids: vec![9], ..moved() }, 0, true).is_healthy();
    tell(Move { msg_ids: vec![9], ..moved() }, 0, false).breaks("nothing_is_lost");
}

#[test]
fn what_is_deleted_from_an_archive_must_not_come_back() {
    let mut story = archived();
    let named = Move { deletes: true, ..moved() };
    story.call("DeleteArchivedMessages", Verdict::Done, answered(named, 1));
    take(&mut story, 2);
    story.breaks("each_send_is_stored_once");
}

/// A queue that keeps its archive for so many seconds, and a message that was archived and is gone after as many.
fn expired(kept: Option<Micros>, after: i64) -> Story {
    let mut story = archived();
    let policy = Policy { retention: kept.map(|kept| kept * SECOND), ..Policy::default() };
    story.history.policies.insert(QUEUE.to_owned(), policy);
    story.wait(after);
    story
}

#[test]
fn retention_must_not_remove_too_early() {
    expired(Some(10), 11).is_healthy();
    expired(Some(10), 9).breaks("nothing_is_lost");
    expired(None, 100).breaks("nothing_is_lost");
    let mut story = expired(Some(10), 5);
    story.call("ListArchivedMessages", Verdict::Done, vec![list(true, Vec::new())]);
    story.wait(6);
    story.breaks("lists_leave_nothing_out");
}

#[test]
fn retention_must_remove_in_the_end() {
    let tell = |after: i64| {
        let mut story = archived();
        let archived_at = story.now;
        let policy = Policy { retention: Some(10 * SECOND), ..Policy::default() };
        story.history.policies.insert(QUEUE.to_owned(), policy);
        story.wait(after);
        let row = story.shown_in_archive(1, "a", archived_at);
        story.call("ListArchivedMessages", Verdict::Done, vec![list(true, vec![row])]);
        story
    };
    tell(15).is_healthy();
    tell(60).breaks("old_messages_leave_the_archive");
}

/// A message that was handed over twice, went aside, and was moved back by count.
fn redriven(verdict: &Verdict, count: i64) -> Story {
    let mut story = Story::new();
    let policy = Policy { max_receives: Some(2), ..Policy::default() };
    story.history.policies.insert(QUEUE.to_owned(), policy);
    story.sent(1, "a");
    for time in [1, 2] {
        story.read(1, "a", time);
        story.wait(31);
    }
    let count = Some(count).filter(|_| *verdict == Verdict::Done);
    let part = Move { from: Shelf::DeadLetters, count, most: 5, ..moved() };
    story.call("RedriveMessages", verdict.clone(), vec![Part::Move(part)]);
    story
}

fn bury(story: &mut Story, msg_id: i64) {
    let (queue, body, reason) = (QUEUE.to_owned(), "a".to_owned(), WORN_OUT.to_owned());
    story.history.dead_letters.push(DeadLetter { queue, msg_id, body, handed_over: 2, reason });
}

#[test]
fn a_dead_letter_that_is_redriven_must_come_back_once() {
    let mut story = redriven(&Verdict::Done, 1);
    story.breaks("nothing_is_lost");
    take(&mut story, 2);
    story.is_healthy();
    take(&mut story, 3);
    story.breaks("what_is_moved_is_in_one_place");
}

#[test]
fn a_dead_letter_that_is_redriven_must_not_stay_where_it_was() {
    let mut story = redriven(&Verdict::Done, 1);
    bury(&mut story, 1);
    story.left(2, "a");
    story.breaks("what_is_moved_is_in_one_place");

    let mut story = redriven(&unknown(), 0);
    bury(&mut story, 1);
    story.is_healthy();
}

#[test]
fn a_redrive_must_count_what_it_moves() {
    let mut story = redriven(&Verdict::Done, 0);
    story.left(2, "a");
    story.breaks("moves_count_what_they_move");
}

#[test]
fn a_message_may_go_aside_again_after_it_came_back() {
    let mut story = redriven(&Verdict::Done, 1);
    for time in [1, 2] {
        story.read(2, "a", time);
        story.wait(31);
    }
    bury(&mut story, 2);
    story.is_healthy();
    story.left(2, "a");
    story.breaks("a_message_is_removed_once");
}
