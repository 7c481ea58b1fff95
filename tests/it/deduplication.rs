//! Deduplication ids: stored once within the window, whoever sends how often and where.

mod held;
mod lost;
mod once;
mod topics;
mod transact;
mod window;

use pgmq_grpc::proto::v1::{OutgoingMessage, SendBatchRequest, SendRequest, SendResponse, SendResult};
use tonic::{Code, Status};

use crate::harness::client::outgoing;
use crate::harness::{Client, Refusal, Server, Test, TestDatabase, eventually};

fn keyed(queue: &str, id: &str, message: &str) -> SendRequest {
    SendRequest {
        queue: queue.to_owned(),
        message: message.to_owned(),
        deduplication_id: id.to_owned(),
        ..Default::default()
    }
}

fn item(id: &str, message: &str) -> OutgoingMessage {
    OutgoingMessage { deduplication_id: id.to_owned(), ..outgoing(message) }
}

async fn send(client: &mut Client, request: SendRequest) -> Result<SendResponse, Status> {
    Ok(client.queue.send(request).await?.into_inner())
}

async fn send_batch(client: &mut Client, messages: Vec<OutgoingMessage>) -> Result<Vec<(i64, bool)>, Status> {
    let request = SendBatchRequest { queue: "orders".to_owned(), messages };
    let results = client.queue.send_batch(request).await?.into_inner().results;
    Ok(results.iter().map(|&SendResult { msg_id, deduplicated }| (msg_id, deduplicated)).collect())
}

/// The bodies in a queue's table, in the order of their ids.
async fn bodies(test: &Test, queue: &str) -> Vec<String> {
    let rows =
        test.sql.query(&format!("SELECT message::text FROM pgmq.q_{queue} ORDER BY msg_id"), &[]).await;
    rows.unwrap().iter().map(|row| row.get(0)).collect()
}

#[track_caller]
fn expect_reused(status: &Status) -> Refusal {
    Refusal::expect(status, Code::FailedPrecondition, "DEDUPLICATION_ID_REUSED")
}

