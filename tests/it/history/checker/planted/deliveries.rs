//! Double deliveries, shortened timeouts, broken order, and waits in vain.

use super::super::story::{QUEUE, SECOND, Story, read, send, settle, unknown};
use crate::history::record::{Action, FaultKind, Outcome, Part, Read, Target, Verdict};

#[test]
fn a_message_must_not_be_delivered_within_its_visibility_timeout() {
    let tell = |after: i64| {
        let mut story = Story::new();
        story.sent(1, "a");
        story.read(1, "a", 1);
        story.wait(after);
        story.read(1, "a", 2);
        story.left(1, "a");
        story
    };
    tell(1).breaks("hidden_messages_stay_hidden");
    tell(31).is_healthy();
}

#[test]
fn one_delivery_must_not_reach_two_callers() {
    let mut story = Story::new();
    story.sent(1, "a");
    let held = story.read(1, "a", 1);
    story.left(1, "a");
    story.is_healthy();

    story.call("ReadBatch", Verdict::Done, vec![read(vec![held])]);
    story.breaks("a_delivery_reaches_one_call");
}

#[test]
fn a_message_must_not_return_once_it_is_deleted() {
    let mut story = Story::new();
    story.sent(1, "a");
    let held = story.read(1, "a", 1);
    story.settled(Action::Delete, &held, Outcome::Done);
    story.is_healthy();

    story.wait(31);
    story.read(1, "a", 2);
    story.breaks("nothing_returns_once_removed");
}

#[test]
fn a_give_back_must_not_shorten_what_its_holder_has_extended() {
    // Read by another connection, extended by the holder, and given back without a look at vt.
    let tell = |after: i64| {
        let mut story = Story::new();
        story.sent(1, "a");
        let held = story.read(1, "a", 1);
        let until = story.now + 100 * SECOND;
        story.hidden(Action::Hide, &held, until);
        story.wait(after);
        story.read(1, "a", 2);
        story.left(1, "a");
        story
    };
    tell(40).breaks("hidden_messages_stay_hidden");
    tell(101).is_healthy();
}

#[test]
fn a_released_message_may_come_at_once() {
    let mut story = Story::new();
    story.sent(1, "a");
    let held = story.read(1, "a", 1);
    let now = story.now;
    story.hidden(Action::Hide, &held, now);
    story.read(1, "a", 2);
    story.left(1, "a");
    story.is_healthy();
}

#[test]
fn a_release_of_unknown_outcome_may_have_happened() {
    let mut story = Story::new();
    story.sent(1, "a");
    let held = story.read(1, "a", 1);
    story.call("Release", unknown(), vec![settle(Action::Hide, held.receipt(), None)]);
    story.read(1, "a", 2);
    story.left(1, "a");
    story.is_healthy();
}

#[test]
fn anybody_may_show_a_message_by_its_id() {
    let mut story = Story::new();
    story.sent(1, "a");
    story.read(1, "a", 1);
    story.call(
        "SetVisibilityTimeout",
        Verdict::Done,
        vec![settle(Action::Hide, Target::Id(1), Some(Outcome::Done))],
    );
    story.read(1, "a", 2);
    story.left(1, "a");
    story.is_healthy();
}

#[test]
fn an_extend_must_not_shorten() {
    let tell = |seconds: i64| {
        let mut story = Story::new();
        story.sent(1, "a");
        let held = story.read(1, "a", 1);
        let until = story.now + seconds * SECOND;
        story.hidden(Action::Extend, &held, until);
        story.settled(Action::Delete, &held, Outcome::Done);
        story
    };
    tell(5).breaks("extending_never_shortens");
    tell(60).is_healthy();
}

#[test]
fn a_delivery_must_not_be_counted_twice_or_not_at_all() {
    let tell = |second: i32| {
        let mut story = Story::new();
        story.sent(1, "a");
        story.read(1, "a", 1);
        story.wait(31);
        story.read(1, "a", second);
        story.left(1, "a");
        story
    };
    tell(1).breaks("read_counts_count_deliveries");
    tell(3).breaks("read_counts_count_deliveries");
    tell(2).is_healthy();
}

#[test]
fn a_delivery_that_was_given_back_must_not_be_counted() {
    let tell = |outcome: Outcome, second: i32| {
        let mut story = Story::new();
        story.sent(1, "a");
        let held = story.read(1, "a", 1);
        let now = story.now;
        match outcome {
            Outcome::Done => story.hidden(Action::GiveBack, &held, now),
            _ => drop(story.settled(Action::GiveBack, &held, outcome).clone()),
        }
        story.wait(31);
        story.read(1, "a", second);
        story.left(1, "a");
        story
    };
    tell(Outcome::Done, 2).breaks("read_counts_count_deliveries");
    tell(Outcome::Done, 0).breaks("read_counts_count_deliveries");
    tell(Outcome::Done, 1).is_healthy();
    // Somebody else's delivery counts, whoever wanted to give it back.
    tell(Outcome::Stale, 1).breaks("read_counts_count_deliveries");
}

#[test]
fn a_give_back_of_unknown_outcome_may_have_happened() {
    for second in [1, 2] {
        let mut story = Story::new();
        story.sent(1, "a");
        let held = story.read(1, "a", 1);
        story.call("Settle", unknown(), vec![settle(Action::GiveBack, held.receipt(), None)]);
        story.wait(31);
        story.read(1, "a", second);
        story.left(1, "a");
        story.is_healthy();
    }
}

