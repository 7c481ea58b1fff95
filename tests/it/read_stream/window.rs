//! The window: a stream's client holds so many messages and no more, and whatever ends a hold makes room.

use pgmq_grpc::proto::v1::transact_operation::Operation;
use pgmq_grpc::proto::v1::{DeleteRequest, Message, ReadRequest, TransactOperation, TransactRequest};

use super::{Follower, follow};
use crate::harness::{Client, Server, Test, seconds};
use crate::read_batch::{ids, waiting_for};
use crate::settle::{archive, delete_by_ids, release, visibility};

/// A queue of so many messages, a stream whose client may hold two, and the first two messages.
async fn full(count: usize) -> (Test, Follower, Vec<Message>) {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &vec!["{}"; count]).await;
    let request = ReadRequest { max_in_flight: 2, ..follow("orders") };
    let mut stream = Follower::open(&test.client, request).await;
    let held = stream.messages(2).await;
    (test, stream, held)
}

#[tokio::test]
async fn a_client_holds_at_most_its_window() {
    let (test, mut stream, held) = full(5).await;
    assert_eq!(ids(&held), [1, 2]);
    for _ in 0..2 {
        assert_eq!(stream.heartbeat().await.in_flight, 2);
    }
    let read = "SELECT count(*) FROM pgmq.q_orders WHERE read_ct > 0";
    assert_eq!(test.value::<i64>(read).await, 2);
}

#[tokio::test]
async fn deletes_and_archives_make_room() {
    let (mut test, mut stream, held) = full(5).await;
    test.client.delete("orders", &[&held[1].receipt]).await;
    assert_eq!(stream.message().await.msg_id, 3);
    archive(&mut test.client, "orders", &[&held[0].receipt]).await;
    assert_eq!(stream.message().await.msg_id, 4);
    delete_by_ids(&mut test.client, "orders", &[3]).await;
    assert_eq!(stream.message().await.msg_id, 5);
    assert_eq!(stream.heartbeat().await.in_flight, 2);
}

#[tokio::test]
async fn settles_over_another_connection_make_room_at_once() {
    let (test, mut stream, held) = full(3).await;
    let mut other = Client::connect(&test.server).await;
    other.delete("orders", &[&held[0].receipt]).await;
    assert_eq!(stream.message().await.msg_id, 3);
}

#[tokio::test]
async fn a_transaction_makes_room() {
    let (mut test, mut stream, held) = full(3).await;
    let delete = DeleteRequest {
        queue: "orders".to_owned(),
        receipts: vec![held[0].receipt.clone()],
        ..Default::default()
    };
    let operations = vec![TransactOperation { operation: Some(Operation::Delete(delete)) }];
    test.client.queue.transact(TransactRequest { operations, ..Default::default() }).await.unwrap();
    assert_eq!(stream.message().await.msg_id, 3);
}

#[tokio::test]
async fn a_released_message_makes_room_and_comes_again() {
    let (mut test, mut stream, held) = full(3).await;
    release(&mut test.client, "orders", &[&held[1].receipt], None).await;
    let again = stream.message().await;
    assert_eq!((again.msg_id, again.read_ct), (2, 2));
    assert_eq!(stream.heartbeat().await.in_flight, 2);
}

#[tokio::test]
async fn a_message_released_with_a_delay_makes_room_for_the_next() {
    let (mut test, mut stream, held) = full(3).await;
    release(&mut test.client, "orders", &[&held[1].receipt], Some(600.0)).await;
    assert_eq!(stream.message().await.msg_id, 3);
}

#[tokio::test]
async fn the_end_of_the_visibility_timeout_makes_room() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let request = ReadRequest { max_in_flight: 1, visibility_timeout: seconds(1.0), ..follow("orders") };
    let mut stream = Follower::open(&test.client, request).await;
    assert_eq!(stream.message().await.read_ct, 1);
    assert_eq!(stream.message().await.read_ct, 2);
}

#[tokio::test]
async fn a_settle_at_another_replica_makes_room() {
    let (test, mut stream, held) = full(4).await;
    let other = Server::start_on(&test.database, &[]).await;
    let mut elsewhere = Client::connect(&other).await;
    elsewhere.delete("orders", &[&held[0].receipt]).await;
    assert_eq!(stream.message().await.msg_id, 3);
    release(&mut elsewhere, "orders", &[&held[1].receipt], Some(600.0)).await;
    assert_eq!(stream.heartbeat().await.in_flight, 2, "a longer hold makes no room");
}

#[tokio::test]
async fn a_delete_by_plain_sql_makes_room() {
    let (test, mut stream, _) = full(3).await;
    assert!(test.value::<bool>("SELECT pgmq.delete('orders', 2)").await);
    assert_eq!(stream.message().await.msg_id, 3);
}

#[tokio::test]
async fn a_message_taken_over_by_plain_sql_makes_room() {
    let (test, mut stream, _) = full(3).await;
    test.run("BEGIN; SELECT pgmq.set_vt('orders', 1, 0); SELECT pgmq.read('orders', 600, 1); COMMIT").await;
    assert_eq!(stream.message().await.msg_id, 3);
}

#[tokio::test]
async fn a_longer_visibility_timeout_keeps_the_slot() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["1", "2"]).await;
    let request = ReadRequest { max_in_flight: 1, visibility_timeout: seconds(3.0), ..follow("orders") };
    let mut stream = Follower::open(&test.client, request).await;
    let held = stream.message().await;
    visibility::set(&mut test.client, "orders", &[&held.receipt], 3_600.0).await;
    for _ in 0..5 {
        assert_eq!(stream.heartbeat().await.in_flight, 1);
    }
    visibility::set(&mut test.client, "orders", &[&held.receipt], 0.0).await;
    let again = stream.message().await;
    assert_eq!((again.msg_id, again.read_ct), (held.msg_id, 2));
}

#[tokio::test]
async fn a_window_is_one_streams_own() {
    let (mut test, mut first, held) = full(4).await;
    let mut second = Follower::open(&test.client, ReadRequest { max_in_flight: 1, ..follow("orders") }).await;
    assert_eq!(second.message().await.msg_id, 3);
    test.client.delete("orders", &[&held[0].receipt]).await;
    assert_eq!(first.message().await.msg_id, 4);
    assert_eq!(second.heartbeat().await.in_flight, 1);
    assert!(
        test.client
            .read_as(pgmq_grpc::proto::v1::ReadBatchRequest { wait: None, ..waiting_for("orders") })
            .await
            .is_empty()
    );
}
