//! Messages that are moved to another queue than they came from: lost on their way, there twice, in another order, or slept
//! through.

use super::super::story::{QUEUE, SECOND, Story, list, moved, read, refused, unknown};
use crate::history::operators::{List, Move, Policy, Shelf, Shown};
use crate::history::record::{
    Action, Call, DeadLetter, Delivery, FaultKind, Outcome, Part, Read, Row, Verdict, WORN_OUT,
};

/// The queue to which messages are moved.
const OTHER: &str = "other";

/// A story with messages that were archived, in the order of their ids.
fn archived(bodies: &[&str]) -> Story {
    let mut story = Story::new();
    for (msg_id, body) in (1..).zip(bodies) {
        story.sent(msg_id, body);
        let held = story.read(msg_id, body, 1);
        story.settled(Action::Archive, &held, Outcome::Done);
    }
    story
}

fn elsewhere() -> Move {
    Move { to: Some(OTHER.to_owned()), ..moved() }
}

fn replay(story: &mut Story, verdict: Verdict, moved: Move, count: i64) {
    let count = (verdict == Verdict::Done).then_some(count);
    story.call("ReplayArchivedMessages", verdict, vec![Part::Move(Move { count, ..moved })]);
    // What is moved now came to its queue now.
    story.wait(1);
}

/// A message of the other queue, which came there a second ago, is read and stays.
fn came(story: &mut Story, msg_id: i64, body: &str) -> Delivery {
    let enqueued_at = story.now - SECOND;
    let delivery = Delivery { enqueued_at, ..story.delivery(msg_id, body, 1) };
    let part = Read { queue: OTHER.to_owned(), deliveries: vec![delivery.clone()], ..Read::default() };
    story.call("ReadBatch", Verdict::Done, vec![Part::Read(part)]).asked -= 2_000;
    let tables = story.history.at_the_end.entry(OTHER.to_owned()).or_default();
    tables.queue.push(Row { msg_id, body: body.to_owned() });
    delivery
}

fn replayed(verdict: Verdict, count: i64) -> Story {
    let mut story = archived(&["a"]);
    replay(&mut story, verdict, elsewhere(), count);
    story
}

#[test]
fn a_message_that_is_moved_must_arrive() {
    let mut story = replayed(Verdict::Done, 1);
    story.breaks("nothing_is_lost");
    story.breaks("moves_count_what_they_move");
    came(&mut story, 1, "a");
    story.is_healthy();
}

#[test]
fn a_message_that_is_moved_must_not_be_in_both_queues() {
    let mut story = replayed(Verdict::Done, 1);
    came(&mut story, 1, "a");
    story.archived(1, "a");
    story.breaks("what_is_moved_is_in_one_place");
    story.breaks("moves_take_what_they_name");

    let mut story = replayed(Verdict::Done, 1);
    came(&mut story, 1, "a");
    let again = story.read(2, "a", 1);
    story.settled(Action::Delete, &again, Outcome::Done);
    story.breaks("what_is_moved_is_in_one_place");
}

#[test]
fn a_message_that_is_moved_must_not_arrive_twice() {
    let mut story = replayed(Verdict::Done, 1);
    came(&mut story, 1, "a");
    came(&mut story, 2, "a");
    story.breaks("each_send_is_stored_once");
    story.breaks("what_is_moved_is_in_one_place");
    story.breaks("moves_count_what_they_move");
}

#[test]
fn a_message_that_is_moved_must_not_be_lost_where_it_came() {
    let mut story = replayed(Verdict::Done, 1);
    came(&mut story, 1, "a");
    story.history.at_the_end.get_mut(OTHER).expect("the queue").queue.clear();
    story.breaks("nothing_is_lost");
}

#[test]
fn a_message_that_is_moved_must_not_go_back_to_its_own_queue() {
    let mut story = replayed(Verdict::Done, 1);
    let held = story.read(2, "a", 1);
    story.settled(Action::Delete, &held, Outcome::Done);
    story.breaks("each_send_is_stored_once");
    story.breaks("moves_count_what_they_move");
}

#[test]
fn a_move_must_count_what_it_moves_elsewhere() {
    let tell = |count: i64| {
        let mut story = replayed(Verdict::Done, count);
        came(&mut story, 1, "a");
        story
    };
    tell(1).is_healthy();
    tell(0).breaks("moves_count_what_they_move");
    tell(2).breaks("moves_count_what_they_move");
}

