//! What merged callers are told when connections are lost, announcements fail, or the server ends.

use std::collections::HashSet;

use nix::sys::signal::Signal;
use pgmq_grpc::proto::v1::{
    DeleteRequest, DeleteResponse, ItemResult, Outcome, OutgoingMessage, ProduceRequest, SendRequest,
    SendResponse,
};
use tokio::task::JoinHandle;
use tonic::{Code, Response, Status};

use super::{Jam, LANE, send};
use crate::harness::client::outgoing;
use crate::harness::{Client, Gate, Refusal, Test, eventually};
use crate::produce::{Stream, frame, reasons};
use crate::server_state::eventually_shows;

/// More sends than a lane holds.
fn bodies() -> Vec<String> {
    (0..LANE + 3).map(|number| number.to_string()).collect()
}

async fn count(test: &Test) -> i64 {
    test.value("SELECT count(*) FROM pgmq.q_orders").await
}

#[tokio::test]
async fn who_was_not_handed_over_is_served_by_another_connection() {
    let mut jam = Jam::make(bodies(), "").await;
    jam.until_full().await;
    let pid = jam.gate.arrival(&jam.test, "send").await;
    jam.gate.terminate(&jam.test, pid).await;
    let lost = jam.first.await.unwrap().expect_err("a lost connection");
    Refusal::expect(&lost, Code::Unknown, "OUTCOME_UNKNOWN");
    jam.gate.open(&jam.test).await;
    let mut stored = HashSet::new();
    for (body, caller) in jam.others {
        let msg_id = caller.await.unwrap().expect("a send");
        let sql = format!("SELECT message::text FROM pgmq.q_orders WHERE msg_id = {msg_id}");
        assert_eq!(jam.test.value::<String>(&sql).await, body);
        stored.insert(msg_id);
    }
    assert_eq!((stored.len(), count(&jam.test).await), (LANE, LANE as i64));
}

#[tokio::test]
async fn all_of_a_lost_flush_are_told_that_their_outcome_is_unknown() {
    let mut jam = Jam::make(bodies(), "").await;
    jam.until_full().await;
    let pid = jam.gate.arrival(&jam.test, "send").await;
    jam.gate.terminate(&jam.test, pid).await;
    jam.first.await.unwrap().expect_err("a lost connection");
    // All the others, in one flush.
    let pid = jam.gate.arrival(&jam.test, "send").await;
    jam.gate.terminate(&jam.test, pid).await;
    for (_, caller) in jam.others {
        let lost = caller.await.unwrap().expect_err("a lost connection");
        let refusal = Refusal::expect(&lost, Code::Unknown, "OUTCOME_UNKNOWN");
        assert_eq!(refusal.retry_delay, None);
    }
    jam.gate.open(&jam.test).await;
    assert_eq!(count(&jam.test).await, 0);
    send(jam.test.client.clone(), "1".to_owned()).await.expect("a send on a new connection");
}

fn keyed(number: usize) -> SendRequest {
    SendRequest {
        queue: "orders".to_owned(),
        message: number.to_string(),
        deduplication_id: format!("key {number}"),
        ..Default::default()
    }
}

async fn send_keyed(mut client: Client, number: usize) -> Result<SendResponse, Status> {
    client.queue.send(keyed(number)).await.map(Response::into_inner)
}

#[tokio::test]
async fn a_lost_send_with_a_key_can_be_repeated_and_is_stored_once() {
    let test = Test::with_queue("orders").await;
    // So that its keys are taken at all.
    eventually("deduplication", async || send_keyed(test.client.clone(), 0).await.ok()).await;
    let gate = Gate::close(&test, "orders", "INSERT").await;
    let first = tokio::spawn(send_keyed(test.client.clone(), 1));
    let pid = gate.arrival(&test, "send_keyed").await;
    let others: Vec<_> =
        (2..=8).map(|number| tokio::spawn(send_keyed(test.client.clone(), number))).collect();
    gate.terminate(&test, pid).await;
    let lost = first.await.unwrap().expect_err("a lost connection");
    let refusal = Refusal::expect(&lost, Code::Unavailable, "OUTCOME_UNKNOWN_RETRY_SAFE");
    assert!(refusal.retry_delay.is_some());
    gate.open(&test).await;
    let mut ids = HashSet::new();
    for (number, other) in (2..).zip(others) {
        let sent = other.await.unwrap().expect("a send");
        let repeated = send_keyed(test.client.clone(), number).await.expect("a repeat");
        assert_eq!((repeated.msg_id, repeated.deduplicated), (sent.msg_id, true));
        ids.insert(sent.msg_id);
    }
    let repeated = send_keyed(test.client.clone(), 1).await.expect("a repeat");
    ids.insert(repeated.msg_id);
    assert_eq!((ids.len(), count(&test).await), (8, 9));
}

