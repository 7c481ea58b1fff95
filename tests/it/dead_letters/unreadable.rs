//! Messages that no reply can carry go to the dead-letter queue, if there is one.

use pgmq_grpc::proto::v1::ReadBatchRequest;
use pgmq_grpc::proto::v1::open_transaction_request::Command;
use pgmq_grpc::proto::v1::open_transaction_response::Reply;

use super::{count, expire, header, moved, orders, read_all};
use crate::harness::Test;
use crate::read_batch::{all_of, ids};
use crate::transaction::Open;

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

/// Has a table refuse every message, without a look at it.
async fn refuse(test: &Test, table: &str) {
    refuse_by(test, table, "RAISE 'no'").await;
}

/// What a trigger can do to keep a message out: fail, or swallow it.
const REFUSALS: [&str; 2] = ["RAISE 'no'", "RETURN NULL"];

async fn refuse_by(test: &Test, table: &str, refusal: &str) {
    test.run(&format!(
        "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {refusal}; END $$;
         CREATE TRIGGER refuse BEFORE INSERT ON pgmq.{table} FOR EACH ROW EXECUTE FUNCTION refuse()"
    ))
    .await;
}

/// Checks that the first message of `orders` is there, hidden for a while, and as if nobody had read it.
async fn expect_hidden_and_not_counted(test: &Test) {
    let state = "SELECT read_ct || ' ' || (vt > now() + interval '10 s') FROM pgmq.q_orders WHERE msg_id = 1";
    assert_eq!(test.value::<String>(state).await, "0 true");
}

#[tokio::test]
async fn what_its_dead_letter_queue_refuses_goes_to_the_archive() {
    let mut test = orders(5).await;
    test.run(LARGE).await;
    let small = test.client.send("orders", "{}").await;
    refuse(&test, "q_failed").await;
    assert_eq!(ids(&read_all(&mut test, "orders").await), [small]);
    assert_eq!((count(&test, "failed").await, count(&test, "orders").await), (0, 1));
    let reason = "SELECT headers -> 'x-pgmq-dead-letter' ->> 'reason' FROM pgmq.a_orders";
    assert_eq!(test.value::<String>(reason).await, "too large for a reply");
}

#[tokio::test]
async fn what_nobody_takes_is_hidden_is_not_counted_and_goes_when_it_can() {
    for refusal in REFUSALS {
        let mut test = orders(5).await;
        test.run(LARGE).await;
        let small = test.client.send("orders", "{}").await;
        refuse_by(&test, "q_failed", refusal).await;
        refuse_by(&test, "a_orders", refusal).await;
        assert_eq!(ids(&read_all(&mut test, "orders").await), [small]);
        expect_hidden_and_not_counted(&test).await;
        test.run("DROP TRIGGER refuse ON pgmq.q_failed; DELETE FROM pgmq.q_orders WHERE msg_id > 1").await;
        expire(&test, "orders").await;
        assert!(read_all(&mut test, "orders").await.is_empty());
        assert_eq!(header(&test, "read_ct").await, "0");
    }
}

#[tokio::test]
async fn a_locked_dead_letter_queue_keeps_nobody_from_what_stands_behind() {
    let mut test = orders(5).await;
    test.run(LARGE).await;
    let small = test.client.send("orders", "{}").await;
    let other = test.database.connect().await;
    other.batch_execute("BEGIN; LOCK TABLE pgmq.q_failed").await.unwrap();
    assert_eq!(ids(&read_all(&mut test, "orders").await), [small]);
    expect_hidden_and_not_counted(&test).await;
    other.batch_execute("COMMIT").await.unwrap();
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.a_orders").await, 0);
}

#[tokio::test]
async fn a_transaction_goes_on_after_a_move_that_was_refused() {
    let tables = [&["q_failed"][..], &["q_failed", "a_orders"]];
    for (tables, refusal) in tables.into_iter().flat_map(|tables| REFUSALS.map(|refusal| (tables, refusal))) {
        let mut test = orders(5).await;
        test.run(LARGE).await;
        let small = test.client.send("orders", "{}").await;
        for table in tables {
            refuse_by(&test, table, refusal).await;
        }
        let mut open = Open::begin(&test.client).await;
        let read = Command::ReadBatch(ReadBatchRequest { max_messages: 100, ..all_of("orders") });
        match open.done(read).await {
            Reply::ReadBatch(read) => assert_eq!(ids(&read.messages), [small], "{tables:?}"),
            other => panic!("{other:?}"),
        }
        open.commit().await;
        let left = i64::from(tables.len() == 2) + 1;
        assert_eq!(count(&test, "orders").await, left, "{tables:?}");
        assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.a_orders").await, 2 - left);
    }
}

#[tokio::test]
async fn what_postgres_cannot_render_and_nobody_takes_blocks_no_other() {
    // Postgres needs some time to find out.
    let mut test = Test::start_with(&["--default-deadline", "10m"]).await;
    test.client.create("failed").await;
    crate::policies::create(&mut test.client, "orders", Some(super::at_most(5))).await.unwrap();
    test.run("SELECT pgmq.send('orders', jsonb_agg('1e131000'::jsonb)) FROM generate_series(1, 9000)").await;
    let small = test.client.send("orders", "{}").await;
    refuse(&test, "q_failed").await;
    refuse(&test, "a_orders").await;
    let mut read = Vec::new();
    while read.is_empty() {
        read = read_all(&mut test, "orders").await;
    }
    assert_eq!(ids(&read), [small]);
    expect_hidden_and_not_counted(&test).await;
}

#[tokio::test]
async fn what_went_aside_is_told_though_the_rest_of_the_read_fails() {
    let mut test = orders(1).await;
    test.run(r#"ALTER TABLE pgmq.q_failed ADD CHECK (message <> '"bad"')"#).await;
    test.client.send_all("orders", &[r#""good""#, r#""bad""#]).await;
    // The bad one cannot be given back either.
    test.run(
        "UPDATE pgmq.q_orders SET read_ct = 1;
         CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE lock_not_available; END $$;
         CREATE TRIGGER refuse BEFORE UPDATE ON pgmq.q_orders FOR EACH ROW WHEN (NEW.read_ct < OLD.read_ct)
           EXECUTE FUNCTION refuse()",
    )
    .await;
    assert!(read_all(&mut test, "orders").await.is_empty());
    assert_eq!(super::dead(&test).await, [r#""good""#]);
    assert_eq!(moved(&mut test.client, "orders").await, 1);
}
