//! Ids whose messages are lost: with a queue that is dropped, or with an unlogged one when the database crashes.

use pgmq_grpc::proto::v1::transact_operation::Operation;
use pgmq_grpc::proto::v1::transact_result::Result as Transacted;
use pgmq_grpc::proto::v1::{
    BindTopicRequest, CreateQueueRequest, DeleteRequest, DropQueueRequest, QueueKind, SendBatchRequest,
    SendTopicRequest,
};
use tonic::Code;

use super::transact::{apply, apply_patiently, batch, transaction, with_two_queues};
use super::{bodies, item, keyed, send};
use crate::harness::{Client, OwnPostgres, Refusal, Server, eventually};
use crate::produce::{Stream, frame, reasons};

async fn create_unlogged(client: &mut Client, queue: &str) {
    let kind = QueueKind::Unlogged.into();
    let request = CreateQueueRequest { queue: queue.to_owned(), kind, ..Default::default() };
    client.queue.create_queue(request).await.unwrap();
}

/// How a message is sent.
#[derive(Debug, Clone, Copy)]
enum Way {
    Alone,
    InBatch,
    InTransaction,
}

/// Sends one message to `fast` under one id, and gives its number and whether it was there.
async fn send_to_fast(client: &mut Client, way: Way) -> (i64, bool) {
    match way {
        Way::Alone => {
            let sent = send(client, keyed("fast", "a", "1")).await.unwrap();
            (sent.msg_id, sent.deduplicated)
        }
        Way::InBatch => {
            let request = SendBatchRequest { queue: "fast".to_owned(), messages: vec![item("a", "1")] };
            let sent = client.queue.send_batch(request).await.unwrap().into_inner().results.remove(0);
            (sent.msg_id, sent.deduplicated)
        }
        Way::InTransaction => {
            let request = transaction("", vec![Operation::Send(keyed("fast", "a", "1"))]);
            match apply(client, request).await.unwrap().results.remove(0).result {
                Some(Transacted::Send(sent)) => (sent.msg_id, sent.deduplicated),
                other => panic!("no send: {other:?}"),
            }
        }
    }
}

/// Drops a queue and makes it anew.
async fn remake(client: &mut Client, queue: &str) {
    client.queue.drop_queue(DropQueueRequest { queue: queue.to_owned() }).await.unwrap();
    client.create(queue).await;
}

/// Ends a Postgres without a word and starts it again, until a server works on it.
async fn crash(postgres: &mut OwnPostgres, client: &mut Client) {
    postgres.crash().await;
    postgres.start_again().await;
    eventually("a send", async || send(client, keyed("ready", "", "0")).await.ok()).await;
}

