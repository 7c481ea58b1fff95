//! Releases without a delay wait as the queue's policy says.

use pgmq_grpc::proto::v1::consume_request::Command;
use pgmq_grpc::proto::v1::open_transaction_request::Command as Step;
use pgmq_grpc::proto::v1::open_transaction_response::Reply;
use pgmq_grpc::proto::v1::transact_operation::Operation;
use pgmq_grpc::proto::v1::transact_result::Result as Done;
use pgmq_grpc::proto::v1::{
    ConsumeStart, ItemResult, Message, Outcome, QueuePolicy, ReleaseRequest, RetryBackoff, Settle,
    SettleAction, TransactOperation, TransactRequest,
};

use super::{expire, read_all};
use crate::consume::Consumer;
use crate::harness::{Client, Fate, Gate, Test, seconds};
use crate::policies::{change, create, set};
use crate::read_batch::{micros, waiting_for};
use crate::read_stream::{Follower, follow};
use crate::settle::{outcomes, release, texts};
use crate::transaction::Open;

fn backoff(jitter: f64) -> QueuePolicy {
    let (minimum, maximum) = (seconds(100.0), seconds(1_000.0));
    let retry_backoff = Some(RetryBackoff { minimum, maximum, multiplier: 3.0, jitter });
    QueuePolicy { retry_backoff, ..Default::default() }
}

/// A queue whose released messages wait for 100, 300, 900 and again and again 1,000 seconds.
async fn orders(jitter: f64) -> Test {
    let mut test = Test::start().await;
    create(&mut test.client, "orders", Some(backoff(jitter))).await.unwrap();
    test
}

/// Sends a message for each of these counts and reads them all, each for so many times.
async fn held(test: &mut Test, read_counts: &[i32]) -> Vec<Message> {
    for read_ct in read_counts {
        let msg_id = test.client.send("orders", "{}").await;
        test.run(&format!("UPDATE pgmq.q_orders SET read_ct = {read_ct} - 1 WHERE msg_id = {msg_id}")).await;
    }
    read_all(test, "orders").await
}

/// For how many seconds each message is hidden, about.
async fn hidden(test: &Test) -> Vec<f64> {
    test.value(
        "SELECT coalesce(array_agg(extract(epoch FROM vt - clock_timestamp())::float8 ORDER BY msg_id), '{}') FROM pgmq.q_orders",
    )
    .await
}

/// That messages wait for about so long: all of it is over only on a machine that stood still for most of it.
#[track_caller]
fn expect_delays(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!(*found <= *expected && *found > expected - 60.0, "{found} instead of {expected}");
    }
}

#[tokio::test]
async fn a_release_without_a_delay_waits_the_longer_the_oftener_it_was_read() {
    let mut test = orders(0.0).await;
    let held = held(&mut test, &[1, 2, 3, 4, 50]).await;
    let receipts: Vec<&str> = held.iter().map(|message| message.receipt.as_str()).collect();
    let released = release(&mut test.client, "orders", &receipts, None).await;
    assert!(released.iter().all(|result: &ItemResult| result.vt.is_some()));
    expect_delays(&hidden(&test).await, &[100.0, 300.0, 900.0, 1_000.0, 1_000.0]);
}

#[tokio::test]
async fn a_delay_of_ones_own_counts_and_zero_is_now() {
    let mut test = orders(0.0).await;
    let held = held(&mut test, &[3, 3]).await;
    release(&mut test.client, "orders", &[&held[0].receipt], Some(0.0)).await;
    release(&mut test.client, "orders", &[&held[1].receipt], Some(200.0)).await;
    let hidden = hidden(&test).await;
    assert!(hidden[0] <= 0.0);
    expect_delays(&hidden[1..], &[200.0]);
}

#[tokio::test]
async fn without_a_policy_released_messages_are_there_at_once() {
    let mut test = orders(0.0).await;
    change(&mut test.client, "orders", None, &["retry_backoff"]).await.unwrap();
    let held = held(&mut test, &[1]).await;
    release(&mut test.client, "orders", &[&held[0].receipt], None).await;
    assert!(hidden(&test).await[0] <= 0.0);
}

#[tokio::test]
async fn a_stream_tells_whether_its_queue_has_a_backoff() {
    let mut test = orders(0.0).await;
    let tell = async |client: &Client| {
        let (_open, consume) = Consumer::start_and_tell(
            client,
            ConsumeStart { queue: "orders".to_owned(), ..Default::default() },
        )
        .await;
        let read = Follower::open(client, follow("orders")).await.started;
        [consume.has_retry_backoff, read.has_retry_backoff]
    };
    assert_eq!(tell(&test.client).await, [true, true]);
    change(&mut test.client, "orders", None, &["retry_backoff"]).await.unwrap();
    assert_eq!(tell(&test.client).await, [false, false]);
}

#[tokio::test]
async fn jitter_keeps_messages_from_coming_back_together() {
    let mut test = orders(0.5).await;
    let held = held(&mut test, &[1; 50]).await;
    let receipts: Vec<&str> = held.iter().map(|message| message.receipt.as_str()).collect();
    release(&mut test.client, "orders", &receipts, None).await;
    let within = "SELECT bool_and(vt BETWEEN clock_timestamp() - interval '10 s' AND clock_timestamp() + interval '100 s')
        FROM pgmq.q_orders";
    assert!(test.value::<bool>(within).await);
    let spread: f64 =
        test.value("SELECT extract(epoch FROM max(vt) - min(vt))::float8 FROM pgmq.q_orders").await;
    // Fifty draws that lie within a fifth of their range do not happen.
    assert!((10.0..=50.1).contains(&spread), "{spread}");
}

