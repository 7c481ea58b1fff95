//! How policies are given and changed, and to which queue they belong.

use pgmq_grpc::proto::v1::open_transaction_request::Command;
use pgmq_grpc::proto::v1::open_transaction_response::Reply;
use pgmq_grpc::proto::v1::{DropQueueRequest, GetQueueRequest, ListQueuesRequest, QueuePolicy};
use tonic::Code;

use super::{FIELDS, change, clear, create, dead_letter, full, policy_of, set, setting, try_set};
use crate::harness::{Refusal, Test, seconds};
use crate::transaction::{Open, rollback};

/// A test with the queues `orders` and `failed`.
pub(crate) async fn orders() -> Test {
    let mut test = Test::with_queue("orders").await;
    test.client.create("failed").await;
    test
}

#[tokio::test]
async fn every_field_can_be_set_and_is_told_as_it_was_set() {
    let mut test = orders().await;
    assert_eq!(policy_of(&mut test.client, "orders").await, None);
    assert_eq!(set(&mut test.client, "orders", full()).await, full());
    assert_eq!(policy_of(&mut test.client, "orders").await, Some(full()));
    let listed = test.client.queue.list_queues(ListQueuesRequest::default()).await.unwrap().into_inner();
    let policies: Vec<_> = listed.queues.into_iter().map(|queue| (queue.name, queue.policy)).collect();
    assert_eq!(policies, [("failed".to_owned(), None), ("orders".to_owned(), Some(full()))]);
}

#[tokio::test]
async fn each_field_changes_alone_and_is_cleared_alone() {
    let mut test = orders().await;
    for field in FIELDS {
        let only = change(&mut test.client, "orders", Some(full()), &[field]).await.unwrap();
        assert_ne!(only, QueuePolicy::default(), "{field}");
        // Set by its mask alone or by being set is the same.
        assert_eq!(set(&mut test.client, "orders", only.clone()).await, only, "{field}");
        assert_eq!(clear(&mut test.client, "orders", &[field]).await, QueuePolicy::default(), "{field}");
        assert_eq!(policy_of(&mut test.client, "orders").await, None, "{field}");
    }
    set(&mut test.client, "orders", full()).await;
    for field in FIELDS {
        let without = clear(&mut test.client, "orders", &[field]).await;
        let mut expected = full();
        match field {
            "default_visibility_timeout" => expected.default_visibility_timeout = None,
            "default_delay" => expected.default_delay = None,
            "default_wait" => expected.default_wait = None,
            "max_message_bytes" => expected.max_message_bytes = None,
            "dead_letter" => expected.dead_letter = None,
            "retry_backoff" => expected.retry_backoff = None,
            "deduplication_window" => expected.deduplication_window = None,
            "default_ordering" => expected.default_ordering = 0,
            _ => expected.archive_retention = None,
        }
        assert_eq!(without, expected);
        set(&mut test.client, "orders", full()).await;
    }
    assert_eq!(clear(&mut test.client, "orders", &FIELDS).await, QueuePolicy::default());
}

#[tokio::test]
async fn a_repeated_change_changes_nothing() {
    let mut test = orders().await;
    for _ in 0..3 {
        assert_eq!(set(&mut test.client, "orders", full()).await, full());
    }
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq_grpc.queue_policy").await, 1);
}

#[tokio::test]
async fn zero_is_a_value_and_spans_are_told_as_they_were_rounded() {
    let mut test = orders().await;
    let zero = QueuePolicy { default_delay: seconds(0.0), default_wait: seconds(0.0), ..Default::default() };
    assert_eq!(set(&mut test.client, "orders", zero.clone()).await, zero);
    let given = QueuePolicy {
        default_visibility_timeout: seconds(1.2),
        default_delay: seconds(0.000_000_5),
        ..Default::default()
    };
    let told = set(&mut test.client, "orders", given).await;
    assert_eq!(told.default_visibility_timeout, seconds(2.0));
    assert_eq!(told.default_delay, seconds(0.001));
}

#[tokio::test]
async fn changes_that_come_at_once_at_two_servers_are_all_made() {
    let test = orders().await;
    let (_other, elsewhere) = test.another().await;
    for turn in 0..6 {
        let servers = [&test.client, &elsewhere].into_iter().cycle().skip(turn);
        let calls = FIELDS.into_iter().zip(servers).map(|(field, client)| {
            let mut client = client.clone();
            async move { change(&mut client, "orders", Some(full()), &[field]).await.unwrap() }
        });
        futures_util::future::join_all(calls).await;
        let mut client = test.client.clone();
        assert_eq!(policy_of(&mut client, "orders").await, Some(full()));
        clear(&mut client, "orders", &FIELDS).await;
    }
}

#[tokio::test]
async fn a_queue_made_by_plain_sql_has_no_policy_until_it_is_given_one() {
    let mut test = Test::start().await;
    test.run("SELECT pgmq.create('Two Words'), pgmq.create('failed')").await;
    assert_eq!(policy_of(&mut test.client, "Two Words").await, None);
    assert_eq!(set(&mut test.client, "Two Words", full()).await, full());
}

