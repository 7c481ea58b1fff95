//! Which queue may be the dead-letter queue of which, and which queues use one.

use pgmq_grpc::proto::v1::{DropQueueRequest, ListQueuesRequest, QueuePolicy};
use tonic::{Code, Status};

use super::updating::orders;
use super::{clear, create, dead_letter, policy_of, set, try_set};
use crate::harness::{Client, Refusal, Server, Test};

fn to(queue: &str) -> QueuePolicy {
    QueuePolicy { dead_letter: dead_letter(queue), ..Default::default() }
}

#[track_caller]
fn expect_chain(status: &Status, both: &str, other_end: &str) {
    let refusal = Refusal::expect(status, Code::FailedPrecondition, "DEAD_LETTER_CHAIN");
    assert_eq!(refusal.metadata["dead_letter_queue"], both);
    assert_eq!(refusal.metadata["queue"], other_end);
}

async fn users_of(test: &mut Test, dead_letter_queue: &str) -> Vec<String> {
    let request = ListQueuesRequest { dead_letter_queue: dead_letter_queue.to_owned(), ..Default::default() };
    let listed = test.client.queue.list_queues(request).await.unwrap().into_inner();
    listed.queues.into_iter().map(|queue| queue.name).collect()
}

#[tokio::test]
async fn a_dead_letter_queue_must_be_there_when_it_is_named() {
    let mut test = orders().await;
    let status = try_set(&mut test.client, "orders", to("missing")).await.unwrap_err();
    let refusal = Refusal::expect(&status, Code::FailedPrecondition, "DEAD_LETTER_QUEUE_MISSING");
    assert_eq!(refusal.metadata["dead_letter_queue"], "missing");
    assert_eq!(policy_of(&mut test.client, "orders").await, None);

    // Later it may go: the policy stays, and names what is missing.
    set(&mut test.client, "orders", to("failed")).await;
    test.client.queue.drop_queue(DropQueueRequest { queue: "failed".into() }).await.unwrap();
    assert_eq!(policy_of(&mut test.client, "orders").await, Some(to("failed")));
    assert_eq!(users_of(&mut test, "failed").await, ["orders"]);
}

#[tokio::test]
async fn dead_letters_never_travel_on() {
    let mut test = orders().await;
    test.client.create("last").await;
    set(&mut test.client, "orders", to("failed")).await;
    let status = try_set(&mut test.client, "failed", to("last")).await.unwrap_err();
    expect_chain(&status, "failed", "orders");
    let status = try_set(&mut test.client, "failed", to("orders")).await.unwrap_err();
    expect_chain(&status, "orders", "failed");
    let status = try_set(&mut test.client, "last", to("orders")).await.unwrap_err();
    expect_chain(&status, "orders", "failed");
    let status = create(&mut test.client, "new", Some(to("orders"))).await.unwrap_err();
    expect_chain(&status, "orders", "failed");
    // A queue that others name may be missing, and gets no policy when it is made.
    test.client.queue.drop_queue(DropQueueRequest { queue: "failed".into() }).await.unwrap();
    let status = create(&mut test.client, "failed", Some(to("last"))).await.unwrap_err();
    expect_chain(&status, "failed", "orders");

    clear(&mut test.client, "orders", &["dead_letter"]).await;
    assert!(create(&mut test.client, "failed", Some(to("last"))).await.unwrap().created);
    // What is left of a queue that is gone is in nobody's way.
    test.client.queue.drop_queue(DropQueueRequest { queue: "failed".into() }).await.unwrap();
    set(&mut test.client, "last", to("orders")).await;
}

#[tokio::test]
async fn two_changes_at_once_make_no_ring() {
    let mut test = Test::start().await;
    let other = Server::start_on(&test.database, &[]).await;
    let elsewhere = Client::connect(&other).await;
    test.client.create("a").await;
    test.client.create("b").await;
    let mut refused = 0;
    for _ in 0..30 {
        let (mut one, mut two) = (test.client.clone(), elsewhere.clone());
        let (first, second) = tokio::join!(try_set(&mut one, "a", to("b")), try_set(&mut two, "b", to("a")));
        assert!(first.is_ok() != second.is_ok(), "{first:?} {second:?}");
        for status in [first, second].into_iter().filter_map(Result::err) {
            Refusal::expect(&status, Code::FailedPrecondition, "DEAD_LETTER_CHAIN");
            refused += 1;
        }
        for queue in ["a", "b"] {
            clear(&mut test.client, queue, &["dead_letter"]).await;
        }
    }
    assert_eq!(refused, 30);
}

#[tokio::test]
async fn queues_are_listed_by_the_dead_letter_queue_that_they_use() {
    let mut test = orders().await;
    test.client.create("elsewhere").await;
    for number in 0..5 {
        create(&mut test.client, &format!("user_{number}"), Some(to("failed"))).await.unwrap();
    }
    create(&mut test.client, "other", Some(to("elsewhere"))).await.unwrap();
    assert_eq!(users_of(&mut test, "failed").await, ["user_0", "user_1", "user_2", "user_3", "user_4"]);
    assert_eq!(users_of(&mut test, "elsewhere").await, ["other"]);
    assert_eq!(users_of(&mut test, "orders").await, Vec::<String>::new());
    assert_eq!(users_of(&mut test, "missing").await, Vec::<String>::new());

    let request = |token: &str, dead_letter_queue: &str| ListQueuesRequest {
        page_size: 2,
        page_token: token.to_owned(),
        prefix: "user".to_owned(),
        dead_letter_queue: dead_letter_queue.to_owned(),
    };
    let mut calls = test.client.queue.clone();
    let first = calls.list_queues(request("", "failed")).await.unwrap().into_inner();
    let second = calls.list_queues(request(&first.next_page_token, "failed")).await.unwrap().into_inner();
    let names = |queues: &[pgmq_grpc::proto::v1::Queue]| {
        queues.iter().map(|queue| queue.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(names(&first.queues), ["user_0", "user_1"]);
    assert_eq!(names(&second.queues), ["user_2", "user_3"]);
    for other in ["", "elsewhere"] {
        let status = calls.list_queues(request(&first.next_page_token, other)).await.unwrap_err();
        Refusal::expect_invalid(&status, "INVALID_PAGE_TOKEN", "page_token");
    }
    let status = calls.list_queues(request("", "a;b")).await.unwrap_err();
    Refusal::expect_invalid(&status, "INVALID_QUEUE_NAME", "dead_letter_queue");
}
