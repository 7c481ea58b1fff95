//! Policies that nobody goes by.

use super::super::story::{QUEUE, SECOND, Story, settle, unknown};
use crate::history::operators::{Backoff, Policy, Update};
use crate::history::record::{Action, DeadLetter, Micros, Outcome, Part, Settle, Verdict, WORN_OUT};

/// From two seconds on, twice as long each time, up to six, of which a half is by chance.
fn backing_off() -> Policy {
    let backoff = Backoff { minimum: 2 * SECOND, maximum: 6 * SECOND, multiplier: 2.0, jitter: 0.5 };
    Policy { backoff: Some(backoff), ..Policy::default() }
}

fn update(story: &mut Story, verdict: Verdict, policy: Policy) {
    story.call("UpdateQueue", verdict, vec![Part::Update(Update { queue: QUEUE.to_owned(), policy })]);
}

/// A message that was read so often and is released for so long, which is left to the policy.
fn released(story: &mut Story, read_ct: i32, delay: Micros) {
    story.sent(1, "a");
    let held = (1..=read_ct).map(|time| {
        story.wait(31);
        story.read(1, "a", time)
    });
    let held = held.last().expect("a read");
    let Part::Settle(plain) = settle(Action::Hide, held.receipt(), Some(Outcome::Done)) else {
        unreachable!("a settle")
    };
    let vt = Some(story.now + delay);
    story.call("Release", Verdict::Done, vec![Part::Settle(Settle { by_policy: true, vt, ..plain })]);
    story.left(1, "a");
}

#[test]
fn a_release_must_wait_as_long_as_the_policy_says() {
    let tell = |read_ct: i32, delay: Micros| {
        let mut story = Story::new();
        story.history.policies.insert(QUEUE.to_owned(), backing_off());
        released(&mut story, read_ct, delay);
        story
    };
    tell(1, SECOND).is_healthy();
    tell(1, 2 * SECOND).is_healthy();
    tell(1, 3 * SECOND).breaks("releases_wait_as_the_policy_says");
    tell(1, SECOND / 2).breaks("releases_wait_as_the_policy_says");
    tell(2, SECOND).breaks("releases_wait_as_the_policy_says");
    tell(2, 4 * SECOND).is_healthy();
    tell(3, 2 * SECOND).breaks("releases_wait_as_the_policy_says");
    tell(3, 6 * SECOND).is_healthy();
    tell(3, 8 * SECOND).breaks("releases_wait_as_the_policy_says");
}

#[test]
fn a_release_without_a_policy_must_not_wait() {
    let tell = |delay: Micros| {
        let mut story = Story::new();
        released(&mut story, 1, delay);
        story
    };
    tell(0).is_healthy();
    tell(SECOND).breaks("releases_wait_as_the_policy_says");
}

#[test]
fn a_message_must_not_come_back_before_its_backoff_is_over() {
    let mut story = Story::new();
    story.history.policies.insert(QUEUE.to_owned(), backing_off());
    released(&mut story, 1, 2 * SECOND);
    story.wait(1);
    story.read(1, "a", 2);
    story.breaks("hidden_messages_stay_hidden");
}

#[test]
fn a_changed_policy_must_hold_once_it_is_acknowledged() {
    let tell = |verdict: Verdict, delay: Micros, lag: Micros| {
        let mut story = Story::new();
        story.history.policies.insert(QUEUE.to_owned(), backing_off());
        story.history.policy_lag = lag;
        update(&mut story, verdict, Policy::default());
        released(&mut story, 1, delay);
        story
    };
    tell(Verdict::Done, 0, 0).is_healthy();
    tell(Verdict::Done, 2 * SECOND, 0).breaks("releases_wait_as_the_policy_says");
    tell(Verdict::Done, 2 * SECOND, 60 * SECOND).is_healthy();
    tell(unknown(), 2 * SECOND, 0).is_healthy();
    tell(unknown(), 0, 0).is_healthy();
}

#[test]
fn a_read_must_hide_as_long_as_the_policy_says() {
    let tell = |visibility: Micros, by_policy: bool| {
        let mut story = Story::new();
        let policy = Policy { visibility: Some(visibility), ..Policy::default() };
        story.history.policies.insert(QUEUE.to_owned(), policy);
        story.sent(1, "a");
        story.read(1, "a", 1);
        if let Some(Part::Read(read)) = story.history.calls.last_mut().and_then(|call| call.parts.last_mut())
        {
            read.by_policy = by_policy;
        }
        story.left(1, "a");
        story
    };
    tell(30 * SECOND, true).is_healthy();
    tell(31 * SECOND, true).breaks("reads_hide_as_the_policy_says");
    tell(31 * SECOND, false).is_healthy();
}

#[test]
fn a_message_must_not_come_before_the_delay_of_the_policy_is_over() {
    let tell = |after: i64| {
        let mut story = Story::new();
        let policy = Policy { delay: 5 * SECOND, ..Policy::default() };
        story.history.policies.insert(QUEUE.to_owned(), policy);
        story.sent(1, "a");
        story.wait(after);
        let held = story.read(1, "a", 1);
        story.settled(Action::Delete, &held, Outcome::Done);
        story
    };
    tell(1).breaks("delayed_messages_are_not_early");
    tell(6).is_healthy();
}

#[test]
fn a_lowered_limit_must_hold_once_it_is_acknowledged() {
    let at_most = |max_receives: i32| Policy { max_receives: Some(max_receives), ..Policy::default() };
    let tell = |verdict: Verdict| {
        let mut story = Story::new();
        story.history.policies.insert(QUEUE.to_owned(), at_most(3));
        story.sent(1, "a");
        story.read(1, "a", 1);
        update(&mut story, verdict, at_most(1));
        story.wait(31);
        story.read(1, "a", 2);
        story.left(1, "a");
        story
    };
    tell(Verdict::Done).breaks("nobody_gets_a_message_too_often");
    tell(unknown()).is_healthy();
}

#[test]
fn a_raised_limit_must_hold_once_it_is_acknowledged() {
    let at_most = |max_receives: i32| Policy { max_receives: Some(max_receives), ..Policy::default() };
    let tell = |raised: bool| {
        let mut story = Story::new();
        story.history.policies.insert(QUEUE.to_owned(), at_most(1));
        if raised {
            update(&mut story, Verdict::Done, at_most(2));
        }
        story.sent(1, "a");
        story.read(1, "a", 1);
        story.wait(31);
        let (queue, body, reason) = (QUEUE.to_owned(), "a".to_owned(), WORN_OUT.to_owned());
        story.history.dead_letters.push(DeadLetter { queue, msg_id: 1, body, handed_over: 1, reason });
        story
    };
    tell(true).breaks("dead_letters_were_handed_over");
    tell(false).is_healthy();
}
