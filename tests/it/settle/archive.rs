//! Archives: what they keep, and what they tell.

use pgmq_grpc::proto::v1::{ArchiveRequest, Outcome};

use super::{archive, outcomes};
use crate::harness::Test;

#[tokio::test]
async fn the_archive_keeps_the_message_as_it_was_read_last() {
    let mut test = Test::with_queue("orders").await;
    test.run("SELECT pgmq.send('orders', '{\"n\": 1}', '{\"x-trace\": \"t\"}'::jsonb)").await;
    let read = test.client.read_one("orders").await;
    let row = "SELECT row(q.msg_id, q.read_ct, q.enqueued_at, q.last_read_at, q.message, q.headers)::text FROM pgmq.";
    let before = test.value::<String>(&format!("{row}q_orders AS q")).await;
    assert_eq!(archive(&mut test.client, "orders", &[&read.receipt]).await, [Outcome::Done]);
    assert_eq!(test.value::<String>(&format!("{row}a_orders AS q")).await, before);
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 0);
    assert!(test.value::<bool>("SELECT archived_at <= clock_timestamp() FROM pgmq.a_orders").await);
    assert_eq!(test.value::<i32>("SELECT read_ct FROM pgmq.a_orders").await, 1);
}

#[tokio::test]
async fn a_message_is_archived_once() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let read = test.client.read_one("orders").await;
    let twice = [read.receipt.as_str(), read.receipt.as_str()];
    assert_eq!(archive(&mut test.client, "orders", &twice).await, [Outcome::Done, Outcome::Done]);
    assert_eq!(archive(&mut test.client, "orders", &twice).await, [Outcome::NotFound, Outcome::NotFound]);
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.a_orders").await, 1);
}

#[tokio::test]
async fn ids_archive_whoever_holds_the_message_and_unread_ones_too() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["1", "2"]).await;
    test.client.read_one("orders").await;
    let request =
        ArchiveRequest { queue: "orders".to_owned(), msg_ids: vec![2, 1, 7, 2], ..Default::default() };
    let results = test.client.queue.archive(request).await.unwrap().into_inner().results;
    assert_eq!(outcomes(&results), [Outcome::Done, Outcome::Done, Outcome::NotFound, Outcome::Done]);
    assert!(results.iter().all(|result| result.vt.is_none()));
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.a_orders").await, 2);
}

#[tokio::test]
async fn of_concurrent_deletes_and_archives_exactly_one_is_done() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["{}"; 20]).await;
    let mut archived = 0;
    for message in test.client.read_as(crate::read_batch::all_of("orders")).await {
        let (mut first, mut second) = (test.client.clone(), test.client.clone());
        let receipt = [message.receipt.as_str()];
        let (deleted, kept) =
            tokio::join!(first.delete("orders", &receipt), archive(&mut second, "orders", &receipt));
        match (&deleted[..], &kept[..]) {
            ([Outcome::Done], [Outcome::NotFound]) => {}
            ([Outcome::NotFound], [Outcome::Done]) => archived += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.a_orders").await, archived);
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 0);
}
