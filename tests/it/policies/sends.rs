//! What policies do to messages that are sent.

use pgmq_grpc::proto::v1::open_transaction_response::Reply;
use pgmq_grpc::proto::v1::transact_operation::Operation;
use pgmq_grpc::proto::v1::{
    BindTopicRequest, OutgoingMessage, QueuePolicy, SendBatchRequest, SendRequest, SendTopicBatchRequest,
    SendTopicRequest, TransactOperation, TransactRequest, outgoing_message, send_request, send_topic_request,
};
use tonic::Status;

use super::{clear, set};
use crate::harness::client::outgoing;
use crate::harness::{Client, Refusal, Test, eventually, moment_in, seconds};
use crate::produce::{Stream, frame, reasons};
use crate::transaction::{Open, send as send_command};

fn delayed() -> QueuePolicy {
    QueuePolicy { default_delay: seconds(3_600.0), ..Default::default() }
}

fn limited(max_message_bytes: i32) -> QueuePolicy {
    QueuePolicy { max_message_bytes: Some(max_message_bytes), ..Default::default() }
}

fn to(queue: &str, message: &str) -> SendRequest {
    SendRequest { queue: queue.to_owned(), message: message.to_owned(), ..Default::default() }
}

fn to_topic(message: &str) -> SendTopicRequest {
    SendTopicRequest { routing_key: "a".to_owned(), message: message.to_owned(), ..Default::default() }
}

async fn bind(client: &mut Client, queue: &str) {
    let request = BindTopicRequest { pattern: "a".to_owned(), queue: queue.to_owned() };
    client.topic.bind_topic(request).await.expect("a binding");
}

async fn transact(client: &mut Client, operation: Operation) -> Result<(), Status> {
    let operations = vec![TransactOperation { operation: Some(operation) }];
    client.queue.transact(TransactRequest { operations, ..Default::default() }).await.map(drop)
}

/// How many messages of a queue are delayed for about an hour, and how many not at all.
async fn delayed_and_not(test: &Test, queue: &str) -> (i64, i64) {
    let count = async |which: &str| -> i64 {
        test.value(&format!("SELECT count(*) FROM pgmq.q_{queue} WHERE {which}")).await
    };
    let hour = "vt BETWEEN enqueued_at + interval '59 minutes' AND enqueued_at + interval '61 minutes'";
    (count(hour).await, count("vt <= clock_timestamp()").await)
}

#[tokio::test]
async fn every_way_of_sending_has_the_default_delay() {
    let mut test = Test::with_queue("orders").await;
    bind(&mut test.client, "orders").await;
    set(&mut test.client, "orders", delayed()).await;
    let mut client = test.client.clone();

    client.send("orders", "1").await;
    client.send_all("orders", &["2", "3"]).await;
    client.queue.send(SendRequest { deduplication_id: "a".to_owned(), ..to("orders", "4") }).await.unwrap();
    let mut stream = Stream::open(&client).await;
    stream.give(frame("orders", 1, vec![outgoing("5"), outgoing("6")])).await;
    assert!(stream.answer().await.failures.is_empty());
    transact(&mut client, Operation::Send(to("orders", "7"))).await.unwrap();
    let batch = SendBatchRequest { queue: "orders".to_owned(), messages: vec![outgoing("8")] };
    transact(&mut client, Operation::SendBatch(batch)).await.unwrap();
    transact(&mut client, Operation::SendTopic(to_topic("9"))).await.unwrap();
    client.topic.send_topic(to_topic("10")).await.unwrap();
    let keyed = SendTopicRequest { deduplication_id: "b".to_owned(), ..to_topic("11") };
    client.topic.send_topic(keyed).await.unwrap();
    let batch = SendTopicBatchRequest {
        routing_key: "a".to_owned(),
        messages: vec![outgoing("12"), outgoing("13")],
        require_match: true,
    };
    client.topic.send_topic_batch(batch).await.unwrap();
    let mut open = Open::begin(&client).await;
    assert!(matches!(open.done(send_command("orders", "14")).await, Reply::Send(_)));
    open.commit().await;

    assert_eq!(delayed_and_not(&test, "orders").await, (14, 0));
    clear(&mut test.client, "orders", &["default_delay"]).await;
    test.client.send("orders", "15").await;
    assert_eq!(delayed_and_not(&test, "orders").await, (14, 1));
}

#[tokio::test]
async fn a_message_that_says_when_it_is_visible_is_visible_then() {
    let mut test = Test::with_queue("orders").await;
    bind(&mut test.client, "orders").await;
    set(&mut test.client, "orders", delayed()).await;
    let now = seconds(0.0).unwrap();
    let send = |schedule| SendRequest { schedule: Some(schedule), ..to("orders", "1") };
    for schedule in [send_request::Schedule::Delay(now), send_request::Schedule::VisibleAt(moment_in(-60))] {
        test.client.queue.send(send(schedule)).await.unwrap();
    }
    let schedule = Some(send_topic_request::Schedule::Delay(now));
    test.client.topic.send_topic(SendTopicRequest { schedule, ..to_topic("1") }).await.unwrap();
    let at_once = OutgoingMessage { schedule: Some(outgoing_message::Schedule::Delay(now)), ..outgoing("1") };
    let messages = vec![at_once, outgoing("1")];
    let batch = SendTopicBatchRequest { routing_key: "a".to_owned(), messages, require_match: true };
    test.client.topic.send_topic_batch(batch).await.unwrap();
    assert_eq!(delayed_and_not(&test, "orders").await, (1, 4));
}

