//! A server that is killed in the middle of a dead letter: the message is in one of the two queues, and others go on.

use std::collections::HashMap;

use nix::sys::signal::Signal;
use pgmq_grpc::proto::v1::transact_operation::Operation;
use pgmq_grpc::proto::v1::{
    DeadLetterRequest, Ordering, Outcome, QueuePolicy, ReleaseRequest, SendRequest, TransactOperation,
    TransactRequest,
};

use super::{count, dead, dead_letter, expire, header, orders, try_dead_letter};
use crate::harness::{Client, Fate, Gate, eventually};
use crate::policies::set;
use crate::read_batch::all_of;
use crate::replay::bodies;
use crate::settle::{outcomes, release, texts};

#[tokio::test]
async fn a_dead_letter_is_made_or_not_and_a_repetition_elsewhere_is_told_the_truth() {
    for (fate, left, letters, outcome, reason) in
        [(Fate::Finished, 0, 1, Outcome::NotFound, "first"), (Fate::Undone, 1, 0, Outcome::Done, "again")]
    {
        let mut test = orders(5).await;
        test.client.send("orders", "{}").await;
        let receipt = test.client.read_one("orders").await.receipt;
        let gate = Gate::close(&test, "failed", "INSERT").await;
        let (mut client, held) = (test.client.clone(), receipt.clone());
        let call = async move { try_dead_letter(&mut client, "orders", &[&held], "first").await };
        gate.kill_within(&test, "dead_letter", fate, call).await;
        assert_eq!((count(&test, "orders").await, count(&test, "failed").await), (left, letters), "{fate:?}");

        let (_other, mut elsewhere) = test.another().await;
        let again = dead_letter(&mut elsewhere, "orders", &[&receipt], "again").await;
        assert_eq!(outcomes(&again), [outcome], "{fate:?}");
        assert_eq!((count(&test, "orders").await, count(&test, "failed").await), (0, 1));
        assert_eq!(header(&test, "reason").await, reason);
    }
}

#[tokio::test]
async fn a_transaction_with_a_dead_letter_is_done_as_a_whole_or_not_at_all() {
    let within = "TRIGGER gate BEFORE INSERT ON pgmq.q_failed FOR EACH ROW";
    let at_its_end =
        "CONSTRAINT TRIGGER gate AFTER INSERT ON pgmq.q_failed DEFERRABLE INITIALLY DEFERRED FOR EACH ROW";
    for (place, gate, fate, is_done) in [
        ("dead_letter", within, Fate::Finished, false),
        ("dead_letter", within, Fate::Undone, false),
        ("commit", at_its_end, Fate::Finished, true),
        ("commit", at_its_end, Fate::Undone, false),
    ] {
        let mut test = orders(5).await;
        test.client.create("results").await;
        test.client.send("orders", "1").await;
        let receipts = texts(&[&test.client.read_one("orders").await.receipt]);
        let gate = Gate::by(&test, gate).await;
        let aside = DeadLetterRequest { queue: "orders".into(), receipts, reason: "bad".into() };
        let send = SendRequest { queue: "results".into(), message: "2".into(), ..Default::default() };
        let operations = [Operation::DeadLetter(aside), Operation::Send(send)];
        let operations = operations.map(|operation| TransactOperation { operation: Some(operation) }).into();
        let request = TransactRequest { operations, deduplication_id: "once".into() };
        let (mut client, first) = (test.client.clone(), request.clone());
        gate.kill_within(&test, place, fate, async move { client.queue.transact(first).await }).await;
        let lengths = async || {
            (count(&test, "orders").await, count(&test, "failed").await, count(&test, "results").await)
        };
        assert_eq!(lengths().await, if is_done { (0, 1, 1) } else { (1, 0, 0) }, "{place} {fate:?}");

        let (_other, mut elsewhere) = test.another().await;
        let again = elsewhere.queue.transact(request).await.unwrap().into_inner();
        assert_eq!(again.deduplicated, is_done, "{place} {fate:?}");
        assert_eq!(lengths().await, (0, 1, 1));
    }
}

/// Sets messages aside one by one until one is not answered, and gives the bodies of those that were.
async fn set_aside(mut client: Client, held: Vec<(String, String)>) -> Vec<String> {
    let mut answered = Vec::new();
    for (body, receipt) in held {
        let reason = format!("because of {body}");
        let Ok(settled) = try_dead_letter(&mut client, "orders", &[&receipt], &reason).await else { break };
        assert_eq!(outcomes(&settled), [Outcome::Done]);
        answered.push(body);
    }
    answered
}

