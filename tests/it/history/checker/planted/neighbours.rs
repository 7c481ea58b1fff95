//! Callers who pay for what others do.

use super::super::story::{QUEUE, Story, moved, refused, send, settle};
use crate::history::operators::Move;
use crate::history::record::{Action, FaultKind, Outcome, Part, Target, Verdict};

fn doomed(body: &str, msg_id: Option<i64>) -> Part {
    let Part::Send(mut plain) = send(body, msg_id) else { unreachable!("a send") };
    plain.doomed = true;
    Part::Send(plain)
}

#[test]
fn a_bad_message_must_not_take_its_neighbours_down() {
    let tell = |neighbour: Verdict, msg_id: Option<i64>| {
        let mut story = Story::new();
        story.call("Send", refused("REFUSED_BY_DATABASE"), vec![doomed("bad", None)]);
        story.call("Send", neighbour, vec![send("good", msg_id)]);
        if msg_id.is_some() {
            story.left(1, "good");
        }
        story
    };
    tell(Verdict::Unknown("INTERNAL".to_owned()), None).breaks("every_item_has_its_own_verdict");
    tell(refused("REFUSED_BY_DATABASE"), None).breaks("every_item_has_its_own_verdict");
    tell(refused("OVERLOADED"), None).is_healthy();
    tell(Verdict::Done, Some(1)).is_healthy();
}

#[test]
fn a_bad_message_must_not_be_acknowledged_with_its_neighbours() {
    let mut story = Story::new();
    story.call("Send", Verdict::Done, vec![doomed("bad", Some(1))]);
    story.left(1, "bad");
    story.breaks("every_item_has_its_own_verdict");
}

#[test]
fn a_locked_row_must_not_fail_settles_of_other_rows() {
    let tell = |msg_id: i64| {
        let mut story = Story::new();
        story.fault(FaultKind::Locked { queue: QUEUE.to_owned(), msg_ids: vec![7] });
        story.history.faults[0].to += 60_000_000;
        let busy = Verdict::Unknown("QUEUE_BUSY".to_owned());
        story.call("Delete", busy, vec![settle(Action::Delete, Target::Id(msg_id), None)]);
        story
    };
    tell(1).breaks("locks_hurt_nobody_else");
    tell(7).is_healthy();
}

#[test]
fn a_locked_row_must_not_fail_sends() {
    let mut story = Story::new();
    story.fault(FaultKind::Locked { queue: QUEUE.to_owned(), msg_ids: vec![7] });
    story.call("Send", refused("QUEUE_BUSY"), vec![send("a", None)]);
    story.breaks("locks_hurt_nobody_else");
}

#[test]
fn a_move_must_not_be_busy_but_for_others_at_the_same_shelf() {
    let tell = |other: Option<&str>| {
        let mut story = Story::new();
        if let Some(queue) = other {
            let other = Move { queue: queue.to_owned(), count: Some(0), ..moved() };
            story.call("ReplayArchivedMessages", Verdict::Done, vec![Part::Move(other)]).answered +=
                1_000_000;
        }
        story.call("ReplayArchivedMessages", refused("QUEUE_BUSY"), vec![Part::Move(moved())]);
        story
    };
    tell(None).breaks("locks_hurt_nobody_else");
    tell(Some("another")).breaks("locks_hurt_nobody_else");
    tell(Some(QUEUE)).is_healthy();
}

#[test]
fn merged_statements_must_not_deadlock() {
    let tell = |whole: bool| {
        let mut story = Story::new();
        let parts = vec![settle(Action::Delete, Target::Id(1), None)];
        story.call("Delete", refused("CONFLICT"), parts).whole = whole;
        story
    };
    tell(false).breaks("locks_hurt_nobody_else");
    // What several statements of one transaction touch may collide with another's.
    tell(true).is_healthy();
}

#[test]
fn what_a_transaction_holds_may_be_busy() {
    let mut story = Story::new();
    let held = settle(Action::Delete, Target::Id(1), Some(Outcome::NotFound));
    let transaction = story.whole(Verdict::Done, vec![held]);
    transaction.answered += 10_000_000;
    let busy = Verdict::Unknown("QUEUE_BUSY".to_owned());
    story.call("Delete", busy, vec![settle(Action::Delete, Target::Id(1), None)]);
    story.is_healthy();
}
