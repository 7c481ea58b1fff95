//! A server that is killed while a policy changes, or while it does what a policy says: the others have the same policies, and
//! each message is there once.

use nix::sys::signal::Signal;
use pgmq_grpc::proto::v1::{Ordering, Outcome, QueuePolicy, SendRequest};
use tonic::Status;

use super::replicas::until_hidden_for;
use super::updating::orders;
use super::{create, full, policy_of, set, try_set};
use crate::harness::{Client, Fate, Gate, Refusal, Test, eventually, seconds};
use crate::read_batch::{all_of, ids, micros, now, until_a_reader_waits};
use crate::read_stream::{Follower, follow};

/// Where a change of a policy is stopped: the statement and a gate before it.
const PLACES: [(&str, &str); 2] = [
    ("update_policy", "TRIGGER gate BEFORE INSERT OR UPDATE ON pgmq_grpc.queue_policy FOR EACH ROW"),
    (
        "commit",
        "CONSTRAINT TRIGGER gate AFTER INSERT OR UPDATE ON pgmq_grpc.queue_policy
         DEFERRABLE INITIALLY DEFERRED FOR EACH ROW",
    ),
];

/// Every place and what becomes of it, and whether the change is made then: only a commit needs its server no more.
fn stops() -> impl Iterator<Item = (&'static str, &'static str, Fate, bool)> {
    let all = PLACES.into_iter().flat_map(|place| Fate::BOTH.map(|fate| (place, fate)));
    all.map(|((place, gate), fate)| (place, gate, fate, place == "commit" && fate == Fate::Finished))
}

#[tokio::test]
async fn a_queue_with_a_policy_is_made_as_a_whole_or_not_at_all() {
    for (place, gate, fate, is_made) in stops() {
        let test = Test::with_queue("failed").await;
        let gate = Gate::by(&test, gate).await;
        let mut client = test.client.clone();
        let call = async move { create(&mut client, "orders", Some(full())).await };
        gate.kill_within(&test, place, fate, call).await;
        let found = "SELECT ARRAY[(SELECT count(*) FROM pgmq.meta WHERE queue_name = 'orders'),
            (SELECT count(*) FROM pgmq_grpc.queue_policy),
            (SELECT count(*) FROM pg_class WHERE relname IN ('q_orders', 'a_orders'))]";
        let expected = if is_made { [1, 1, 2] } else { [0, 0, 0] };
        assert_eq!(test.value::<Vec<i64>>(found).await, expected, "{place} {fate:?}");

        let (_other, mut elsewhere) = test.another().await;
        let made = create(&mut elsewhere, "orders", Some(full())).await.unwrap();
        assert_eq!(made.created, !is_made, "{place} {fate:?}");
        assert_eq!(made.queue.unwrap().policy, Some(full()));
        assert_eq!(timeout_at(&elsewhere).await, seconds(45.0));
    }
}

#[tokio::test]
async fn a_change_is_made_as_a_whole_or_not_at_all_and_heard_of_from_a_server_that_is_dead() {
    for (place, gate, fate, is_made) in stops() {
        let mut test = orders().await;
        let before = QueuePolicy { default_delay: seconds(7.0), max_message_bytes: Some(7), ..full() };
        let before = QueuePolicy { default_visibility_timeout: seconds(44.0), ..before };
        set(&mut test.client, "orders", before.clone()).await;
        let (_other, mut elsewhere) = test.another().await;
        let gate = Gate::by(&test, gate).await;
        let mut client = test.client.clone();
        let call = async move { try_set(&mut client, "orders", full()).await };
        gate.kill_within(&test, place, fate, call).await;

        let expected = if is_made { full() } else { before };
        assert_eq!(policy_of(&mut elsewhere, "orders").await, Some(expected), "{place} {fate:?}");
        until_hidden_for(&elsewhere, if is_made { 45.0 } else { 44.0 }).await;
        assert_eq!(set(&mut elsewhere, "orders", full()).await, full());
        assert_eq!(timeout_at(&elsewhere).await, seconds(45.0));
    }
}

