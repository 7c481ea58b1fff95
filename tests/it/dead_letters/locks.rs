//! Moves in both directions, drops and purges at once: nobody waits for anybody in a ring, and nothing is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pgmq_grpc::proto::v1::transact_operation::Operation;
use pgmq_grpc::proto::v1::{
    PurgeQueueRequest, ReadBatchRequest, ReleaseRequest, TransactOperation, TransactRequest,
};
use tonic::Code;

use super::{at_most, try_dead_letter};
use crate::harness::{Client, Server, Test};
use crate::policies::create;
use crate::read_batch::all_of;
use crate::settle::texts;

/// The queues, and the first of the 300 numbers that are their messages. Later ones are of the first queue.
const QUEUES: [(&str, i64); 2] = [("orders", 1), ("others", 301)];

/// What is sent again after each purge.
const AGAIN: i64 = 20;

/// What a caller may hear while tables come, go and are emptied; never a ring of waiting, which ends as `CONFLICT`.
#[track_caller]
fn check<T>(answer: Result<T, tonic::Status>) {
    if let Err(status) = answer {
        let reason =
            status.metadata().get("pgmq-reason").and_then(|reason| reason.to_str().ok()).unwrap_or("");
        let expected = ["QUEUE_BUSY", "RECEIPT_NOT_FOUND", "STALE_RECEIPT", "DEAD_LETTER_QUEUE_MISSING"];
        assert!(expected.contains(&reason), "{status:?}");
    }
}

/// Reads and gets rid of messages in every way that makes dead letters of them.
async fn work(mut client: Client, queue: &'static str, done: Arc<AtomicBool>) {
    let mut turn = 0;
    while !done.load(Ordering::Relaxed) {
        turn += 1;
        let request = ReadBatchRequest { max_messages: 20, ..all_of(queue) };
        let read = match client.queue.read_batch(request).await {
            Ok(read) => read.into_inner().messages,
            Err(status) => {
                check::<()>(Err(status));
                continue;
            }
        };
        let receipts: Vec<&str> = read.iter().map(|message| message.receipt.as_str()).collect();
        if receipts.is_empty() {
            continue;
        }
        let released = ReleaseRequest { queue: queue.to_owned(), receipts: texts(&receipts), delay: None };
        match turn % 3 {
            0 => check(try_dead_letter(&mut client, queue, &receipts, "bad").await),
            1 => check(client.queue.release(released).await),
            _ => {
                let operation = TransactOperation { operation: Some(Operation::Release(released)) };
                let request = TransactRequest { operations: vec![operation], ..Default::default() };
                check(client.queue.transact(request).await);
            }
        }
    }
}

/// Moves dead letters back by plain SQL, which names the tables the other way round.
async fn move_back(sql: tokio_postgres::Client, queue: &'static str, done: Arc<AtomicBool>) -> usize {
    let text = format!(
        "WITH gone AS (DELETE FROM pgmq.q_failed WHERE msg_id IN (
           SELECT msg_id FROM pgmq.q_failed WHERE headers -> 'x-pgmq-dead-letter' ->> 'queue' = '{queue}'
           ORDER BY msg_id LIMIT 20 FOR UPDATE SKIP LOCKED) RETURNING message)
         INSERT INTO pgmq.q_{queue} (vt, message) SELECT clock_timestamp(), message FROM gone"
    );
    let mut rounds = 0;
    while !done.load(Ordering::Relaxed) {
        match sql.execute(&text, &[]).await {
            Ok(_) => rounds += 1,
            // It was dropped a moment ago.
            Err(error) => assert_eq!(
                error.code().map(tokio_postgres::error::SqlState::code),
                Some("42P01"),
                "{error:?}"
            ),
        }
    }
    rounds
}

