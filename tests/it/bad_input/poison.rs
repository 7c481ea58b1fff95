//! One message that the database refuses to have read or popped keeps nobody from the others.

use std::time::Duration;

use pgmq_grpc::proto::v1::open_transaction_request::Command;
use pgmq_grpc::proto::v1::open_transaction_response::Reply;
use pgmq_grpc::proto::v1::*;
use tonic::{Code, Status};

use crate::consume::{Consumer, start};
use crate::dead_letters::orders;
use crate::harness::{Client, Refusal, Test, eventually};
use crate::read_batch::{all_of, ids};
use crate::read_stream::Follower;
use crate::transaction::Open;

/// What a trigger can do to keep a row as it is: fail, or swallow the change.
const REFUSALS: [&str; 2] = ["RAISE 'no'", "RETURN NULL"];

const ORDERINGS: [Ordering; 4] =
    [Ordering::Unordered, Ordering::Grouped, Ordering::GroupedRoundRobin, Ordering::GroupedHead];

/// Refuses changes of the messages `"poison"` of `orders`, in one of the ways of [`REFUSALS`].
async fn refuse(test: &Test, changes: &str, refusal: &str) {
    refuse_where(test, changes, refusal, r#"OLD.message = '"poison"'"#).await;
}

async fn refuse_where(test: &Test, changes: &str, refusal: &str, condition: &str) {
    test.run(&format!(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {refusal}; END $$;
         CREATE TRIGGER refuse BEFORE {changes} ON pgmq.q_orders FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION refuse()"
    ))
    .await;
}

async fn read_in(client: &mut Client, ordering: Ordering) -> Vec<Message> {
    client.read_as(ReadBatchRequest { ordering: ordering.into(), ..all_of("orders") }).await
}

async fn pop(client: &mut Client, max_messages: i32) -> Result<Vec<Message>, Status> {
    let request = PopRequest { queue: "orders".to_owned(), max_messages };
    client.queue.pop(request).await.map(|popped| popped.into_inner().messages)
}

/// The ids of what a table of the database has.
async fn rows(test: &Test, table: &str) -> Vec<i64> {
    test.value(&format!("SELECT coalesce(array_agg(msg_id ORDER BY msg_id), '{{}}') FROM pgmq.{table}")).await
}

async fn metrics(test: &mut Test) -> QueueMetrics {
    let request = GetQueueMetricsRequest { queue: "orders".to_owned(), include_archive: false };
    test.client.queue.get_queue_metrics(request).await.unwrap().into_inner().metrics.unwrap()
}

#[tokio::test]
async fn what_cannot_be_read_goes_to_the_dead_letter_queue_and_the_others_are_read() {
    for ordering in ORDERINGS {
        let mut test = orders(5).await;
        for (group, body) in [("a", "1"), ("b", r#""poison""#), ("c", "3"), ("d", "4")] {
            test.client.send_to_group("orders", group, body).await;
        }
        refuse(&test, "UPDATE", "RAISE 'no'").await;
        assert_eq!(ids(&read_in(&mut test.client, ordering).await), [1, 3, 4], "{ordering:?}");
        let header = "SELECT h ->> 'msg_id' || ' ' || (h ->> 'read_ct') || ' ' || (h ->> 'reason')
            FROM (SELECT headers -> 'x-pgmq-dead-letter' AS h FROM pgmq.q_failed) AS q";
        assert_eq!(test.value::<String>(header).await, "2 0 the database refuses to have it read");
        assert_eq!(rows(&test, "q_orders").await, [1, 3, 4]);
        assert_eq!(metrics(&mut test).await.dead_lettered_count, 1);
        assert!(read_in(&mut test.client, ordering).await.is_empty());
    }
}

#[tokio::test]
async fn without_a_dead_letter_queue_it_goes_to_the_archive() {
    for refusal in REFUSALS {
        let mut test = Test::with_queue("orders").await;
        test.client.send_all("orders", &["1", r#""poison""#, "3"]).await;
        refuse(&test, "UPDATE", refusal).await;
        let mut read = ids(&test.client.read("orders", 10).await);
        read.extend(ids(&test.client.read("orders", 10).await));
        assert_eq!(read, [1, 3], "{refusal}");
        assert_eq!(rows(&test, "a_orders").await, [2], "{refusal}");
    }
}

#[tokio::test]
async fn a_condition_is_kept_by_a_read_around_what_is_refused() {
    let mut test = Test::with_queue("orders").await;
    let bodies = [r#"{"a": 1, "n": 1}"#, r#"{"a": 1, "bad": 1}"#, r#"{"n": 3}"#, r#"{"a": 1, "n": 4}"#];
    test.client.send_all("orders", &bodies).await;
    refuse_where(&test, "UPDATE OR DELETE", "RAISE 'no'", "OLD.message ? 'bad'").await;
    for _ in 0..2 {
        let request = ReadBatchRequest { conditional: r#"{"a": 1}"#.to_owned(), ..all_of("orders") };
        assert_eq!(ids(&test.client.read_as(request).await), [1, 4]);
        test.run("UPDATE pgmq.q_orders SET vt = now() WHERE NOT message ? 'bad'").await;
    }
}

#[tokio::test]
async fn a_constraint_that_a_read_would_break_makes_its_message_a_dead_letter() {
    let mut test = orders(5).await;
    test.client.send_all("orders", &["1", "2", "3"]).await;
    test.run("ALTER TABLE pgmq.q_orders ADD CHECK (msg_id <> 2 OR read_ct = 0)").await;
    assert_eq!(ids(&read_in(&mut test.client, Ordering::Unordered).await), [1, 3]);
    assert_eq!(rows(&test, "q_orders").await, [1, 3]);
    assert_eq!(rows(&test, "q_failed").await, [1]);
}

#[tokio::test]
async fn what_is_refused_at_the_commit_is_found_too() {
    let mut test = orders(5).await;
    test.client.send_all("orders", &["1", r#""poison""#, "3"]).await;
    test.run(
        r#"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
           CREATE CONSTRAINT TRIGGER refuse AFTER UPDATE ON pgmq.q_orders DEFERRABLE INITIALLY DEFERRED
             FOR EACH ROW WHEN (OLD.message = '"poison"') EXECUTE FUNCTION refuse()"#,
    )
    .await;
    assert_eq!(ids(&read_in(&mut test.client, Ordering::Unordered).await), [1, 3]);
    assert_eq!(rows(&test, "q_failed").await, [1]);
}

#[tokio::test]
async fn streams_go_on_past_what_cannot_be_read() {
    let mut test = orders(5).await;
    // It is alone: nobody is told, and nobody's stream ends.
    test.client.send("orders", r#""poison""#).await;
    refuse(&test, "UPDATE", "RAISE 'no'").await;
    let request = ReadRequest { queue: "orders".to_owned(), ..Default::default() };
    let mut follower = Follower::open(&test.client, request).await;
    eventually("a warning", async || {
        test.server.log().contains("messages are passed over that the database refuses").then_some(())
    })
    .await;
    assert_eq!(rows(&test, "q_orders").await, [1], "nothing says that it is the message's fault");
    assert_eq!(test.client.send("orders", "2").await, 2);
    assert_eq!(follower.message().await.msg_id, 2);
    test.client.send("orders", "3").await;
    assert_eq!(follower.message().await.msg_id, 3);
    eventually("a dead letter", async || (rows(&test, "q_failed").await == [1]).then_some(())).await;

    drop(follower);
    let mut consumer = Consumer::start(&test.client, start("orders")).await;
    test.client.send("orders", r#""poison""#).await;
    let sent = [test.client.send("orders", "5").await, test.client.send("orders", "6").await];
    let mut taken = ids(&consumer.take(2).await);
    taken.sort_unstable();
    assert_eq!(taken, sent);
}

#[tokio::test]
async fn a_stream_of_any_order_finds_what_a_trigger_swallows() {
    for ordering in ORDERINGS {
        let mut test = orders(5).await;
        let request =
            ReadRequest { queue: "orders".to_owned(), ordering: ordering.into(), ..Default::default() };
        let mut follower = Follower::open(&test.client, request).await;
        refuse(&test, "UPDATE", "RETURN NULL").await;
        test.client.send_to_group("orders", "a", r#""poison""#).await;
        let text = format!("a warning of {ordering:?}");
        eventually(&text, async || {
            test.server.log().contains("messages are passed over that the database refuses").then_some(())
        })
        .await;
        let sent = test.client.send_to_group("orders", "b", "2").await;
        assert_eq!(follower.message().await.msg_id, sent);
        test.client.send_to_group("orders", "b", "3").await;
        eventually("a dead letter", async || (rows(&test, "q_failed").await == [1]).then_some(())).await;
    }
}

#[tokio::test]
async fn what_cannot_be_moved_either_is_passed_over_and_stays_as_it_is() {
    for ordering in ORDERINGS {
        let mut test = orders(5).await;
        for (group, body) in [("a", r#""poison""#), ("b", "2"), ("c", "3")] {
            test.client.send_to_group("orders", group, body).await;
        }
        // Behind it in its group, which waits if it is one.
        test.client.send_to_group("orders", "a", "4").await;
        refuse(&test, "UPDATE OR DELETE", "RAISE 'no'").await;
        let expected: &[i64] = if ordering == Ordering::Unordered { &[2, 3, 4] } else { &[2, 3] };
        for _ in 0..3 {
            assert_eq!(ids(&read_in(&mut test.client, ordering).await), expected, "{ordering:?}");
            test.run("UPDATE pgmq.q_orders SET vt = now() WHERE msg_id > 1").await;
        }
        let state = "SELECT read_ct || ' ' || (vt <= now()) FROM pgmq.q_orders WHERE msg_id = 1";
        assert_eq!(test.value::<String>(state).await, "0 true");
        assert!(rows(&test, "q_failed").await.is_empty() && rows(&test, "a_orders").await.is_empty());
        assert_eq!(metrics(&mut test).await.visible_length, 4);
        let log = test.server.log();
        assert!(log.contains("messages are passed over that the database refuses"), "{log}");
        // Known ones are told nobody as failures.
        test.run("DELETE FROM pgmq.q_orders WHERE msg_id > 1").await;
        assert!(read_in(&mut test.client, ordering).await.is_empty());
    }
}

#[tokio::test]
async fn many_at_the_head_of_a_queue_keep_no_reader_of_one_from_what_stands_behind() {
    let mut test = Test::with_queue("orders").await;
    let bodies: Vec<&str> = std::iter::repeat_n(r#""poison""#, 40).chain(["41", "42"]).collect();
    test.client.send_all("orders", &bodies).await;
    refuse(&test, "UPDATE OR DELETE", "RAISE 'no'").await;
    let mut read = Vec::new();
    eventually("what stands behind", async || {
        let one =
            test.client.queue.read_batch(ReadBatchRequest { max_messages: 1, ..all_of("orders") }).await;
        read.extend(one.map_or_else(|_| Vec::new(), |one| ids(&one.into_inner().messages)));
        (read == [41, 42]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_rule_that_refuses_all_moves_nothing_and_is_told_until_it_has_gone() {
    for refusal in REFUSALS {
        let mut test = orders(5).await;
        test.client.send_all("orders", &["1", "2", "3"]).await;
        refuse_where(&test, "UPDATE", refusal, "true").await;
        let request = ReadRequest { queue: "orders".to_owned(), ..Default::default() };
        let mut follower = Follower::open(&test.client, request).await;
        for _ in 0..3 {
            let refused = test.client.queue.read_batch(all_of("orders")).await.unwrap_err();
            Refusal::expect(&refused, Code::FailedPrecondition, "REFUSED_BY_DATABASE");
        }
        assert_eq!(rows(&test, "q_orders").await, [1, 2, 3]);
        assert!(rows(&test, "q_failed").await.is_empty() && rows(&test, "a_orders").await.is_empty());
        test.run("DROP TRIGGER refuse ON pgmq.q_orders").await;
        let mut read = ids(&follower.messages(3).await);
        read.sort_unstable();
        assert_eq!(read, [1, 2, 3], "{refusal}");
    }
}

#[tokio::test]
async fn a_message_that_is_known_to_be_refused_takes_no_others_along_when_a_rule_refuses_all() {
    for refusal in REFUSALS {
        let mut test = orders(5).await;
        test.client.send("orders", r#""poison""#).await;
        refuse(&test, "UPDATE OR DELETE", refusal).await;
        let refused = test.client.queue.read_batch(all_of("orders")).await.unwrap_err();
        Refusal::expect(&refused, Code::FailedPrecondition, "REFUSED_BY_DATABASE");
        // While another is read, it is found to be alone, and to be tried again.
        test.client.send("orders", "2").await;
        assert_eq!(ids(&test.client.read("orders", 10).await), [2], "{refusal}");
        test.run(&format!(
            "CREATE FUNCTION refuse_all() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {refusal}; END $$;
             CREATE TRIGGER refuse_all BEFORE UPDATE ON pgmq.q_orders FOR EACH ROW EXECUTE FUNCTION refuse_all()"
        ))
        .await;
        test.client.send_all("orders", &["3", "4", "5"]).await;
        let refused = test.client.queue.read_batch(all_of("orders")).await.unwrap_err();
        Refusal::expect(&refused, Code::FailedPrecondition, "REFUSED_BY_DATABASE");
        assert_eq!(rows(&test, "q_orders").await, [1, 2, 3, 4, 5], "{refusal}");
        assert!(rows(&test, "q_failed").await.is_empty() && rows(&test, "a_orders").await.is_empty());
    }
}

#[tokio::test]
async fn a_message_that_was_left_takes_no_others_along_when_a_rule_swallows_all() {
    let mut test = orders(5).await;
    test.client.send_all("orders", &["1", r#""poison""#, "3"]).await;
    refuse(&test, "UPDATE", "RETURN NULL").await;
    assert_eq!(ids(&test.client.read("orders", 10).await), [1, 3]);
    test.run(
        "CREATE TRIGGER refuse_all BEFORE UPDATE ON pgmq.q_orders FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    .await;
    test.client.send_all("orders", &["4", "5", "6"]).await;
    let refused = test.client.queue.read_batch(all_of("orders")).await.unwrap_err();
    Refusal::expect(&refused, Code::FailedPrecondition, "REFUSED_BY_DATABASE");
    assert_eq!(rows(&test, "q_orders").await, [1, 2, 3, 4, 5, 6]);
    assert!(rows(&test, "q_failed").await.is_empty() && rows(&test, "a_orders").await.is_empty());
}

#[tokio::test]
async fn a_transaction_reads_past_what_cannot_be_read() {
    for refusal in REFUSALS {
        let mut test = orders(5).await;
        test.client.send_all("orders", &[r#""poison""#, "2", "3"]).await;
        refuse(&test, "UPDATE", refusal).await;
        let mut open = Open::begin(&test.client).await;
        let mut read = Vec::new();
        for _ in 0..2 {
            match open.done(Command::ReadBatch(all_of("orders"))).await {
                Reply::ReadBatch(batch) => read.extend(ids(&batch.messages)),
                other => panic!("{other:?}"),
            }
            if read == [2, 3] {
                break;
            }
        }
        assert_eq!(read, [2, 3], "{refusal}");
        open.commit().await;
        assert_eq!(metrics(&mut test).await.visible_length, i64::from(refusal == "RETURN NULL"));
    }
}

#[tokio::test]
async fn what_cannot_be_popped_stays_and_the_others_are_popped() {
    for refusal in REFUSALS {
        let mut test = Test::with_queue("orders").await;
        let bodies: Vec<String> = (1..=150).map(|n| n.to_string()).collect();
        test.client.send("orders", r#""poison""#).await;
        test.client.send_all("orders", &bodies.iter().map(String::as_str).collect::<Vec<_>>()).await;
        refuse(&test, "DELETE", refusal).await;
        assert_eq!(ids(&pop(&mut test.client, 1).await.unwrap()), [2], "{refusal}");
        let mut popped = Vec::new();
        for _ in 0..2 {
            popped.extend(ids(&pop(&mut test.client, 100).await.unwrap()));
        }
        assert_eq!(popped, (3..=151).collect::<Vec<_>>(), "{refusal}");
        assert_eq!(rows(&test, "q_orders").await, [1]);
        let log = test.server.log();
        assert!(log.contains("messages are passed over that the database refuses"), "{log}");
    }
}

#[tokio::test]
async fn a_queue_that_lets_nothing_go_refuses_pops() {
    for refusal in REFUSALS {
        let mut test = Test::with_queue("orders").await;
        test.client.send_all("orders", &["1", "2", "3"]).await;
        refuse_where(&test, "DELETE", refusal, "true").await;
        for _ in 0..3 {
            let refused = pop(&mut test.client, 2).await.unwrap_err();
            Refusal::expect(&refused, Code::FailedPrecondition, "REFUSED_BY_DATABASE");
        }
        test.run("DROP TRIGGER refuse ON pgmq.q_orders").await;
        let popped = eventually("a pop", async || pop(&mut test.client, 10).await.ok()).await;
        assert_eq!(ids(&popped), [1, 2, 3]);
    }
}

#[tokio::test]
async fn what_may_not_be_deleted_at_the_commit_stays_and_the_others_are_popped() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["1", r#""poison""#, "3"]).await;
    test.run(
        "CREATE TABLE invoices (of_message bigint REFERENCES pgmq.q_orders (msg_id) DEFERRABLE INITIALLY DEFERRED);
         INSERT INTO invoices VALUES (2)",
    )
    .await;
    assert_eq!(ids(&pop(&mut test.client, 10).await.unwrap()), [1, 3]);
    // Nor does one that is known spoil a transaction.
    let sent = test.client.send("orders", "4").await;
    let mut open = Open::begin(&test.client).await;
    let request = PopRequest { queue: "orders".to_owned(), max_messages: 10 };
    match open.done(Command::Pop(request)).await {
        Reply::Pop(popped) => assert_eq!(ids(&popped.messages), [sent]),
        other => panic!("{other:?}"),
    }
    open.commit().await;
    assert_eq!(rows(&test, "q_orders").await, [2]);
}

#[tokio::test]
async fn many_that_cannot_be_popped_keep_nobody_for_ever_from_what_stands_behind() {
    let mut test = Test::with_queue("orders").await;
    let bodies: Vec<&str> = std::iter::repeat_n(r#""poison""#, 250).chain(["251"]).collect();
    test.client.send_all("orders", &bodies).await;
    refuse(&test, "DELETE", "RAISE 'no'").await;
    // Too seldom to find all of them while they are passed over for a short time alone.
    let mut second = tokio::time::interval(Duration::from_secs(1));
    let popped = eventually("what stands behind", async || {
        second.tick().await;
        pop(&mut test.client, 1).await.ok()
    })
    .await;
    assert_eq!(ids(&popped), [251]);
}
