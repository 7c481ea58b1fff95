//! `Pop`: read and deleted in one step, but only what arrives.

use pgmq_grpc::proto::v1::{Message, PopRequest, PopResponse};
use prost::Message as _;
use tonic::Code;

use crate::harness::{Client, Refusal, Test};
use crate::read_batch::{all_of, body_of, ids};

async fn pop(client: &mut Client, max_messages: i32) -> Vec<Message> {
    let request = PopRequest { queue: "orders".to_owned(), max_messages };
    client.queue.pop(request).await.expect("a pop").into_inner().messages
}

#[tokio::test]
async fn popped_messages_are_gone_and_have_no_receipt() {
    let mut test = Test::with_queue("orders").await;
    test.run("SELECT pgmq.send('orders', '{\"n\": 1}', '{\"x-trace\": \"t\"}'::jsonb)").await;
    let popped = pop(&mut test.client, 0).await.remove(0);
    assert_eq!((popped.msg_id, popped.read_ct, popped.receipt.as_str()), (1, 0, ""));
    assert_eq!((popped.message.as_str(), popped.headers.as_str()), (r#"{"n": 1}"#, r#"{"x-trace": "t"}"#));
    assert_eq!(popped.last_read_at, None);
    assert!(popped.enqueued_at.is_some() && popped.vt.is_some());
    assert!(pop(&mut test.client, 10).await.is_empty());
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 0);
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.a_orders").await, 0);
}

#[tokio::test]
async fn a_pop_takes_the_lowest_ids_in_their_order() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["1", "2", "3", "4", "5"]).await;
    assert_eq!(ids(&pop(&mut test.client, 0).await), [1]);
    assert_eq!(ids(&pop(&mut test.client, 2).await), [2, 3]);
    assert_eq!(ids(&pop(&mut test.client, 1_000).await), [4, 5]);
}

#[tokio::test]
async fn a_pop_leaves_what_others_hold_and_what_is_delayed() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["1", "2"]).await;
    test.run("SELECT pgmq.send('orders', '3', 600)").await;
    test.client.read_one("orders").await;
    assert_eq!(ids(&pop(&mut test.client, 10).await), [2]);
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 2);
}

#[tokio::test]
async fn a_pop_deletes_only_what_fits_the_reply() {
    let mut test = Test::with_queue("orders").await;
    for _ in 0..5 {
        test.client.send("orders", &body_of(900 * 1_024)).await;
    }
    let messages = pop(&mut test.client, 10).await;
    assert_eq!(ids(&messages), [1, 2, 3]);
    assert!(PopResponse { messages }.encoded_len() <= 3_670_016);
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 2);
    assert_eq!(ids(&pop(&mut test.client, 10).await), [4, 5]);
}

#[tokio::test]
async fn a_pop_passes_over_a_message_too_large_for_any_reply() {
    let mut test = Test::with_queue("orders").await;
    test.run("SELECT pgmq.send('orders', to_jsonb(repeat('x', 4000000)))").await;
    let small = test.client.send("orders", "{}").await;
    assert_eq!(ids(&pop(&mut test.client, 1).await), [small]);
    assert!(pop(&mut test.client, 1).await.is_empty());
    assert_eq!(test.value::<i64>("SELECT msg_id FROM pgmq.q_orders").await, 1);
}

#[tokio::test]
async fn a_pop_passes_over_a_message_that_postgres_cannot_render() {
    // Postgres needs some time to find out.
    let mut test = Test::start_with(&["--default-deadline", "10m"]).await;
    test.client.create("orders").await;
    // Small as it is stored; more than Postgres can hold as text.
    test.run("SELECT pgmq.send('orders', jsonb_agg('1e131000'::jsonb)) FROM generate_series(1, 9000)").await;
    let sent = test.client.send_all("orders", &["1", "2", "3"]).await;
    assert_eq!(ids(&pop(&mut test.client, 2).await), sent[..2]);
    assert_eq!(ids(&pop(&mut test.client, 2).await), sent[2..]);
    assert_eq!(test.value::<i64>("SELECT msg_id FROM pgmq.q_orders").await, 1);
}

#[tokio::test]
async fn a_popped_messages_receipt_answers_not_found() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let read = test.client.read_as(all_of("orders")).await.remove(0);
    crate::settle::release(&mut test.client, "orders", &[&read.receipt], None).await;
    let popped = pop(&mut test.client, 1).await.remove(0);
    assert_eq!((popped.read_ct, popped.last_read_at), (1, read.last_read_at));
    let outcomes = test.client.delete("orders", &[&read.receipt]).await;
    assert_eq!(outcomes, [pgmq_grpc::proto::v1::Outcome::NotFound]);
}

#[tokio::test]
async fn concurrent_pops_never_get_the_same_message() {
    let mut test = Test::with_queue("orders").await;
    let sent = test.client.send_all("orders", &["{}"; 300]).await;
    let pops: Vec<_> = (0..6)
        .map(|_| {
            let mut client = test.client.clone();
            tokio::spawn(async move {
                let mut popped = Vec::new();
                loop {
                    match pop(&mut client, 7).await {
                        none if none.is_empty() => return popped,
                        some => popped.extend(ids(&some)),
                    }
                }
            })
        })
        .collect();
    let mut popped = Vec::new();
    for pop in pops {
        popped.extend(pop.await.unwrap());
    }
    // A pop passes over what another one has locked at that moment.
    popped.extend(ids(&pop(&mut test.client, 1_000).await));
    popped.sort_unstable();
    assert_eq!(popped, sent);
}

#[tokio::test]
async fn a_pop_from_a_queue_that_does_not_exist_is_refused() {
    let mut test = Test::start().await;
    let request = PopRequest { queue: "orders".to_owned(), max_messages: 1 };
    let refused = test.client.queue.pop(request).await.unwrap_err();
    Refusal::expect(&refused, Code::NotFound, "QUEUE_NOT_FOUND");
}