#[test]
fn a_move_of_unknown_outcome_leaves_its_message_in_one_of_two_queues() {
    replayed(unknown(), 0).breaks("nothing_is_lost");
    let mut story = replayed(unknown(), 0);
    story.archived(1, "a");
    story.is_healthy();
    came(&mut story, 1, "a");
    story.breaks("what_is_moved_is_in_one_place");
    let mut story = replayed(unknown(), 0);
    came(&mut story, 1, "a");
    story.is_healthy();
}

#[test]
fn a_refused_move_must_move_nothing_elsewhere() {
    let mut story = replayed(refused("OVERLOADED"), 0);
    story.archived(1, "a");
    story.is_healthy();
    let mut story = replayed(refused("OVERLOADED"), 0);
    came(&mut story, 1, "a");
    story.breaks("nothing_comes_from_nowhere");
}

#[test]
fn a_move_must_not_take_elsewhere_what_it_does_not_name() {
    let tell = |named: i64| {
        let mut story = archived(&["a"]);
        replay(&mut story, Verdict::Done, Move { msg_ids: vec![named], ..elsewhere() }, 1);
        came(&mut story, 1, "a");
        story
    };
    tell(1).is_healthy();
    tell(9).breaks("what_is_moved_is_in_one_place");
    tell(9).breaks("each_send_is_stored_once");
}

#[test]
fn a_move_to_one_queue_must_not_bring_messages_to_another() {
    let mut story = archived(&["a"]);
    let third = Move { to: Some("third".to_owned()), ..moved() };
    replay(&mut story, Verdict::Done, third, 1);
    came(&mut story, 1, "a");
    story.breaks("nothing_comes_from_nowhere");
    story.breaks("moves_count_what_they_move");
}

#[test]
fn one_move_must_keep_the_order() {
    let tell = |first: i64, second: i64, calls: i64| {
        let mut story = archived(&["a", "b"]);
        for _ in 0..calls {
            let asked = story.now;
            let count = if calls == 1 { 2 } else { 1 };
            replay(&mut story, Verdict::Done, elsewhere(), count);
            story.history.calls.last_mut().expect("the move").asked = asked;
        }
        for (msg_id, body) in [(first, "a"), (second, "b")] {
            came(&mut story, msg_id, body);
        }
        if calls > 1 {
            // Two at a time share the work.
            let from = story.history.calls.iter().map(|call| call.asked).min().expect("a call");
            for call in story.history.calls.iter_mut().filter(|call| call.what == "ReplayArchivedMessages") {
                (call.asked, call.answered) = (call.asked.max(from), story.now);
            }
        }
        story
    };
    tell(1, 2, 1).is_healthy();
    tell(2, 1, 1).breaks("moves_keep_the_order");
    tell(2, 1, 2).is_healthy();
}

/// Two messages of a queue without a way back, which went aside in this order and were moved from there.
fn letters(places: [i64; 2], came_as: [i64; 2]) -> Story {
    let mut story = Story::new();
    let policy = Policy { max_receives: Some(1), ..Policy::default() };
    story.history.policies.insert(QUEUE.to_owned(), policy);
    for (msg_id, body) in [(1, "a"), (2, "b")] {
        story.sent(msg_id, body);
        story.read(msg_id, body, 1);
    }
    story.wait(31);
    let shown = |(msg_id, body, place): (i64, &str, i64)| {
        let letter = letter(msg_id, body);
        let message = Delivery {
            msg_id: place,
            read_ct: 0,
            enqueued_at: story.now,
            last_read_at: 0,
            vt: story.now,
            body: body.to_owned(),
            seen: story.now,
        };
        Shown { message, archived_at: None, letter: Some(letter) }
    };
    let mut rows: Vec<Shown> = [(1, "a", places[0]), (2, "b", places[1])].map(shown).into();
    rows.sort_by_key(|row| row.message.msg_id);
    let Part::List(page) = list(false, rows) else { unreachable!("a list") };
    let page = List { queue: "buried".to_owned(), ..page };
    story.call("ListMessages", Verdict::Done, vec![Part::List(page)]);
    let part = Move { from: Shelf::DeadLetters, count: Some(2), ..elsewhere() };
    story.call("RedriveMessages", Verdict::Done, vec![Part::Move(part)]);
    story.wait(1);
    came(&mut story, came_as[0], "a");
    came(&mut story, came_as[1], "b");
    story
}

