//! Topic sends with deduplication ids: once in each queue.

use pgmq_grpc::proto::v1::{
    BindTopicRequest, SendTopicBatchRequest, SendTopicRequest, SendTopicResponse, TopicCopy,
    UnbindTopicRequest,
};
use tonic::Status;

use super::{bodies, expect_reused, item, keyed, send};
use crate::harness::Test;
use crate::harness::client::outgoing;

fn to(id: &str, message: &str) -> SendTopicRequest {
    SendTopicRequest {
        routing_key: "orders.eu".to_owned(),
        message: message.to_owned(),
        deduplication_id: id.to_owned(),
        ..Default::default()
    }
}

async fn publish(test: &mut Test, request: SendTopicRequest) -> Result<SendTopicResponse, Status> {
    Ok(test.client.topic.send_topic(request).await?.into_inner())
}

async fn bind(test: &mut Test, queue: &str) {
    let bind = BindTopicRequest { pattern: "orders.*".to_owned(), queue: queue.to_owned() };
    test.client.topic.bind_topic(bind).await.unwrap();
}

async fn with_two_queues() -> Test {
    let mut test = Test::start().await;
    for queue in ["one", "two", "three"] {
        test.client.create(queue).await;
    }
    bind(&mut test, "one").await;
    bind(&mut test, "two").await;
    test
}

fn copies(copies: &[TopicCopy]) -> Vec<(&str, i64, bool)> {
    copies.iter().map(|copy| (copy.queue.as_str(), copy.msg_id, copy.deduplicated)).collect()
}

#[tokio::test]
async fn a_repeat_gives_the_same_copies_and_stores_none() {
    let mut test = with_two_queues().await;
    let first = publish(&mut test, to("a", "1")).await.unwrap();
    assert_eq!(
        (copies(&first.copies), first.deduplicated),
        (vec![("one", 1, false), ("two", 1, false)], false)
    );

    let again = publish(&mut test, to("a", "1")).await.unwrap();
    assert_eq!((copies(&again.copies), again.deduplicated), (vec![("one", 1, true), ("two", 1, true)], true));
    assert_eq!((bodies(&test, "one").await.len(), bodies(&test, "two").await.len()), (1, 1));
    expect_reused(&publish(&mut test, to("a", "2")).await.unwrap_err());
}

#[tokio::test]
async fn a_queue_bound_meanwhile_gets_its_copy_with_the_repeat() {
    let mut test = with_two_queues().await;
    publish(&mut test, to("a", "1")).await.unwrap();
    bind(&mut test, "three").await;
    let unbind = UnbindTopicRequest { pattern: "orders.*".to_owned(), queue: "one".to_owned() };
    test.client.topic.unbind_topic(unbind).await.unwrap();

    let again = publish(&mut test, to("a", "1")).await.unwrap();
    assert_eq!(
        (copies(&again.copies), again.deduplicated),
        (vec![("three", 1, false), ("two", 1, true)], false)
    );
}

#[tokio::test]
async fn a_send_and_a_topic_send_share_the_ids_of_a_queue() {
    let mut test = with_two_queues().await;
    send(&mut test.client, keyed("two", "a", "1")).await.unwrap();
    let sent = publish(&mut test, to("a", "1")).await.unwrap();
    assert_eq!(copies(&sent.copies), [("one", 1, false), ("two", 1, true)]);

    send(&mut test.client, keyed("two", "b", "1")).await.unwrap();
    let refusal = expect_reused(&publish(&mut test, to("b", "2")).await.unwrap_err());
    assert_eq!(refusal.metadata["queue"], "two");
    assert_eq!(bodies(&test, "one").await, ["1"]);
}

#[tokio::test]
async fn a_batch_keeps_its_order_in_each_queue_and_stores_what_is_new() {
    let mut test = with_two_queues().await;
    publish(&mut test, to("b", "2")).await.unwrap();
    let messages = vec![item("z", "1"), item("b", "2"), outgoing("3"), item("z", "1"), item("a", "4")];
    let request =
        SendTopicBatchRequest { routing_key: "orders.eu".to_owned(), messages, require_match: true };

    let sent = test.client.topic.send_topic_batch(request).await.unwrap().into_inner().copies;

    for queue in ["one", "two"] {
        assert_eq!(bodies(&test, queue).await, ["2", "1", "3", "4"]);
        let of_queue: Vec<&TopicCopy> = sent.iter().filter(|copy| copy.queue == queue).collect();
        let flags: Vec<(i32, bool)> =
            of_queue.iter().map(|copy| (copy.message_index, copy.deduplicated)).collect();
        assert_eq!(flags, [(0, false), (1, true), (2, false), (3, true), (4, false)]);
        assert_eq!(of_queue[3].msg_id, of_queue[0].msg_id);
    }
}
