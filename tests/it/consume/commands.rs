//! Settles and extends: what each does, its one result, and what is wrong with a command alone.

use std::time::Duration;

use pgmq_grpc::proto::v1::consume_request::Command;
use pgmq_grpc::proto::v1::{
    DeleteRequest, ErrorReason, Extend, ItemResult, Message, Outcome, Settle, SettleAction,
};
use tonic::Code;

use super::{Consumer, extend, settle, settle_receipts, start};
use crate::harness::{Client, Gate, Refusal, Server, Test, eventually, seconds};
use crate::read_batch::{ids, micros};
use crate::schema::guest_of;

/// A queue of so many messages, and a stream that holds them all.
async fn holding(count: usize) -> (Test, Consumer, Vec<Message>) {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &vec!["{}"; count]).await;
    let mut consumer = Consumer::start(&test.client, start("orders")).await;
    let held = consumer.take(count).await;
    (test, consumer, held)
}

#[tokio::test]
async fn messages_are_deleted_archived_and_released() {
    let (test, mut consumer, held) = holding(3).await;
    assert_eq!(consumer.settle(SettleAction::Delete, &[&held[0]]).await, [Outcome::Done]);
    assert_eq!(consumer.settle(SettleAction::Archive, &[&held[1]]).await, [Outcome::Done]);
    let delay = seconds(600.0);
    let receipts = vec![held[2].receipt.clone()];
    let later = Settle { receipts, action: SettleAction::Release.into(), delay, reason: String::new() };
    let request_id = consumer.send(Command::Settle(later));
    let released = consumer.items(request_id).await;
    assert_eq!(released[0].outcome(), Outcome::Done);
    assert!(released[0].vt.is_some());
    assert_eq!(consumer.heartbeat().await.in_flight, 0);
    let left = "SELECT array_agg(msg_id) FROM pgmq.q_orders WHERE vt > clock_timestamp() + interval '9 min'";
    assert_eq!(test.value::<Vec<i64>>(left).await, [3]);
    assert_eq!(test.value::<Vec<i64>>("SELECT array_agg(msg_id) FROM pgmq.a_orders").await, [2]);
}

#[tokio::test]
async fn a_released_message_comes_again() {
    let (_test, mut consumer, held) = holding(2).await;
    assert_eq!(consumer.settle(SettleAction::Release, &[&held[1]]).await, [Outcome::Done]);
    let again = consumer.message().await;
    assert_eq!((again.msg_id, again.read_ct), (2, 2));
    assert_eq!(consumer.settle(SettleAction::Delete, &[&held[1]]).await, [Outcome::Stale]);
    assert_eq!(consumer.settle(SettleAction::Delete, &[&again]).await, [Outcome::Done]);
}

#[tokio::test]
async fn every_receipt_has_its_own_outcome_in_the_order_of_the_command() {
    let (mut test, mut consumer, held) = holding(3).await;
    test.client.delete("orders", &[&held[1].receipt]).await;
    test.run("SELECT pgmq.set_vt('orders', 3, 0); SELECT pgmq.read('orders', 600, 1)").await;
    let all = [&held[2], &held[1], &held[0], &held[0]];
    let expected = [Outcome::Stale, Outcome::NotFound, Outcome::Done, Outcome::Done];
    assert_eq!(consumer.settle(SettleAction::Delete, &all).await, expected);
}

#[tokio::test]
async fn an_extend_never_shortens() {
    let (test, mut consumer, held) = holding(2).await;
    let vt = |results: &[ItemResult]| micros(results[0].vt.as_ref());
    let longer = consumer.send(extend(&[&held[0]], Some(3_600.0)));
    let longer = consumer.items(longer).await;
    assert!(vt(&longer) > micros(held[0].vt.as_ref()) + 3_000_000_000);
    let shorter = consumer.send(extend(&[&held[0]], Some(1.0)));
    assert_eq!(vt(&consumer.items(shorter).await), vt(&longer));
    let by_default = consumer.send(extend(&[&held[1]], None));
    assert!(vt(&consumer.items(by_default).await) >= micros(held[1].vt.as_ref()));
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders WHERE read_ct = 1").await, 2);
}