async fn timeout_at(client: &Client) -> Option<prost_types::Duration> {
    Follower::open(client, follow("orders")).await.started.visibility_timeout
}

#[tokio::test]
async fn a_server_that_is_started_after_a_kill_goes_by_the_same_policy() {
    let mut test = orders().await;
    set(&mut test.client, "orders", full()).await;
    test.server.signal(Signal::SIGKILL);
    let (_other, mut elsewhere) = test.another().await;
    assert_eq!(policy_of(&mut elsewhere, "orders").await, Some(full()));
    let large = SendRequest { queue: "orders".to_owned(), message: "1".repeat(101), ..Default::default() };
    let refused = elsewhere.queue.send(large).await.unwrap_err();
    Refusal::expect_invalid(&refused, "MESSAGE_TOO_LARGE", "message");
    assert_eq!(timeout_at(&elsewhere).await, seconds(45.0));
}

/// Sends messages, each under its own id, until one is not answered, and gives what was answered.
async fn send_keyed(mut client: Client, bodies: std::ops::Range<i64>) -> Vec<(i64, i64)> {
    let mut answered = Vec::new();
    for body in bodies {
        let Ok((msg_id, deduplicated)) = send_one_keyed(&mut client, body).await else { break };
        assert!(!deduplicated);
        answered.push((body, msg_id));
    }
    answered
}

async fn send_one_keyed(client: &mut Client, body: i64) -> Result<(i64, bool), Status> {
    let (message, deduplication_id) = (body.to_string(), format!("id {body}"));
    let request = SendRequest { queue: "orders".to_owned(), message, deduplication_id, ..Default::default() };
    let sent = client.queue.send(request).await?.into_inner();
    Ok((sent.msg_id, sent.deduplicated))
}

#[tokio::test]
async fn what_was_sent_to_a_killed_server_is_there_once_within_the_window_and_after_the_delay_of_its_queue() {
    const CALLERS: i64 = 8;
    const OF_EACH: i64 = 50;
    // By themselves servers would have forgotten all ids soon.
    let flags = ["--deduplication-window", "100ms"];
    let mut test = Test::start_with(&flags).await;
    let (default_delay, deduplication_window) = (seconds(3_600.0), seconds(7_200.0));
    let policy = QueuePolicy { default_delay, deduplication_window, ..Default::default() };
    create(&mut test.client, "orders", Some(policy)).await.unwrap();
    // The first hundred are free to go, so the end comes in the midst of it.
    let gate = Gate::close_beyond(&test, "orders", 100).await;
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| tokio::spawn(send_keyed(test.client.clone(), caller * OF_EACH..(caller + 1) * OF_EACH)))
        .collect();
    let stored = "SELECT count(*) FROM pgmq.q_orders";
    eventually("some messages", async || (test.value::<i64>(stored).await > 50).then_some(())).await;
    test.server.signal(Signal::SIGKILL);
    let mut answered = Vec::new();
    for caller in callers {
        answered.extend(caller.await.unwrap());
    }
    gate.open(&test).await;
    test.until_nothing_runs().await;

    let (_other, mut elsewhere) = test.another_with(&flags).await;
    for (body, msg_id) in answered {
        assert_eq!(send_one_keyed(&mut elsewhere, body).await.unwrap(), (msg_id, true), "{body}");
    }
    for body in 0..CALLERS * OF_EACH {
        send_one_keyed(&mut elsewhere, body).await.unwrap();
    }
    let bodies = "SELECT array_agg(message::text::bigint ORDER BY message::text::bigint) FROM pgmq.q_orders";
    assert_eq!(test.value::<Vec<i64>>(bodies).await, (0..CALLERS * OF_EACH).collect::<Vec<_>>());
    let delayed = "SELECT bool_and(vt BETWEEN enqueued_at + interval '59 minutes' AND enqueued_at + interval '61 minutes')
        FROM pgmq.q_orders";
    assert!(test.value::<bool>(delayed).await);
    let remembered = "SELECT bool_and(d.expires_at BETWEEN q.enqueued_at + interval '119 minutes'
          AND q.enqueued_at + interval '121 minutes')
        FROM pgmq_grpc.deduplication AS d JOIN pgmq.q_orders AS q USING (msg_id)";
    assert!(test.value::<bool>(remembered).await);
}

