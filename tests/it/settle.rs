//! Settles by receipt: what a fence lets through, and what it tells.

mod archive;
mod race;
pub(crate) mod visibility;

use pgmq_grpc::proto::v1::{
    ArchiveRequest, DeleteRequest, DropQueueRequest, ItemResult, Outcome, ReadBatchRequest, ReleaseRequest,
};

use crate::harness::{Client, Server, Test, eventually, seconds};
use crate::read_batch::{all_of, ids, waiting_for};

/// Deletes by ids.
pub(crate) async fn delete_by_ids(client: &mut Client, queue: &str, msg_ids: &[i64]) -> Vec<Outcome> {
    let request = DeleteRequest { queue: queue.to_owned(), msg_ids: msg_ids.to_vec(), ..Default::default() };
    outcomes(&client.queue.delete(request).await.unwrap().into_inner().results)
}

/// Archives by receipts.
pub(crate) async fn archive(client: &mut Client, queue: &str, receipts: &[&str]) -> Vec<Outcome> {
    let request = ArchiveRequest { queue: queue.to_owned(), receipts: texts(receipts), ..Default::default() };
    outcomes(&client.queue.archive(request).await.unwrap().into_inner().results)
}

/// Releases, at once or after so many seconds.
pub(crate) async fn release(
    client: &mut Client,
    queue: &str,
    receipts: &[&str],
    delay_s: Option<f64>,
) -> Vec<ItemResult> {
    let delay = delay_s.and_then(seconds);
    let request = ReleaseRequest { queue: queue.to_owned(), receipts: texts(receipts), delay };
    client.queue.release(request).await.unwrap().into_inner().results
}

/// The outcomes of results.
pub(crate) fn outcomes(results: &[ItemResult]) -> Vec<Outcome> {
    results.iter().map(ItemResult::outcome).collect()
}

/// Texts of one's own.
pub(crate) fn texts(receipts: &[&str]) -> Vec<String> {
    receipts.iter().map(|&receipt| receipt.to_owned()).collect()
}

/// A read whose messages are visible again as soon as can be.
pub(crate) fn shortest(queue: &str) -> ReadBatchRequest {
    ReadBatchRequest { visibility_timeout: seconds(1.0), ..waiting_for(queue) }
}

#[tokio::test]
async fn a_receipt_deletes_its_message_once() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let read = test.client.read_one("orders").await;
    assert_eq!(test.client.delete("orders", &[&read.receipt]).await, [Outcome::Done]);
    assert_eq!(test.client.delete("orders", &[&read.receipt]).await, [Outcome::NotFound]);
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 0);
}

#[tokio::test]
async fn a_late_receipt_settles_if_nobody_else_has_read_the_message() {
    let mut test = Test::with_queue("orders").await;
    for _ in 0..3 {
        test.client.send("orders", "{}").await;
    }
    let late = test.client.read_as(shortest("orders")).await;
    let visible = "SELECT count(*) FROM pgmq.q_orders WHERE vt <= clock_timestamp()";
    eventually("the end of the timeout", async || (test.value::<i64>(visible).await == 3).then_some(()))
        .await;
    assert_eq!(test.client.delete("orders", &[&late[0].receipt]).await, [Outcome::Done]);
    assert_eq!(archive(&mut test.client, "orders", &[&late[1].receipt]).await, [Outcome::Done]);
    let released = release(&mut test.client, "orders", &[&late[2].receipt], None).await;
    assert_eq!(outcomes(&released), [Outcome::Done]);
}

#[tokio::test]
async fn a_receipt_is_stale_once_somebody_else_has_read_the_message() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let old = test.client.read_as(shortest("orders")).await.remove(0);
    let new = test.client.read_as(waiting_for("orders")).await.remove(0);
    assert_eq!(new.read_ct, 2);

    let row = "SELECT q::text FROM pgmq.q_orders AS q";
    let before = test.value::<String>(row).await;
    let old_receipt = [old.receipt.as_str()];
    assert_eq!(test.client.delete("orders", &old_receipt).await, [Outcome::Stale]);
    assert_eq!(archive(&mut test.client, "orders", &old_receipt).await, [Outcome::Stale]);
    for result in [
        release(&mut test.client, "orders", &old_receipt, None).await,
        release(&mut test.client, "orders", &old_receipt, Some(5.0)).await,
        visibility::set(&mut test.client, "orders", &old_receipt, 100.0).await,
    ] {
        assert_eq!(outcomes(&result), [Outcome::Stale]);
        assert_eq!(result[0].vt, None);
    }
    assert_eq!(test.value::<String>(row).await, before, "nothing was changed");
    assert_eq!(test.client.delete("orders", &[&new.receipt]).await, [Outcome::Done]);
    assert_eq!(test.client.delete("orders", &old_receipt).await, [Outcome::NotFound]);
}

