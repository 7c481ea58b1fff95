//! More than a server takes: refused at once, and nothing of it applied.

use std::time::{Duration, Instant};

use pgmq_grpc::proto::v1::transact_operation::Operation;
use pgmq_grpc::proto::v1::{
    DeleteRequest, ItemResult, Outcome, OutgoingMessage, ReadBatchRequest, SendBatchRequest, SendRequest,
    TransactOperation, TransactRequest,
};
use tonic::{Code, Status};

use super::LANE;
use crate::harness::client::outgoing;
use crate::harness::wire::{Call, call};
use crate::harness::{Gate, Refusal, Test, eventually};

/// Refused as a caller needs it to come again: with a delay, for programs and for the transport.
#[track_caller]
fn expect_overloaded(status: &Status) {
    let refusal = Refusal::expect(status, Code::Unavailable, "OVERLOADED");
    let delay = refusal.retry_delay.expect("a delay");
    let pushback = status.metadata().get("grpc-retry-pushback-ms").expect("a trailer").to_str().unwrap();
    assert_eq!(pushback, delay.as_millis().to_string());
    assert!(refusal.message.contains("nothing was applied"), "{}", refusal.message);
}

#[tokio::test]
async fn settles_beyond_the_bounds_are_refused_and_change_nothing() {
    let mut test = Test::start_with(&["--max-waiting-messages", "20"]).await;
    test.client.create("orders").await;
    test.client.send_all("orders", &["{}"; LANE + 6]).await;
    let read = test.client.read("orders", LANE as i32 + 6).await;
    let gate = Gate::close(&test, "orders", "DELETE").await;
    let delete = |receipt: &str| {
        let mut client = test.client.clone();
        let request = DeleteRequest {
            queue: "orders".to_owned(),
            receipts: vec![receipt.to_owned()],
            ..Default::default()
        };
        tokio::spawn(async move { client.queue.delete(request).await })
    };
    let first = delete(&read[0].receipt);
    gate.arrival(&test, "delete").await;
    let mut others: Vec<_> =
        read[1..].iter().map(|message| (message.msg_id, delete(&message.receipt))).collect();
    let too_many = others.len() - LANE;
    eventually("the refusals", async || {
        (others.iter().filter(|(_, caller)| caller.is_finished()).count() == too_many).then_some(())
    })
    .await;
    let refused = others.extract_if(.., |(_, caller)| caller.is_finished()).collect::<Vec<_>>();
    gate.open(&test).await;
    for caller in [first].into_iter().chain(others.into_iter().map(|(_, caller)| caller)) {
        let results = caller.await.unwrap().expect("a delete").into_inner().results;
        assert_eq!(results.iter().map(ItemResult::outcome).collect::<Vec<_>>(), [Outcome::Done]);
    }
    let mut left = Vec::new();
    for (msg_id, caller) in refused {
        expect_overloaded(&caller.await.unwrap().expect_err("a refusal"));
        left.push(msg_id);
    }
    left.sort_unstable();
    let stored = "SELECT array_agg(msg_id ORDER BY msg_id) FROM pgmq.q_orders";
    assert_eq!(test.value::<Vec<i64>>(stored).await, left);
}

#[tokio::test]
async fn calls_that_find_no_connection_are_refused_and_change_nothing() {
    let test = Test::start_with(&["--pool-size", "1", "--max-waiting-calls", "1"]).await;
    test.client.clone().create("orders").await;
    test.client.clone().send("orders", "{}").await;
    let gate = Gate::close(&test, "orders", "INSERT").await;
    let batch = |body: &str| SendBatchRequest { queue: "orders".to_owned(), messages: vec![outgoing(body)] };
    let make = |call: Call| {
        let channel = test.client.channel.clone();
        tokio::spawn(async move { call.make(&channel).await })
    };
    // One has the only connection, and one waits for it.
    let holder = make(call(batch("\"first\"")));
    gate.arrival(&test, "send").await;
    let send = || SendRequest {
        queue: "orders".to_owned(),
        message: "\"refused\"".to_owned(),
        ..Default::default()
    };
    let read = || ReadBatchRequest { queue: "orders".to_owned(), ..Default::default() };
    let transact = || TransactRequest {
        operations: vec![TransactOperation { operation: Some(Operation::Send(send())) }],
        ..Default::default()
    };
    let mut others: Vec<_> = (0..6).map(|_| make(call(batch("\"second\"")))).collect();
    eventually("a full line", async || {
        (others.iter().filter(|other| other.is_finished()).count() == 5).then_some(())
    })
    .await;
    for refused in others.extract_if(.., |other| other.is_finished()) {
        expect_overloaded(&refused.await.unwrap().expect_err("a refusal"));
    }
    for refused in [call(batch("\"refused\"")), call(transact()), call(read()), call(send())] {
        let text = refused.text.clone();
        let begun = Instant::now();
        let status = refused.make(&test.client.channel).await.expect_err(&text);
        expect_overloaded(&status);
        // Not after a wait for a connection, which is seconds.
        assert!(begun.elapsed() < Duration::from_secs(5), "{text}: {:?}", begun.elapsed());
    }
    gate.open(&test).await;
    holder.await.unwrap().expect("a batch");
    others.remove(0).await.unwrap().expect("a batch");
    let stored = "SELECT count(*) FROM pgmq.q_orders WHERE message::text = '\"refused\"'";
    assert_eq!(test.value::<i64>(stored).await, 0);
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders WHERE read_ct = 0").await, 3);
}

#[tokio::test]
async fn what_waits_is_bounded_in_bytes_whatever_its_number() {
    let test = Test::start_with(&["--max-waiting-bytes", "1MiB", "--pool-size", "1"]).await;
    test.client.clone().create("orders").await;
    let gate = Gate::close(&test, "orders", "INSERT").await;
    let body = format!("\"{}\"", "x".repeat(100_000));
    let message = OutgoingMessage { message: body.clone(), ..Default::default() };
    let batch = SendBatchRequest { queue: "orders".to_owned(), messages: vec![message; 4] };
    let holder = tokio::spawn({
        let (channel, call) = (test.client.channel.clone(), call(batch.clone()));
        async move { call.make(&channel).await }
    });
    gate.arrival(&test, "send").await;
    let mut calls: Vec<_> = (0..12)
        .map(|_| {
            let (channel, call) = (test.client.channel.clone(), call(batch.clone()));
            tokio::spawn(async move { call.make(&channel).await })
        })
        .collect();
    // Of a million bytes, one has 400,000 already and another finds place.
    eventually("the refusals", async || {
        (calls.iter().filter(|call| call.is_finished()).count() == 11).then_some(())
    })
    .await;
    for refused in calls.extract_if(.., |call| call.is_finished()) {
        expect_overloaded(&refused.await.unwrap().expect_err("a refusal"));
    }
    gate.open(&test).await;
    for accepted in calls.into_iter().chain([holder]) {
        accepted.await.unwrap().expect("a batch");
    }
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 8);
}