#[tokio::test]
async fn commands_about_one_message_are_applied_in_order() {
    let (_test, mut consumer, held) = holding(20).await;
    for message in &held {
        let extended = consumer.send(extend(&[message], Some(600.0)));
        let released = consumer.send(settle(SettleAction::Release, &[message]));
        let deleted = consumer.send(settle(SettleAction::Delete, &[message]));
        let again = consumer.send(settle(SettleAction::Delete, &[message]));
        for request_id in [extended, released] {
            assert_eq!(consumer.items(request_id).await[0].outcome(), Outcome::Done);
        }
        // Once released, it may have come again before the delete.
        let (deleted, again) = (consumer.items(deleted).await, consumer.items(again).await);
        let outcomes = (deleted[0].outcome(), again[0].outcome());
        let expected = [(Outcome::Done, Outcome::NotFound), (Outcome::Stale, Outcome::Stale)];
        assert!(expected.contains(&outcomes), "{outcomes:?}");
    }
}

#[tokio::test]
async fn each_of_many_commands_gets_exactly_one_result() {
    let (test, mut consumer, held) = holding(100).await;
    let sent: Vec<(u64, i64)> = held
        .iter()
        .map(|message| (consumer.send(settle(SettleAction::Delete, &[message])), message.msg_id))
        .collect();
    let bad = consumer.send(settle_receipts(SettleAction::Delete, vec!["nonsense".to_owned()]));
    for (request_id, msg_id) in sent {
        let outcome = consumer.items(request_id).await[0].outcome();
        assert_eq!(outcome, Outcome::Done, "{msg_id}");
    }
    consumer.error(bad).await;
    consumer.half_close();
    let end = consumer.end().await;
    end.status.expect("OK");
    assert!(end.results.is_empty(), "{:?}", end.results);
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 0);
}

#[tokio::test]
async fn a_command_that_the_database_refuses_fails_alone() {
    let (test, mut consumer, held) = holding(40).await;
    // Two messages cannot be archived, because others of their ids were.
    test.run(
        "INSERT INTO pgmq.a_orders (msg_id, read_ct, enqueued_at, vt, message)
         SELECT id, 1, now(), now(), '{}' FROM unnest('{30, 40}'::bigint[]) AS id",
    )
    .await;
    let gate = Gate::close(&test, "orders", "DELETE").await;
    let archive = |consumer: &mut Consumer, message| consumer.send(settle(SettleAction::Archive, &[message]));
    let first = archive(&mut consumer, &held[0]);
    gate.arrival(&test, "archive").await;
    let others: Vec<u64> = held[1..].iter().map(|message| archive(&mut consumer, message)).collect();
    // An answer to the last command: the others have been read and wait in bundles.
    let last = consumer.send(settle_receipts(SettleAction::Archive, vec!["nonsense".to_owned()]));
    consumer.error(last).await;
    gate.open(&test).await;
    for (request_id, message) in [vec![first], others].concat().into_iter().zip(&held) {
        if message.msg_id == 30 || message.msg_id == 40 {
            assert_eq!(consumer.error(request_id).await.reason(), ErrorReason::RefusedByDatabase);
        } else {
            assert_eq!(consumer.items(request_id).await[0].outcome(), Outcome::Done, "{}", message.msg_id);
        }
    }
    assert_eq!(test.value::<Vec<i64>>("SELECT array_agg(msg_id) FROM pgmq.q_orders").await, [30, 40]);
}

#[tokio::test]
async fn the_number_of_a_command_is_the_clients_own() {
    let (_test, mut consumer, held) = holding(3).await;
    for message in &held {
        consumer.send_as(0, Some(settle(SettleAction::Delete, &[message])));
    }
    for _ in &held {
        assert_eq!(consumer.items(0).await[0].outcome(), Outcome::Done);
    }
    assert!(consumer.results.is_empty());
}