#[tokio::test]
async fn a_receipt_works_on_another_replica_and_after_a_restart() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["1", "2"]).await;
    let read = test.client.read("orders", 2).await;
    let other = Server::start_on(&test.database, &[]).await;
    let mut elsewhere = Client::connect(&other).await;
    assert_eq!(elsewhere.delete("orders", &[&read[0].receipt]).await, [Outcome::Done]);
    assert_eq!(test.client.delete("orders", &[&read[0].receipt]).await, [Outcome::NotFound]);
    drop(elsewhere);
    drop(other);
    let again = Server::start_on(&test.database, &[]).await;
    let mut later = Client::connect(&again).await;
    assert_eq!(later.delete("orders", &[&read[1].receipt]).await, [Outcome::Done]);
}

#[tokio::test]
async fn results_stand_in_the_order_of_the_items_and_equal_items_get_equal_results() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["1", "2", "3", "4"]).await;
    let read = test.client.read_as(all_of("orders")).await;
    let (stale, gone, held) = (&read[0].receipt, &read[1].receipt, &read[2].receipt);
    assert_eq!(test.client.delete("orders", &[gone]).await, [Outcome::Done]);
    release(&mut test.client, "orders", &[stale], None).await;
    let newer = test.client.read_one("orders").await;
    assert_eq!(newer.msg_id, 1);

    let items = [held, gone, stale, held, stale, gone].map(String::as_str);
    let expected =
        [Outcome::Done, Outcome::NotFound, Outcome::Stale, Outcome::Done, Outcome::Stale, Outcome::NotFound];
    assert_eq!(test.client.delete("orders", &items).await, expected);
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 2);
}

#[tokio::test]
async fn ids_delete_whoever_holds_the_message() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["1", "2", "3"]).await;
    let held = test.client.read_one("orders").await;
    let deleted = delete_by_ids(&mut test.client, "orders", &[3, 99, 1, 3]).await;
    assert_eq!(deleted, [Outcome::Done, Outcome::NotFound, Outcome::Done, Outcome::Done]);
    assert_eq!(test.client.delete("orders", &[&held.receipt]).await, [Outcome::NotFound]);
    assert_eq!(ids(&test.client.read_as(all_of("orders")).await), [2]);
}

#[tokio::test]
async fn a_thousand_receipts_are_deleted_in_one_call() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["{}"; 1_000]).await;
    let read = test.client.read_as(all_of("orders")).await;
    let receipts: Vec<&str> = read.iter().rev().map(|message| message.receipt.as_str()).collect();
    assert_eq!(test.client.delete("orders", &receipts).await, [Outcome::Done; 1_000]);
}

#[tokio::test]
async fn of_concurrent_deletes_by_one_receipt_exactly_one_is_done() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["{}"; 20]).await;
    for message in test.client.read_as(all_of("orders")).await {
        let calls = (0..8).map(|_| {
            let (mut client, receipt) = (test.client.clone(), message.receipt.clone());
            tokio::spawn(async move { client.delete("orders", &[&receipt]).await })
        });
        let mut done = 0;
        for call in calls.collect::<Vec<_>>() {
            match call.await.unwrap()[..] {
                [Outcome::Done] => done += 1,
                [Outcome::NotFound] => {}
                ref other => panic!("{other:?}"),
            }
        }
        assert_eq!(done, 1);
    }
}

#[tokio::test]
async fn a_receipt_of_a_queue_made_anew_is_stale() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let old = test.client.read_one("orders").await;
    test.client.queue.drop_queue(DropQueueRequest { queue: "orders".to_owned() }).await.unwrap();
    test.client.create("orders").await;
    test.client.send("orders", "{}").await;
    let new = test.client.read_one("orders").await;
    assert_eq!(new.msg_id, old.msg_id);
    assert_eq!(test.client.delete("orders", &[&old.receipt]).await, [Outcome::Stale]);
    assert_eq!(test.client.delete("orders", &[&new.receipt]).await, [Outcome::Done]);
    assert_eq!(test.client.delete("orders", &[&old.receipt]).await, [Outcome::Stale]);
}

#[tokio::test]
async fn a_receipt_of_a_read_that_was_undone_settles_nothing() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let read = test.client.read_one("orders").await;
    // As a standby promoted too early would have it: the read never happened, and somebody else reads again.
    test.run("UPDATE pgmq.q_orders SET read_ct = 0, last_read_at = NULL, vt = clock_timestamp()").await;
    let again = test.client.read_one("orders").await;
    assert_eq!((again.read_ct, again.enqueued_at), (read.read_ct, read.enqueued_at));
    assert_eq!(test.client.delete("orders", &[&read.receipt]).await, [Outcome::Stale]);
    assert_eq!(test.client.delete("orders", &[&again.receipt]).await, [Outcome::Done]);
}
