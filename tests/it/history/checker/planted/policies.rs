//! Policies that nobody goes by.

use super::super::story::{QUEUE, SECOND, Story, read, refused, send, settle, unknown};
use crate::history::operators::{Backoff, Policy, Update};
use crate::history::record::{
    Action, DeadLetter, FaultKind, Micros, Outcome, Part, Settle, Verdict, WORN_OUT,
};

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

/// A read that leaves it to the policy how long it waits, and ends after so long.
fn waited(policy: Policy, millis: Micros, finds: bool) -> Story {
    let mut story = Story::new();
    story.history.policies.insert(QUEUE.to_owned(), policy);
    let asked = story.now;
    story.now += millis * 1_000;
    let mut deliveries = Vec::new();
    if finds {
        story.sent(1, "a");
        story.left(1, "a");
        deliveries.push(story.delivery(1, "a", 1));
    }
    let call = story.call("ReadBatch", Verdict::Done, vec![read(deliveries)]);
    call.asked = asked;
    if let [Part::Read(read)] = call.parts.as_mut_slice() {
        read.waits_by_policy = true;
    }
    story
}

#[test]
fn a_read_must_wait_as_long_as_the_policy_says() {
    let policy = || Policy { wait: 5 * SECOND, ..Policy::default() };
    waited(policy(), 4_000, false).breaks("reads_wait_as_the_policy_says");
    waited(policy(), 5_000, false).is_healthy();
    waited(policy(), 4_000, true).is_healthy();
    // Later than that by more than the patience of two seconds.
    waited(policy(), 6_500, false).is_healthy();
    waited(policy(), 8_000, false).breaks("reads_wait_as_the_policy_says");
    waited(Policy::default(), 0, false).is_healthy();
    waited(Policy::default(), 5_000, false).breaks("reads_wait_as_the_policy_says");
    let disturbed = |millis: Micros, by: FaultKind| {
        let mut story = waited(policy(), millis, false);
        story.fault(by);
        story.history.faults[0].from -= SECOND;
        story
    };
    disturbed(4_000, FaultKind::ServerEnded("stopped")).is_healthy();
    disturbed(4_000, FaultKind::Terminated).breaks("reads_wait_as_the_policy_says");
    disturbed(8_000, FaultKind::Terminated).is_healthy();
}

#[test]
fn a_changed_wait_must_hold_once_it_is_acknowledged() {
    let tell = |verdict: Verdict, millis: Micros| {
        let mut story = Story::new();
        let policy = Policy { wait: 5 * SECOND, ..Policy::default() };
        story.history.policies.insert(QUEUE.to_owned(), policy);
        update(&mut story, verdict, Policy::default());
        let asked = story.now;
        story.now += millis * 1_000;
        let call = story.call("ReadBatch", Verdict::Done, vec![read(Vec::new())]);
        call.asked = asked + 1;
        if let [Part::Read(read)] = call.parts.as_mut_slice() {
            read.waits_by_policy = true;
        }
        story
    };
    tell(Verdict::Done, 0).is_healthy();
    tell(Verdict::Done, 5_000).breaks("reads_wait_as_the_policy_says");
    tell(unknown(), 5_000).is_healthy();
}

/// The queue takes four bytes at most; it has been told to take three, or nobody knows that; and "abcd" is sent.
fn sent_to_smaller(changed: Verdict, lag: Micros, verdict: Verdict) -> Story {
    let at_most = |max_bytes: usize| Policy { max_bytes: Some(max_bytes), ..Policy::default() };
    let mut story = Story::new();
    story.history.policies.insert(QUEUE.to_owned(), at_most(4));
    story.history.policy_lag = lag;
    update(&mut story, changed, at_most(3));
    story.tick();
    let msg_id = (verdict == Verdict::Done).then_some(1);
    if !matches!(verdict, Verdict::Refused(_)) {
        story.left(1, "abcd");
    }
    story.call("Send", verdict, vec![send("abcd", msg_id)]);
    story
}

#[test]
fn what_is_too_large_must_be_refused_as_soon_as_the_change_is_acknowledged() {
    let too_large = || refused("MESSAGE_TOO_LARGE");
    sent_to_smaller(Verdict::Done, 0, Verdict::Done).breaks("sends_are_as_large_as_the_policy_allows");
    sent_to_smaller(Verdict::Done, 0, unknown()).breaks("sends_are_as_large_as_the_policy_allows");
    sent_to_smaller(Verdict::Done, 0, too_large()).is_healthy();
    // For as long as the change may be on its way, both answers are right.
    sent_to_smaller(Verdict::Done, SECOND, Verdict::Done).is_healthy();
    sent_to_smaller(Verdict::Done, SECOND, too_large()).is_healthy();
    sent_to_smaller(unknown(), 0, Verdict::Done).is_healthy();
    sent_to_smaller(unknown(), 0, too_large()).is_healthy();
    sent_to_smaller(refused("QUEUE_BUSY"), 0, Verdict::Done).is_healthy();
    sent_to_smaller(refused("QUEUE_BUSY"), 0, too_large()).breaks("sends_are_as_large_as_the_policy_allows");
}

#[test]
fn a_batch_must_be_refused_as_too_large_for_one_of_its_messages_alone() {
    let tell = |bodies: [&str; 2]| {
        let mut story = Story::new();
        let policy = Policy { max_bytes: Some(3), ..Policy::default() };
        story.history.policies.insert(QUEUE.to_owned(), policy);
        story.whole(refused("MESSAGE_TOO_LARGE"), bodies.map(|body| send(body, None)).into());
        story
    };
    tell(["abc", "abcd"]).is_healthy();
    tell(["abc", "def"]).breaks("sends_are_as_large_as_the_policy_allows");
}

/// A message under a key, and another one after so many seconds; the window of the queue is changed in between, or before.
fn keyed_twice(before: Option<Micros>, between: Option<Micros>, after: i64, second: i64) -> Story {
    let window = |seconds: Micros| Policy { window: Some(seconds * SECOND), ..Policy::default() };
    let mut story = Story::new();
    if let Some(seconds) = before {
        story.history.policies.insert(QUEUE.to_owned(), window(seconds));
    }
    story.keyed(1, "a", false);
    story.left(1, "a");
    if let Some(seconds) = between {
        update(&mut story, Verdict::Done, window(seconds));
    }
    story.wait(after);
    story.keyed(second, "a", second == 1);
    if second != 1 {
        story.left(second, "a");
    }
    story
}

#[test]
fn an_id_must_be_remembered_for_the_window_of_its_queue() {
    // A server remembers ids for 60 seconds by itself.
    keyed_twice(None, None, 30, 1).is_healthy();
    keyed_twice(None, None, 30, 2).breaks("one_key_has_one_id");
    keyed_twice(Some(10), None, 30, 2).is_healthy();
    keyed_twice(Some(10), None, 30, 1).breaks("one_key_has_one_id");
    keyed_twice(Some(10), None, 5, 2).breaks("one_key_has_one_id");
    keyed_twice(Some(100), None, 80, 1).is_healthy();
    keyed_twice(Some(100), None, 80, 2).breaks("one_key_has_one_id");
}

#[test]
fn an_id_that_is_remembered_must_keep_its_time() {
    keyed_twice(Some(10), Some(100), 30, 2).is_healthy();
    keyed_twice(Some(10), Some(100), 30, 1).breaks("one_key_has_one_id");
    keyed_twice(Some(100), Some(10), 30, 1).is_healthy();
    keyed_twice(Some(100), Some(10), 30, 2).breaks("one_key_has_one_id");
}
