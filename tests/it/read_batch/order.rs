//! Which messages a read chooses, and in which order they come.

use pgmq_grpc::proto::v1::{Ordering, ReadBatchRequest};

use super::{all_of, ids};
use crate::harness::Test;

/// Two groups, their messages one after the other: a, a, b, b.
async fn with_two_groups() -> Test {
    let mut test = Test::with_queue("orders").await;
    for group in ["a", "a", "b", "b"] {
        test.client.send_to_group("orders", group, "{}").await;
    }
    test
}

fn ordered(ordering: Ordering, max_messages: i32) -> ReadBatchRequest {
    ReadBatchRequest { ordering: ordering.into(), max_messages, ..all_of("orders") }
}

#[tokio::test]
async fn an_unordered_read_takes_the_lowest_ids() {
    let mut test = with_two_groups().await;
    assert_eq!(ids(&test.client.read_as(ordered(Ordering::Unordered, 3)).await), [1, 2, 3]);
    assert_eq!(ids(&test.client.read_as(ordered(Ordering::Unspecified, 3)).await), [4]);
}

#[tokio::test]
async fn a_grouped_read_takes_one_group_before_the_next() {
    let mut test = Test::with_queue("orders").await;
    for group in ["a", "b", "a", "b"] {
        test.client.send_to_group("orders", group, "{}").await;
    }
    assert_eq!(ids(&test.client.read_as(ordered(Ordering::Grouped, 2)).await), [1, 3]);
}

#[tokio::test]
async fn the_reply_of_a_grouped_read_is_sorted_by_id() {
    let mut test = Test::with_queue("orders").await;
    for group in ["a", "b", "a", "b"] {
        test.client.send_to_group("orders", group, "{}").await;
    }
    assert_eq!(ids(&test.client.read_as(ordered(Ordering::Grouped, 4)).await), [1, 2, 3, 4]);
}

#[tokio::test]
async fn a_round_robin_read_keeps_the_order_of_the_turns() {
    let mut test = with_two_groups().await;
    let read = test.client.read_as(ordered(Ordering::GroupedRoundRobin, 4)).await;
    assert_eq!(ids(&read), [1, 3, 2, 4]);
}

#[tokio::test]
async fn a_round_robin_read_serves_every_group_before_any_twice() {
    let mut test = with_two_groups().await;
    test.client.send_to_group("orders", "c", "{}").await;
    let read = test.client.read_as(ordered(Ordering::GroupedRoundRobin, 3)).await;
    assert_eq!(ids(&read), [1, 3, 5]);
}

#[tokio::test]
async fn a_head_read_takes_the_first_of_each_group_only() {
    let mut test = with_two_groups().await;
    let heads = test.client.read_as(ordered(Ordering::GroupedHead, 10)).await;
    assert_eq!(ids(&heads), [1, 3]);
    assert!(test.client.read_as(ordered(Ordering::GroupedHead, 10)).await.is_empty());
    test.client.delete("orders", &[&heads[1].receipt]).await;
    assert_eq!(ids(&test.client.read_as(ordered(Ordering::GroupedHead, 10)).await), [4]);
}

#[tokio::test]
async fn messages_without_a_group_form_one_group() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    test.client.send("orders", "{}").await;
    test.client.send_to_group("orders", "a", "{}").await;
    assert_eq!(ids(&test.client.read_as(ordered(Ordering::GroupedHead, 10)).await), [1, 3]);
}

#[tokio::test]
async fn a_conditional_read_takes_only_bodies_that_contain_the_condition() {
    let mut test = Test::with_queue("orders").await;
    let bodies = [
        r#"{"kind": "a", "n": 1}"#,
        r#"{"kind": "b"}"#,
        r#"{"kind": "a", "tags": ["x", "y"]}"#,
        r#"[1, 2]"#,
        "null",
    ];
    test.client.send_all("orders", &bodies).await;
    let condition = |text: &str| ReadBatchRequest { conditional: text.to_owned(), ..all_of("orders") };
    assert!(test.client.read_as(condition(r#"{"kind": "c"}"#)).await.is_empty());
    assert_eq!(ids(&test.client.read_as(condition(r#"{"kind": "a", "tags": ["y"]}"#)).await), [3]);
    assert_eq!(ids(&test.client.read_as(condition(r#"{"kind": "a"}"#)).await), [1]);
    assert_eq!(ids(&test.client.read_as(condition("[2]")).await), [4]);
    // What did not match was not touched, and the empty object is no condition.
    let untouched = "SELECT count(*) FROM pgmq.q_orders WHERE read_ct = 0";
    assert_eq!(test.value::<i64>(untouched).await, 2);
    assert_eq!(ids(&test.client.read_as(condition("{}")).await), [2, 5]);
}