#[tokio::test]
async fn a_queue_that_is_made_anew_has_no_policy() {
    let mut test = orders().await;
    set(&mut test.client, "orders", full()).await;
    test.client.queue.drop_queue(DropQueueRequest { queue: "orders".into() }).await.unwrap();
    test.client.create("orders").await;
    assert_eq!(policy_of(&mut test.client, "orders").await, None);
    set(&mut test.client, "orders", full()).await;
    test.run("SELECT pgmq.drop_queue('orders'), pgmq.create('orders')").await;
    assert_eq!(policy_of(&mut test.client, "orders").await, None);
}

#[tokio::test]
async fn a_queue_is_made_together_with_its_policy() {
    let mut test = Test::with_queue("failed").await;
    let made = create(&mut test.client, "orders", Some(full())).await.unwrap();
    assert!(made.created);
    assert_eq!(made.queue.as_ref().and_then(|queue| queue.policy.clone()), Some(full()));
    assert_eq!(policy_of(&mut test.client, "orders").await, Some(full()));
    for same in [Some(full()), None] {
        let again = create(&mut test.client, "orders", same).await.unwrap();
        assert_eq!((again.created, &again.queue), (false, &made.queue));
    }
    // What a policy refuses leaves no queue behind.
    let bad = QueuePolicy { dead_letter: dead_letter("missing"), ..Default::default() };
    let status = create(&mut test.client, "other", Some(bad)).await.unwrap_err();
    Refusal::expect(&status, Code::FailedPrecondition, "DEAD_LETTER_QUEUE_MISSING");
    let status = test.client.queue.get_queue(GetQueueRequest { queue: "other".into() }).await.unwrap_err();
    Refusal::expect(&status, Code::NotFound, "QUEUE_NOT_FOUND");
}

#[tokio::test]
async fn a_create_with_another_policy_is_refused_and_names_the_first_field_that_differs() {
    let mut test = Test::with_queue("failed").await;
    create(&mut test.client, "orders", Some(full())).await.unwrap();
    let later = QueuePolicy { default_delay: seconds(9.0), max_message_bytes: None, ..full() };
    for (other, field) in [(later, "default_delay"), (QueuePolicy::default(), "default_visibility_timeout")] {
        let status = create(&mut test.client, "orders", Some(other)).await.unwrap_err();
        let refusal = Refusal::expect(&status, Code::FailedPrecondition, "QUEUE_KIND_MISMATCH");
        assert_eq!(refusal.metadata["policy_field"], field);
        assert_eq!(refusal.metadata["queue"], "orders");
    }
    let status = create(&mut test.client, "failed", Some(full())).await.unwrap_err();
    Refusal::expect_invalid(&status, "INVALID_POLICY", "policy.dead_letter.queue");
    assert_eq!(policy_of(&mut test.client, "orders").await, Some(full()));
}

#[tokio::test]
async fn a_change_in_an_open_transaction_is_made_by_its_commit_alone() {
    let mut test = orders().await;
    let update = || Command::UpdateQueue(setting("orders", full()));
    let mut open = Open::begin(&test.client).await;
    let Reply::UpdateQueue(updated) = open.done(update()).await else { panic!("another reply") };
    assert_eq!(updated.queue.and_then(|queue| queue.policy), Some(full()));
    assert_eq!(policy_of(&mut test.client, "orders").await, None);
    assert!(matches!(open.done(rollback()).await, Reply::RolledBack(_)));
    assert_eq!(policy_of(&mut test.client, "orders").await, None);

    let mut open = Open::begin(&test.client).await;
    open.done(update()).await;
    // Nobody else changes the policy meanwhile.
    let status = try_set(&mut test.client, "orders", full()).await.unwrap_err();
    Refusal::expect(&status, Code::Aborted, "QUEUE_BUSY");
    open.commit().await;
    assert_eq!(policy_of(&mut test.client, "orders").await, Some(full()));
    let status =
        Open::begin(&test.client).await.refused(Command::UpdateQueue(setting("missing", full()))).await;
    Refusal::expect(&status, Code::NotFound, "QUEUE_NOT_FOUND");
}

#[tokio::test]
async fn without_the_servers_schema_there_are_no_policies_and_none_can_be_set() {
    let mut test = Test::start_with(&["--no-install"]).await;
    test.client.create("orders").await;
    assert_eq!(policy_of(&mut test.client, "orders").await, None);
    let status = try_set(&mut test.client, "orders", full()).await.unwrap_err();
    let refusal = Refusal::expect(&status, Code::FailedPrecondition, "PGMQ_NOT_INSTALLED");
    assert_eq!(refusal.metadata["schema"], "pgmq_grpc");
    let status = create(&mut test.client, "other", Some(full())).await.unwrap_err();
    Refusal::expect(&status, Code::FailedPrecondition, "PGMQ_NOT_INSTALLED");
    let users = ListQueuesRequest { dead_letter_queue: "failed".into(), ..Default::default() };
    assert_eq!(test.client.queue.list_queues(users).await.unwrap().into_inner().queues, []);
    let all = test.client.queue.list_queues(ListQueuesRequest::default()).await.unwrap().into_inner();
    assert_eq!(all.queues.len(), 1);
}
