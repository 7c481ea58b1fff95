//! What can be done inside a transaction, and who sees it when.

use pgmq_grpc::proto::v1::open_transaction_request::Command;
use pgmq_grpc::proto::v1::open_transaction_response::Reply;
use pgmq_grpc::proto::v1::set_visibility_timeout_request::Visibility;
use pgmq_grpc::proto::v1::*;
use tonic::Code;

use super::{Open, count, delete, read, send};
use crate::harness::client::outgoing;
use crate::harness::{Client, Refusal, Server, Test, eventually, is_old_pgmq, seconds};
use crate::read_batch::{begin_read, ids, now, until_a_reader_waits, waiting_for};
use crate::settle::outcomes;

fn orders() -> String {
    "orders".to_owned()
}

#[tokio::test]
async fn nothing_shows_before_the_commit_and_all_of_it_after() {
    let mut test = Test::with_queue("orders").await;
    test.client.create("results").await;
    test.client.send("orders", "1").await;

    let mut open = Open::begin(&test.client).await;
    let held = open.read_one("orders").await;
    assert!(matches!(open.done(send("results", "2")).await, Reply::Send(sent) if sent.msg_id == 1));
    match open.done(delete("orders", &held)).await {
        Reply::Delete(deleted) => assert_eq!(outcomes(&deleted.results), [Outcome::Done]),
        other => panic!("{other:?}"),
    }
    assert_eq!((count(&test, "orders").await, count(&test, "results").await), (1, 0));
    open.commit().await;

    assert_eq!((count(&test, "orders").await, count(&test, "results").await), (0, 1));
    assert_eq!(super::open_transactions(&test).await, 0);
}

#[tokio::test]
async fn a_commit_wakes_those_who_wait() {
    let test = Test::with_queue("orders").await;
    let waiting = begin_read(&test, waiting_for("orders"));
    let since = now(&test).await;
    until_a_reader_waits(&test, &since).await;

    let mut open = Open::begin(&test.client).await;
    open.done(send("orders", "{}")).await;
    open.commit().await;

    assert_eq!(ids(&waiting.await.unwrap()), [1]);
}

#[tokio::test]
async fn commands_need_not_wait_for_replies_and_are_answered_in_order() {
    let test = Test::with_queue("orders").await;
    let mut open = Open::begin(&test.client).await;
    for body in 0..50 {
        open.give(send("orders", &body.to_string())).await;
    }
    open.give(super::commit()).await;
    for msg_id in 1..=50 {
        match open.next().await.unwrap().unwrap() {
            Reply::Send(sent) => assert_eq!(sent.msg_id, msg_id),
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(open.next().await.unwrap().unwrap(), Reply::Committed(_)));
    assert!(open.next().await.is_none());
    assert_eq!(count(&test, "orders").await, 50);
}

#[tokio::test]
async fn a_receipt_from_inside_is_good_after_the_commit() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let mut open = Open::begin(&test.client).await;
    let held = open.read_one("orders").await;
    open.commit().await;
    assert_eq!(test.client.delete("orders", &[&held.receipt]).await, [Outcome::Done]);
}

#[tokio::test]
async fn a_receipt_of_a_read_that_was_rolled_back_never_settles_anything() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let mut open = Open::begin(&test.client).await;
    let held = open.read_one("orders").await;
    assert!(matches!(open.done(super::rollback()).await, Reply::RolledBack(_)));

    let again = test.client.read_one("orders").await;
    assert_eq!(again.read_ct, 1, "the read that was rolled back does not count");
    assert_eq!(test.client.delete("orders", &[&held.receipt]).await, [Outcome::Stale]);
    assert_eq!(test.client.delete("orders", &[&again.receipt]).await, [Outcome::Done]);
}

#[tokio::test]
async fn a_stale_receipt_is_a_result_and_no_failure() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let held = test.client.read_one("orders").await;
    let mut open = Open::begin(&test.client).await;
    open.done(delete("orders", &held)).await;
    match open.done(delete("orders", &held)).await {
        Reply::Delete(deleted) => assert_eq!(outcomes(&deleted.results), [Outcome::NotFound]),
        other => panic!("{other:?}"),
    }
    open.commit().await;
}