#[tokio::test]
async fn a_bad_command_fails_alone_and_names_its_fields() {
    let (mut test, mut consumer, held) = holding(1).await;
    test.client.create("bills").await;
    test.client.send("bills", "{}").await;
    let foreign = test.client.read_one("bills").await.receipt;
    let good = || vec![held[0].receipt.clone()];
    let settled = |action: i32, receipts: Vec<String>, delay: Option<f64>| {
        Command::Settle(Settle { receipts, action, delay: delay.and_then(seconds), reason: String::new() })
    };
    let delete = SettleAction::Delete.into();
    let release = SettleAction::Release.into();
    let give_back = SettleAction::GiveBack.into();
    let extended = |receipts: Vec<String>, timeout: f64| {
        Command::Extend(Extend { receipts, visibility_timeout: seconds(timeout) })
    };
    let mixed = vec![good().remove(0), foreign];
    let many = vec![good().remove(0); 1_001];
    use ErrorReason as Reason;
    let cases: Vec<(Command, ErrorReason, &str)> = vec![
        (settled(delete, Vec::new(), None), Reason::MissingField, "settle.receipts"),
        (settled(delete, many.clone(), None), Reason::InvalidCount, "settle.receipts"),
        (settled(delete, mixed.clone(), None), Reason::InvalidReceipt, "settle.receipts[1]"),
        (settled(delete, vec!["x".to_owned()], None), Reason::InvalidReceipt, "settle.receipts[0]"),
        (settled(0, good(), None), Reason::MissingField, "settle.action"),
        (settled(6, good(), None), Reason::InvalidEnum, "settle.action"),
        (settled(delete, good(), Some(1.0)), Reason::ConflictingFields, "settle.delay"),
        (settled(give_back, good(), Some(0.0)), Reason::ConflictingFields, "settle.delay"),
        (settled(give_back, mixed.clone(), None), Reason::InvalidReceipt, "settle.receipts[1]"),
        (settled(release, good(), Some(50_000.0)), Reason::InvalidDuration, "settle.delay"),
        (extended(Vec::new(), 5.0), Reason::MissingField, "extend.receipts"),
        (extended(many, 5.0), Reason::InvalidCount, "extend.receipts"),
        (extended(mixed, 5.0), Reason::InvalidReceipt, "extend.receipts[1]"),
        (extended(good(), 0.0), Reason::InvalidDuration, "extend.visibility_timeout"),
        (extended(good(), 43_201.0), Reason::InvalidDuration, "extend.visibility_timeout"),
    ];
    for (command, reason, field) in cases {
        let request_id = consumer.send(command);
        let error = consumer.error(request_id).await;
        assert_eq!((error.code, error.reason()), (Code::InvalidArgument as i32, reason), "{error:?}");
        assert_eq!(error.metadata.get("field").map(String::as_str), Some(field), "{error:?}");
    }
    // Nothing of them was applied, and the stream goes on.
    let untouched = "SELECT count(*) FROM pgmq.q_orders WHERE read_ct = 1 AND vt > clock_timestamp()";
    assert_eq!(test.value::<i64>(untouched).await, 1);
    assert_eq!(consumer.settle(SettleAction::Delete, &[&held[0]]).await, [Outcome::Done]);
}

#[tokio::test]
async fn a_stream_settles_what_it_did_not_deliver() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let read = test.client.read_one("orders").await;
    let mut consumer = Consumer::start(&test.client, start("orders")).await;
    assert_eq!(consumer.settle(SettleAction::Delete, &[&read]).await, [Outcome::Done]);
}

#[tokio::test]
async fn more_commands_than_are_taken_at_once_are_all_answered() {
    let (test, mut consumer, held) = holding(1).await;
    let sent: Vec<u64> = (0..5_000).map(|_| consumer.send(extend(&[&held[0]], Some(60.0)))).collect();
    let deleted = consumer.send(settle(SettleAction::Delete, &[&held[0]]));
    for request_id in sent {
        assert_eq!(consumer.items(request_id).await[0].outcome(), Outcome::Done);
    }
    assert_eq!(consumer.items(deleted).await[0].outcome(), Outcome::Done);
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 0);
}

#[tokio::test]
async fn a_row_that_others_hold_fails_its_own_command() {
    let (test, mut consumer, held) = holding(2).await;
    let other = test.database.connect().await;
    other.batch_execute("BEGIN; SELECT FROM pgmq.q_orders WHERE msg_id = 1 FOR UPDATE").await.unwrap();
    let locked = consumer.send(settle(SettleAction::Delete, &[&held[0]]));
    let error = consumer.error(locked).await;
    assert_eq!((error.code, error.reason()), (Code::Aborted as i32, ErrorReason::QueueBusy), "{error:?}");
    assert_eq!(consumer.settle(SettleAction::Delete, &[&held[1]]).await, [Outcome::Done]);
    other.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(consumer.settle(SettleAction::Delete, &[&held[0]]).await, [Outcome::Done]);
    eventually("an empty queue", async || {
        (test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await == 0).then_some(())
    })
    .await;
    assert!(ids(&consumer.messages).is_empty());
}

