//! Statements are prepared, and yet their plans follow the tables.

use pgmq_grpc::proto::v1::PopRequest;

use crate::harness::{Test, eventually};

/// More than a plan for a small table may read as a whole, again and again.
const MANY: i64 = 50_000;

/// How messages leave the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    ReadAndDelete,
    Pop,
}

impl Work {
    /// Takes one message out of the queue, so many times.
    async fn on(self, test: &mut Test, times: usize) {
        for _ in 0..times {
            if self == Self::Pop {
                let request = PopRequest { queue: "work".to_owned(), max_messages: 1 };
                let popped = test.client.queue.pop(request).await.expect("a pop").into_inner();
                assert_eq!(popped.messages.len(), 1);
                continue;
            }
            let read = test.client.read("work", 1).await;
            assert_eq!(read.len(), 1);
            let receipt = read[0].receipt.clone();
            test.client.delete("work", &[&receipt]).await;
        }
    }
}

#[tokio::test]
async fn reads_and_settles_of_a_queue_that_has_grown_are_planned_for_its_size() {
    expect_planned_for_the_size(Work::ReadAndDelete).await;
}

#[tokio::test]
async fn pops_of_a_queue_that_has_grown_are_planned_for_its_size() {
    expect_planned_for_the_size(Work::Pop).await;
}

async fn expect_planned_for_the_size(work: Work) {
    // One connection, whose plans are made while the queue is almost empty.
    let mut test = Test::start_with(&["--pool-size", "1"]).await;
    test.client.create("work").await;
    test.run("ALTER TABLE pgmq.q_work SET (autovacuum_enabled = false)").await;
    test.run("SELECT pgmq.send('work', '{}') FROM generate_series(1, 21)").await;
    work.on(&mut test, 20).await;
    test.run("VACUUM (ANALYZE) pgmq.q_work").await;
    test.run("SELECT pgmq.send('work', '{}') FROM generate_series(1, 20)").await;
    work.on(&mut test, 20).await;

    test.run(&format!("SELECT pgmq.send('work', '{{}}') FROM generate_series(1, {MANY})")).await;
    let scanned = "SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'q_work'";
    let before: i64 = test.value(scanned).await;
    let by_index = "SELECT idx_scan FROM pg_stat_user_tables WHERE relname = 'q_work'";
    let by_index_before: i64 = test.value(by_index).await;
    work.on(&mut test, 60).await;

    // What a session has done is told when it has rested for a while.
    eventually("the scans are told", async || {
        (test.value::<i64>(by_index).await >= by_index_before + 100).then_some(())
    })
    .await;
    let read_as_a_whole = test.value::<i64>(scanned).await - before;
    assert!(read_as_a_whole <= 10 * MANY, "{read_as_a_whole} rows were read by scans of the whole table");
}
