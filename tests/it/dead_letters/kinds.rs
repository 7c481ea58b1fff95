//! Queues of all kinds and layouts can be the dead-letter queues of each other.

use pgmq_grpc::proto::v1::{CreateQueueRequest, Outcome, QueueKind, QueueLayout};

use super::{at_most, dead, dead_letter, expire, read_all};
use crate::harness::Test;
use crate::policies::{create, set};
use crate::settle::{outcomes, release};

async fn expect_dead_letters(test: &mut Test, what: &str) {
    for body in ["1", "2", "3"] {
        test.client.send("orders", body).await;
    }
    let held = read_all(test, "orders").await;
    let asked = dead_letter(&mut test.client, "orders", &[&held[0].receipt], "bad").await;
    assert_eq!(outcomes(&asked), [Outcome::Done], "{what}");
    let released = release(&mut test.client, "orders", &[&held[1].receipt], None).await;
    assert_eq!(outcomes(&released), [Outcome::Done], "{what}");
    expire(test, "orders").await;
    assert!(read_all(test, "orders").await.is_empty(), "{what}");
    assert_eq!(dead(test).await, ["1", "2", "3"], "{what}");
    assert_eq!(read_all(test, "failed").await.len(), 3, "{what}");
}

#[tokio::test]
async fn dead_letter_queues_have_any_kind_and_layout() {
    for kind in [QueueKind::Standard, QueueKind::Unlogged] {
        for layout in [QueueLayout::Tuned, QueueLayout::Pgmq] {
            let mut test = Test::start().await;
            let (kind, layout) = (kind.into(), layout.into());
            let failed = CreateQueueRequest { queue: "failed".into(), kind, layout, ..Default::default() };
            test.client.queue.create_queue(failed).await.unwrap();
            create(&mut test.client, "orders", Some(at_most(1))).await.unwrap();
            expect_dead_letters(&mut test, &format!("{kind:?} {layout:?}")).await;
        }
    }
}

#[tokio::test]
async fn queues_have_any_kind_and_layout() {
    for kind in [QueueKind::Standard, QueueKind::Unlogged] {
        for layout in [QueueLayout::Tuned, QueueLayout::Pgmq] {
            let mut test = Test::start().await;
            test.client.create("failed").await;
            let (kind, layout) = (kind.into(), layout.into());
            let orders = CreateQueueRequest { queue: "orders".into(), kind, layout, ..Default::default() };
            test.client.queue.create_queue(orders).await.unwrap();
            set(&mut test.client, "orders", at_most(1)).await;
            expect_dead_letters(&mut test, &format!("{kind:?} {layout:?}")).await;
        }
    }
}

/// Partitions by plain SQL, for which pg_partman is not needed.
#[tokio::test]
async fn partitioned_queues_and_dead_letter_queues_work() {
    for partitioned in ["failed", "orders"] {
        let mut test = Test::start().await;
        for queue in ["failed", "orders"] {
            test.client.create(queue).await;
        }
        test.run(&format!(
            "ALTER TABLE pgmq.q_{partitioned} RENAME TO plain;
             CREATE TABLE pgmq.q_{partitioned} (LIKE pgmq.plain INCLUDING DEFAULTS INCLUDING IDENTITY)
               PARTITION BY RANGE (msg_id);
             CREATE TABLE pgmq.part_1 PARTITION OF pgmq.q_{partitioned} FOR VALUES FROM (1) TO (3);
             CREATE TABLE pgmq.part_2 PARTITION OF pgmq.q_{partitioned} DEFAULT;
             DROP TABLE pgmq.plain"
        ))
        .await;
        set(&mut test.client, "orders", at_most(1)).await;
        expect_dead_letters(&mut test, partitioned).await;
    }
}

#[tokio::test]
async fn names_that_only_plain_sql_makes_work_too() {
    let mut test = Test::start().await;
    test.run(r#"SELECT pgmq.create('{q}'); SELECT pgmq.create('{a} {size}')"#).await;
    let dead_letter =
        Some(pgmq_grpc::proto::v1::DeadLetterPolicy { queue: "{a} {size}".into(), max_receives: 1 });
    let policy = pgmq_grpc::proto::v1::QueuePolicy { dead_letter, ..Default::default() };
    set(&mut test.client, "{q}", policy).await;
    test.client.send("{q}", "{}").await;
    let held = test.client.read_one("{q}").await;
    let released = release(&mut test.client, "{q}", &[&held.receipt], None).await;
    assert_eq!(outcomes(&released), [Outcome::Done]);
    assert_eq!(test.client.read_one("{a} {size}").await.message, "{}");
}
