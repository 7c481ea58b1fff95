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

const QUEUES: [&str; 2] = ["orders", "others"];

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

async fn storm(purge: bool, drop_and_make: bool) -> Test {
    let mut test = Test::start().await;
    let other = Server::start_on(&test.database, &[]).await;
    test.client.create("failed").await;
    for queue in QUEUES {
        create(&mut test.client, queue, Some(at_most(2))).await.unwrap();
        test.run(&format!("SELECT pgmq.send('{queue}', to_jsonb(n)) FROM generate_series(1, 300) AS n"))
            .await;
    }
    let done = Arc::new(AtomicBool::new(false));
    let mut working = Vec::new();
    for queue in QUEUES {
        for client in [test.client.clone(), Client::connect(&other).await] {
            working.push(tokio::spawn(work(client, queue, Arc::clone(&done))));
        }
    }
    let mut moving = Vec::new();
    for queue in QUEUES {
        moving.push(tokio::spawn(move_back(test.database.connect().await, queue, Arc::clone(&done))));
    }
    let mut client = test.client.clone();
    for _ in 0..30 {
        if purge {
            let purged = client.queue.purge_queue(PurgeQueueRequest { queue: "failed".into() }).await;
            if let Err(status) = purged {
                assert_eq!(status.code(), Code::Aborted, "{status:?}");
                check::<()>(Err(status));
            }
            let again = "SELECT pgmq.send('orders', to_jsonb(n)) FROM generate_series(1, 20) AS n";
            test.run(again).await;
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
    assert!(!test.server.log().contains("40P01") && !other.log().contains("40P01"));
    test
}

#[tokio::test(flavor = "multi_thread")]
async fn moves_in_both_directions_lose_nothing() {
    let test = storm(false, false).await;
    let everything: String = test
        .value(
            "SELECT count(*) || ' ' || sum(n) FROM (SELECT (message #>> '{}')::bigint AS n FROM pgmq.q_orders
             UNION ALL SELECT (message #>> '{}')::bigint FROM pgmq.q_others
             UNION ALL SELECT (message #>> '{}')::bigint FROM pgmq.q_failed) AS q",
        )
        .await;
    assert_eq!(everything, "600 90300");
}

#[tokio::test(flavor = "multi_thread")]
async fn purges_of_the_dead_letter_queue_are_in_nobodys_way() {
    storm(true, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dead_letter_queue_may_come_and_go() {
    storm(false, true).await;
}