/// A stream that comes to deduplication ids keeps to its lane, whose flush makes two inserts then.
#[tokio::test]
async fn who_was_to_follow_in_a_lost_flush_hears_that_nothing_was_stored() {
    let test = Test::with_queue("orders").await;
    eventually("deduplication", async || send_keyed(test.client.clone(), 0).await.ok()).await;
    let gate = Gate::close(&test, "orders", "INSERT").await;
    let mut stream = Stream::open(&test.client).await;
    stream.give(frame("orders", 0, vec![outgoing("1")])).await;
    let first = gate.arrival(&test, "send").await;
    let stranger = tokio::spawn(send(test.client.clone(), "2".to_owned()));
    let with_id = OutgoingMessage { deduplication_id: "key".to_owned(), ..outgoing("3") };
    stream.give(frame("orders", 1, vec![with_id, outgoing("4")])).await;
    eventually_shows(&test.client, "all in the lane", |state| state.waiting_sends == 3).await;
    gate.terminate(&test, first).await;
    let unknown = (0, "OUTCOME_UNKNOWN".to_owned(), i32::from(Code::Unknown));
    assert_eq!(reasons(&stream.answer().await), [unknown]);

    let next = eventually("the next flush", async || {
        Some(gate.arrival(&test, "send").await).filter(|&next| next != first)
    });
    gate.terminate(&test, next.await).await;
    let lost = stranger.await.unwrap().expect_err("a lost connection");
    Refusal::expect(&lost, Code::Unknown, "OUTCOME_UNKNOWN");
    let unavailable = |index| (index, "DATABASE_UNAVAILABLE".to_owned(), i32::from(Code::Unavailable));
    assert_eq!(reasons(&stream.answer().await), [unavailable(0), unavailable(1)]);
    gate.open(&test).await;
    assert_eq!(count(&test).await, 1);
}

type Deleting = JoinHandle<Result<Response<DeleteResponse>, Status>>;

fn delete(test: &Test, receipt: &str) -> Deleting {
    let mut client = test.client.clone();
    let request = DeleteRequest {
        queue: "orders".to_owned(),
        receipts: vec![receipt.to_owned()],
        ..Default::default()
    };
    tokio::spawn(async move { client.queue.delete(request).await })
}

fn outcomes(answer: Response<DeleteResponse>) -> Vec<Outcome> {
    answer.into_inner().results.iter().map(ItemResult::outcome).collect()
}

#[tokio::test]
async fn lost_settles_can_be_repeated_by_each_caller() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["{}"; 9]).await;
    let read = test.client.read("orders", 9).await;
    let gate = Gate::close(&test, "orders", "DELETE").await;
    let first = delete(&test, &read[0].receipt);
    let pid = gate.arrival(&test, "delete").await;
    let others: Vec<Deleting> = read[1..].iter().map(|message| delete(&test, &message.receipt)).collect();
    gate.terminate(&test, pid).await;
    let lost = first.await.unwrap().expect_err("a lost connection");
    Refusal::expect(&lost, Code::Unavailable, "OUTCOME_UNKNOWN_RETRY_SAFE");
    // The others come in one flush or in two, and are lost, too, as far as they were handed over.
    let pid = gate.arrival(&test, "delete").await;
    gate.terminate(&test, pid).await;
    gate.open(&test).await;
    for (message, other) in read[1..].iter().zip(others) {
        match other.await.unwrap() {
            Ok(answer) => assert_eq!(outcomes(answer), [Outcome::Done]),
            Err(lost) => {
                Refusal::expect(&lost, Code::Unavailable, "OUTCOME_UNKNOWN_RETRY_SAFE");
                let repeated = delete(&test, &message.receipt).await.unwrap().expect("a repeat");
                assert_eq!(outcomes(repeated), [Outcome::Done]);
            }
        }
    }
    assert_eq!(test.client.delete("orders", &[&read[0].receipt]).await, [Outcome::Done]);
    assert_eq!(count(&test).await, 0);
}