/// Each number is in one place at most, at home or as a dead letter that knows its home. Gives how many there are.
async fn expect_each_in_its_place(test: &Test) -> i64 {
    let places = "WITH everything AS (
          SELECT 'orders' AS home, (message #>> '{}')::bigint AS n FROM pgmq.q_orders
          UNION ALL SELECT 'others', (message #>> '{}')::bigint FROM pgmq.q_others
          UNION ALL SELECT headers -> 'x-pgmq-dead-letter' ->> 'queue', (message #>> '{}')::bigint FROM pgmq.q_failed)
        SELECT ARRAY[count(*), count(DISTINCT n),
          count(*) FILTER (WHERE home = CASE WHEN n BETWEEN 301 AND 600 THEN 'others' ELSE 'orders' END)] FROM everything";
    let counts: Vec<i64> = test.value(places).await;
    assert_eq!((counts[1], counts[2]), (counts[0], counts[0]), "in one place, and in the right one");
    counts[0]
}

/// The database after a storm, how many messages were sent, and how many a purge has deleted.
async fn storm(purge: bool, drop_and_make: bool) -> (Test, i64, i64) {
    let mut test = Test::start().await;
    let other = Server::start_on(&test.database, &[]).await;
    test.client.create("failed").await;
    for (queue, first) in QUEUES {
        create(&mut test.client, queue, Some(at_most(2))).await.unwrap();
        let numbers = format!("generate_series({first}, {first} + 299) AS n");
        test.run(&format!("SELECT pgmq.send('{queue}', to_jsonb(n)) FROM {numbers}")).await;
    }
    let (mut sent, mut purged) = (600, 0);
    let done = Arc::new(AtomicBool::new(false));
    let mut working = Vec::new();
    for (queue, _) in QUEUES {
        for client in [test.client.clone(), Client::connect(&other).await] {
            working.push(tokio::spawn(work(client, queue, Arc::clone(&done))));
        }
    }
    let mut moving = Vec::new();
    for (queue, _) in QUEUES {
        moving.push(tokio::spawn(move_back(test.database.connect().await, queue, Arc::clone(&done))));
    }
    let mut client = test.client.clone();
    for _ in 0..30 {
        if purge {
            match client.queue.purge_queue(PurgeQueueRequest { queue: "failed".into() }).await {
                Ok(answer) => purged += answer.into_inner().purged_count,
                Err(status) => {
                    assert_eq!(status.code(), Code::Aborted, "{status:?}");
                    check::<()>(Err(status));
                }
            }
            let numbers = format!("generate_series({sent} + 1, {sent} + {AGAIN}) AS n");
            test.run(&format!("SELECT pgmq.send('orders', to_jsonb(n)) FROM {numbers}")).await;
            sent += AGAIN;
        }
        if drop_and_make {
            test.run("SET lock_timeout = 0; SELECT pgmq.drop_queue('failed'); SELECT pgmq.create('failed')")
                .await;
        }
        if !purge && !drop_and_make {
            test.run("SELECT pg_sleep(0.1)").await;
        }
    }
    done.store(true, Ordering::Relaxed);
    for task in working {
        task.await.unwrap();
    }
    for task in moving {
        assert!(task.await.unwrap() > 0);
    }
    // Who was the victim of a ring may have tried again, so nobody's answer tells. A connection that ends has counted.
    drop(other);
    test.database.terminate_connections().await;
    test.sql = test.database.connect().await;
    let rings = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    assert_eq!(test.value::<i64>(rings).await, 0);
    (test, sent, purged)
}

#[tokio::test(flavor = "multi_thread")]
async fn moves_in_both_directions_lose_nothing() {
    let (test, sent, _) = storm(false, false).await;
    assert_eq!(expect_each_in_its_place(&test).await, sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn purges_of_the_dead_letter_queue_are_in_nobodys_way() {
    let (test, sent, purged) = storm(true, false).await;
    assert_eq!(expect_each_in_its_place(&test).await + purged, sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dead_letter_queue_may_come_and_go() {
    // What was in it when it was dropped is gone.
    let (test, sent, _) = storm(false, true).await;
    assert!(expect_each_in_its_place(&test).await <= sent);
}