#[tokio::test]
async fn a_refused_command_names_its_stream_and_says_when_to_come_again() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let (mut consumer, started) = Consumer::start_and_tell(&test.client, start("orders")).await;
    let held = consumer.message().await;
    let other = test.database.connect().await;
    other.batch_execute("BEGIN; SELECT FROM pgmq.q_orders FOR UPDATE").await.unwrap();
    let locked = consumer.send(settle(SettleAction::Delete, &[&held]));
    let request = DeleteRequest {
        queue: "orders".to_owned(),
        receipts: vec![held.receipt.clone()],
        ..Default::default()
    };
    let status = test.client.queue.delete(request).await.unwrap_err();
    let unary = Refusal::expect(&status, Code::Aborted, "QUEUE_BUSY");
    let error = consumer.error(locked).await;
    assert_eq!((error.reason(), &error.request_id), (ErrorReason::QueueBusy, &started.stream_id));
    assert_eq!(error.retry_delay, seconds(1.0));
    assert_eq!(unary.retry_delay, Some(Duration::from_secs(1)));

    // The id is there where there is nothing to wait for, too.
    let bad = consumer.send(settle_receipts(SettleAction::Delete, Vec::new()));
    let error = consumer.error(bad).await;
    assert_eq!((&error.request_id, error.retry_delay), (&started.stream_id, None));
}

#[tokio::test]
async fn a_row_that_others_hold_takes_nothing_from_the_other_commands_of_its_stream() {
    let (mut test, mut consumer, held) = holding(64).await;
    let other = test.database.connect().await;
    let lock = "BEGIN; SELECT FROM pgmq.q_orders WHERE msg_id IN (1, 2) FOR UPDATE";
    other.batch_execute(lock).await.unwrap();
    let extended = consumer.send(extend(&[&held[1], &held[2]], Some(600.0)));
    // Each of these two is about a locked message and a free one.
    let both = consumer.send(settle(SettleAction::Delete, &[&held[0], &held[3]]));
    let free: Vec<u64> =
        held[4..].iter().map(|message| consumer.send(settle(SettleAction::Delete, &[message]))).collect();
    // What is free is told at once, so a later command about it waits for nobody.
    let again = consumer.send(settle(SettleAction::Delete, &[&held[3]]));
    for request_id in free {
        assert_eq!(consumer.items(request_id).await[0].outcome(), Outcome::Done);
    }
    assert_eq!(consumer.items(again).await[0].outcome(), Outcome::NotFound);
    for locked in [extended, both] {
        let error = consumer.error(locked).await;
        assert_eq!((error.code, error.reason()), (Code::Aborted as i32, ErrorReason::QueueBusy), "{error:?}");
        assert!(error.message.contains("the rest is settled"), "{error:?}");
    }

    // All of this while the rows are locked, and the stream goes on.
    let locked = consumer.send(settle(SettleAction::Archive, &[&held[0]]));
    assert_eq!(consumer.settle(SettleAction::Delete, &[&held[2]]).await, [Outcome::Done]);
    other.batch_execute("ROLLBACK").await.unwrap();
    // Whoever asked while it was locked waits or is refused, and who asks now is not.
    let result = consumer.result(locked).await;
    let archived = if result.error.is_none() {
        result.results[0].outcome()
    } else {
        consumer.settle(SettleAction::Archive, &[&held[0]]).await[0]
    };
    assert_eq!(archived, Outcome::Done);
    assert_eq!(consumer.settle(SettleAction::Delete, &[&held[1]]).await, [Outcome::Done]);
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 0);
    assert!(test.client.read("orders", 1).await.is_empty());
}

#[tokio::test]
async fn a_second_look_that_fails_takes_no_outcome_back() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["{}"; 64]).await;
    let (_, url) = guest_of(&test.database, &test.sql).await;
    // What was not settled cannot be looked at.
    test.run(
        "CREATE FUNCTION may_look() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
           IF current_query() LIKE '-- pgmq-grpc: tell%' THEN RAISE 'no look'; END IF; RETURN true; END $$;
         CREATE POLICY looks ON pgmq.q_orders USING (may_look());
         ALTER TABLE pgmq.q_orders ENABLE ROW LEVEL SECURITY",
    )
    .await;
    let server = Server::start(&["--database-url", &url]).await;
    let mut consumer = Consumer::start(&Client::connect(&server).await, start("orders")).await;
    let held = consumer.take(64).await;
    test.run("BEGIN; SELECT FROM pgmq.q_orders WHERE msg_id = 32 FOR UPDATE").await;
    let settles: Vec<u64> =
        held.iter().map(|message| consumer.send(settle(SettleAction::Delete, &[message]))).collect();
    for (message, request_id) in held.iter().zip(settles) {
        match message.msg_id {
            32 => assert_eq!(consumer.error(request_id).await.reason(), ErrorReason::RefusedByDatabase),
            other => assert_eq!(consumer.items(request_id).await[0].outcome(), Outcome::Done, "{other}"),
        }
    }
}
