//! However messages are read, and whoever leaves or dies meanwhile: none is handed over too often, and each goes aside once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use nix::sys::signal::Signal;
use pgmq_grpc::proto::v1::{ConsumeStart, Message, Ordering, ReadBatchRequest, ReadRequest};
use tokio::task::JoinSet;

use super::{at_most, count};
use crate::consume::Consumer;
use crate::harness::{Client, Server, Test, eventually, seconds};
use crate::policies::create;

const MESSAGES: i64 = 200;
const MAX_RECEIVES: i32 = 3;

/// How often a client has got each message, by its body.
type Seen = Arc<Mutex<HashMap<String, Vec<i32>>>>;

fn note(seen: &Seen, messages: &[Message]) {
    let mut seen = seen.lock().unwrap();
    for message in messages {
        seen.entry(message.message.clone()).or_default().push(message.read_ct);
    }
}

/// Reads in pieces, and lets the messages lie or gives them back. Goes on until it is dropped.
async fn read_batches(mut client: Client, ordering: Ordering, seen: Seen) {
    for turn in 0_u64.. {
        let request = ReadBatchRequest {
            queue: "orders".into(),
            visibility_timeout: seconds(1.0),
            max_messages: 7,
            wait: seconds(0.5),
            ordering: ordering.into(),
            ..Default::default()
        };
        let Ok(read) = client.queue.read_batch(request).await else { continue };
        let messages = read.into_inner().messages;
        note(&seen, &messages);
        if turn % 2 == 0 && !messages.is_empty() {
            let receipts = messages.iter().map(|message| message.receipt.clone()).collect();
            let request =
                pgmq_grpc::proto::v1::ReleaseRequest { queue: "orders".into(), receipts, delay: None };
            let _ = client.queue.release(request).await;
        }
    }
}

/// Opens streams, takes some messages, and leaves in the midst of them.
async fn read_streams(mut client: Client, ordering: Ordering, seen: Seen) {
    for turn in 0_usize.. {
        let request = ReadRequest {
            queue: "orders".into(),
            visibility_timeout: seconds(1.0),
            max_in_flight: 20,
            ordering: ordering.into(),
            ..Default::default()
        };
        let Ok(stream) = client.queue.read(request).await else { continue };
        let mut stream = stream.into_inner();
        for _ in 0..turn % 5 {
            let next = tokio::time::timeout(std::time::Duration::from_millis(500), stream.message()).await;
            let Ok(Ok(Some(reply))) = next else { break };
            note(&seen, &reply.messages);
        }
    }
}

/// Callers who do not wait long enough: what was read for them goes back.
async fn hurry(client: Client, ordering: Ordering) {
    for turn in 0_u64.. {
        let mut client = client.clone();
        let request = ReadBatchRequest {
            queue: "orders".into(),
            visibility_timeout: seconds(1.0),
            max_messages: 3,
            wait: seconds(5.0),
            ordering: ordering.into(),
            ..Default::default()
        };
        let read = tokio::time::timeout(
            std::time::Duration::from_millis(1 + turn % 7),
            client.queue.read_batch(request),
        )
        .await;
        // What came in time is theirs; they lose it.
        drop(read);
    }
}