#[tokio::test]
async fn a_read_inside_can_wait_for_a_message() {
    let mut test = Test::with_queue("orders").await;
    let mut open = Open::begin(&test.client).await;
    let since = now(&test).await;
    let waiting = ReadBatchRequest { queue: orders(), wait: seconds(4.0), ..Default::default() };
    open.give(Command::ReadBatch(waiting)).await;
    eventually("a read that waits", async || {
        let looked = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
             AND query LIKE '%pgmq-grpc: next_visible%' AND state_change > '{since}' AND pid <> pg_backend_pid()"
        );
        (test.value::<i64>(&looked).await > 0).then_some(())
    })
    .await;
    test.client.send("orders", "{}").await;
    match open.next().await.unwrap().unwrap() {
        Reply::ReadBatch(read) => assert_eq!(ids(&read.messages), [1]),
        other => panic!("{other:?}"),
    }
    open.commit().await;
}

#[tokio::test]
async fn every_call_of_queues_and_messages_works_inside() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["1"; 5]).await;
    let mut open = Open::begin(&test.client).await;

    let create = CreateQueueRequest { queue: "made".to_owned(), ..Default::default() };
    match open.done(Command::CreateQueue(create)).await {
        Reply::CreateQueue(made) => assert!(made.created),
        other => panic!("{other:?}"),
    }
    let batch = SendBatchRequest { queue: "made".to_owned(), messages: vec![outgoing("2"), outgoing("3")] };
    match open.done(Command::SendBatch(batch)).await {
        Reply::SendBatch(sent) => assert_eq!(sent.results.len(), 2),
        other => panic!("{other:?}"),
    }
    match open.done(Command::ListQueues(ListQueuesRequest::default())).await {
        Reply::ListQueues(listed) => assert_eq!(listed.queues.len(), 2),
        other => panic!("{other:?}"),
    }
    let metrics = GetQueueMetricsRequest { queue: "made".to_owned(), ..Default::default() };
    match open.done(Command::GetQueueMetrics(metrics)).await {
        Reply::GetQueueMetrics(metrics) => assert_eq!(metrics.metrics.unwrap().queue_length, 2),
        other => panic!("{other:?}"),
    }
    let held = match open
        .done(Command::ReadBatch(ReadBatchRequest { queue: orders(), max_messages: 4, ..Default::default() }))
        .await
    {
        Reply::ReadBatch(read) => read.messages,
        other => panic!("{other:?}"),
    };
    assert_eq!(held.len(), 4);
    let receipt = |at: usize| vec![held[at].receipt.clone()];
    let settled = [
        Command::Delete(DeleteRequest { queue: orders(), receipts: receipt(0), ..Default::default() }),
        Command::Archive(ArchiveRequest { queue: orders(), receipts: receipt(1), ..Default::default() }),
        Command::Release(ReleaseRequest { queue: orders(), receipts: receipt(2), ..Default::default() }),
        Command::SetVisibilityTimeout(SetVisibilityTimeoutRequest {
            queue: orders(),
            receipts: receipt(3),
            visibility: seconds(600.0).map(Visibility::VisibilityTimeout),
            ..Default::default()
        }),
    ];
    for command in settled {
        let results = match open.done(command).await {
            Reply::Delete(deleted) => deleted.results,
            Reply::Archive(archived) => archived.results,
            Reply::Release(released) => released.results,
            Reply::SetVisibilityTimeout(set) => set.results,
            other => panic!("{other:?}"),
        };
        assert_eq!(outcomes(&results), [Outcome::Done]);
    }
    match open.done(Command::Pop(PopRequest { queue: orders(), max_messages: 10 })).await {
        // The released one and the one that nobody read.
        Reply::Pop(popped) => assert_eq!(ids(&popped.messages), [held[2].msg_id, 5]),
        other => panic!("{other:?}"),
    }
    match open.done(Command::PurgeQueue(PurgeQueueRequest { queue: "made".to_owned() })).await {
        Reply::PurgeQueue(purged) => assert_eq!(purged.purged_count, 2),
        other => panic!("{other:?}"),
    }
    let dropped = open.done(Command::DropQueue(DropQueueRequest { queue: "made".to_owned() })).await;
    assert!(matches!(dropped, Reply::DropQueue(_)));
    open.commit().await;

    assert_eq!(count(&test, "orders").await, 1);
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.a_orders").await, 1);
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.meta").await, 1);
}