#[tokio::test]
async fn the_ids_of_an_unlogged_queue_are_lost_in_a_crash_with_its_messages_and_those_of_others_are_not() {
    let mut postgres = OwnPostgres::start().await;
    let url = postgres.url.clone();
    let flags = ["--database-url", url.as_str(), "--health-interval", "100ms"];
    let (server, other) = (Server::start(&flags).await, Server::start(&flags).await);
    let (mut client, mut elsewhere) = (Client::connect(&server).await, Client::connect(&other).await);
    create_unlogged(&mut client, "fast").await;
    client.create("kept").await;
    client.create("ready").await;
    let on_fast = transaction("t1", vec![Operation::Send(keyed("fast", "", "7"))]);
    let on_kept = transaction("t2", vec![Operation::Send(keyed("kept", "", "7"))]);
    for queue in ["fast", "kept"] {
        assert!(!send(&mut client, keyed(queue, "a", "1")).await.unwrap().deduplicated);
    }
    for request in [&on_fast, &on_kept] {
        assert!(!apply(&mut client, request.clone()).await.unwrap().deduplicated);
    }

    // A restart in order loses nothing.
    postgres.stop().await;
    postgres.start_again().await;
    eventually("a send", async || send(&mut client, keyed("ready", "", "0")).await.ok()).await;
    assert!(send(&mut client, keyed("fast", "a", "1")).await.unwrap().deduplicated);
    assert!(apply(&mut client, on_fast.clone()).await.unwrap().deduplicated);

    for way in [Way::Alone, Way::InBatch, Way::InTransaction] {
        crash(&mut postgres, &mut client).await;
        // Another message has the first one's number now.
        send(&mut client, keyed("fast", "", "2")).await.unwrap();
        let (stored, deduplicated) = send_to_fast(&mut client, way).await;
        assert!(!deduplicated, "{way:?}");
        let fresh = Server::start(&flags).await;
        for client in [&mut client, &mut elsewhere, &mut Client::connect(&fresh).await] {
            for again in [Way::Alone, Way::InBatch, Way::InTransaction] {
                assert_eq!(send_to_fast(client, again).await, (stored, true), "{again:?} after {way:?}");
            }
            assert!(send(client, keyed("kept", "a", "1")).await.unwrap().deduplicated);
        }
        assert!(!apply(&mut elsewhere, on_fast.clone()).await.unwrap().deduplicated);
        assert!(apply(&mut client, on_fast.clone()).await.unwrap().deduplicated);
        assert!(apply(&mut client, on_kept.clone()).await.unwrap().deduplicated);
        let rows =
            postgres.connect().await.query("SELECT message::text FROM pgmq.q_fast ORDER BY 1", &[]).await;
        let rows: Vec<String> = rows.unwrap().iter().map(|row| row.get(0)).collect();
        assert_eq!(rows, ["1", "2", "7"]);
    }
}

#[tokio::test]
async fn many_who_send_at_once_after_a_crash_store_each_id_once() {
    let mut postgres = OwnPostgres::start().await;
    let url = postgres.url.clone();
    let flags = ["--database-url", url.as_str(), "--health-interval", "100ms"];
    let (server, other) = (Server::start(&flags).await, Server::start(&flags).await);
    let mut client = Client::connect(&server).await;
    let elsewhere = Client::connect(&other).await;
    client.create("ready").await;
    create_unlogged(&mut client, "fast").await;
    crash(&mut postgres, &mut client).await;

    let callers =
        (0..40).map(|n| {
            let mut client = if n % 2 == 0 { client.clone() } else { elsewhere.clone() };
            let request = keyed("fast", &format!("k{}", n / 8), "1");
            async move {
                eventually("a send", async || send(&mut client, request.clone()).await.ok()).await.msg_id
            }
        });
    let mut ids = futures_util::future::join_all(callers).await;
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 5);
    let sql = postgres.connect().await;
    let rows = sql.query("SELECT msg_id FROM pgmq.q_fast ORDER BY msg_id", &[]).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.get::<_, i64>(0)).collect::<Vec<_>>(), ids);
}

#[tokio::test]
async fn nobody_waits_for_the_transaction_that_comes_first_after_a_crash() {
    let mut test = with_two_queues().await;
    create_unlogged(&mut test.client, "fast").await;
    for (id, send_id) in [("t1", ""), ("", "a")] {
        let server = Server::start_on(&test.database, &[]).await;
        let mut client = Client::connect(&server).await;
        let held = test.client.send("orders", "1").await;
        // As a crash leaves it.
        test.run("DELETE FROM pgmq_grpc.unlogged_contents").await;
        test.run("BEGIN; SELECT FROM pgmq.q_orders FOR UPDATE").await;
        let delete = DeleteRequest { queue: "orders".to_owned(), msg_ids: vec![held], ..Default::default() };
        let operations = vec![Operation::Delete(delete), Operation::Send(keyed("fast", send_id, "2"))];
        let request = transaction(id, operations);
        let applying = tokio::spawn(async move { apply_patiently(&mut client, request).await });
        let number = "SELECT contents FROM pgmq_grpc.unlogged_contents";
        eventually("a number that others see", async || test.sql.query_opt(number, &[]).await.unwrap()).await;
        assert!(!send(&mut test.client, keyed("fast", "b", "3")).await.unwrap().deduplicated);
        test.run("COMMIT").await;
        assert!(!applying.await.unwrap().deduplicated);
    }
    assert_eq!(bodies(&test, "fast").await.len(), 4);
}

