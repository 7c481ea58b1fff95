//! `RedriveMessages`: messages out of a dead-letter queue, back to where they came from.

mod faults;
mod left;

use pgmq_grpc::proto::v1::{Outcome, RedriveMessagesRequest, RedriveMessagesResponse};
use tonic::Code;

use crate::bad_input::contents;
use crate::harness::{Client, Refusal, Test};
use crate::read_batch::{all_of, ids};
use crate::replay::bodies;

pub(crate) fn redrive_of(dead_letter_queue: &str) -> RedriveMessagesRequest {
    RedriveMessagesRequest { dead_letter_queue: dead_letter_queue.to_owned(), ..Default::default() }
}

async fn redrive(client: &mut Client, request: RedriveMessagesRequest) -> RedriveMessagesResponse {
    client.admin.redrive_messages(request).await.expect("a redrive").into_inner()
}

fn redriven(moved_count: i64, more: bool) -> RedriveMessagesResponse {
    RedriveMessagesResponse { moved_count, more }
}

/// The queues `orders` and `dead`; in the latter so many messages from the former, whose bodies are their ids.
pub(crate) async fn with_dead_letters(count: i64) -> Test {
    let mut test = Test::with_queue("orders").await;
    test.client.create("dead").await;
    dead_letters(&test, "'orders'", count).await;
    test
}

/// Sends so many messages to `dead`, which came from the queue that SQL names.
async fn dead_letters(test: &Test, source: &str, count: i64) {
    test.run(&format!(
        "INSERT INTO pgmq.q_dead (vt, message, headers) SELECT now(), to_jsonb(n),
           jsonb_build_object('x-pgmq-dead-letter', jsonb_build_object('queue', {source}, 'msg_id', n, 'read_ct', 5, 'reason', 'r'))
         FROM generate_series(1, {count}::bigint) AS n ORDER BY n"
    ))
    .await;
}

async fn length(test: &Test, queue: &str) -> i64 {
    test.value(&format!("SELECT count(*) FROM pgmq.q_{queue}")).await
}