#[tokio::test]
async fn every_call_of_topics_works_inside() {
    let test = Test::with_queue("orders").await;
    let mut open = Open::begin(&test.client).await;
    let bind = BindTopicRequest { pattern: "a.*".to_owned(), queue: orders() };
    assert!(matches!(open.done(Command::BindTopic(bind)).await, Reply::BindTopic(bound) if bound.created));
    let test_routing = TestRoutingRequest { routing_key: "a.b".to_owned() };
    match open.done(Command::TestRouting(test_routing)).await {
        Reply::TestRouting(routed) => assert_eq!(routed.matches.len(), 1),
        other => panic!("{other:?}"),
    }
    let one =
        SendTopicRequest { routing_key: "a.b".to_owned(), message: "1".to_owned(), ..Default::default() };
    match open.done(Command::SendTopic(one)).await {
        Reply::SendTopic(sent) => assert_eq!(sent.copies.len(), 1),
        other => panic!("{other:?}"),
    }
    let two = SendTopicBatchRequest {
        routing_key: "a.b".to_owned(),
        messages: vec![outgoing("2"), outgoing("3")],
        ..Default::default()
    };
    match open.done(Command::SendTopicBatch(two)).await {
        Reply::SendTopicBatch(sent) => assert_eq!(sent.copies.len(), 2),
        other => panic!("{other:?}"),
    }
    match open.done(Command::ListTopicBindings(ListTopicBindingsRequest::default())).await {
        Reply::ListTopicBindings(listed) => assert_eq!(listed.bindings.len(), 1),
        other => panic!("{other:?}"),
    }
    let unbind = UnbindTopicRequest { pattern: "a.*".to_owned(), queue: orders() };
    assert!(
        matches!(open.done(Command::UnbindTopic(unbind)).await, Reply::UnbindTopic(gone) if gone.removed)
    );
    open.commit().await;
    assert_eq!(count(&test, "orders").await, 3);
}

#[tokio::test]
async fn every_call_that_changes_queues_works_inside() {
    let test = Test::with_queue("orders").await;
    let mut open = Open::begin(&test.client).await;
    let index = open
        .done(Command::CreateFifoIndex(CreateFifoIndexRequest {
            target: Some(create_fifo_index_request::Target::Queue(orders())),
        }))
        .await;
    assert!(matches!(index, Reply::CreateFifoIndex(_)));
    let enable = EnableNotificationsRequest { queue: orders(), ..Default::default() };
    assert!(matches!(open.done(Command::EnableNotifications(enable)).await, Reply::EnableNotifications(_)));
    let update = UpdateNotificationsRequest { queue: orders(), throttle_interval: seconds(1.0) };
    assert!(matches!(open.done(Command::UpdateNotifications(update)).await, Reply::UpdateNotifications(_)));
    match open.done(Command::ListNotifications(ListNotificationsRequest::default())).await {
        Reply::ListNotifications(listed) => assert_eq!(listed.notifications.len(), 1),
        other => panic!("{other:?}"),
    }
    let disable = DisableNotificationsRequest { queue: orders() };
    assert!(matches!(
        open.done(Command::DisableNotifications(disable)).await,
        Reply::DisableNotifications(_)
    ));
    open.commit().await;
    let indexes = "SELECT count(*) FROM pg_indexes WHERE tablename = 'q_orders' AND indexname LIKE '%fifo%'";
    assert_eq!(test.value::<i64>(indexes).await, 1);

    let convert = ConvertArchivePartitionedRequest { queue: orders(), ..Default::default() };
    let refused = Open::begin(&test.client).await.refused(Command::ConvertArchivePartitioned(convert)).await;
    // Without pg_partman it cannot, and with it the fields left out are refused.
    assert!(matches!(refused.code(), Code::FailedPrecondition | Code::InvalidArgument), "{refused:?}");
}

#[tokio::test]
async fn a_broken_queue_breaks_no_list_of_measures_inside() {
    let mut test = Test::with_queue("orders").await;
    test.client.create("broken").await;
    test.run("ALTER TABLE pgmq.q_broken RENAME TO q_elsewhere").await;
    let mut open = Open::begin(&test.client).await;
    match open.done(Command::ListQueueMetrics(ListQueueMetricsRequest::default())).await {
        Reply::ListQueueMetrics(listed) => {
            let broken: Vec<bool> = listed.metrics.iter().map(|queue| queue.error.is_some()).collect();
            assert_eq!(broken, [true, false]);
        }
        other => panic!("{other:?}"),
    }
    open.done(send("orders", "{}")).await;
    open.commit().await;
    assert_eq!(count(&test, "orders").await, 1);
}

