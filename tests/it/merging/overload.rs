//! More than a server takes: refused at once, and nothing of it applied.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body::Frame;
use http_body_util::StreamBody;
use pgmq_grpc::proto::v1::transact_operation::Operation;
use pgmq_grpc::proto::v1::{
    DeleteRequest, ItemResult, Outcome, OutgoingMessage, ReadBatchRequest, SendBatchRequest, SendRequest,
    TransactOperation, TransactRequest,
};
use prost::encoding::{WireType, encode_key, encode_varint};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::{LANE, send};
use crate::harness::client::outgoing;
use crate::harness::wire::{Call, call, frame, post_body};
use crate::harness::{Gate, PATIENCE, Refusal, Test, eventually};
use crate::server_state::eventually_shows;

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

/// Callers who send again and again, until this many were refused. Gives the bodies that were accepted, and those that were
/// not with what was said of them.
async fn crowd(test: &Test, callers: usize, enough: usize) -> (Vec<String>, Vec<(String, Status)>) {
    let refusals = Arc::new(AtomicUsize::new(0));
    let mut calling = Vec::new();
    for connection in 0..callers / 200 {
        let client = test.fresh_client().await;
        calling.extend((0..200).map(|caller| {
            let (client, refusals) = (client.clone(), Arc::clone(&refusals));
            tokio::spawn(async move {
                let (mut accepted, mut refused) = (Vec::new(), None);
                while refused.is_none() && refusals.load(Ordering::Relaxed) < enough {
                    let body = format!("\"{connection}-{caller}-{}\"", accepted.len());
                    match send(client.clone(), body.clone()).await {
                        Ok(_) => accepted.push(body),
                        Err(status) => refused = Some((body, status)),
                    }
                }
                refusals.fetch_add(usize::from(refused.is_some()), Ordering::Relaxed);
                (accepted, refused)
            })
        }));
    }
    let (mut accepted, mut refused) = (Vec::new(), Vec::new());
    for caller in calling {
        let (of_it, refusal) = caller.await.unwrap();
        accepted.extend(of_it);
        refused.extend(refusal);
    }
    (accepted, refused)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_that_stays_is_refused_in_part_until_it_has_gone() {
    let mut test = Test::start_with(&[]).await;
    test.client.create("orders").await;
    // So slow that any client brings more than a flush takes.
    test.run(
        "CREATE FUNCTION slow_down() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN PERFORM pg_sleep(3); RETURN NULL; END $$;
         CREATE TRIGGER slow_down AFTER INSERT ON pgmq.q_orders
           FOR EACH STATEMENT EXECUTE FUNCTION slow_down()",
    )
    .await;
    let refuses = eventually_shows(&test.client, "a lane that refuses", |state| state.refusing_lanes > 0);
    let ((mut accepted, refused), _) = tokio::join!(crowd(&test, 3_000, 100), refuses);
    assert!(refused.len() >= 100 && accepted.len() >= 1_024, "{} and {}", refused.len(), accepted.len());
    for (_, status) in &refused {
        expect_overloaded(status);
    }

    // Nobody remembers them longer than they are to stay away.
    eventually_shows(&test.client, "the end of the refusals", |state| state.refusing_lanes == 0).await;
    let callers: Vec<_> =
        (0..150).map(|number| tokio::spawn(send(test.client.clone(), format!("\"{number}\"")))).collect();
    for (number, caller) in callers.into_iter().enumerate() {
        caller.await.unwrap().expect("a send");
        accepted.push(format!("\"{number}\""));
    }

    let stored = "SELECT array_agg(message::text) FROM pgmq.q_orders";
    let mut stored: Vec<String> = test.value(stored).await;
    stored.sort_unstable();
    accepted.sort_unstable();
    assert!(stored == accepted, "{} are stored, {} were accepted", stored.len(), accepted.len());
}

/// Makes a call whose request comes but for its last byte, and that when it is time.
async fn post_slowly(
    test: &Test,
    path: &str,
    headers: &[(&str, &str)],
    request: &Bytes,
    last: impl Future<Output = ()> + Send + 'static,
) -> Status {
    let (most, end) = (request.slice(..request.len() - 1), request.slice(request.len() - 1..));
    let end = stream::once(async move {
        last.await;
        end
    });
    let body = stream::iter([most]).chain(end).map(Frame::data).map(Ok::<_, Infallible>);
    post_body(&test.server, path, headers, StreamBody::new(Box::pin(body))).await
}

/// A message of one field that nobody knows, with so many bytes. It takes no time to see that, whereas any bytes may be
/// millions of fields.
fn unknown_field(bytes: usize) -> Vec<u8> {
    let mut message = Vec::new();
    encode_key(100, WireType::LengthDelimited, &mut message);
    encode_varint(bytes as u64, &mut message);
    message.resize(message.len() + bytes, 0);
    message
}

async fn expect_bounded_memory(path: &'static str) {
    let test = Arc::new(Test::with_queue("orders").await);
    let go_on = CancellationToken::new();
    // Sixteen requests of 8 MiB, less a little, are as much as may come at once.
    let request = Bytes::from(frame(false, &unknown_field((8 << 20) - 1_024)));
    let mut callers: Vec<_> = (0..20)
        .map(|_| {
            let (test, go_on, request) = (Arc::clone(&test), go_on.clone(), request.clone());
            tokio::spawn(
                async move { post_slowly(&test, path, &[], &request, go_on.cancelled_owned()).await },
            )
        })
        .collect();
    eventually("the refusals", async || {
        (callers.iter().filter(|caller| caller.is_finished()).count() >= 4).then_some(())
    })
    .await;
    for refused in callers.extract_if(.., |caller| caller.is_finished()) {
        expect_overloaded(&refused.await.unwrap());
    }
    // Small ones find place beside the large.
    test.client.clone().send("orders", "{}").await;
    go_on.cancel();
    let mut received = 0;
    for caller in callers {
        let status = caller.await.unwrap();
        // They are no sensible requests, but that is seen of the whole only.
        received += usize::from(status.code() != Code::Unavailable);
    }
    // What is refused at the same moment as another may have been one too many.
    assert!((8..=16).contains(&received), "{received} were received");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_are_not_there_yet_take_bounded_memory_together() {
    expect_bounded_memory("/pgmq.v1.QueueService/SendBatch").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_of_streams_that_are_not_there_yet_take_bounded_memory_together() {
    for path in ["/pgmq.v1.QueueService/Produce", "/pgmq.v1.QueueService/Consume"] {
        expect_bounded_memory(path).await;
    }
}

#[tokio::test]
async fn a_request_that_does_not_come_within_its_deadline_ends_with_it() {
    let test = Test::start_with(&["--default-deadline", "300ms"]).await;
    let request = Bytes::from(frame(false, &[b'x'; 100_000]));
    for (method, headers) in [
        ("Send", &[][..]),
        ("SendBatch", &[]),
        ("SendBatch", &[("grpc-timeout", "200m")]),
        ("Read", &[("grpc-timeout", "200m")]),
    ] {
        let path = format!("/pgmq.v1.QueueService/{method}");
        let stalls = post_slowly(&test, &path, headers, &request, std::future::pending());
        let status = tokio::time::timeout(PATIENCE / 2, stalls).await.expect("an answer");
        let refusal = Refusal::expect(&status, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
        assert!(refusal.message.contains("nothing was applied"), "{}", refusal.message);
    }
}
