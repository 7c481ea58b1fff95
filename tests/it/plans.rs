//! Statements are prepared, and yet their plans follow the tables.

use crate::harness::{Test, eventually};

/// More than a plan for a small table may read as a whole, again and again.
const MANY: i64 = 50_000;

/// Reads one message and deletes it.
async fn work(test: &mut Test, times: usize) {
    for _ in 0..times {
        let read = test.client.read("work", 1).await;
        assert_eq!(read.len(), 1);
        let receipt = read[0].receipt.clone();
        test.client.delete("work", &[&receipt]).await;
    }
}

#[tokio::test]
async fn reads_and_settles_of_a_queue_that_has_grown_are_planned_for_its_size() {
    // One connection, whose plans are made while the queue is almost empty.
    let mut test = Test::start_with(&["--pool-size", "1"]).await;
    test.client.create("work").await;
    test.run("ALTER TABLE pgmq.q_work SET (autovacuum_enabled = false)").await;
    test.run("SELECT pgmq.send('work', '{}') FROM generate_series(1, 21)").await;
    work(&mut test, 20).await;
    test.run("VACUUM (ANALYZE) pgmq.q_work").await;
    test.run("SELECT pgmq.send('work', '{}') FROM generate_series(1, 20)").await;
    work(&mut test, 20).await;

    test.run(&format!("SELECT pgmq.send('work', '{{}}') FROM generate_series(1, {MANY})")).await;
    let scanned = "SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'q_work'";
    let before: i64 = test.value(scanned).await;
    let by_index = "SELECT idx_scan FROM pg_stat_user_tables WHERE relname = 'q_work'";
    let by_index_before: i64 = test.value(by_index).await;
    work(&mut test, 60).await;

    // What a session has done is told when it has rested for a while.
    eventually("the scans are told", async || {
        (test.value::<i64>(by_index).await >= by_index_before + 100).then_some(())
    })
    .await;
    let read_as_a_whole = test.value::<i64>(scanned).await - before;
    assert!(read_as_a_whole <= 10 * MANY, "{read_as_a_whole} rows were read by scans of the whole table");
}
