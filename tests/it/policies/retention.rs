//! Archived messages that a policy keeps for some time only.

use pgmq_grpc::proto::v1::{ConvertArchivePartitionedRequest, Partitioning, QueuePolicy};

use super::{clear, set};
use crate::harness::{Client, Server, Test, eventually, seconds};
use crate::partitioned::with_partman;
use crate::replay::delete::archive_all;

fn kept_for(span: f64) -> QueuePolicy {
    QueuePolicy { archive_retention: seconds(span), ..Default::default() }
}

/// Archives so many messages, as if some time ago.
async fn archive(test: &Test, queue: &str, count: i64, ago: &str) {
    test.run(&format!(
        "INSERT INTO pgmq.a_{queue} (msg_id, read_ct, enqueued_at, vt, message, archived_at)
         SELECT coalesce((SELECT max(msg_id) FROM pgmq.a_{queue}), 0) + n, 1, now(), now(), '1', now() - interval '{ago}'
         FROM generate_series(1, {count}) AS n"
    ))
    .await;
}

async fn archived(test: &Test, queue: &str) -> i64 {
    test.value(&format!("SELECT count(*) FROM pgmq.a_{queue}")).await
}

async fn until_archived(test: &Test, queue: &str, count: i64) {
    eventually("old archived messages removed", async || {
        (archived(test, queue).await == count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_is_archived_for_longer_than_its_queue_keeps_it_is_removed_and_nothing_else() {
    let mut test = Test::with_queue("orders").await;
    test.client.create("others").await;
    for queue in ["orders", "others"] {
        // More than one step takes.
        archive(&test, queue, 3_500, "2 hours").await;
        archive(&test, queue, 10, "10 minutes").await;
    }
    set(&mut test.client, "orders", kept_for(3_600.0)).await;
    until_archived(&test, "orders", 10).await;
    assert_eq!(archived(&test, "others").await, 3_510);

    set(&mut test.client, "orders", kept_for(300.0)).await;
    until_archived(&test, "orders", 0).await;
    clear(&mut test.client, "orders", &["archive_retention"]).await;
    archive(&test, "orders", 5, "1 year").await;
    // A round of another queue comes after the change.
    set(&mut test.client, "others", kept_for(3_600.0)).await;
    until_archived(&test, "others", 10).await;
    assert_eq!(archived(&test, "orders").await, 5);
}

#[tokio::test]
async fn the_archive_of_a_queue_that_plain_sql_has_made_anew_is_left_alone() {
    let mut test = Test::with_queue("orders").await;
    test.client.create("others").await;
    set(&mut test.client, "orders", kept_for(3_600.0)).await;
    archive(&test, "orders", 3, "2 hours").await;
    until_archived(&test, "orders", 0).await;
    // Nobody tells the server of it.
    test.run("SELECT pgmq.drop_queue('orders'); SELECT pgmq.create('orders')").await;
    archive(&test, "orders", 5, "1 year").await;
    // Two rounds.
    for _ in 0..2 {
        archive(&test, "others", 3, "2 hours").await;
        set(&mut test.client, "others", kept_for(3_600.0)).await;
        until_archived(&test, "others", 0).await;
    }
    assert_eq!(archived(&test, "orders").await, 5);
}

#[tokio::test]
async fn what_somebody_has_locked_is_passed_over_and_removed_later() {
    let mut test = Test::with_queue("orders").await;
    archive(&test, "orders", 100, "2 hours").await;
    let holder = test.database.connect().await;
    holder.batch_execute("BEGIN; SELECT FROM pgmq.a_orders WHERE msg_id <= 7 FOR UPDATE").await.unwrap();
    set(&mut test.client, "orders", kept_for(1.0)).await;
    until_archived(&test, "orders", 7).await;
    holder.batch_execute("COMMIT").await.unwrap();
    until_archived(&test, "orders", 0).await;
}

#[tokio::test]
async fn several_servers_and_the_end_of_one_leave_nothing_behind() {
    let mut test = Test::with_queue("orders").await;
    archive(&test, "orders", 20_000, "2 hours").await;
    archive(&test, "orders", 3, "1 minute").await;
    let victim = Server::start_on(&test.database, &[]).await;
    let other = Server::start_on(&test.database, &[]).await;
    set(&mut test.client, "orders", kept_for(600.0)).await;
    eventually("some removed", async || (archived(&test, "orders").await < 20_003).then_some(())).await;
    drop(victim);
    until_archived(&test, "orders", 3).await;
    let mut elsewhere = Client::connect(&other).await;
    elsewhere.send("orders", "1").await;
}

#[tokio::test]
async fn what_consumers_at_two_servers_archive_meanwhile_stays() {
    const NEW: i64 = 1_000;
    let mut test = Test::with_queue("orders").await;
    // Far from the ids of what is sent.
    archive(&test, "orders", 20_000, "2 hours").await;
    test.run("UPDATE pgmq.a_orders SET msg_id = msg_id + 1000000").await;
    test.run(&format!("SELECT pgmq.send('orders', to_jsonb(n)) FROM generate_series(1, {NEW}) AS n")).await;
    let (_other, elsewhere) = test.another().await;
    set(&mut test.client, "orders", kept_for(600.0)).await;
    let consumers = [test.client.clone(), elsewhere].map(|client| tokio::spawn(archive_all(client)));
    let mut archived = 0;
    for consumer in consumers {
        archived += consumer.await.unwrap();
    }
    assert_eq!(archived, NEW);
    until_archived(&test, "orders", NEW).await;
    assert_eq!(test.value::<i64>("SELECT max(msg_id) FROM pgmq.a_orders").await, NEW);
}

#[tokio::test]
async fn old_messages_are_found_by_the_index() {
    let test = Test::with_queue("orders").await;
    archive(&test, "orders", 5_000, "1 minute").await;
    test.run("ANALYZE pgmq.a_orders").await;
    let plan = "EXPLAIN SELECT a.tableoid, a.ctid FROM pgmq.a_orders AS a
        WHERE a.archived_at < statement_timestamp() - 3600000 * interval '1 millisecond'
        ORDER BY a.archived_at LIMIT 1000 FOR UPDATE SKIP LOCKED";
    let lines = test.sql.query(plan, &[]).await.unwrap();
    let text = lines.iter().map(|line| line.get::<_, String>(0)).collect::<Vec<_>>().join("\n");
    assert!(text.contains("archived_at_idx_orders"), "{text}");
}

#[tokio::test]
async fn partitioned_archives_are_cleared_too() {
    let Some(mut test) = with_partman().await else { return };
    test.client.create("orders").await;
    let partitioning = Some(Partitioning { interval: "100".into(), retention: "100000".into(), premake: 0 });
    let convert =
        ConvertArchivePartitionedRequest { queue: "orders".to_owned(), partitioning, ..Default::default() };
    test.client.admin.convert_archive_partitioned(convert).await.unwrap();
    archive(&test, "orders", 350, "2 hours").await;
    archive(&test, "orders", 30, "1 minute").await;
    set(&mut test.client, "orders", kept_for(3_600.0)).await;
    until_archived(&test, "orders", 30).await;
}