fn letter(msg_id: i64, body: &str) -> DeadLetter {
    let (queue, body, reason) = (QUEUE.to_owned(), body.to_owned(), WORN_OUT.to_owned());
    DeadLetter { queue, msg_id, body, handed_over: 1, reason }
}

#[test]
fn dead_letters_must_come_in_the_order_of_their_queue() {
    letters([5, 6], [1, 2]).is_healthy();
    letters([6, 5], [2, 1]).is_healthy();
    letters([5, 6], [2, 1]).breaks("moves_keep_the_order");
    letters([6, 5], [1, 2]).breaks("moves_keep_the_order");
}

#[test]
fn dead_letters_that_are_moved_must_not_stay_where_they_were() {
    let mut story = letters([5, 6], [1, 2]);
    story.history.dead_letters.push(letter(1, "a"));
    story.breaks("what_is_moved_is_in_one_place");
}

#[test]
fn what_is_moved_must_be_no_dead_letter_any_more() {
    let tell = |marked: bool| {
        let mut story = letters([5, 6], [1, 2]);
        let rows = [(1, "a"), (2, "b")].map(|(msg_id, body)| Shown {
            message: Delivery { vt: story.now, ..story.delivery(msg_id, body, 1) },
            archived_at: None,
            letter: marked.then(|| letter(msg_id, body)),
        });
        let Part::List(page) = list(false, rows.into()) else { unreachable!("a list") };
        let page = List { queue: OTHER.to_owned(), ..page };
        story.call("ListMessages", Verdict::Done, vec![Part::List(page)]);
        story
    };
    tell(false).is_healthy();
    tell(true).breaks("what_is_redriven_is_no_letter");
}

/// A message that was moved elsewhere, and somebody who has waited there for so many seconds before it was found.
fn slept(seconds: i64, wait: impl Fn(Call, Read) -> (Call, Read)) -> Story {
    let mut story = archived(&["a"]);
    story.call(
        "ReplayArchivedMessages",
        Verdict::Done,
        vec![Part::Move(Move { count: Some(1), ..elsewhere() })],
    );
    let arrived = story.now;
    let asked = story.tick();
    story.wait(seconds);
    let Part::Read(plain) = read(Vec::new()) else { unreachable!("a read") };
    let plain = Read { queue: OTHER.to_owned(), ..plain };
    let mut call = story.call("ReadBatch", Verdict::Done, Vec::new()).clone();
    call.asked = asked;
    let (call, read) = wait(call, plain);
    *story.history.calls.last_mut().expect("the read") = Call { parts: vec![Part::Read(read)], ..call };
    came(&mut story, 1, "a");
    for part in story.history.calls.last_mut().into_iter().flat_map(|call| &mut call.parts) {
        let Part::Read(read) = part else { continue };
        read.deliveries[0].enqueued_at = arrived;
    }
    story
}

#[test]
fn nobody_must_sleep_through_a_message_that_is_moved() {
    slept(10, |call, read| (call, read)).breaks("nobody_waits_beside_a_message");
    slept(1, |call, read| (call, read)).is_healthy();
    // One that nobody heard of is not known to be there.
    let mut story = slept(10, |call, read| (call, read));
    let is_move = |call: &&mut Call| call.what == "ReplayArchivedMessages";
    let moved = story.history.calls.iter_mut().find(is_move).expect("the move");
    moved.verdict = unknown();
    story.is_healthy();
}

#[test]
fn no_stream_must_sleep_through_a_message_that_is_moved() {
    let stream = |open_since: Option<i64>| {
        move |call: Call, read: Read| {
            let open_since = open_since.map(|late| call.asked + late * SECOND);
            (Call { what: "Read", verdict: unknown(), ..call }, Read { stream: true, open_since, ..read })
        }
    };
    slept(10, stream(Some(0))).breaks("nobody_waits_beside_a_message");
    slept(1, stream(Some(0))).is_healthy();
    slept(10, stream(Some(9))).is_healthy();
    // One whose client may have no room.
    slept(10, stream(None)).is_healthy();
    let mut story = slept(10, stream(Some(0)));
    story.fault(FaultKind::Terminated);
    story.history.faults[0].from -= 5 * SECOND;
    story.is_healthy();
}
