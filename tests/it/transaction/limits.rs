//! How many transactions there are at once, and how long they may take.

use pgmq_grpc::proto::v1::Begin;
use pgmq_grpc::proto::v1::open_transaction_request::Command;
use pgmq_grpc::proto::v1::open_transaction_response::Reply;
use tonic::{Code, Status};

use super::{Open, begin, count, open_transactions, send};
use crate::harness::{Gate, PATIENCE, Refusal, Test, eventually, seconds};

#[track_caller]
fn expect_expired(status: &Status, limit: &str, limit_ms: &str) {
    let refusal = Refusal::expect(status, Code::Aborted, "TRANSACTION_EXPIRED");
    assert_eq!(
        (refusal.metadata["limit"].as_str(), refusal.metadata["limit_ms"].as_str()),
        (limit, limit_ms)
    );
}

#[tokio::test]
async fn a_quarter_of_the_pool_can_be_transactions() {
    let test = Test::start_with(&["--pool-size", "8", "--transaction-wait", "100ms"]).await;
    let _two = [Open::begin(&test.client).await, Open::begin(&test.client).await];
    let refused = Open::stream(&test.client).await.refused(begin()).await;
    let refusal = Refusal::expect(&refused, Code::Unavailable, "OVERLOADED");
    assert!(refusal.retry_delay.is_some());
    assert!(refused.metadata().get("grpc-retry-pushback-ms").is_some());
}

#[tokio::test]
async fn others_work_while_transactions_wait_for_their_turn() {
    let mut test = Test::start_with(&["--pool-size", "2", "--transaction-wait", "30s"]).await;
    test.client.create("orders").await;
    let first = Open::begin(&test.client).await;
    let mut waiting = Vec::new();
    for _ in 0..3 {
        let mut open = Open::stream(&test.client).await;
        open.give(begin()).await;
        waiting.push(open);
    }
    assert_eq!(test.client.send("orders", "{}").await, 1);
    first.commit().await;
    // Each gets its turn when the one before it ends.
    for mut open in waiting {
        assert!(matches!(open.next().await.unwrap().unwrap(), Reply::Begun(_)));
        open.commit().await;
    }
}

#[tokio::test]
async fn turns_come_in_the_order_of_their_askers() {
    let test = Test::start_with(&["--max-transactions", "1", "--transaction-wait", "30s"]).await;
    let first = Open::begin(&test.client).await;
    let mut second = Open::stream(&test.client).await;
    second.give(begin()).await;
    // A command that the second has been heard of on the same connection before the third is opened.
    let mut third = Open::stream(&test.client).await;
    third.give(begin()).await;
    first.commit().await;
    assert!(matches!(second.next().await.unwrap().unwrap(), Reply::Begun(_)));
    assert_eq!(open_transactions(&test).await, 1);
    second.commit().await;
    assert!(matches!(third.next().await.unwrap().unwrap(), Reply::Begun(_)));
    third.commit().await;
}

#[tokio::test]
async fn a_client_that_gives_up_waiting_leaves_its_place() {
    let test = Test::start_with(&["--max-transactions", "1", "--transaction-wait", "30s"]).await;
    let first = Open::begin(&test.client).await;
    let mut second = Open::stream(&test.client).await;
    second.give(begin()).await;
    drop(second);
    first.commit().await;
    let mut third = Open::begin(&test.client).await;
    assert!(matches!(third.done(super::rollback()).await, Reply::RolledBack(_)));
}

#[tokio::test]
async fn an_idle_transaction_is_rolled_back() {
    let mut test = Test::start_with(&["--transaction-idle-timeout", "500ms"]).await;
    test.client.create("orders").await;
    let mut open = Open::begin(&test.client).await;
    open.give(send("orders", "{}")).await;
    let status = loop {
        match open.next().await.expect("an error before the end") {
            Ok(Reply::Send(_)) => {}
            Ok(other) => panic!("{other:?}"),
            Err(status) => break status,
        }
    };
    expect_expired(&status, "idle", "500");
    eventually("no open transaction", async || (open_transactions(&test).await == 0).then_some(())).await;
    assert_eq!(count(&test, "orders").await, 0);
}

#[tokio::test]
async fn a_stream_on_which_nothing_begins_ends() {
    let test = Test::start_with(&["--transaction-idle-timeout", "100ms"]).await;
    expect_expired(&Open::stream(&test.client).await.failure().await, "idle", "100");
}

#[tokio::test]
async fn a_client_may_ask_for_less_idle_time_and_not_for_more() {
    let test = Test::start().await;
    let with = |idle| Command::Begin(Begin { idle_timeout: seconds(idle) });
    let mut open = Open::stream(&test.client).await;
    open.give(with(0.1)).await;
    assert!(matches!(open.next().await.unwrap().unwrap(), Reply::Begun(_)));
    expect_expired(&open.failure().await, "idle", "100");
    for wrong in [0.0, 5.001] {
        let refused = Open::stream(&test.client).await.refused(with(wrong)).await;
        Refusal::expect_invalid(&refused, "INVALID_DURATION", "begin.idle_timeout");
    }
}

#[tokio::test]
async fn a_transaction_ends_when_it_has_lasted_too_long_however_busy() {
    let mut test = Test::start_with(&["--transaction-timeout", "700ms"]).await;
    test.client.create("orders").await;
    let mut open = Open::begin(&test.client).await;
    let started = std::time::Instant::now();
    let status = loop {
        assert!(started.elapsed() < PATIENCE);
        open.give(send("orders", "{}")).await;
        if let Err(status) = open.next().await.expect("an error before the end") {
            break status;
        }
    };
    expect_expired(&status, "total", "700");
    eventually("no open transaction", async || (open_transactions(&test).await == 0).then_some(())).await;
    assert_eq!(count(&test, "orders").await, 0);
}

#[tokio::test]
async fn a_statement_does_not_outlive_its_transaction() {
    let mut test = Test::start_with(&["--transaction-timeout", "700ms"]).await;
    test.client.create("orders").await;
    let gate = Gate::close(&test, "orders", "INSERT").await;
    let mut open = Open::begin(&test.client).await;
    open.give(send("orders", "{}")).await;
    expect_expired(&open.failure().await, "total", "700");
    eventually("no open transaction", async || (open_transactions(&test).await == 0).then_some(())).await;
    gate.open(&test).await;
    assert_eq!(count(&test, "orders").await, 0);
    Open::begin(&test.client).await.commit().await;
}
