//! Dead-letter queues that are gone, busy, or would hand letters on: their queues go on.

use pgmq_grpc::proto::v1::{ConsumeStart, Outcome, ReadRequest};
use tonic::{Code, Status};

use super::{count, dead, expire, orders, read_all, try_dead_letter};
use crate::consume::Consumer;
use crate::harness::{Refusal, Test, eventually};
use crate::settle::{outcomes, release};

/// As plain SQL can bring it about.
const LOSSES: [&str; 2] = ["SELECT pgmq.drop_queue('failed')", "DROP TABLE pgmq.q_failed"];

#[track_caller]
fn expect_missing(status: &Status) {
    let refusal = Refusal::expect(status, Code::FailedPrecondition, "DEAD_LETTER_QUEUE_MISSING");
    assert_eq!(refusal.metadata["dead_letter_queue"], "failed");
}

#[tokio::test]
async fn messages_are_handed_over_as_if_there_were_no_policy() {
    for loss in LOSSES {
        let mut test = orders(1).await;
        // So that the servers know the table.
        test.client.send("orders", "{}").await;
        test.run("UPDATE pgmq.q_orders SET read_ct = 1").await;
        assert!(read_all(&mut test, "orders").await.is_empty());
        let start = ConsumeStart { queue: "orders".into(), ..Default::default() };
        let mut consumer = Consumer::start(&test.client, start).await;
        test.client.send("orders", "{}").await;
        consumer.message().await;
        test.run(loss).await;

        expire(&test, "orders").await;
        let held = consumer.message().await;
        assert_eq!(held.read_ct, 2, "{loss}");
        let status = try_dead_letter(&mut test.client, "orders", &[&held.receipt], "").await.unwrap_err();
        expect_missing(&status);
        let released = release(&mut test.client, "orders", &[&held.receipt], None).await;
        assert_eq!(outcomes(&released), [Outcome::Done], "{loss}");
        assert!(released[0].vt.is_some());
        let again = consumer.message().await;
        assert_eq!(again.read_ct, 3, "{loss}");
        assert_eq!(test.client.delete("orders", &[&again.receipt]).await, [Outcome::Done]);
        let warnings = test.server.log_lines();
        let warnings = warnings.iter().filter(|line| line.contains("dead-letter queue is missing"));
        assert!((1..=10).contains(&warnings.count()), "{}", test.server.log());
    }
}

#[tokio::test]
async fn a_dead_letter_queue_that_is_back_works_again() {
    let mut test = orders(1).await;
    test.client.send("orders", "{}").await;
    test.client.read_one("orders").await;
    test.run("SELECT pgmq.drop_queue('failed')").await;
    expire(&test, "orders").await;
    assert_eq!(read_all(&mut test, "orders").await.len(), 1);
    test.run("SELECT pgmq.create('failed')").await;
    expire(&test, "orders").await;
    assert!(read_all(&mut test, "orders").await.is_empty());
    assert_eq!(dead(&test).await, ["{}"]);
}

#[tokio::test]
async fn a_missing_source_is_not_taken_for_a_missing_dead_letter_queue() {
    let mut test = orders(1).await;
    test.client.send("orders", "{}").await;
    let held = test.client.read_one("orders").await;
    let mut stream = test
        .client
        .queue
        .read(ReadRequest { queue: "orders".into(), ..Default::default() })
        .await
        .unwrap()
        .into_inner();
    assert!(stream.message().await.unwrap().unwrap().started.is_some());
    test.run("SELECT pgmq.drop_queue('orders')").await;
    let status = try_dead_letter(&mut test.client, "orders", &[&held.receipt], "").await.unwrap_err();
    Refusal::expect(&status, Code::NotFound, "QUEUE_NOT_FOUND");
    let end = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("no error"),
            Err(status) => break status,
        }
    };
    Refusal::expect(&end, Code::NotFound, "QUEUE_NOT_FOUND");
}

/// Writes a policy past the servers' checks.
async fn write_policy(test: &Test, queue: &str, dead_letter_queue: &str) {
    test.run(&format!(
        "INSERT INTO pgmq_grpc.queue_policy AS p (queue_name, queue_created_at, dead_letter_queue, dead_letter_max_receives)
         SELECT queue_name, created_at, '{dead_letter_queue}', 1 FROM pgmq.meta WHERE queue_name = '{queue}'
         ON CONFLICT (queue_name, queue_created_at) DO UPDATE SET dead_letter_queue = excluded.dead_letter_queue"
    ))
    .await;
}

#[tokio::test]
async fn rings_of_dead_letter_queues_let_nothing_travel() {
    for (queue, next) in [("failed", "orders"), ("failed", "last"), ("orders", "orders")] {
        let mut test = orders(1).await;
        test.client.create("last").await;
        test.client.send("orders", "{}").await;
        let gone = test.client.read_one("orders").await;
        test.client.delete("orders", &[&gone.receipt]).await;
        test.client.send("orders", "{}").await;
        let held = test.client.read_one("orders").await;
        write_policy(&test, queue, next).await;
        // A server hears of it a moment later than the table has it.
        let refused = eventually("the refusal", async || {
            try_dead_letter(&mut test.client.clone(), "orders", &[&gone.receipt], "").await.err()
        })
        .await;
        Refusal::expect(&refused, Code::FailedPrecondition, "DEAD_LETTER_CHAIN");
        let released = release(&mut test.client, "orders", &[&held.receipt], Some(600.0)).await;
        assert!(released[0].vt.is_some(), "{queue} to {next}");
        expire(&test, "orders").await;
        let again = read_all(&mut test, "orders").await;
        assert_eq!(again.len(), 1, "{queue} to {next}");
        assert_eq!((count(&test, "orders").await, count(&test, "failed").await), (1, 0));
    }
}

