//! What a redrive leaves where it is.

use pgmq_grpc::proto::v1::RedriveMessagesRequest;
use tonic::Code;

use super::{dead_letters, length, redrive, redrive_of, redriven, with_dead_letters};
use crate::harness::{Refusal, Test};
use crate::replay::bodies;

/// All messages, by count and then by ids; checks that neither moves what is left.
async fn leave(test: &mut Test, moved: i64, left: &[&str]) {
    assert_eq!(redrive(&mut test.client, redrive_of("dead")).await, redriven(moved, false));
    let msg_ids: Vec<i64> = test.value("SELECT array_agg(msg_id) FROM pgmq.q_dead").await;
    let by_ids = RedriveMessagesRequest { msg_ids, ..redrive_of("dead") };
    assert_eq!(redrive(&mut test.client, by_ids).await, redriven(0, false));
    assert_eq!(bodies(test, "q_dead").await, left);
}

#[tokio::test]
async fn messages_that_a_consumer_holds_or_that_are_delayed_are_left() {
    let mut test = with_dead_letters(5).await;
    let held = test.client.read("dead", 2).await;
    test.run("UPDATE pgmq.q_dead SET vt = now() + interval '1 hour' WHERE msg_id = 4").await;
    leave(&mut test, 2, &["1", "2", "4"]).await;
    // The receipts are as good as before.
    let receipts: Vec<&str> = held.iter().map(|message| message.receipt.as_str()).collect();
    let done = pgmq_grpc::proto::v1::Outcome::Done;
    assert_eq!(test.client.delete("dead", &receipts).await, [done, done]);
}

#[tokio::test]
async fn messages_that_nobody_has_dead_lettered_are_left() {
    let mut test = with_dead_letters(1).await;
    for (n, headers) in [
        "null",
        "{}",
        "[]",
        "7",
        r#"{"x-pgmq-dead-letter": null}"#,
        r#"{"x-pgmq-dead-letter": "orders"}"#,
        r#"{"x-pgmq-dead-letter": ["queue", "orders"]}"#,
        r#"{"x-pgmq-dead-letter": {"queue": null}}"#,
        r#"{"x-pgmq-dead-letter": {"queue": ["orders"]}}"#,
        r#"{"x-pgmq-dead-letter": {"queue": 5}}"#,
        // It would come back for ever.
        r#"{"x-pgmq-dead-letter": {"queue": "dead"}}"#,
        r#"{"x-pgmq-dead-letter": {"queue": "DEAD"}}"#,
    ]
    .into_iter()
    .enumerate()
    {
        test.run(&format!("SELECT pgmq.send('dead', '{}', '{headers}'::jsonb)", n + 2)).await;
    }
    test.run("SELECT pgmq.send('dead', '14')").await;
    let left: Vec<String> = (2..=14).map(|n: i32| n.to_string()).collect();
    leave(&mut test, 1, &left.iter().map(String::as_str).collect::<Vec<_>>()).await;
}

#[tokio::test]
async fn messages_far_behind_many_that_are_left_are_found() {
    let mut test = with_dead_letters(0).await;
    test.run("SELECT pgmq.send_batch('dead', array_agg('0'::jsonb)) FROM generate_series(1, 45000)").await;
    dead_letters(&test, "'orders'", 2).await;
    test.run("SELECT pgmq.send_batch('dead', array_agg('0'::jsonb)) FROM generate_series(1, 45000)").await;
    let one = || RedriveMessagesRequest { max_messages: 1, ..redrive_of("dead") };
    assert_eq!(redrive(&mut test.client, one()).await, redriven(1, true));
    // That nothing follows which can be moved is known only at the end.
    assert_eq!(redrive(&mut test.client, one()).await, redriven(1, false));
    assert_eq!(redrive(&mut test.client, one()).await, redriven(0, false));
    assert_eq!(bodies(&test, "q_orders").await, ["1", "2"]);
}

#[tokio::test]
async fn messages_of_queues_that_are_gone_are_left_and_told_where_nothing_else_is_moved() {
    let mut test = with_dead_letters(0).await;
    test.client.create("dropped").await;
    dead_letters(&test, "(ARRAY['gone', 'dropped', 'orders', 'a;b'])[n::int]", 4).await;
    // One that this server knows, one that is listed and has no table, and one that pgmq cannot address.
    test.client.send("dropped", "1").await;
    test.run(
        "SELECT pgmq.drop_queue('dropped'); SELECT pgmq.create('tableless'); DROP TABLE pgmq.q_tableless",
    )
    .await;
    dead_letters(&test, "'tableless'", 1).await;
    assert_eq!(redrive(&mut test.client, redrive_of("dead")).await, redriven(1, false));
    assert_eq!(bodies(&test, "q_orders").await, ["3"]);

    for (msg_ids, missing) in [
        (vec![], "gone"),
        (vec![2], "dropped"),
        (vec![4, 2], "dropped"),
        (vec![4], "a;b"),
        (vec![5], "tableless"),
    ] {
        let request = RedriveMessagesRequest { msg_ids, ..redrive_of("dead") };
        let refused = test.client.admin.redrive_messages(request).await.unwrap_err();
        let refusal = Refusal::expect(&refused, Code::NotFound, "QUEUE_NOT_FOUND");
        assert_eq!(refusal.metadata["queue"], missing);
        assert!(refusal.message.contains("target_queue"), "{refusal:?}");
    }
    assert_eq!(length(&test, "dead").await, 4);
    let request = RedriveMessagesRequest { target_queue: "orders".to_owned(), ..redrive_of("dead") };
    assert_eq!(redrive(&mut test.client, request).await, redriven(4, false));
}

#[tokio::test]
async fn a_queue_that_was_made_anew_gets_its_messages_back() {
    let mut test = with_dead_letters(2).await;
    test.client.send("orders", "1").await;
    test.run("SELECT pgmq.drop_queue('orders')").await;
    let refused = test.client.admin.redrive_messages(redrive_of("dead")).await.unwrap_err();
    Refusal::expect(&refused, Code::NotFound, "QUEUE_NOT_FOUND");
    test.client.create("orders").await;
    assert_eq!(redrive(&mut test.client, redrive_of("dead")).await, redriven(2, false));
    assert_eq!(bodies(&test, "q_orders").await, ["1", "2"]);
}

#[tokio::test]
async fn a_redrive_of_few_goes_on_behind_messages_that_somebody_has_locked() {
    let mut test = with_dead_letters(5).await;
    let holder = test.database.connect().await;
    holder
        .batch_execute("BEGIN; SELECT FROM pgmq.q_dead WHERE msg_id IN (1, 2, 4) FOR UPDATE")
        .await
        .unwrap();
    let few = |max_messages| RedriveMessagesRequest { max_messages, ..redrive_of("dead") };
    assert_eq!(redrive(&mut test.client, few(1)).await, redriven(1, true));
    assert_eq!(redrive(&mut test.client, few(2)).await, redriven(1, true));
    assert_eq!(bodies(&test, "q_orders").await, ["3", "5"]);
    holder.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(redrive(&mut test.client, few(3)).await, redriven(3, false));
}