async fn storm(ordering: Ordering, kills: bool) {
    let mut test = Test::start().await;
    test.client.create("failed").await;
    create(&mut test.client, "orders", Some(at_most(MAX_RECEIVES))).await.unwrap();
    test.run(&format!(
        "SELECT pgmq.send('orders', to_jsonb(n), jsonb_build_object('x-pgmq-group', n % 100))
         FROM generate_series(1, {MESSAGES}) AS n"
    ))
    .await;
    let seen = Seen::default();
    let mut other = Some(Server::start_on(&test.database, &[]).await);
    let mut readers = JoinSet::new();
    let begin = async |readers: &mut JoinSet<()>, server: &Server| {
        let client = Client::connect(server).await;
        readers.spawn(read_batches(client.clone(), ordering, Arc::clone(&seen)));
        readers.spawn(read_streams(client.clone(), ordering, Arc::clone(&seen)));
        readers.spawn(hurry(client, ordering));
    };
    begin(&mut readers, &test.server).await;
    if let Some(other) = &other {
        begin(&mut readers, other).await;
    }
    let mut killed = 0;
    eventually("the last dead letter", async || {
        if kills && killed < 3 && count(&test, "failed").await > 20 * (killed + 1) {
            let server = other.take().expect("a server");
            server.signal(Signal::SIGKILL);
            server.exit().await;
            let server = Server::start_on(&test.database, &[]).await;
            begin(&mut readers, &server).await;
            other = Some(server);
            killed += 1;
        }
        (count(&test, "orders").await == 0).then_some(())
    })
    .await;
    readers.shutdown().await;
    assert!(!kills || killed > 0);

    let letters = "SELECT array_agg(message::text ORDER BY (message #>> '{}')::int) FROM pgmq.q_failed";
    let letters: Vec<String> = test.value(letters).await;
    assert_eq!(letters, (1..=MESSAGES).map(|n| n.to_string()).collect::<Vec<_>>(), "each exactly once");
    // Nobody was set aside before the one ahead of it in its group.
    let in_order =
        "SELECT bool_and(one.msg_id < two.msg_id) FROM pgmq.q_failed AS one JOIN pgmq.q_failed AS two
        ON (two.message #>> '{}')::int = (one.message #>> '{}')::int + 100";
    assert!(ordering == Ordering::Unordered || test.value::<bool>(in_order).await);
    // A server that is killed can have read what it then handed to nobody, each message once.
    let wrong = format!(
        "SELECT count(*) FROM pgmq.q_failed WHERE (headers -> 'x-pgmq-dead-letter' ->> 'read_ct')::int
         NOT BETWEEN {MAX_RECEIVES} AND {MAX_RECEIVES} + {killed}"
    );
    assert_eq!(test.value::<i64>(&wrong).await, 0);
    let seen = seen.lock().unwrap();
    for (body, read_counts) in seen.iter() {
        assert!(read_counts.iter().all(|read_ct| *read_ct <= MAX_RECEIVES), "{body}: {read_counts:?}");
        assert!(read_counts.len() <= usize::try_from(MAX_RECEIVES).unwrap(), "{body}: {read_counts:?}");
    }
    assert!(seen.len() > 100, "the readers got {} of the messages", seen.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_hand_nothing_over_too_often() {
    storm(Ordering::Unordered, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_do_they_with_groups() {
    storm(Ordering::GroupedHead, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_loses_and_doubles_nothing() {
    storm(Ordering::Unordered, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_does_it_with_groups() {
    storm(Ordering::GroupedHead, true).await;
}

/// With clients who stay, each message is handed over exactly as often as it may be.
#[tokio::test(flavor = "multi_thread")]
async fn consumers_who_stay_get_each_message_as_often_as_allowed() {
    let mut test = Test::start().await;
    let other = Server::start_on(&test.database, &[]).await;
    test.client.create("failed").await;
    create(&mut test.client, "orders", Some(at_most(MAX_RECEIVES))).await.unwrap();
    test.run(&format!("SELECT pgmq.send('orders', to_jsonb(n)) FROM generate_series(1, {MESSAGES}) AS n"))
        .await;
    let seen = Seen::default();
    let mut consumers = JoinSet::new();
    for client in [test.client.clone(), Client::connect(&other).await] {
        for _ in 0..2 {
            let (client, seen) = (client.clone(), Arc::clone(&seen));
            consumers.spawn(async move {
                let visibility_timeout = seconds(1.0);
                let start =
                    ConsumeStart { visibility_timeout, max_in_flight: 50, ..crate::consume::start("orders") };
                let mut consumer = Consumer::start(&client, start).await;
                loop {
                    let messages = consumer.some().await;
                    note(&seen, &messages);
                }
            });
        }
    }
    eventually("the last dead letter", async || (count(&test, "orders").await == 0).then_some(())).await;
    consumers.shutdown().await;
    assert_eq!(count(&test, "failed").await, MESSAGES);
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), usize::try_from(MESSAGES).unwrap());
    for (body, read_counts) in seen.iter() {
        let mut sorted = read_counts.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (1..=MAX_RECEIVES).collect::<Vec<_>>(), "{body}");
    }
}
