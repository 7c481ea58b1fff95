//! Watched queues share the looks at them, and do not suffer from each other.

use std::time::{Duration, Instant};

use pgmq_grpc::proto::v1::{ClosingReason, QueueEventKind};
use tonic::Code;

use super::Watcher;
use crate::harness::{Refusal, Test};
use crate::partitioned::with_partman;

const QUEUES: usize = 300;

/// A watch takes no more queues.
const QUEUES_OF_A_WATCH: usize = 100;

/// How long the statements are counted.
const SPELL: Duration = Duration::from_secs(10);

#[tokio::test]
async fn hundreds_of_idle_queues_cost_two_statements_a_second_and_none_of_them_is_missed() {
    let mut test = Test::start_with(&["--log", "info,pgmq_grpc::pg::database=trace"]).await;
    let names: Vec<String> = (0..QUEUES).map(|number| format!("idle_{number}")).collect();
    // A transaction may hold only so many locks.
    for names in names.chunks(50) {
        let names = names.join("', '");
        test.run(&format!("SELECT pgmq.create(name) FROM unnest(ARRAY['{names}']) AS name")).await;
        test.run(&format!("SELECT pgmq.send(name, '{{}}', 3600) FROM unnest(ARRAY['{names}']) AS name"))
            .await;
    }
    let mut watchers = Vec::new();
    for names in names.chunks(QUEUES_OF_A_WATCH) {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        watchers.push(Watcher::open(&test.client, &names).await);
    }
    let statements = || test.server.log().matches("\"statement\":").count();
    let mut spells = Vec::new();
    loop {
        let (begun, before) = (Instant::now(), statements());
        tokio::time::sleep(SPELL).await;
        let rate = (statements() - before) as f64 / begun.elapsed().as_secs_f64();
        spells.push(rate);
        if rate <= 2.0 {
            break;
        }
        assert!(spells.len() < 12, "never two statements a second, but {spells:?}");
    }

    let (last, watcher) = (names.last().unwrap(), watchers.last_mut().unwrap());
    test.run(&format!("SELECT pgmq.set_vt('{last}', 1, 0)")).await;
    watcher.event(last, QueueEventKind::Visible).await;
    test.run(&format!("SELECT pgmq.read('{last}', 2, 1)")).await;
    watcher.event(last, QueueEventKind::Visible).await;
    test.run(&format!("SELECT pgmq.send('{last}', '{{}}')")).await;
    watcher.event(last, QueueEventKind::Sent).await;
    test.client.send(&names[0], "{}").await;
    watchers[0].event(&names[0], QueueEventKind::Sent).await;
}

#[tokio::test]
async fn a_locked_queue_keeps_no_other_from_being_told_and_is_told_itself_once_it_is_free() {
    let mut test = Test::with_queue("locked").await;
    test.client.create("free").await;
    let mut watcher = Watcher::open(&test.client, &["free", "locked"]).await;
    let holder = test.database.connect().await;
    holder.batch_execute("BEGIN; SELECT pgmq.send('locked', '{}'); LOCK TABLE pgmq.q_locked").await.unwrap();
    for _ in 0..3 {
        test.run("SELECT pgmq.send('free', '{}')").await;
        watcher.event("free", QueueEventKind::Sent).await;
    }
    holder.batch_execute("COMMIT").await.unwrap();
    watcher.event("locked", QueueEventKind::Sent).await;
    for queue in ["locked", "free"] {
        test.run(&format!("SELECT pgmq.send('{queue}', '{{}}')")).await;
        watcher.event(queue, QueueEventKind::Sent).await;
    }
}

#[tokio::test]
async fn a_queue_that_plain_sql_has_dropped_ends_its_own_watches_only() {
    for drop in ["SELECT pgmq.drop_queue('dropped')", "DROP TABLE pgmq.q_dropped"] {
        let mut test = Test::with_queue("dropped").await;
        test.client.create("kept").await;
        let mut ended = Watcher::open(&test.client, &["dropped"]).await;
        let mut watcher = Watcher::open(&test.client, &["kept"]).await;
        test.run(drop).await;
        let closing = ended.next().await.unwrap().unwrap().closing.expect("closing");
        assert_eq!(closing.reason(), ClosingReason::QueueDropped);
        let gone = ended.next().await.expect("an error").expect_err("an error");
        Refusal::expect(&gone, Code::NotFound, "QUEUE_NOT_FOUND");
        test.run("SELECT pgmq.send('kept', '{}')").await;
        watcher.event("kept", QueueEventKind::Sent).await;
    }
}

#[tokio::test]
async fn a_queue_that_has_grown_large_is_told_of_as_before() {
    let mut test = Test::with_queue("large").await;
    test.client.create("small").await;
    let mut watcher = Watcher::open(&test.client, &["large", "small"]).await;
    test.run(
        "INSERT INTO pgmq.q_large (vt, message)
         SELECT clock_timestamp() + interval '1 hour', '{}' FROM generate_series(1, 100000)",
    )
    .await;
    assert!(test.value::<i64>("SELECT pg_relation_size('pgmq.q_large')").await > 4 << 20);
    watcher.event("large", QueueEventKind::Sent).await;
    for _ in 0..2 {
        test.run("SELECT pgmq.set_vt('large', 99999, 0)").await;
        watcher.event("large", QueueEventKind::Visible).await;
        test.run("SELECT pgmq.send('small', '{}')").await;
        watcher.event("small", QueueEventKind::Sent).await;
    }
    test.client.send("large", "{}").await;
    watcher.event("large", QueueEventKind::Sent).await;
}

#[tokio::test]
async fn partitioned_queues_are_watched_too_however_many_statements_that_takes() {
    let Some(mut test) = with_partman().await else { return };
    test.client.create("plain").await;
    // One more than a statement looks at, each with partitions.
    let cut: Vec<String> = (0..17).map(|number| format!("cut_{number}")).collect();
    for queue in &cut {
        test.run(&format!("SELECT pgmq.create_partitioned('{queue}')")).await;
    }
    let queues: Vec<&str> = cut.iter().map(String::as_str).chain(["plain"]).collect();
    let mut watcher = Watcher::open(&test.client, &queues).await;
    for queue in queues.iter().rev() {
        test.run(&format!("SELECT pgmq.send('{queue}', '{{}}', 2)")).await;
        watcher.event(queue, QueueEventKind::Sent).await;
        watcher.event(queue, QueueEventKind::Visible).await;
    }
}