#[tokio::test]
async fn a_message_that_the_table_refuses_fails_alone_after_a_crash_too() {
    let mut test = with_two_queues().await;
    create_unlogged(&mut test.client, "fast").await;
    // The second statement is as a crash leaves it.
    test.run("ALTER TABLE pgmq.q_fast ADD CHECK (message <> '2'); DELETE FROM pgmq_grpc.unlogged_contents")
        .await;
    let mut stream = Stream::open(&test.client).await;
    stream.give(frame("fast", 1, vec![item("a", "1"), item("b", "2"), item("c", "3")])).await;
    let answer = stream.answer().await;
    assert_eq!(reasons(&answer), [(1, "REFUSED_BY_DATABASE".to_owned(), Code::FailedPrecondition as i32)]);
    assert_eq!(bodies(&test, "fast").await, ["1", "3"]);
}

#[tokio::test]
async fn a_transaction_is_another_once_a_queue_that_it_sent_to_was_made_anew() {
    let mut test = with_two_queues().await;
    let bind = BindTopicRequest { pattern: "new.*".to_owned(), queue: "results".to_owned() };
    test.client.topic.bind_topic(bind.clone()).await.unwrap();
    let topic =
        SendTopicRequest { routing_key: "new.one".to_owned(), message: "2".to_owned(), ..Default::default() };
    for (id, to_results) in [("t1", batch(&["2"])), ("t2", Operation::SendTopic(topic))] {
        let request = transaction(id, vec![Operation::Send(keyed("orders", "", "1")), to_results]);
        let first = apply(&mut test.client, request.clone()).await.unwrap();
        assert!(!first.deduplicated);

        remake(&mut test.client, "results").await;
        test.client.topic.bind_topic(bind.clone()).await.unwrap();
        let stored = apply(&mut test.client, request.clone()).await.unwrap();
        assert!(!stored.deduplicated, "{id}");
        assert_eq!(bodies(&test, "results").await, ["2"], "{id}");
        // It is one whole: also what it sent elsewhere is sent again.
        assert_eq!(bodies(&test, "orders").await, ["1", "1"], "{id}");
        let again = apply(&mut test.client, request).await.unwrap();
        assert!(again.deduplicated && again.results == stored.results, "{id}");
        remake(&mut test.client, "orders").await;
    }
}

#[tokio::test]
async fn a_transaction_is_tried_anew_where_a_queue_that_it_sent_to_is_gone() {
    let mut test = with_two_queues().await;
    let request = transaction("t1", vec![Operation::Send(keyed("orders", "", "1")), batch(&["2"])]);
    apply(&mut test.client, request.clone()).await.unwrap();
    // By plain SQL, of which no server hears.
    test.run("SELECT pgmq.drop_queue('results')").await;
    let status = apply(&mut test.client, request.clone()).await.unwrap_err();
    Refusal::expect(&status, Code::NotFound, "QUEUE_NOT_FOUND");
    assert_eq!(bodies(&test, "orders").await, ["1"]);
    test.run("SELECT pgmq.create('results')").await;
    assert!(!apply(&mut test.client, request).await.unwrap().deduplicated);
    assert_eq!(bodies(&test, "results").await, ["2"]);
}

#[tokio::test]
async fn what_a_transaction_settled_in_a_queue_made_anew_stays_settled() {
    let mut test = with_two_queues().await;
    test.client.send("orders", "1").await;
    let settle = DeleteRequest { queue: "orders".to_owned(), msg_ids: vec![1], ..Default::default() };
    let request = transaction("t1", vec![Operation::Delete(settle), batch(&["2"])]);
    apply(&mut test.client, request.clone()).await.unwrap();

    remake(&mut test.client, "orders").await;
    test.client.send("orders", "3").await;
    assert!(apply(&mut test.client, request).await.unwrap().deduplicated);
    assert_eq!(bodies(&test, "orders").await.len(), 1);
    assert_eq!(bodies(&test, "results").await, ["2"]);
}
