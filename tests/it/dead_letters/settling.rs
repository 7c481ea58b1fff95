//! Dead letters at a release, and on request.

use pgmq_grpc::proto::v1::consume_request::Command;
use pgmq_grpc::proto::v1::{ConsumeStart, ErrorReason, Outcome, Settle, SettleAction};
use tonic::Code;

use super::{at_most, count, dead, dead_letter, expire, header, moved, orders, read_all, try_dead_letter};
use crate::consume::Consumer;
use crate::harness::{Refusal, Test};
use crate::policies::set;
use crate::settle::{outcomes, release, texts};

#[tokio::test]
async fn a_release_of_the_last_hand_over_is_a_dead_letter() {
    let mut test = orders(2).await;
    test.client.send("orders", "{}").await;
    let first = test.client.read_one("orders").await;
    let released = release(&mut test.client, "orders", &[&first.receipt], None).await;
    assert_eq!(outcomes(&released), [Outcome::Done]);
    assert!(released[0].vt.is_some());
    let second = test.client.read_one("orders").await;
    // A delay changes nothing about that.
    let released = release(&mut test.client, "orders", &[&second.receipt], Some(60.0)).await;
    assert_eq!((outcomes(&released), released[0].vt), (vec![Outcome::Done], None));
    assert_eq!((count(&test, "orders").await, count(&test, "failed").await), (0, 1));
    assert_eq!(header(&test, "read_ct").await, "2");
    assert_eq!(header(&test, "reason").await, "max_receives");
    assert_eq!(moved(&mut test.client, "orders").await, 1);
    let again = release(&mut test.client, "orders", &[&second.receipt], None).await;
    assert_eq!(outcomes(&again), [Outcome::NotFound]);
}

#[tokio::test]
async fn one_release_of_many_sorts_the_worn_out_from_the_others() {
    let mut test = orders(3).await;
    for body in ["1", "2", "3", "4"] {
        test.client.send("orders", body).await;
    }
    test.run("UPDATE pgmq.q_orders SET read_ct = 2 WHERE msg_id % 2 = 0").await;
    let held = read_all(&mut test, "orders").await;
    let mut receipts: Vec<&str> = held.iter().map(|message| message.receipt.as_str()).collect();
    // Equal receipts get equal results.
    receipts.push(&held[1].receipt);
    receipts.push(&held[0].receipt);
    test.client.delete("orders", &[&held[2].receipt]).await;
    let released = release(&mut test.client, "orders", &receipts, Some(30.0)).await;
    let expected = [
        (Outcome::Done, true),
        (Outcome::Done, false),
        (Outcome::NotFound, false),
        (Outcome::Done, false),
        (Outcome::Done, false),
        (Outcome::Done, true),
    ];
    let found: Vec<_> = released.iter().map(|result| (result.outcome(), result.vt.is_some())).collect();
    assert_eq!(found, expected);
    assert_eq!(dead(&test).await, ["2", "4"]);
    assert_eq!(count(&test, "orders").await, 1);
}

#[tokio::test]
async fn a_stale_receipt_makes_no_dead_letter() {
    let mut test = orders(1).await;
    test.client.send("orders", "{}").await;
    let held = test.client.read_one("orders").await;
    set(&mut test.client, "orders", at_most(2)).await;
    expire(&test, "orders").await;
    let newer = test.client.read_one("orders").await;
    set(&mut test.client, "orders", at_most(1)).await;
    let released = release(&mut test.client, "orders", &[&held.receipt], None).await;
    assert_eq!(outcomes(&released), [Outcome::Stale]);
    assert_eq!(
        outcomes(&dead_letter(&mut test.client, "orders", &[&held.receipt], "").await),
        [Outcome::Stale]
    );
    assert_eq!(count(&test, "failed").await, 0);
    assert_eq!(
        outcomes(&dead_letter(&mut test.client, "orders", &[&newer.receipt], "").await),
        [Outcome::Done]
    );
}