#[tokio::test]
async fn a_queue_made_in_a_transaction_that_is_rolled_back_is_not_there() {
    let mut test = Test::start().await;
    let mut open = Open::begin(&test.client).await;
    let create = CreateQueueRequest { queue: orders(), ..Default::default() };
    open.done(Command::CreateQueue(create)).await;
    open.done(send("orders", "{}")).await;
    open.done(super::rollback()).await;
    let read = ReadBatchRequest { queue: orders(), ..Default::default() };
    let refused = test.client.queue.read_batch(read).await.unwrap_err();
    Refusal::expect(&refused, Code::NotFound, "QUEUE_NOT_FOUND");
    test.client.create("orders").await;
    assert_eq!(test.client.send("orders", "{}").await, 1);
}

#[tokio::test]
async fn a_message_that_no_reply_can_carry_does_not_break_the_transaction() {
    let test = Test::with_queue("orders").await;
    test.run("SELECT pgmq.send('orders', to_jsonb(repeat('x', 5000000)))").await;
    test.run("SELECT pgmq.send('orders', '1'::jsonb)").await;
    let mut open = Open::begin(&test.client).await;
    let wait = ReadBatchRequest { queue: orders(), wait: seconds(4.0), ..Default::default() };
    match open.done(Command::ReadBatch(wait)).await {
        Reply::ReadBatch(read) => assert_eq!(ids(&read.messages), [2]),
        other => panic!("{other:?}"),
    }
    open.commit().await;
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.a_orders").await, 1);
}

#[tokio::test]
async fn insert_notifications_of_an_open_transaction_hold_up_no_other_sender() {
    if is_old_pgmq() {
        // Its trigger cannot be put off.
        return;
    }
    let mut test = Test::with_queue("orders").await;
    let enable = EnableNotificationsRequest { queue: orders(), throttle_interval: seconds(0.0) };
    test.client.admin.enable_notifications(enable).await.unwrap();
    let mut open = Open::begin(&test.client).await;
    open.done(send("orders", "1")).await;
    // Another's send would fail with QUEUE_BUSY after two seconds if it had to wait for the transaction.
    test.client.send("orders", "2").await;
    open.commit().await;
    assert_eq!(count(&test, "orders").await, 2);
}

#[tokio::test]
async fn a_transaction_at_one_replica_is_seen_at_another_after_its_commit() {
    let test = Test::with_queue("orders").await;
    let other = Server::start_on(&test.database, &[]).await;
    let mut elsewhere = Client::connect(&other).await;
    let mut open = Open::begin(&test.client).await;
    open.done(send("orders", "{}")).await;
    assert!(elsewhere.read("orders", 1).await.is_empty());
    open.commit().await;
    assert_eq!(elsewhere.read_one("orders").await.msg_id, 1);
    assert!(matches!(Open::begin(&elsewhere).await.done(read("orders")).await, Reply::ReadBatch(_)));
}

#[tokio::test]
async fn deduplication_ids_are_refused_in_every_command_that_has_one() {
    let test = Test::with_queue("orders").await;
    let keyed = || OutgoingMessage {
        message: "{}".to_owned(),
        deduplication_id: "once".to_owned(),
        ..Default::default()
    };
    let (queue, id, message) = ("orders".to_owned(), "once".to_owned(), "{}".to_owned());
    let routing_key = "logs.error".to_owned();
    let commands = [
        (
            Command::Send(SendRequest {
                queue: queue.clone(),
                message: message.clone(),
                deduplication_id: id.clone(),
                ..Default::default()
            }),
            "send.deduplication_id",
        ),
        (
            Command::SendBatch(SendBatchRequest { queue, messages: vec![outgoing("{}"), keyed()] }),
            "send_batch.messages[1].deduplication_id",
        ),
        (
            Command::SendTopic(SendTopicRequest {
                routing_key: routing_key.clone(),
                message,
                deduplication_id: id,
                ..Default::default()
            }),
            "send_topic.deduplication_id",
        ),
        (
            Command::SendTopicBatch(SendTopicBatchRequest {
                routing_key,
                messages: vec![keyed()],
                ..Default::default()
            }),
            "send_topic_batch.messages[0].deduplication_id",
        ),
    ];
    for (command, field) in commands {
        let mut open = Open::begin(&test.client).await;
        open.done(send("orders", "{}")).await;
        let refused = open.refused(command).await;
        Refusal::expect_invalid(&refused, "INVALID_DEDUPLICATION_ID", field);
    }
    assert_eq!(count(&test, "orders").await, 0);
    let keys = "SELECT count(*) FROM pgmq_grpc.deduplication";
    assert_eq!(test.value::<i64>(keys).await, 0);
}