#[tokio::test]
async fn a_redriven_message_is_a_new_one_with_its_body_and_headers() {
    let mut test = with_dead_letters(0).await;
    test.run(
        r#"INSERT INTO pgmq.q_dead (vt, read_ct, message, headers) VALUES (now(), 7, '{"n": 1.50}',
             '{"x-pgmq-group": "a", "x-pgmq-dead-letter": {"queue": "orders", "reason": "r"}, "trace": {"x": [1, null]}}'),
           (now(), 0, NULL, '{"x-pgmq-dead-letter": {"queue": "orders"}}')"#,
    )
    .await;
    // Somebody has looked at it, and let it go.
    let old = test.client.read_one("dead").await;
    test.run("UPDATE pgmq.q_dead SET vt = now()").await;

    assert_eq!(redrive(&mut test.client, redrive_of("dead")).await, redriven(2, false));

    assert_eq!(length(&test, "dead").await, 0);
    assert_eq!(test.client.delete("dead", &[&old.receipt]).await, [Outcome::NotFound]);
    let read = test.client.read("orders", 2).await;
    assert_eq!(ids(&read), [1, 2]);
    assert!(read.iter().all(|message| message.read_ct == 1));
    assert_eq!((read[0].message.as_str(), read[1].message.as_str()), (r#"{"n": 1.50}"#, ""));
    assert_eq!(read[0].headers, r#"{"trace": {"x": [1, null]}, "x-pgmq-group": "a"}"#);
    // It had none before.
    assert_eq!(read[1].headers, "");
    assert!(test.value::<bool>("SELECT headers IS NULL FROM pgmq.q_orders WHERE msg_id = 2").await);
}

#[tokio::test]
async fn each_message_goes_back_to_where_it_came_from_in_the_order_of_ids() {
    let mut test = with_dead_letters(0).await;
    test.client.create("others").await;
    dead_letters(&test, "CASE n % 3 WHEN 0 THEN 'others' ELSE 'orders' END", 4_500).await;
    // However they lie in the table.
    test.run("CREATE TABLE shuffled AS SELECT * FROM pgmq.q_dead ORDER BY random(); TRUNCATE pgmq.q_dead; INSERT INTO pgmq.q_dead OVERRIDING SYSTEM VALUE SELECT * FROM shuffled")
        .await;
    assert_eq!(redrive(&mut test.client, redrive_of("dead")).await, redriven(4_500, false));
    let (others, orders): (Vec<i64>, Vec<i64>) = (1..=4_500).partition(|n| n % 3 == 0);
    for (queue, expected) in [("q_others", others), ("q_orders", orders)] {
        let expected: Vec<String> = expected.iter().map(i64::to_string).collect();
        assert_eq!(bodies(&test, queue).await, expected);
    }
    assert_eq!(length(&test, "dead").await, 0);
}

#[tokio::test]
async fn large_messages_are_moved_in_smaller_steps() {
    let mut test = with_dead_letters(0).await;
    // Random text is stored as large as it is: three messages fill a step.
    test.run(
        r#"INSERT INTO pgmq.q_dead (vt, message, headers)
           SELECT now(), to_jsonb(n || (SELECT string_agg(md5(n::text || i), '') FROM generate_series(1, 100000) AS i)),
             '{"x-pgmq-dead-letter": {"queue": "orders"}}' FROM generate_series(1, 8) AS n ORDER BY n"#,
    )
    .await;
    let sums = "SELECT array_agg(md5(message::text) ORDER BY msg_id) FROM pgmq.";
    let before: Vec<String> = test.value(&format!("{sums}q_dead")).await;
    assert_eq!(redrive(&mut test.client, redrive_of("dead")).await, redriven(8, false));
    assert_eq!(test.value::<Vec<String>>(&format!("{sums}q_orders")).await, before);
    assert_eq!(test.value::<i64>("SELECT count(DISTINCT enqueued_at) FROM pgmq.q_orders").await, 3);
}

#[tokio::test]
async fn messages_are_moved_by_their_ids_and_a_repeat_moves_none() {
    let mut test = with_dead_letters(6).await;
    let by_ids = RedriveMessagesRequest { msg_ids: vec![5, 2, 77, 5, -1], ..redrive_of("dead") };
    assert_eq!(redrive(&mut test.client, by_ids.clone()).await, redriven(2, false));
    assert_eq!(bodies(&test, "q_orders").await, ["2", "5"]);
    assert_eq!(redrive(&mut test.client, by_ids).await, redriven(0, false));
    let first = RedriveMessagesRequest { msg_ids: vec![1, 3, 4], max_messages: 2, ..redrive_of("dead") };
    assert_eq!(redrive(&mut test.client, first.clone()).await, redriven(2, true));
    assert_eq!(redrive(&mut test.client, first).await, redriven(1, false));
    assert_eq!(bodies(&test, "q_dead").await, ["6"]);
}

#[tokio::test]
async fn another_target_gets_all_messages_wherever_they_came_from() {
    let mut test = with_dead_letters(2).await;
    test.client.create("others").await;
    dead_letters(&test, "'gone'", 1).await;
    test.run(r#"SELECT pgmq.send('dead', '"by hand"'), pgmq.send('dead', '"listed"', '["x-pgmq-dead-letter", 1]'::jsonb)"#)
        .await;
    let request = RedriveMessagesRequest { target_queue: "others".to_owned(), ..redrive_of("dead") };
    assert_eq!(redrive(&mut test.client, request).await, redriven(5, false));
    assert_eq!(bodies(&test, "q_others").await, ["1", "2", "1", r#""by hand""#, r#""listed""#]);
    let headers = "SELECT array_agg(coalesce(headers::text, '') ORDER BY msg_id) FROM pgmq.q_others";
    let listed = r#"["x-pgmq-dead-letter", 1]"#;
    assert_eq!(test.value::<Vec<String>>(headers).await, ["", "", "", "", listed]);
    assert_eq!(length(&test, "orders").await, 0);
}

#[tokio::test]
async fn queues_that_are_named_like_marks_of_a_statement_work_as_well() {
    let mut test = Test::start().await;
    test.run(r#"SELECT pgmq.create('{q}'), pgmq.create('{a}'); SELECT pgmq.send('{q}', '7', '{"x-pgmq-dead-letter": {"queue": "{a}"}}'::jsonb)"#)
        .await;
    assert_eq!(redrive(&mut test.client, redrive_of("{q}")).await, redriven(1, false));
    assert_eq!(test.client.read_one("{a}").await.message, "7");
}

#[tokio::test]
async fn unlogged_queues_are_redriven_as_well() {
    let mut test = Test::start().await;
    test.run("SELECT pgmq.create_unlogged('orders'), pgmq.create_unlogged('dead')").await;
    dead_letters(&test, "'orders'", 3).await;
    assert_eq!(redrive(&mut test.client, redrive_of("dead")).await, redriven(3, false));
    assert_eq!(ids(&test.client.read_as(all_of("orders")).await), [1, 2, 3]);
}

#[tokio::test]
async fn missing_queues_are_named_and_nothing_is_moved() {
    let mut test = with_dead_letters(3).await;
    test.client.create("empty").await;
    test.client.create("dropped").await;
    // One that this server knows, and that is gone.
    test.client.send("dropped", "1").await;
    test.run("SELECT pgmq.drop_queue('dropped')").await;
    let before = contents(&test).await;
    for (dead_letter_queue, target, missing) in [
        ("dead", "nowhere", "nowhere"),
        ("empty", "nowhere", "nowhere"),
        ("dead", "dropped", "dropped"),
        ("dead", "Orders", "Orders"),
        ("nowhere", "", "nowhere"),
        ("dropped", "", "dropped"),
        ("dropped", "orders", "dropped"),
        ("Dead", "orders", "Dead"),
    ] {
        let request =
            RedriveMessagesRequest { target_queue: target.to_owned(), ..redrive_of(dead_letter_queue) };
        let refused = test.client.admin.redrive_messages(request).await.unwrap_err();
        let refusal = Refusal::expect(&refused, Code::NotFound, "QUEUE_NOT_FOUND");
        assert_eq!(refusal.metadata["queue"], missing, "{dead_letter_queue} {target}");
    }
    assert_eq!(contents(&test).await, before);
}

#[tokio::test]
async fn targets_that_cannot_be_are_refused() {
    let mut test = with_dead_letters(3).await;
    for (target, reason) in
        [("a;b", "INVALID_QUEUE_NAME"), ("dead", "CONFLICTING_FIELDS"), ("Dead", "CONFLICTING_FIELDS")]
    {
        let request = RedriveMessagesRequest { target_queue: target.to_owned(), ..redrive_of("dead") };
        let refused = test.client.admin.redrive_messages(request).await.unwrap_err();
        Refusal::expect_invalid(&refused, reason, "target_queue");
    }
    let (dead_letter_queue, target_queue) = ("dÄad".to_owned(), "DäAD".to_owned());
    let request = RedriveMessagesRequest { dead_letter_queue, target_queue, ..Default::default() };
    let refused = test.client.admin.redrive_messages(request).await.unwrap_err();
    Refusal::expect_invalid(&refused, "CONFLICTING_FIELDS", "target_queue");
    assert_eq!(length(&test, "dead").await, 3);
}
