//! The end of a window, and what becomes of its keys.

use super::{bodies, keyed, send, until_cleaned};
use crate::harness::{Client, Server, Test, eventually};

#[tokio::test]
async fn after_the_window_a_new_message_is_stored() {
    let mut test = Test::start_with(&["--deduplication-window", "300ms"]).await;
    test.client.create("orders").await;
    let first = send(&mut test.client, keyed("orders", "a", "1")).await.unwrap();

    let second = eventually("the end of the window", async || {
        let sent = send(&mut test.client.clone(), keyed("orders", "a", "1")).await.unwrap();
        assert_eq!(sent.deduplicated, sent.msg_id == first.msg_id);
        (!sent.deduplicated).then_some(sent.msg_id)
    })
    .await;

    assert!(second > first.msg_id);
    assert_eq!(bodies(&test, "orders").await, ["1", "1"]);
}

#[tokio::test]
async fn an_expired_key_that_is_still_there_does_not_swallow_its_message() {
    let mut test = Test::with_queue("orders").await;
    send(&mut test.client, keyed("orders", "a", "1")).await.unwrap();
    test.run("UPDATE pgmq_grpc.deduplication SET expires_at = clock_timestamp()").await;

    assert!(!send(&mut test.client, keyed("orders", "a", "2")).await.unwrap().deduplicated);
    assert!(send(&mut test.client, keyed("orders", "a", "2")).await.unwrap().deduplicated);
    assert_eq!(bodies(&test, "orders").await, ["1", "2"]);
}

#[tokio::test]
async fn expired_keys_are_removed_step_by_step_and_live_ones_stay() {
    let mut test = Test::start_with(&["--deduplication-window", "3s"]).await;
    test.client.create("orders").await;
    test.run(
        "INSERT INTO pgmq_grpc.deduplication (queue_name, queue_created_at, deduplication_id, content_hash, msg_id, expires_at)
         SELECT 'orders', now(), n::text, '', n, now() - interval '1 minute' FROM generate_series(1, 3500) AS n;
         INSERT INTO pgmq_grpc.deduplication (queue_name, queue_created_at, deduplication_id, content_hash, msg_id, expires_at)
         VALUES ('orders', now(), 'live', '', 1, now() + interval '1 hour')",
    )
    .await;

    eventually("expired keys removed", async || {
        let left = test.value::<i64>("SELECT count(*) FROM pgmq_grpc.deduplication").await;
        (left == 1).then_some(())
    })
    .await;
    let left = test.value::<String>("SELECT deduplication_id FROM pgmq_grpc.deduplication").await;
    assert_eq!(left, "live");
    test.run("DELETE FROM pgmq_grpc.deduplication").await;
    send(&mut test.client, keyed("orders", "a", "1")).await.unwrap();
    until_cleaned(&test).await;
}

#[tokio::test]
async fn ids_outlive_the_server_that_took_them() {
    let mut test = Test::with_queue("orders").await;
    let first = send(&mut test.client, keyed("orders", "a", "1")).await.unwrap();

    let other = Server::start_on(&test.database, &[]).await;
    let mut elsewhere = Client::connect(&other).await;
    drop(test.server);

    let again = send(&mut elsewhere, keyed("orders", "a", "1")).await.unwrap();
    assert_eq!((again.msg_id, again.deduplicated), (first.msg_id, true));
}