#[tokio::test]
async fn a_message_goes_to_the_dead_letter_queue_on_request() {
    let mut test = orders(10).await;
    test.client.send("orders", r#"{"total": 1}"#).await;
    let held = test.client.read_one("orders").await;
    let reason = "no such customer: \"Müller\"";
    let settled = dead_letter(&mut test.client, "orders", &[&held.receipt], reason).await;
    assert_eq!((outcomes(&settled), settled[0].vt), (vec![Outcome::Done], None));
    assert_eq!(header(&test, "reason").await, reason);
    assert_eq!(header(&test, "read_ct").await, "1");
    assert_eq!((count(&test, "orders").await, dead(&test).await), (0, vec![r#"{"total": 1}"#.to_owned()]));
    let again = dead_letter(&mut test.client, "orders", &[&held.receipt], reason).await;
    assert_eq!(outcomes(&again), [Outcome::NotFound]);
    assert_eq!(test.client.delete("orders", &[&held.receipt]).await, [Outcome::NotFound]);
    assert_eq!(moved(&mut test.client, "orders").await, 1);
    assert_eq!(test.client.read_one("failed").await.read_ct, 1);
}

#[tokio::test]
async fn many_callers_reasons_are_their_own() {
    let mut test = orders(10).await;
    for body in 0..20 {
        test.client.send("orders", &body.to_string()).await;
    }
    let held = read_all(&mut test, "orders").await;
    let calls = held.into_iter().map(|message| {
        let mut client = test.client.clone();
        async move {
            dead_letter(
                &mut client,
                "orders",
                &[&message.receipt],
                &format!("because of {}", message.message),
            )
            .await
        }
    });
    for settled in futures_util::future::join_all(calls).await {
        assert_eq!(outcomes(&settled), [Outcome::Done]);
    }
    let own = "SELECT count(*) FROM pgmq.q_failed
        WHERE headers -> 'x-pgmq-dead-letter' ->> 'reason' = 'because of ' || message::text";
    assert_eq!(test.value::<i64>(own).await, 20);
}

#[tokio::test]
async fn bad_requests_are_refused() {
    let mut test = orders(1).await;
    test.client.create("plain").await;
    test.client.send("orders", "{}").await;
    test.client.send("plain", "{}").await;
    let held = test.client.read_one("orders").await.receipt;
    let plain = test.client.read_one("plain").await.receipt;
    let client = &mut test.client;
    let long = "x".repeat(1_025);
    let invalid = Code::InvalidArgument;
    for (queue, receipts, reason, code, why, field) in [
        ("", vec![held.as_str()], "", invalid, "MISSING_FIELD", "queue"),
        ("orders", vec![], "", invalid, "MISSING_FIELD", "receipts"),
        ("orders", vec!["nonsense"], "", invalid, "INVALID_RECEIPT", "receipts[0]"),
        ("orders", vec![held.as_str(), plain.as_str()], "", invalid, "INVALID_RECEIPT", "receipts[1]"),
        ("orders", vec![held.as_str(); 1_001], "", invalid, "INVALID_COUNT", "receipts"),
        ("orders", vec![held.as_str()], long.as_str(), invalid, "INVALID_HEADERS", "reason"),
        ("orders", vec![held.as_str()], "a\0b", invalid, "INVALID_HEADERS", "reason"),
    ] {
        let status = try_dead_letter(client, queue, &receipts, reason).await.unwrap_err();
        let refusal = Refusal::expect(&status, code, why);
        assert_eq!(refusal.metadata["field"], field);
    }
    let status = try_dead_letter(client, "plain", &[&plain], "").await.unwrap_err();
    let refusal = Refusal::expect(&status, Code::FailedPrecondition, "DEAD_LETTER_QUEUE_MISSING");
    assert_eq!(refusal.metadata["queue"], "plain");
    // Nothing happened to either.
    let longest = "x".repeat(1_024);
    assert_eq!(outcomes(&dead_letter(client, "orders", &[&held], &longest).await), [Outcome::Done]);
    assert_eq!(client.delete("plain", &[&plain]).await, [Outcome::Done]);
}

#[tokio::test]
async fn a_missing_queue_is_told_before_its_policy() {
    let mut test = orders(1).await;
    test.client.send("orders", "{}").await;
    let held = test.client.read_one("orders").await.receipt;
    let drop = pgmq_grpc::proto::v1::DropQueueRequest { queue: "orders".into() };
    test.client.queue.drop_queue(drop).await.unwrap();
    let status = try_dead_letter(&mut test.client, "orders", &[&held], "").await.unwrap_err();
    Refusal::expect(&status, Code::NotFound, "QUEUE_NOT_FOUND");
    // The receipt of an earlier incarnation is stale.
    test.client.create("orders").await;
    set(&mut test.client, "orders", at_most(1)).await;
    let settled = dead_letter(&mut test.client, "orders", &[&held], "").await;
    assert_eq!(outcomes(&settled), [Outcome::Stale]);
}

fn settling(action: SettleAction, receipts: &[&str], reason: &str) -> Settle {
    Settle { receipts: texts(receipts), action: action.into(), delay: None, reason: reason.to_owned() }
}

#[tokio::test]
async fn consume_settles_dead_letters() {
    let mut test = orders(2).await;
    for body in ["1", "2", "3"] {
        test.client.send("orders", body).await;
    }
    test.run("UPDATE pgmq.q_orders SET read_ct = 1 WHERE msg_id = 2").await;
    let start = ConsumeStart { queue: "orders".into(), ..Default::default() };
    let mut consumer = Consumer::start(&test.client, start).await;
    let held = consumer.take(3).await;

    let dead_letters = settling(SettleAction::DeadLetter, &[&held[0].receipt], "bad");
    let number = consumer.send(Command::Settle(dead_letters));
    assert_eq!(outcomes(&consumer.items(number).await), [Outcome::Done]);
    assert_eq!(header(&test, "reason").await, "bad");

    // Of two in one command, one was handed over often enough.
    let both = settling(SettleAction::Release, &[&held[1].receipt, &held[2].receipt], "");
    let number = consumer.send(Command::Settle(both));
    assert_eq!(outcomes(&consumer.items(number).await), [Outcome::Done; 2]);
    assert_eq!(dead(&test).await, ["1", "2"]);
    let again = consumer.message().await;
    assert_eq!((again.message.as_str(), again.read_ct), ("3", 2));

    // A reason belongs to dead letters.
    let wrong = settling(SettleAction::Delete, &[&again.receipt], "bad");
    let number = consumer.send(Command::Settle(wrong));
    let error = consumer.error(number).await;
    assert_eq!((error.code, error.reason()), (Code::InvalidArgument as i32, ErrorReason::ConflictingFields));
    let long = settling(SettleAction::DeadLetter, &[&again.receipt], &"x".repeat(1_025));
    let number = consumer.send(Command::Settle(long));
    let error = consumer.error(number).await;
    assert_eq!(
        (error.reason(), error.metadata["field"].as_str()),
        (ErrorReason::InvalidHeaders, "settle.reason")
    );
    assert_eq!(moved(&mut test.client, "orders").await, 2);
}

#[tokio::test]
async fn a_consumer_without_a_dead_letter_queue_hears_so_and_goes_on() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let start = ConsumeStart { queue: "orders".into(), ..Default::default() };
    let mut consumer = Consumer::start(&test.client, start).await;
    let held = consumer.message().await;
    let number = consumer.send(Command::Settle(settling(SettleAction::DeadLetter, &[&held.receipt], "")));
    let error = consumer.error(number).await;
    assert_eq!(
        (error.code, error.reason()),
        (Code::FailedPrecondition as i32, ErrorReason::DeadLetterQueueMissing)
    );
    let number = consumer.send(Command::Settle(settling(SettleAction::Delete, &[&held.receipt], "")));
    assert_eq!(outcomes(&consumer.items(number).await), [Outcome::Done]);
}