#[tokio::test]
async fn what_a_killed_server_was_reading_comes_once_by_the_timeout_and_the_order_of_its_queue() {
    for (fate, read_ct) in [(Fate::Finished, 2), (Fate::Undone, 1)] {
        let mut test = Test::with_queue("orders").await;
        let policy = QueuePolicy {
            default_visibility_timeout: seconds(77.0),
            default_ordering: Ordering::GroupedHead.into(),
            ..Default::default()
        };
        set(&mut test.client, "orders", policy).await;
        for (group, body) in [("a", "1"), ("a", "2"), ("b", "3")] {
            test.client.send_to_group("orders", group, body).await;
        }
        let gate = Gate::close(&test, "orders", "UPDATE").await;
        let mut client = test.client.clone();
        let call = async move { client.queue.read_batch(all_of("orders")).await };
        gate.kill_within(&test, "read", fate, call).await;

        let (_other, mut elsewhere) = test.another().await;
        if fate == Fate::Finished {
            // Whoever held the heads holds up their groups for so long.
            assert_eq!(elsewhere.read_as(all_of("orders")).await, []);
            let hidden = "SELECT array_agg(extract(epoch FROM vt - last_read_at)::float8 ORDER BY msg_id)
                FROM pgmq.q_orders WHERE read_ct = 1";
            let hidden: Vec<f64> = test.value(hidden).await;
            assert!(hidden.len() == 2 && hidden.iter().all(|span| (76.0..78.0).contains(span)), "{hidden:?}");
            test.run("UPDATE pgmq.q_orders SET vt = clock_timestamp() - interval '1 second'").await;
        }
        let heads = elsewhere.read_as(all_of("orders")).await;
        assert_eq!(ids(&heads), [1, 3], "{fate:?}");
        assert!(heads.iter().all(|head| head.read_ct == read_ct), "{fate:?} {heads:?}");
        let hidden = micros(heads[0].vt.as_ref()) - micros(heads[0].last_read_at.as_ref());
        assert!((76_000_000..78_000_000).contains(&hidden), "{hidden}");
        let receipts = [heads[0].receipt.as_str(), heads[1].receipt.as_str()];
        assert_eq!(elsewhere.delete("orders", &receipts).await, [Outcome::Done; 2]);
        assert_eq!(ids(&elsewhere.read_as(all_of("orders")).await), [2]);
    }
}

#[tokio::test]
async fn who_waits_by_the_policy_at_a_killed_server_leaves_those_at_others_waiting() {
    let mut test = Test::with_queue("orders").await;
    set(&mut test.client, "orders", QueuePolicy { default_wait: seconds(50.0), ..Default::default() }).await;
    let (_other, elsewhere) = test.another().await;
    let mut waiting = Vec::new();
    for mut client in [test.client.clone(), elsewhere.clone()] {
        let since = now(&test).await;
        waiting.push(tokio::spawn(async move { client.queue.read_batch(all_of("orders")).await }));
        until_a_reader_waits(&test, &since).await;
    }
    test.server.signal(Signal::SIGKILL);
    let (here, there) = (waiting.remove(0), waiting.remove(0));
    here.await.unwrap().expect_err("a dead server does not answer");
    assert!(!there.is_finished());
    let sent = elsewhere.clone().send("orders", "{}").await;
    let read = there.await.unwrap().unwrap().into_inner().messages;
    assert_eq!((ids(&read), read[0].read_ct), (vec![sent], 1));
}