#[tokio::test]
async fn a_dead_letter_queue_that_is_locked_holds_up_only_dead_letters() {
    let mut test = orders(1).await;
    test.client.send("orders", r#""worn out""#).await;
    test.client.read_one("orders").await;
    expire(&test, "orders").await;
    let fresh = test.client.send("orders", r#""fresh""#).await;
    let other = test.database.connect().await;
    other.batch_execute("BEGIN; LOCK TABLE pgmq.q_failed").await.unwrap();
    let read = read_all(&mut test, "orders").await;
    assert_eq!(crate::read_batch::ids(&read), [fresh]);
    // It is hidden for a moment, and its failed try does not count.
    assert_eq!(test.value::<i32>("SELECT read_ct FROM pgmq.q_orders WHERE msg_id = 1").await, 1);
    other.batch_execute("COMMIT").await.unwrap();
    eventually("the dead letter", async || {
        let mut client = test.client.clone();
        assert!(client.read("orders", 10).await.is_empty());
        (dead(&test).await == [r#""worn out""#]).then_some(())
    })
    .await;
    assert_eq!(super::header(&test, "read_ct").await, "1");
}

#[tokio::test]
async fn what_stands_behind_dead_letters_that_cannot_be_moved_is_found_at_once() {
    let mut test = orders(1).await;
    test.run(r#"ALTER TABLE pgmq.q_failed ADD CHECK (message <> '"bad"')"#).await;
    test.client.send_all("orders", &[r#""bad""#; 5]).await;
    assert_eq!(test.client.read("orders", 5).await.len(), 5);
    expire(&test, "orders").await;
    let fresh = test.client.send("orders", r#""fresh""#).await;
    // One at a time, each of the five is met in front of it and hidden; nobody waits for the next look.
    let read = eventually("what stands behind", async || {
        let mut client = test.client.clone();
        let read = client.read("orders", 1).await;
        (!read.is_empty()).then_some(read)
    })
    .await;
    assert_eq!(crate::read_batch::ids(&read), [fresh]);
}

#[tokio::test]
async fn a_dead_letter_that_its_queue_refuses_holds_up_no_other() {
    let mut test = orders(1).await;
    test.run(r#"ALTER TABLE pgmq.q_failed ADD CHECK (message <> '"bad"')"#).await;
    for body in [r#""good""#, r#""bad""#, r#""better""#] {
        test.client.send("orders", body).await;
    }
    let held = read_all(&mut test, "orders").await;
    let status = try_dead_letter(&mut test.client, "orders", &[&held[1].receipt], "").await.unwrap_err();
    Refusal::expect(&status, Code::FailedPrecondition, "REFUSED_BY_DATABASE");
    expire(&test, "orders").await;
    assert!(read_all(&mut test, "orders").await.is_empty());
    assert_eq!(dead(&test).await, [r#""better""#, r#""good""#]);
    assert_eq!(count(&test, "orders").await, 1);
}

#[tokio::test]
async fn a_trigger_that_swallows_dead_letters_loses_none() {
    let mut test = orders(1).await;
    test.run(
        "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
         CREATE TRIGGER swallow BEFORE INSERT ON pgmq.q_failed FOR EACH ROW EXECUTE FUNCTION swallow()",
    )
    .await;
    test.client.send("orders", "{}").await;
    let held = test.client.read_one("orders").await;
    let status = try_dead_letter(&mut test.client, "orders", &[&held.receipt], "").await.unwrap_err();
    Refusal::expect(&status, Code::FailedPrecondition, "REFUSED_BY_DATABASE");
    expire(&test, "orders").await;
    assert!(read_all(&mut test, "orders").await.is_empty());
    assert_eq!(count(&test, "orders").await, 1);
}

#[tokio::test]
async fn who_waits_for_a_locked_dead_letter_queue_hears_its_name() {
    let mut test = orders(1).await;
    test.client.send("orders", "{}").await;
    let held = test.client.read_one("orders").await;
    test.run("BEGIN; LOCK TABLE pgmq.q_failed").await;
    let status = try_dead_letter(&mut test.client, "orders", &[&held.receipt], "").await.unwrap_err();
    let refusal = Refusal::expect(&status, Code::Aborted, "QUEUE_BUSY");
    assert_eq!((&*refusal.metadata["queue"], &*refusal.metadata["dead_letter_queue"]), ("orders", "failed"));
    test.run("ROLLBACK").await;
    let results = try_dead_letter(&mut test.client, "orders", &[&held.receipt], "").await.unwrap();
    assert_eq!(outcomes(&results), [Outcome::Done]);
}