#[tokio::test]
async fn each_copy_of_a_topic_has_the_delay_of_its_own_queue() {
    let mut test = Test::start().await;
    for queue in ["later", "now"] {
        test.client.create(queue).await;
        bind(&mut test.client, queue).await;
    }
    set(&mut test.client, "later", delayed()).await;
    let copies = test.client.topic.send_topic(to_topic("1")).await.unwrap().into_inner().copies;
    let queues: Vec<&str> = copies.iter().map(|copy| copy.queue.as_str()).collect();
    assert_eq!(queues, ["later", "now"]);
    assert_eq!(delayed_and_not(&test, "later").await, (1, 0));
    assert_eq!(delayed_and_not(&test, "now").await, (0, 1));
}

#[tokio::test]
async fn a_delayed_message_wakes_its_reader_when_it_is_due() {
    let mut test = Test::with_queue("orders").await;
    let short = QueuePolicy { default_delay: seconds(0.5), ..Default::default() };
    set(&mut test.client, "orders", short).await;
    let mut reader = test.client.clone();
    let waiting = crate::read_batch::waiting_for("orders");
    let read = tokio::spawn(async move { reader.read_as(waiting).await });
    let sent = test.client.send("orders", "1").await;
    let message = read.await.unwrap().remove(0);
    assert_eq!(message.msg_id, sent);
    let micros = |moment| crate::read_batch::micros(moment);
    let waited = micros(message.last_read_at.as_ref()) - micros(message.enqueued_at.as_ref());
    assert!(waited >= 500_000, "{waited}");
}

#[tokio::test]
async fn a_body_larger_than_its_queue_takes_is_refused_whichever_way_it_comes() {
    let mut test = Test::with_queue("orders").await;
    bind(&mut test.client, "orders").await;
    set(&mut test.client, "orders", limited(5)).await;
    let mut client = test.client.clone();
    let (fits, large) = ("12345", "123456");

    client.send("orders", fits).await;
    let status = client.queue.send(to("orders", large)).await.unwrap_err();
    let refusal = Refusal::expect_invalid(&status, "MESSAGE_TOO_LARGE", "message");
    assert_eq!(refusal.metadata["limit"], "5");
    let batch = |queue: &str| SendBatchRequest {
        queue: queue.to_owned(),
        messages: vec![outgoing(fits), outgoing(large)],
    };
    let status = client.queue.send_batch(batch("orders")).await.unwrap_err();
    Refusal::expect_invalid(&status, "MESSAGE_TOO_LARGE", "messages[1].message");
    let mut stream = Stream::open(&client).await;
    stream.give(frame("orders", 1, batch("orders").messages)).await;
    let answer = stream.answer().await;
    assert_eq!(reasons(&answer), [(1, "MESSAGE_TOO_LARGE".to_owned(), 3)]);
    assert!(answer.msg_ids[0] > 0);
    let status = transact(&mut client, Operation::SendBatch(batch("orders"))).await.unwrap_err();
    Refusal::expect_invalid(&status, "MESSAGE_TOO_LARGE", "operations[0].send_batch.messages[1].message");
    let status = client.topic.send_topic(to_topic(large)).await.unwrap_err();
    let refusal = Refusal::expect_invalid(&status, "MESSAGE_TOO_LARGE", "message");
    assert_eq!(refusal.metadata["queue"], "orders");
    let topic = SendTopicBatchRequest {
        routing_key: "a".to_owned(),
        messages: batch("orders").messages,
        require_match: true,
    };
    let status = client.topic.send_topic_batch(topic).await.unwrap_err();
    Refusal::expect_invalid(&status, "MESSAGE_TOO_LARGE", "messages[1].message");
    let status = Open::begin(&client).await.refused(send_command("orders", large)).await;
    Refusal::expect_invalid(&status, "MESSAGE_TOO_LARGE", "send.message");

    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 2);
}

#[tokio::test]
async fn a_queue_may_take_more_than_the_server_takes_by_itself() {
    let mut test = Test::start_with(&["--max-message-bytes", "10"]).await;
    test.client.create("small").await;
    test.client.create("large").await;
    set(&mut test.client, "large", limited(1_000)).await;
    let body = "1".repeat(500);
    test.client.send("large", &body).await;
    let status = test.client.queue.send(to("small", &body)).await.unwrap_err();
    Refusal::expect_invalid(&status, "MESSAGE_TOO_LARGE", "message");
    // A topic's message is held to the server's limit too.
    bind(&mut test.client, "large").await;
    let status = test.client.topic.send_topic(to_topic(&body)).await.unwrap_err();
    Refusal::expect_invalid(&status, "MESSAGE_TOO_LARGE", "message");
}

#[tokio::test]
async fn a_queue_has_a_window_of_deduplication_of_its_own() {
    let mut test = Test::with_queue("orders").await;
    test.client.create("others").await;
    let short = QueuePolicy { deduplication_window: seconds(0.3), ..Default::default() };
    set(&mut test.client, "orders", short).await;
    let keyed = |queue: &str| SendRequest { deduplication_id: "a".to_owned(), ..to(queue, "1") };
    let first = test.client.queue.send(keyed("orders")).await.unwrap().into_inner();
    let elsewhere = test.client.queue.send(keyed("others")).await.unwrap().into_inner();

    let second = eventually("the end of the window", async || {
        let sent = test.client.queue.clone().send(keyed("orders")).await.unwrap().into_inner();
        (!sent.deduplicated).then_some(sent.msg_id)
    })
    .await;

    assert!(second > first.msg_id);
    let again = test.client.queue.send(keyed("others")).await.unwrap().into_inner();
    assert_eq!((again.msg_id, again.deduplicated), (elsewhere.msg_id, true));
}