#[tokio::test]
async fn nobody_who_waits_for_a_flush_is_forgotten_when_the_server_ends() {
    let mut jam = Jam::make(bodies(), "").await;
    jam.until_full().await;
    jam.test.server.signal(Signal::SIGTERM);
    eventually("the drain", async || jam.test.server.log().contains("draining").then_some(())).await;
    jam.gate.open(&jam.test).await;
    jam.first.await.unwrap().expect("a send");
    let mut ids = HashSet::new();
    for (_, caller) in jam.others {
        ids.insert(caller.await.unwrap().expect("a send that waited"));
    }
    assert_eq!(ids.len(), LANE);
    assert_eq!(count(&jam.test).await, 1 + LANE as i64);
    let (status, log) = jam.test.server.exit().await;
    assert_eq!(status.code(), Some(0), "{log}");
}

#[tokio::test]
async fn a_lost_connection_for_announcements_is_no_senders_trouble() {
    let test = Test::with_queue("orders").await;
    let listener = "SELECT pid FROM pg_stat_activity WHERE datname = current_database()
        AND (query LIKE 'LISTEN %' OR query LIKE '%pg_notify%') AND pid <> pg_backend_pid()";
    let mut cut = 0;
    for number in 0..200 {
        send(test.client.clone(), number.to_string()).await.expect("a send");
        if number % 20 == 0 {
            for row in test.sql.query(listener, &[]).await.unwrap() {
                let pid: i32 = row.get("pid");
                test.sql.execute("SELECT pg_terminate_backend($1)", &[&pid]).await.unwrap();
                cut += 1;
            }
        }
    }
    assert!(cut > 0, "there was nothing to cut");
    assert_eq!(count(&test).await, 200);
}

/// Callers who leave take their messages out of the line or do not, but nobody else's place.
#[tokio::test]
async fn sends_keep_their_order_while_others_cancel_theirs() {
    let test = Test::with_queue("orders").await;
    let cancelled = tokio::spawn({
        let client = test.client.clone();
        async move {
            for round in 0..60_u64 {
                let sends: Vec<_> = (0..10)
                    .map(|number| tokio::spawn(send(client.clone(), format!("\"{round} {number}\""))))
                    .collect();
                for (number, caller) in (0..).zip(&sends) {
                    tokio::task::yield_now().await;
                    if (round + number) % 3 != 0 {
                        caller.abort();
                    }
                }
                for caller in sends {
                    let _ = caller.await;
                }
            }
        }
    });
    let unary = tokio::spawn({
        let mut client = test.client.clone();
        async move {
            for number in 0..100 {
                client.send_to_group("orders", "unary", &number.to_string()).await;
            }
        }
    });
    let frames = (0..100).map(|number| {
        let messages = (0..3).map(|place| OutgoingMessage {
            group: "frames".to_owned(),
            ..outgoing(&(number * 3 + place).to_string())
        });
        ProduceRequest {
            queue: "orders".to_owned(),
            first_sequence: number * 3,
            messages: messages.collect(),
        }
    });
    let frames: Vec<ProduceRequest> = frames.collect();
    let mut client = test.client.clone();
    let mut answers = client.queue.produce(tokio_stream::iter(frames)).await.expect("a stream").into_inner();
    while let Some(answer) = answers.message().await.expect("an answer") {
        assert!(answer.failures.is_empty());
    }
    unary.await.unwrap();
    cancelled.await.unwrap();
    for group in ["unary", "frames"] {
        let bodies = format!(
            "SELECT array_agg(message::text::integer ORDER BY msg_id) FROM pgmq.q_orders
             WHERE headers ->> 'x-pgmq-group' = '{group}'"
        );
        let bodies: Vec<i32> = test.value(&bodies).await;
        assert!(bodies.len() >= 100 && bodies.is_sorted(), "{group}: {bodies:?}");
    }
}