#[tokio::test]
async fn a_repeated_send_gives_the_first_id_and_stores_nothing() {
    let mut test = Test::with_queue("orders").await;
    let first = send(&mut test.client, keyed("orders", "a", r#"{"n": 1.50, "k": [0.10]}"#)).await.unwrap();
    assert!(!first.deduplicated);

    // Equal as jsonb, in other words.
    for same in [r#"{"n": 1.50, "k": [0.10]}"#, r#"{"k":[0.1],"n":1.5}"#, r#"{"n":0,"k":[1e-1],"n":15e-1}"#] {
        let again = send(&mut test.client, keyed("orders", "a", same)).await.unwrap();
        assert_eq!((again.msg_id, again.deduplicated), (first.msg_id, true), "{same}");
    }
    // Headers, group and schedule are not compared.
    let other = SendRequest {
        headers: r#"{"x": 1}"#.to_owned(),
        group: "g".to_owned(),
        ..keyed("orders", "a", r#"{"n": 1.5, "k": [0.1]}"#)
    };
    assert_eq!(send(&mut test.client, other).await.unwrap().msg_id, first.msg_id);
    assert_eq!(bodies(&test, "orders").await.len(), 1);
    test.client.read_one("orders").await;
}

#[tokio::test]
async fn another_message_under_the_same_id_is_refused() {
    let mut test = Test::with_queue("orders").await;
    send(&mut test.client, keyed("orders", "a", r#"{"n": "1.0", "m": 10.01}"#)).await.unwrap();

    for other in
        [r#"{"n": "1.00", "m": 10.01}"#, r#"{"n": 1.0, "m": 10.01}"#, r#"{"n": "1.0", "m": 10.1}"#, "{}"]
    {
        let status = send(&mut test.client, keyed("orders", "a", other)).await.unwrap_err();
        assert_eq!(expect_reused(&status).metadata["deduplication_id"], "a", "{other}");
    }
    assert_eq!(bodies(&test, "orders").await.len(), 1);
}

#[tokio::test]
async fn an_id_counts_in_its_own_queue_and_even_after_its_message_is_settled() {
    let mut test = Test::with_queue("orders").await;
    test.client.create("others").await;
    let first = send(&mut test.client, keyed("orders", "a", "1")).await.unwrap();
    let there = send(&mut test.client, keyed("others", "a", "2")).await.unwrap();
    assert!(!there.deduplicated);

    let read = test.client.read_one("orders").await;
    test.client.delete("orders", &[&read.receipt]).await;
    let again = send(&mut test.client, keyed("orders", "a", "1")).await.unwrap();
    assert_eq!((again.msg_id, again.deduplicated), (first.msg_id, true));
    assert!(bodies(&test, "orders").await.is_empty());
}

#[tokio::test]
async fn a_batch_stores_what_is_new_in_order_and_the_first_of_twins() {
    let mut test = Test::with_queue("orders").await;
    send(&mut test.client, keyed("orders", "b", "2")).await.unwrap();

    let messages =
        vec![item("z", "1"), item("b", "2"), outgoing("3"), item("a", "4"), item("z", "1"), outgoing("5")];
    let results = send_batch(&mut test.client, messages).await.unwrap();

    assert_eq!(bodies(&test, "orders").await, ["2", "1", "3", "4", "5"]);
    let deduplicated: Vec<bool> = results.iter().map(|result| result.1).collect();
    assert_eq!(deduplicated, [false, true, false, false, true, false]);
    assert_eq!(results[1].0, 1);
    assert_eq!(results[4].0, results[0].0);
    let mut new: Vec<i64> = [0, 2, 3, 5].iter().map(|&index| results[index].0).collect();
    assert!(new.is_sorted(), "{new:?}");
    new.dedup();
    assert_eq!(new.len(), 4);
}

#[tokio::test]
async fn one_reused_id_takes_back_the_whole_batch() {
    let mut test = Test::with_queue("orders").await;
    send(&mut test.client, keyed("orders", "b", "2")).await.unwrap();

    for messages in [
        vec![item("x", "1"), outgoing("3"), item("b", "other")],
        vec![item("x", "1"), outgoing("3"), item("x", "2")],
    ] {
        let messages = messages.into_iter().map(|mut item| {
            item.message = item.message.replace("other", "\"other\"");
            item
        });
        let status = send_batch(&mut test.client, messages.collect()).await.unwrap_err();
        assert_eq!(expect_reused(&status).metadata["item_index"], "2");
    }
    assert_eq!(bodies(&test, "orders").await, ["2"]);
    // Nothing stays of the batch's own ids either.
    assert!(!send(&mut test.client, keyed("orders", "x", "7")).await.unwrap().deduplicated);
}

#[tokio::test]
async fn ids_that_are_too_long_or_hold_control_characters_are_refused() {
    let mut test = Test::with_queue("orders").await;
    for bad in ["x".repeat(129), "a\nb".to_owned(), "\0".to_owned()] {
        let status = send(&mut test.client, keyed("orders", &bad, "1")).await.unwrap_err();
        let refusal = Refusal::expect(&status, Code::InvalidArgument, "INVALID_DEDUPLICATION_ID");
        assert_eq!(refusal.fields, ["deduplication_id"]);
        let status = send_batch(&mut test.client, vec![item("ok", "1"), item(&bad, "1")]).await.unwrap_err();
        let refusal = Refusal::expect(&status, Code::InvalidArgument, "INVALID_DEDUPLICATION_ID");
        assert_eq!(refusal.fields, ["messages[1].deduplication_id"]);
    }
    for good in ["x".repeat(128), "Auftrag ä/17 \"'\\".to_owned()] {
        assert!(!send(&mut test.client, keyed("orders", &good, "1")).await.unwrap().deduplicated);
        assert!(send(&mut test.client, keyed("orders", &good, "1")).await.unwrap().deduplicated);
    }
    assert_eq!(bodies(&test, "orders").await.len(), 2);
}

#[tokio::test]
async fn a_missing_queue_is_not_found_and_leaves_no_key() {
    let mut test = Test::with_queue("orders").await;
    let status = send(&mut test.client, keyed("nowhere", "a", "1")).await.unwrap_err();
    Refusal::expect(&status, Code::NotFound, "QUEUE_NOT_FOUND");
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq_grpc.deduplication").await, 0);
}

#[tokio::test]
async fn a_queue_dropped_and_made_anew_has_forgotten_its_ids() {
    let mut test = Test::with_queue("orders").await;
    send(&mut test.client, keyed("orders", "a", "1")).await.unwrap();
    let drop = pgmq_grpc::proto::v1::DropQueueRequest { queue: "orders".to_owned() };
    test.client.queue.drop_queue(drop).await.unwrap();
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq_grpc.deduplication").await, 0);
    test.client.create("orders").await;

    assert!(!send(&mut test.client, keyed("orders", "a", "2")).await.unwrap().deduplicated);
    // By plain SQL too, of which no server hears.
    test.run("SELECT pgmq.drop_queue('orders')").await;
    test.run("SELECT pgmq.create('orders')").await;
    assert!(!send(&mut test.client, keyed("orders", "a", "3")).await.unwrap().deduplicated);
    assert_eq!(bodies(&test, "orders").await, ["3"]);
}

#[tokio::test]
async fn without_the_schema_a_keyed_send_names_the_remedy_and_others_work() {
    let database = TestDatabase::create().await;
    let server = Server::start_on(&database, &["--no-install"]).await;
    let mut client = Client::connect(&server).await;
    client.create("orders").await;

    let status = send(&mut client, keyed("orders", "a", "1")).await.unwrap_err();
    let refusal = Refusal::expect(&status, Code::FailedPrecondition, "PGMQ_NOT_INSTALLED");
    assert_eq!(refusal.metadata["schema"], "pgmq_grpc");
    assert!(refusal.message.contains("--no-install"), "{}", refusal.message);
    assert_eq!(client.send("orders", "1").await, 1);
}

#[tokio::test]
async fn a_message_that_a_trigger_swallows_leaves_no_key() {
    let mut test = Test::with_queue("orders").await;
    test.run(
        "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
         CREATE TRIGGER swallow BEFORE INSERT ON pgmq.q_orders FOR EACH ROW EXECUTE FUNCTION swallow()",
    )
    .await;
    let status = send(&mut test.client, keyed("orders", "a", "1")).await.unwrap_err();
    Refusal::expect(&status, Code::FailedPrecondition, "REFUSED_BY_DATABASE");
    test.run("DROP TRIGGER swallow ON pgmq.q_orders").await;
    assert!(!send(&mut test.client, keyed("orders", "a", "1")).await.unwrap().deduplicated);
}

/// Waits until no key is left.
async fn until_cleaned(test: &Test) {
    eventually("expired keys removed", async || {
        let left = test.value::<i64>("SELECT count(*) FROM pgmq_grpc.deduplication").await;
        (left == 0).then_some(())
    })
    .await;
}
