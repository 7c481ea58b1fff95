//! `Transact`: several operations, all of them or none.

use pgmq_grpc::proto::v1::set_visibility_timeout_request::Visibility;
use pgmq_grpc::proto::v1::transact_operation::Operation;
use pgmq_grpc::proto::v1::transact_result::Result as Done;
use pgmq_grpc::proto::v1::{
    ArchiveRequest, BindTopicRequest, DeleteRequest, Message, Outcome, ReadBatchRequest, ReleaseRequest,
    SendBatchRequest, SendRequest, SendTopicRequest, SetVisibilityTimeoutRequest, TransactOperation,
    TransactRequest,
};
use tonic::{Code, Status};

use crate::harness::client::outgoing;
use crate::harness::{Client, Refusal, Test, seconds};
use crate::read_batch::{all_of, begin_read, ids, now, until_a_reader_waits, waiting_for};
use crate::settle::{outcomes, release};

fn operation(operation: Operation) -> TransactOperation {
    TransactOperation { operation: Some(operation) }
}

fn send(queue: &str, message: &str) -> TransactOperation {
    let (queue, message) = (queue.to_owned(), message.to_owned());
    operation(Operation::Send(SendRequest { queue, message, ..Default::default() }))
}

fn delete(queue: &str, messages: &[&Message]) -> TransactOperation {
    let receipts = messages.iter().map(|message| message.receipt.clone()).collect();
    operation(Operation::Delete(DeleteRequest { queue: queue.to_owned(), receipts, ..Default::default() }))
}

fn archive(queue: &str, messages: &[&Message]) -> TransactOperation {
    let receipts = messages.iter().map(|message| message.receipt.clone()).collect();
    operation(Operation::Archive(ArchiveRequest { queue: queue.to_owned(), receipts, ..Default::default() }))
}

async fn transact(client: &mut Client, operations: Vec<TransactOperation>) -> Result<Vec<Done>, Status> {
    let answer =
        client.queue.transact(TransactRequest { operations, ..Default::default() }).await?.into_inner();
    Ok(answer.results.into_iter().map(|result| result.result.expect("a result")).collect())
}

/// Queues `orders`, with so many messages read, and `results`.
async fn with_held(count: usize) -> (Test, Vec<Message>) {
    let mut test = Test::with_queue("orders").await;
    test.client.create("results").await;
    for _ in 0..count {
        test.client.send("orders", "{}").await;
    }
    let held = test.client.read_as(all_of("orders")).await;
    (test, held)
}

async fn count(test: &Test, table: &str) -> i64 {
    test.value(&format!("SELECT count(*) FROM pgmq.{table}")).await
}

fn index(refusal: &Refusal, which: &str) -> String {
    refusal.metadata.get(which).unwrap_or_else(|| panic!("no {which} in {refusal:?}")).clone()
}

