//! Lists that show too much, too little, or change what they look at.

use super::super::story::{SECOND, Story, list, read, settle, unknown};
use crate::history::operators::{List, Shown, State};
use crate::history::record::{Action, Delivery, Micros, Outcome, Part, Verdict};

/// A message that was never read, as a list shows it.
fn untouched(story: &Story, msg_id: i64, body: &str) -> Shown {
    let enqueued_at = story.now;
    let message = Delivery {
        msg_id,
        read_ct: 0,
        enqueued_at,
        last_read_at: 0,
        vt: enqueued_at,
        body: body.to_owned(),
        seen: story.now,
    };
    Shown { message, archived_at: None, letter: None }
}

/// The same of one that was read.
fn held(delivery: &Delivery) -> Shown {
    Shown { message: delivery.clone(), archived_at: None, letter: None }
}

fn lists(story: &mut Story, rows: Vec<Shown>) {
    story.call("ListMessages", Verdict::Done, vec![list(false, rows)]);
}

#[test]
fn a_list_must_not_show_what_nobody_sent() {
    let tell = |body: &str| {
        let mut story = Story::new();
        story.sent(1, "a");
        let row = untouched(&story, 1, body);
        lists(&mut story, vec![row]);
        story.left(1, "a");
        story
    };
    tell("a").is_healthy();
    tell("b").breaks("nothing_comes_from_nowhere");
    tell("b").breaks("ids_belong_to_their_bodies");
}

#[test]
fn a_list_must_not_show_what_was_removed() {
    let tell = |before: bool| {
        let mut story = Story::new();
        story.sent(1, "a");
        let delivery = story.read(1, "a", 1);
        if before {
            story.settled(Action::Delete, &delivery, Outcome::Done);
        }
        lists(&mut story, vec![held(&delivery)]);
        if !before {
            story.settled(Action::Delete, &delivery, Outcome::Done);
        }
        story
    };
    tell(true).breaks("lists_show_what_is_there");
    tell(false).is_healthy();
}

#[test]
fn a_list_of_an_archive_must_not_show_what_nobody_archived() {
    let tell = |before: bool| {
        let mut story = Story::new();
        story.sent(1, "a");
        let delivery = story.read(1, "a", 1);
        if before {
            story.settled(Action::Archive, &delivery, Outcome::Done);
        }
        let row = story.shown_in_archive(1, "a", delivery.seen);
        story.call("ListArchivedMessages", Verdict::Done, vec![list(true, vec![row])]);
        if !before {
            story.settled(Action::Archive, &delivery, Outcome::Done);
        }
        story.archived(1, "a");
        story
    };
    tell(false).breaks("lists_show_what_is_there");
    tell(true).is_healthy();
}

#[test]
fn a_list_must_not_leave_out_what_is_there() {
    let tell = |rows: &[(i64, &str)], above: i64, is_last: bool| {
        let mut story = Story::new();
        story.sent(1, "a");
        story.sent(2, "b");
        let rows = rows.iter().map(|&(msg_id, body)| untouched(&story, msg_id, body)).collect();
        let Part::List(page) = list(false, rows) else { unreachable!("a list") };
        story.call("ListMessages", Verdict::Done, vec![Part::List(List { above, is_last, ..page })]);
        story.left(1, "a");
        story.left(2, "b");
        story
    };
    tell(&[(1, "a"), (2, "b")], i64::MIN, true).is_healthy();
    tell(&[(1, "a")], i64::MIN, false).is_healthy();
    tell(&[(2, "b")], 1, true).is_healthy();
    tell(&[(2, "b")], i64::MIN, false).breaks("lists_leave_nothing_out");
    tell(&[(1, "a")], i64::MIN, true).breaks("lists_leave_nothing_out");
    tell(&[], 1, true).breaks("lists_leave_nothing_out");
    tell(&[(2, "b"), (1, "a")], i64::MIN, true).breaks("lists_show_what_is_there");
}

#[test]
fn a_list_may_miss_what_is_sent_or_removed_beside_it() {
    let mut story = Story::new();
    story.sent(1, "a");
    let delivery = story.read(1, "a", 1);
    story.call("Delete", unknown(), vec![settle(Action::Delete, delivery.receipt(), None)]);
    lists(&mut story, Vec::new());
    story.is_healthy();
    story.left(1, "a");
    story.breaks("lists_leave_nothing_out");
}

#[test]
fn a_list_of_ids_must_show_those_and_no_others() {
    let tell = |asked_for: i64| {
        let mut story = Story::new();
        story.sent(1, "a");
        let row = untouched(&story, 1, "a");
        let Part::List(page) = list(false, vec![row]) else { unreachable!("a list") };
        let page = List { msg_ids: vec![asked_for], ..page };
        story.call("ListMessages", Verdict::Done, vec![Part::List(page)]);
        story.left(1, "a");
        story
    };
    tell(1).is_healthy();
    tell(9).breaks("lists_show_what_is_there");
}