#[tokio::test]
async fn of_many_dead_letters_at_a_killed_server_none_is_lost_or_doubled_and_those_answered_stay() {
    const ALL: i64 = 400;
    let mut test = orders(5).await;
    test.run(&format!("SELECT pgmq.send('orders', to_jsonb(n)) FROM generate_series(1, {ALL}) AS n")).await;
    let read = test.client.read_as(all_of("orders")).await;
    let held: HashMap<String, String> =
        read.into_iter().map(|message| (message.message, message.receipt)).collect();
    // The first hundred are free to go, so the end comes in the midst of it.
    let gate = Gate::close_beyond(&test, "failed", 100).await;
    let all: Vec<(String, String)> = held.clone().into_iter().collect();
    let callers: Vec<_> =
        all.chunks(50).map(|some| tokio::spawn(set_aside(test.client.clone(), some.to_vec()))).collect();
    eventually("some dead letters", async || (count(&test, "failed").await > 50).then_some(())).await;
    test.server.signal(Signal::SIGKILL);
    let mut answered = Vec::new();
    for caller in callers {
        answered.extend(caller.await.unwrap());
    }
    gate.open(&test).await;
    test.until_nothing_runs().await;

    let letters = dead(&test).await;
    assert!(answered.iter().all(|body| letters.contains(body)), "{answered:?} {letters:?}");
    let both = "SELECT count(*) || ' ' || sum(n) FROM (SELECT message::text::bigint AS n FROM pgmq.q_orders
        UNION ALL SELECT message::text::bigint FROM pgmq.q_failed) AS q";
    assert_eq!(test.value::<String>(both).await, format!("{ALL} {}", ALL * (ALL + 1) / 2));

    let (_other, mut elsewhere) = test.another().await;
    for (body, receipt) in &held {
        let again = dead_letter(&mut elsewhere, "orders", &[receipt], &format!("because of {body}")).await;
        let expected = if letters.contains(body) { Outcome::NotFound } else { Outcome::Done };
        assert_eq!(outcomes(&again), [expected], "{body}");
    }
    let mut all: Vec<String> = held.into_keys().collect();
    all.sort_unstable();
    assert_eq!(dead(&test).await, all);
    let own = "SELECT bool_and(headers -> 'x-pgmq-dead-letter' ->> 'reason' = 'because of ' || message::text) FROM pgmq.q_failed";
    assert!(test.value::<bool>(own).await);
}

/// How the head of a group becomes a dead letter.
#[derive(Debug, Clone, Copy)]
enum Way {
    Asked,
    Released,
    ReadOnceMore,
}

/// Does it, and gives nothing but an error.
async fn bury(mut client: Client, way: Way, receipt: String) -> Result<(), tonic::Status> {
    match way {
        Way::Asked => try_dead_letter(&mut client, "orders", &[&receipt], "bad").await.map(drop),
        Way::Released => {
            let request =
                ReleaseRequest { queue: "orders".into(), receipts: texts(&[&receipt]), delay: None };
            client.queue.release(request).await.map(drop)
        }
        Way::ReadOnceMore => client.queue.read_batch(all_of("orders")).await.map(drop),
    }
}

#[tokio::test]
async fn a_group_goes_on_in_its_order_after_a_kill_in_the_middle_of_its_heads_dead_letter() {
    for way in [Way::Asked, Way::Released, Way::ReadOnceMore] {
        for fate in Fate::BOTH {
            let mut test = orders(1).await;
            let default_ordering = Ordering::GroupedHead.into();
            set(&mut test.client, "orders", QueuePolicy { default_ordering, ..Default::default() }).await;
            for body in ["1", "2", "3"] {
                test.client.send_to_group("orders", "a", body).await;
            }
            let head = test.client.read_one("orders").await;
            if let Way::ReadOnceMore = way {
                expire(&test, "orders").await;
            }
            let gate = Gate::close(&test, "failed", "INSERT").await;
            let call = bury(test.client.clone(), way, head.receipt);
            gate.kill_within(&test, "dead_letter", fate, call).await;

            let (_other, mut elsewhere) = test.another().await;
            if fate == Fate::Undone {
                // As long as the head is held by whoever it was, nobody gets what is behind it.
                let nothing = elsewhere.read_as(all_of("orders")).await;
                assert_eq!(nothing, [], "{way:?}");
                assert_eq!(count(&test, "orders").await, 3, "{way:?}");
                expire(&test, "orders").await;
            }
            for body in ["2", "3"] {
                let next = elsewhere.read_as(all_of("orders")).await;
                let bodies: Vec<&str> = next.iter().map(|message| message.message.as_str()).collect();
                assert_eq!(bodies, [body], "{way:?} {fate:?}");
                let released = release(&mut elsewhere, "orders", &[&next[0].receipt], None).await;
                assert_eq!(outcomes(&released), [Outcome::Done]);
            }
            assert_eq!(bodies(&test, "q_failed").await, ["1", "2", "3"], "{way:?} {fate:?}");
            assert_eq!(count(&test, "orders").await, 0);
        }
    }
}