#[tokio::test]
async fn consume_and_transactions_wait_alike() {
    let mut test = orders(0.0).await;
    let start = ConsumeStart { queue: "orders".into(), ..Default::default() };
    let held = held(&mut test, &[2, 2, 2, 2]).await;
    let mut consumer = Consumer::start(&test.client, start).await;
    let settle = |message: &Message, delay_s: Option<f64>| Settle {
        receipts: texts(&[&message.receipt]),
        action: SettleAction::Release.into(),
        delay: delay_s.and_then(seconds),
        reason: String::new(),
    };
    let number = consumer.send(Command::Settle(settle(&held[0], None)));
    consumer.items(number).await;
    let number = consumer.send(Command::Settle(settle(&held[1], Some(200.0))));
    consumer.items(number).await;

    let released = |message: &Message| ReleaseRequest {
        queue: "orders".into(),
        receipts: texts(&[&message.receipt]),
        delay: None,
    };
    let operation = TransactOperation { operation: Some(Operation::Release(released(&held[2]))) };
    let request = TransactRequest { operations: vec![operation], ..Default::default() };
    let done = test.client.queue.transact(request).await.unwrap().into_inner().results.remove(0);
    assert!(matches!(done.result, Some(Done::Release(released)) if released.results[0].vt.is_some()));

    let mut open = Open::begin(&test.client).await;
    let reply = open.done(Step::Release(released(&held[3]))).await;
    assert!(matches!(reply, Reply::Release(released) if released.results[0].vt.is_some()));
    open.commit().await;
    expect_delays(&hidden(&test).await, &[300.0, 200.0, 300.0, 300.0]);
}

/// Nobody finds a released message before its time, and somebody does then.
#[tokio::test]
async fn a_stream_gets_a_released_message_when_its_delay_is_over() {
    let mut test = Test::start().await;
    let (minimum, maximum) = (seconds(0.3), seconds(1.0));
    let retry_backoff = Some(RetryBackoff { minimum, maximum, multiplier: 2.0, jitter: 0.0 });
    create(&mut test.client, "orders", Some(QueuePolicy { retry_backoff, ..Default::default() }))
        .await
        .unwrap();
    test.client.send("orders", "{}").await;
    let start = ConsumeStart { queue: "orders".into(), ..Default::default() };
    let mut consumer = Consumer::start(&test.client, start).await;
    for read_ct in 1..=4 {
        let message = consumer.message().await;
        assert_eq!(message.read_ct, read_ct);
        assert_eq!(consumer.settle(SettleAction::Release, &[&message]).await, [Outcome::Done]);
    }
    expire(&test, "orders").await;
    consumer.message().await;
}

#[tokio::test]
async fn a_message_that_is_released_at_either_server_comes_back_at_both_and_never_before_its_time() {
    let mut test = Test::with_queue("orders").await;
    let (minimum, maximum) = (seconds(0.2), seconds(1.0));
    let retry_backoff = Some(RetryBackoff { minimum, maximum, multiplier: 2.0, jitter: 0.0 });
    set(&mut test.client, "orders", QueuePolicy { retry_backoff, ..Default::default() }).await;
    // It knows the policy with its first call.
    let (_other, elsewhere) = test.another().await;
    test.client.send("orders", "{}").await;
    let mut servers = [test.client.clone(), elsewhere];
    let mut held = test.client.read_one("orders").await;
    for (read_ct, delay_ms) in (1..).zip([200, 400, 800, 1_000, 1_000]) {
        assert_eq!(held.read_ct, read_ct);
        let released = release(&mut servers[0], "orders", &[&held.receipt], None).await;
        let due = micros(released[0].vt.as_ref());
        assert!(due >= micros(held.last_read_at.as_ref()) + delay_ms * 1_000, "{due} {held:?}");
        // The other server finds it, and then the other way round.
        held = servers[1].read_as(waiting_for("orders")).await.remove(0);
        assert!(micros(held.last_read_at.as_ref()) >= due, "{held:?} before {due}");
        servers.swap(0, 1);
    }
}

#[tokio::test]
async fn a_release_at_a_killed_server_may_be_repeated_elsewhere_and_waits_as_long_as_one() {
    for (fate, hidden_s) in [(Fate::Finished, 300.0), (Fate::Undone, 30.0)] {
        let mut test = orders(0.0).await;
        let receipt = held(&mut test, &[2]).await.remove(0).receipt;
        let gate = Gate::close(&test, "orders", "UPDATE").await;
        let mut client = test.client.clone();
        let request = ReleaseRequest { queue: "orders".into(), receipts: texts(&[&receipt]), delay: None };
        let call = async move { client.queue.release(request).await };
        gate.kill_within(&test, "set_vt", fate, call).await;
        expect_delays(&hidden(&test).await, &[hidden_s]);

        let (_other, mut elsewhere) = test.another().await;
        for _ in 0..2 {
            let released = release(&mut elsewhere, "orders", &[&receipt], None).await;
            assert_eq!(outcomes(&released), [Outcome::Done], "{fate:?}");
            expect_delays(&hidden(&test).await, &[300.0]);
        }
        assert_eq!(elsewhere.read("orders", 10).await, []);
        expire(&test, "orders").await;
        assert_eq!(elsewhere.read_one("orders").await.read_ct, 3);
    }
}