#[tokio::test]
async fn a_message_is_deleted_and_its_result_sent_together() {
    let (mut test, held) = with_held(1).await;
    let read = begin_read(&test, waiting_for("results"));
    let since = now(&test).await;
    until_a_reader_waits(&test, &since).await;
    let done =
        transact(&mut test.client, vec![delete("orders", &[&held[0]]), send("results", "1")]).await.unwrap();
    match &done[..] {
        [Done::Delete(deleted), Done::Send(sent)] => {
            assert_eq!(outcomes(&deleted.results), [Outcome::Done]);
            assert_eq!(ids(&read.await.unwrap()), [sent.msg_id]);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(count(&test, "q_orders").await, 0);
}

#[tokio::test]
async fn every_kind_of_operation_gives_the_result_of_its_call() {
    let (mut test, held) = with_held(5).await;
    let bind = BindTopicRequest { pattern: "done.*".to_owned(), queue: "results".to_owned() };
    test.client.topic.bind_topic(bind).await.unwrap();
    let delay = seconds(600.0);
    let batch =
        SendBatchRequest { queue: "results".to_owned(), messages: vec![outgoing("2"), outgoing("3")] };
    let topic = SendTopicRequest {
        routing_key: "done.well".to_owned(),
        message: "4".to_owned(),
        ..Default::default()
    };
    let receipt = |at: usize| vec![held[at].receipt.clone()];
    let orders = || "orders".to_owned();
    let operations = vec![
        send("results", "1"),
        operation(Operation::SendBatch(batch)),
        operation(Operation::SendTopic(topic)),
        delete("orders", &[&held[0]]),
        archive("orders", &[&held[1]]),
        operation(Operation::Release(ReleaseRequest { queue: orders(), receipts: receipt(2), delay })),
        operation(Operation::SetVisibilityTimeout(SetVisibilityTimeoutRequest {
            queue: orders(),
            receipts: receipt(3),
            visibility: delay.map(Visibility::VisibilityTimeout),
            return_messages: true,
            ..Default::default()
        })),
        operation(Operation::Delete(DeleteRequest {
            queue: orders(),
            msg_ids: vec![5, 99],
            ..Default::default()
        })),
    ];
    let done = transact(&mut test.client, operations).await.unwrap();
    let [
        Done::Send(sent),
        Done::SendBatch(batch),
        Done::SendTopic(topic),
        Done::Delete(deleted),
        Done::Archive(archived),
        Done::Release(released),
        Done::SetVisibilityTimeout(set),
        Done::Delete(by_id),
    ] = &done[..]
    else {
        panic!("{done:?}")
    };
    assert_eq!(sent.msg_id, 1);
    assert_eq!(batch.results.iter().map(|result| result.msg_id).collect::<Vec<_>>(), [2, 3]);
    assert_eq!((topic.copies[0].queue.as_str(), topic.copies[0].msg_id), ("results", 4));
    assert_eq!(outcomes(&deleted.results), [Outcome::Done]);
    assert_eq!(outcomes(&archived.results), [Outcome::Done]);
    assert_eq!(outcomes(&released.results), [Outcome::Done]);
    assert_eq!(outcomes(&set.results), [Outcome::Done]);
    assert_eq!(set.messages[0].receipt, held[3].receipt);
    assert_eq!(outcomes(&by_id.results), [Outcome::Done, Outcome::NotFound]);
    assert_eq!((count(&test, "q_orders").await, count(&test, "a_orders").await), (2, 1));
    let bodies = "SELECT string_agg(message::text, ' ' ORDER BY msg_id) FROM pgmq.q_results";
    assert_eq!(test.value::<String>(bodies).await, "1 2 3 4");
    let hidden = "SELECT count(*) FROM pgmq.q_orders WHERE vt > clock_timestamp() + interval '5 minutes'";
    assert_eq!(test.value::<i64>(hidden).await, 2);
}

#[tokio::test]
async fn operations_take_effect_in_their_order() {
    let (mut test, held) = with_held(1).await;
    let receipts = vec![held[0].receipt.clone()];
    let give = Operation::Release(ReleaseRequest { queue: "orders".to_owned(), receipts, delay: None });
    transact(&mut test.client, vec![operation(give), archive("orders", &[&held[0]])]).await.unwrap();
    assert_eq!(count(&test, "a_orders").await, 1);
}

#[tokio::test]
async fn a_stale_receipt_undoes_everything_and_is_named() {
    let (mut test, held) = with_held(3).await;
    release(&mut test.client, "orders", &[&held[1].receipt], None).await;
    test.client.read_one("orders").await;
    let before =
        test.value::<String>("SELECT string_agg(q::text, ' ' ORDER BY msg_id) FROM pgmq.q_orders AS q").await;
    let operations =
        vec![send("results", "1"), archive("orders", &[&held[0]]), delete("orders", &[&held[2], &held[1]])];
    let refused = transact(&mut test.client, operations).await.unwrap_err();
    let refusal = Refusal::expect(&refused, Code::FailedPrecondition, "STALE_RECEIPT");
    assert_eq!(
        (index(&refusal, "operation_index"), index(&refusal, "item_index")),
        ("2".to_owned(), "1".to_owned())
    );
    let after =
        test.value::<String>("SELECT string_agg(q::text, ' ' ORDER BY msg_id) FROM pgmq.q_orders AS q").await;
    assert_eq!(after, before);
    assert_eq!((count(&test, "a_orders").await, count(&test, "q_results").await), (0, 0));
}

#[tokio::test]
async fn a_receipt_whose_message_is_gone_undoes_everything_and_is_named() {
    let (mut test, held) = with_held(3).await;
    test.client.delete("orders", &[&held[2].receipt]).await;
    let operations = vec![delete("orders", &[&held[0], &held[1], &held[2]]), send("results", "1")];
    let refused = transact(&mut test.client, operations).await.unwrap_err();
    let refusal = Refusal::expect(&refused, Code::FailedPrecondition, "RECEIPT_NOT_FOUND");
    assert_eq!(
        (index(&refusal, "operation_index"), index(&refusal, "item_index")),
        ("0".to_owned(), "2".to_owned())
    );
    assert_eq!((count(&test, "q_orders").await, count(&test, "q_results").await), (2, 0));
    assert_eq!(test.client.delete("orders", &[&held[0].receipt]).await, [Outcome::Done]);
}

#[tokio::test]
async fn a_message_is_settled_once_in_a_transaction() {
    let (mut test, held) = with_held(1).await;
    let operations = vec![delete("orders", &[&held[0]]), archive("orders", &[&held[0]])];
    let refused = transact(&mut test.client, operations).await.unwrap_err();
    let refusal = Refusal::expect(&refused, Code::FailedPrecondition, "RECEIPT_NOT_FOUND");
    assert_eq!(index(&refusal, "operation_index"), "1");
    assert_eq!((count(&test, "q_orders").await, count(&test, "a_orders").await), (1, 0));
}

#[tokio::test]
async fn an_unknown_queue_in_the_third_operation_undoes_the_others() {
    let (mut test, held) = with_held(2).await;
    let by_id = DeleteRequest { queue: "nowhere".to_owned(), msg_ids: vec![1], ..Default::default() };
    for unknown in [send("nowhere", "{}"), operation(Operation::Delete(by_id))] {
        let operations = vec![send("results", "1"), delete("orders", &[&held[0]]), unknown];
        let refused = transact(&mut test.client, operations).await.unwrap_err();
        let refusal = Refusal::expect(&refused, Code::NotFound, "QUEUE_NOT_FOUND");
        assert_eq!(index(&refusal, "queue"), "nowhere");
        assert_eq!((count(&test, "q_orders").await, count(&test, "q_results").await), (2, 0));
    }
    // The connection is as good as before.
    assert_eq!(test.client.delete("orders", &[&held[0].receipt]).await, [Outcome::Done]);
}

#[tokio::test]
async fn a_topic_without_a_route_undoes_everything_if_one_is_required() {
    let (mut test, held) = with_held(1).await;
    let topic = |require_match| {
        operation(Operation::SendTopic(SendTopicRequest {
            routing_key: "no.one".to_owned(),
            message: "{}".to_owned(),
            require_match,
            ..Default::default()
        }))
    };
    let refused =
        transact(&mut test.client, vec![delete("orders", &[&held[0]]), topic(true)]).await.unwrap_err();
    Refusal::expect(&refused, Code::FailedPrecondition, "NO_ROUTE");
    assert_eq!(count(&test, "q_orders").await, 1);
    let done = transact(&mut test.client, vec![delete("orders", &[&held[0]]), topic(false)]).await.unwrap();
    assert!(matches!(&done[1], Done::SendTopic(topic) if topic.copies.is_empty()));
}

#[tokio::test]
async fn ids_that_are_not_there_undo_nothing() {
    let (mut test, _) = with_held(1).await;
    let by_id = DeleteRequest { queue: "orders".to_owned(), msg_ids: vec![7, 1], ..Default::default() };
    let operations = vec![operation(Operation::Delete(by_id)), send("results", "1")];
    let done = transact(&mut test.client, operations).await.unwrap();
    assert!(
        matches!(&done[0], Done::Delete(deleted) if outcomes(&deleted.results) == [Outcome::NotFound, Outcome::Done])
    );
    assert_eq!(count(&test, "q_results").await, 1);
}

#[tokio::test]
async fn operations_become_visible_together() {
    let mut test = Test::with_queue("first").await;
    test.client.create("second").await;
    let mut writer = test.client.clone();
    let writing = tokio::spawn(async move {
        for _ in 0..100 {
            let twice = vec![send("first", "{}"), send("second", "{}")];
            transact(&mut writer, twice).await.unwrap();
        }
    });
    while !writing.is_finished() {
        let difference = "SELECT (SELECT count(*) FROM pgmq.q_first) - (SELECT count(*) FROM pgmq.q_second)";
        assert_eq!(test.value::<i64>(difference).await, 0);
    }
    writing.await.unwrap();
    assert_eq!(count(&test, "q_second").await, 100);
}

#[tokio::test]
async fn transactions_over_the_same_receipts_in_opposite_orders_do_not_deadlock() {
    const ROUNDS: usize = 15;
    let (mut test, _) = with_held(0).await;
    for _ in 0..ROUNDS {
        test.client.send_all("orders", &["{}"; 6]).await;
        test.client.send_all("results", &["{}"; 6]).await;
        let orders = test.client.read_as(all_of("orders")).await;
        let results =
            test.client.read_as(ReadBatchRequest { queue: "results".to_owned(), ..all_of("orders") }).await;
        let calls: Vec<_> = (0..8)
            .map(|number| {
                let mut operations: Vec<TransactOperation> = orders
                    .iter()
                    .map(|message| delete("orders", &[message]))
                    .chain(results.iter().map(|message| archive("results", &[message])))
                    .collect();
                if number % 2 == 1 {
                    operations.reverse();
                }
                let mut client = test.client.clone();
                tokio::spawn(async move { transact(&mut client, operations).await })
            })
            .collect();
        let mut done = 0;
        for call in calls {
            match call.await.unwrap() {
                Ok(results) => done += usize::from(results.len() == 12),
                Err(refused) => {
                    Refusal::expect(&refused, Code::FailedPrecondition, "RECEIPT_NOT_FOUND");
                }
            }
        }
        assert_eq!(done, 1, "exactly one of the transactions settles the messages");
    }
    assert_eq!((count(&test, "q_orders").await, count(&test, "q_results").await), (0, 0));
}

#[tokio::test]
async fn settles_beside_transactions_over_the_same_receipts_do_not_deadlock() {
    let (test, held) = with_held(60).await;
    let calls: Vec<_> = (0..12)
        .map(|number| {
            let mut client = test.client.clone();
            let mut messages = held.clone();
            if number % 2 == 1 {
                messages.reverse();
            }
            tokio::spawn(async move {
                if number < 6 {
                    let operations = messages.iter().map(|message| delete("orders", &[message])).collect();
                    if let Err(refused) = transact(&mut client, operations).await {
                        Refusal::expect(&refused, Code::FailedPrecondition, "RECEIPT_NOT_FOUND");
                    }
                } else {
                    let receipts: Vec<&str> =
                        messages.iter().map(|message| message.receipt.as_str()).collect();
                    let outcomes = client.delete("orders", &receipts).await;
                    assert!(!outcomes.contains(&Outcome::Stale));
                }
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
    }
    assert_eq!(count(&test, "q_orders").await, 0);
}