#[test]
fn a_read_that_its_caller_gave_up_may_count() {
    let mut story = Story::new();
    story.sent(1, "a");
    story.call("ReadBatch", Verdict::Unknown("cancelled".to_owned()), vec![read(Vec::new())]);
    story.wait(31);
    story.read(1, "a", 2);
    story.left(1, "a");
    story.is_healthy();
}

#[test]
fn a_group_must_not_go_on_before_its_head_is_settled() {
    let tell = |head_is_settled: bool| {
        let mut story = Story::new();
        story.sent_to_group(1, "a");
        story.sent_to_group(2, "b");
        let head = story.read_head(1, "a");
        if head_is_settled {
            story.settled(Action::Delete, &head, Outcome::Done);
        }
        let next = story.read_head(2, "b");
        story.settled(Action::Delete, &head, if head_is_settled { Outcome::NotFound } else { Outcome::Done });
        story.settled(Action::Delete, &next, Outcome::Done);
        story
    };
    tell(false).breaks("groups_keep_their_order");
    tell(true).is_healthy();
}

#[test]
fn a_group_must_not_start_behind_its_head() {
    let mut story = Story::new();
    story.sent_to_group(1, "a");
    story.sent_to_group(2, "b");
    let second = story.read_head(2, "b");
    story.settled(Action::Delete, &second, Outcome::Done);
    story.left(1, "a");
    story.breaks("groups_keep_their_order");
}

/// A message, and a read that waits for so many seconds beside it and gives nothing.
fn waiting_beside_a_message(seconds: i64) -> Story {
    let mut story = Story::new();
    story.sent(1, "a");
    let asked = story.now + 1;
    story.wait(seconds);
    story.call("ReadBatch", Verdict::Done, vec![read(Vec::new())]).asked = asked;
    story.left(1, "a");
    story
}

#[test]
fn nobody_must_wait_beside_a_visible_message() {
    waiting_beside_a_message(10).breaks("nobody_waits_beside_a_message");
    waiting_beside_a_message(1).is_healthy();
}

#[test]
fn a_disturbed_wait_is_not_judged() {
    let mut story = waiting_beside_a_message(10);
    story.fault(FaultKind::Terminated);
    story.history.faults[0].from -= 5 * SECOND;
    story.is_healthy();
}

#[test]
fn a_timer_that_misses_a_message_falling_due_makes_its_reader_wait() {
    // `vt > now()` at the moment at which the message fell due: the timer is set for the next one, if any.
    let tell = |late: i64| {
        let mut story = Story::new();
        story.sent(1, "a");
        story.read(1, "a", 1);
        story.wait(25);
        let asked = story.now;
        story.wait(5 + late);
        let again = story.read(1, "a", 2);
        story.history.calls.last_mut().expect("the read").asked = asked;
        story.settled(Action::Delete, &again, Outcome::Done);
        story
    };
    tell(10).breaks("nobody_waits_beside_a_message");
    tell(1).is_healthy();
}

#[test]
fn a_group_that_is_one_call_keeps_its_order_too() {
    let tell = |first: &str, second: &str| {
        let mut story = Story::new();
        let grouped = |body: &str, msg_id: i64| {
            let Part::Send(mut plain) = send(body, Some(msg_id)) else { unreachable!("a send") };
            plain.group = Some("g".to_owned());
            Part::Send(plain)
        };
        story.whole(Verdict::Done, vec![grouped("a", 1), grouped("b", 2)]);
        for body in [first, second] {
            let msg_id = if body == "a" { 1 } else { 2 };
            let delivery = story.delivery(msg_id, body, 1);
            let heads = Read {
                queue: QUEUE.to_owned(),
                heads: true,
                deliveries: vec![delivery.clone()],
                ..Read::default()
            };
            story.call("Read", Verdict::Done, vec![Part::Read(heads)]);
            story.settled(Action::Delete, &delivery, Outcome::Done);
        }
        story
    };
    tell("b", "a").breaks("groups_keep_their_order");
    tell("a", "b").is_healthy();
}

#[test]
fn a_stream_of_sends_keeps_its_order_though_its_answers_come_late() {
    // Both are under way at once: only the stream says which comes first.
    let tell = |is_stream: bool| {
        let mut story = Story::new();
        for (msg_id, body) in [(1, "a"), (2, "b")] {
            story.sent_to_group(msg_id, body);
            let sent = story.history.calls.last_mut().expect("the send");
            sent.asked = 1_000_000 * SECOND;
            if let Some(Part::Send(send)) = sent.parts.first_mut() {
                send.place = is_stream.then(|| ("stream".to_owned(), msg_id.unsigned_abs()));
            }
        }
        let second = story.read_head(2, "b");
        story.settled(Action::Delete, &second, Outcome::Done);
        story.left(1, "a");
        story
    };
    tell(true).breaks("groups_keep_their_order");
    tell(false).is_healthy();
}

#[test]
fn what_the_server_extends_is_not_visible_when_its_timeout_ends() {
    let tell = |extends: bool| {
        let mut story = Story::new();
        story.sent(1, "a");
        story.read(1, "a", 1);
        if let Some(Part::Read(read)) = story.history.calls.last_mut().and_then(|call| call.parts.last_mut())
        {
            read.extends = extends;
        }
        let asked = story.now + 1;
        story.wait(60);
        story.call("ReadBatch", Verdict::Done, vec![read(Vec::new())]).asked = asked;
        story.left(1, "a");
        story
    };
    tell(false).breaks("nobody_waits_beside_a_message");
    tell(true).is_healthy();
}