#[test]
fn a_list_must_show_the_state_that_is_asked_for() {
    let tell = |state: State, is_read: bool, hidden: Micros| {
        let mut story = Story::new();
        story.sent(1, "a");
        let mut row = untouched(&story, 1, "a");
        if is_read {
            row = held(&story.read(1, "a", 1));
        } else {
            row.message.vt += hidden;
        }
        let Part::List(page) = list(false, vec![row]) else { unreachable!("a list") };
        story.call("ListMessages", Verdict::Done, vec![Part::List(List { state: Some(state), ..page })]);
        story.left(1, "a");
        story
    };
    tell(State::Visible, false, 0).is_healthy();
    tell(State::InFlight, true, 0).is_healthy();
    tell(State::Visible, true, 0).breaks("lists_show_what_is_there");
    tell(State::InFlight, false, 0).breaks("lists_show_what_is_there");
    tell(State::Delayed, false, 0).is_healthy();
    tell(State::Delayed, true, 0).breaks("lists_show_what_is_there");
}

#[test]
fn a_list_must_not_count_as_a_read() {
    let tell = |read_ct: i32| {
        let mut story = Story::new();
        story.sent(1, "a");
        let row = untouched(&story, 1, "a");
        lists(&mut story, vec![row]);
        let mut again = untouched(&story, 1, "a");
        again.message.read_ct = read_ct;
        lists(&mut story, vec![again]);
        story.left(1, "a");
        story
    };
    tell(0).is_healthy();
    tell(1).breaks("lists_show_what_is_there");

    let mut story = Story::new();
    story.sent(1, "a");
    let row = untouched(&story, 1, "a");
    lists(&mut story, vec![row]);
    story.read(1, "a", 2);
    story.left(1, "a");
    story.breaks("read_counts_count_deliveries");
}

#[test]
fn a_list_must_not_hide_what_it_shows() {
    let tell = |hidden: Micros| {
        let mut story = Story::new();
        story.sent(1, "a");
        let row = untouched(&story, 1, "a");
        lists(&mut story, vec![row]);
        let mut again = untouched(&story, 1, "a");
        again.message.vt += hidden;
        lists(&mut story, vec![again]);
        story.left(1, "a");
        story
    };
    tell(0).is_healthy();
    tell(30 * SECOND).breaks("lists_show_what_is_there");

    let mut story = Story::new();
    story.sent(1, "a");
    let mut held = held(&story.read(1, "a", 1));
    lists(&mut story, vec![held.clone()]);
    story.left(1, "a");
    story.is_healthy();
    held.message.vt += SECOND;
    lists(&mut story, vec![held]);
    story.breaks("lists_show_what_is_there");
}

#[test]
fn a_list_must_not_forget_reads() {
    let mut story = Story::new();
    story.sent(1, "a");
    let row = untouched(&story, 1, "a");
    story.read(1, "a", 1);
    lists(&mut story, vec![row]);
    story.left(1, "a");
    story.breaks("lists_show_what_is_there");
}

#[test]
fn a_list_shows_what_a_transaction_has_read_when_that_is_over() {
    let tell = |is_over: bool| {
        let mut story = Story::new();
        story.sent(1, "a");
        let row = untouched(&story, 1, "a");
        let asked = story.tick();
        let delivery = story.delivery(1, "a", 1);
        if is_over {
            story.whole(Verdict::Done, vec![read(vec![delivery])]).asked = asked;
            lists(&mut story, vec![row]);
        } else {
            lists(&mut story, vec![row]);
            story.whole(Verdict::Done, vec![read(vec![delivery])]).asked = asked;
        }
        story.left(1, "a");
        story
    };
    tell(false).is_healthy();
    tell(true).breaks("lists_show_what_is_there");
}

#[test]
fn a_list_shows_what_a_change_of_visibility_has_set() {
    let mut story = Story::new();
    story.sent(1, "a");
    let delivery = story.read(1, "a", 1);
    let until = story.now + 5 * SECOND;
    story.hidden(Action::Hide, &delivery, until);
    lists(&mut story, vec![held(&Delivery { vt: until, ..delivery })]);
    story.left(1, "a");
    story.is_healthy();
}

#[test]
fn an_archived_message_must_be_listed() {
    let tell = |rows: bool| {
        let mut story = Story::new();
        story.sent(1, "a");
        let delivery = story.read(1, "a", 1);
        story.settled(Action::Archive, &delivery, Outcome::Done);
        let row = story.shown_in_archive(1, "a", story.now);
        let rows = if rows { vec![row] } else { Vec::new() };
        story.call("ListArchivedMessages", Verdict::Done, vec![list(true, rows)]);
        story.archived(1, "a");
        story
    };
    tell(true).is_healthy();
    tell(false).breaks("lists_leave_nothing_out");
}
