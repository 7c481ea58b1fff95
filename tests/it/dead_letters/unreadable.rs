//! Messages that no reply can carry go to the dead-letter queue, if there is one.

use super::{count, header, moved, orders, read_all};
use crate::harness::Test;
use crate::read_batch::ids;

const LARGE: &str = "SELECT pgmq.send('orders', to_jsonb(repeat('x', 4000000)))";

#[tokio::test]
async fn what_no_reply_can_carry_is_a_dead_letter() {
    let mut test = orders(5).await;
    test.run(LARGE).await;
    let small = test.client.send("orders", "{}").await;
    assert_eq!(ids(&read_all(&mut test, "orders").await), [small]);
    assert_eq!((count(&test, "failed").await, count(&test, "orders").await), (1, 1));
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.a_orders").await, 0);
    assert_eq!(header(&test, "queue").await, "orders");
    assert_eq!(header(&test, "read_ct").await, "0", "nobody ever had it");
    assert_eq!(header(&test, "reason").await, "too large for a reply");
    assert_eq!(moved(&mut test.client, "orders").await, 1);

    // There it meets the same fate, and goes to the archive for good.
    assert!(read_all(&mut test, "failed").await.is_empty());
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.a_failed").await, 1);
}

#[tokio::test]
async fn without_a_dead_letter_queue_it_goes_to_the_archive() {
    let mut test = orders(5).await;
    test.run(LARGE).await;
    test.run("DROP TABLE pgmq.q_failed").await;
    assert!(read_all(&mut test, "orders").await.is_empty());
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.a_orders").await, 1);
}

#[tokio::test]
async fn one_that_was_handed_over_often_enough_goes_for_that_reason() {
    let mut test = orders(1).await;
    test.run(LARGE).await;
    test.run("UPDATE pgmq.q_orders SET read_ct = 1").await;
    assert!(read_all(&mut test, "orders").await.is_empty());
    assert_eq!(header(&test, "reason").await, "max_receives");
}

#[tokio::test]
async fn what_postgres_cannot_render_is_a_dead_letter() {
    // Postgres needs some time to find out.
    let mut test = Test::start_with(&["--default-deadline", "10m"]).await;
    test.client.create("failed").await;
    crate::policies::create(&mut test.client, "orders", Some(super::at_most(5))).await.unwrap();
    test.run("SELECT pgmq.send('orders', jsonb_agg('1e131000'::jsonb)) FROM generate_series(1, 9000)").await;
    let small = test.client.send("orders", "{}").await;
    let mut read = Vec::new();
    while read.is_empty() {
        read = read_all(&mut test, "orders").await;
    }
    assert_eq!(ids(&read), [small]);
    assert_eq!((header(&test, "msg_id").await, header(&test, "read_ct").await), ("1".into(), "0".into()));
    assert_eq!(moved(&mut test.client, "orders").await, 1);
}
