//! The client, as the package has it, against a real server. The cases of `clients/conformance` test what all languages
//! share; here stands what is Rust's own.

mod own_server;
mod refusals;
mod sends;
mod support;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use pgmq_grpc_client::{Client, Code, ErrorReason, Outcome, OutgoingMessage, QueuePolicy, pb};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use support::{Loses, client, eventually, new_queue};

#[derive(Debug, Deserialize, PartialEq, Serialize)]
struct Order {
    order: u64,
    total: String,
}

#[tokio::test]
async fn a_value_of_ones_own_type_goes_in_and_comes_out() -> support::Outcome {
    let queue = new_queue(&client()).await;
    let order = Order { order: u64::MAX, total: "12.50".to_owned() };
    let sent = queue.send(&order).headers(&json!({ "trace": "t1" })).await?;
    let messages = queue.read().max_messages(10).visibility_timeout(Duration::from_secs(60)).await?;
    assert_eq!(messages.len(), 1);
    assert_eq!(messages[0].msg_id, sent.msg_id);
    assert_eq!(messages[0].json::<Order>()?, order);
    assert_eq!(messages[0].headers::<Value>()?, Some(json!({ "trace": "t1" })));
    let error = messages[0].json::<Vec<u8>>().expect_err("it is no list");
    assert!(error.is(ErrorReason::InvalidJson) && !error.outcome_unknown());
    assert_eq!(messages[0].delete().await?, Outcome::Done);
    Ok(())
}

#[tokio::test]
async fn numbers_of_a_value_keep_their_digits() -> support::Outcome {
    let queue = new_queue(&client()).await;
    let text = "[123456789012345678901234567890, 12.50]";
    queue.send(OutgoingMessage::text(text)).await?;
    let value: Value = queue.read().await?[0].json()?;
    assert_eq!(value.to_string(), text.replace(' ', ""));
    Ok(())
}

#[tokio::test]
async fn what_has_no_json_is_an_error_of_the_call() {
    let keys_that_are_no_text = std::collections::HashMap::from([((1, 2), 3)]);
    let error =
        client().queue("any").send(&keys_that_are_no_text).delay(Duration::ZERO).await.expect_err("no JSON");
    assert_eq!((error.code(), error.field()), (Code::InvalidArgument, Some("message")));
    assert!(!error.outcome_unknown());
}

#[tokio::test]
async fn errors_are_typed() {
    let error = client().queue("not_there").read().await.expect_err("there is no such queue");
    assert_eq!((error.code(), error.reason()), (Code::NotFound, Some("QUEUE_NOT_FOUND")));
    assert!(error.is(ErrorReason::QueueNotFound) && !error.is(ErrorReason::QueueBusy));
    assert_eq!(error.metadata().get("queue").map(String::as_str), Some("not_there"));
    assert!(error.request_id().is_some() && !error.outcome_unknown());
    assert!(error.to_string().starts_with("QUEUE_NOT_FOUND: "));
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unavailable_and_has_got_nothing() {
    let free =
        std::net::TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("an address");
    let client = Client::connect(free.to_string().as_str()).expect("the target is usable");
    let error = client.queue("any").send(json!(1)).await.expect_err("nobody listens");
    assert_eq!((error.code(), error.reason()), (Code::Unavailable, None));
    assert!(!error.outcome_unknown());
}

#[tokio::test]
async fn a_target_that_makes_no_sense_is_refused() {
    let error = Client::connect("http://[").expect_err("no target");
    assert_eq!(error.code(), Code::InvalidArgument);
    let error = Client::builder().metadata("no header", "x").connect("127.0.0.1:1").expect_err("no header");
    assert_eq!(error.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn only_what_may_be_repeated_is_sent_again_after_a_lost_answer() -> support::Outcome {
    let loses = Loses::first(2, "/Send");
    let client = Client::builder().layer(loses.clone()).connect(None)?;
    let queue = new_queue(&client).await;
    let error = queue.send(json!(1)).await.expect_err("the answer was lost");
    assert_eq!((error.code(), error.outcome_unknown()), (Code::Unavailable, true));
    assert_eq!(loses.calls(), 1);
    let sent = queue.send(json!(2)).idempotent().await?;
    assert!(sent.deduplicated, "the first attempt has stored it");
    assert_eq!(loses.calls(), 3);
    assert_eq!(queue.metrics().await?.queue_length, 2);
    Ok(())
}

#[tokio::test]
async fn calls_of_the_service_config_are_repeated_three_times() -> support::Outcome {
    let loses = Loses::first(4, "/GetServerInfo");
    let client = Client::builder().layer(loses.clone()).connect(None)?;
    client.get_server_info().await.expect_err("four answers were lost");
    assert_eq!(loses.calls(), 4);
    client.get_server_info().await?;
    Ok(())
}

#[tokio::test]
async fn an_interceptor_sees_every_call() -> support::Outcome {
    let calls = Arc::new(AtomicUsize::new(0));
    let seen = calls.clone();
    let interceptor = move |request: tonic::Request<()>| {
        seen.fetch_add(1, Ordering::Relaxed);
        match request.metadata().get("pgmq-client") {
            Some(name) if name == "a test" => Ok(request),
            _ => Err(tonic::Status::unauthenticated("the name is missing")),
        }
    };
    let client = Client::builder().name("a test").interceptor(interceptor).connect(None)?;
    client.get_server_info().await?;
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    Ok(())
}

#[tokio::test]
async fn a_list_is_a_stream_that_asks_page_by_page() -> support::Outcome {
    let loses = Loses::first(0, "/ListMessages");
    let client = Client::builder().layer(loses.clone()).connect(None)?;
    let queue = new_queue(&client).await;
    queue.send_batch((0..5).map(|number| json!(number))).await?;
    let mut messages = queue.list_messages().page_size(2).stream();
    assert_eq!(messages.try_next().await?.map(|message| message.msg_id), Some(1));
    assert_eq!(loses.calls(), 1);
    let rest: Vec<i64> = messages.map_ok(|message| message.msg_id).try_collect().await?;
    assert_eq!((rest, loses.calls()), (vec![2, 3, 4, 5], 3));
    Ok(())
}

#[tokio::test]
async fn a_deadline_is_kept_while_a_read_waits_longer_than_the_default() -> support::Outcome {
    let client = Client::builder().timeout(Duration::from_secs(1)).connect(None)?;
    let queue = new_queue(&client).await;
    assert!(queue.read().wait(Duration::from_millis(1500)).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_consumer_is_a_stream() -> support::Outcome {
    let queue = new_queue(&client()).await;
    queue.send_batch((1..=20).map(|number| json!(number))).await?;
    let consumer = queue.consume().max_in_flight(5).start();
    let bodies: Vec<i64> = consumer
        .map(|message| async move {
            let message = message?;
            let body: i64 = message.json()?;
            message.delete().await.map(|_| body)
        })
        .buffered(3)
        .take(20)
        .try_collect()
        .await?;
    assert_eq!(bodies, (1..=20).collect::<Vec<i64>>());
    assert_eq!(queue.metrics().await?.queue_length, 0);
    Ok(())
}

#[tokio::test]
async fn a_message_that_is_dropped_unsettled_comes_back() -> support::Outcome {
    let queue = new_queue(&client()).await;
    queue.send(json!(1)).await?;
    let mut consumer = queue.consume().visibility_timeout(Duration::from_secs(1)).start();
    let first = consumer.try_next().await?.ok_or("there is a message")?;
    assert_eq!(first.read_ct, 1);
    drop(first);
    let again = consumer.try_next().await?.ok_or("it comes back")?;
    assert_eq!(again.read_ct, 2);
    Ok(())
}

#[tokio::test]
async fn a_consumer_that_is_dropped_gives_back_what_nobody_has_seen() -> support::Outcome {
    let queue = new_queue(&client()).await;
    queue.send_batch((0..10).map(|number| json!(number))).await?;
    let mut consumer = queue.consume().visibility_timeout(Duration::from_secs(3600)).start();
    let held = consumer.try_next().await?.ok_or("there is a message")?;
    drop(consumer);
    let metrics = || async { queue.metrics().await.is_ok_and(|metrics| metrics.visible_length == 9) };
    eventually("nine messages that are visible", metrics).await;
    assert_eq!(held.delete().await?, Outcome::Done);
    Ok(())
}

#[tokio::test]
async fn a_handler_that_panics_releases_its_message() -> support::Outcome {
    let queue = new_queue(&client()).await;
    queue.send(json!("fragile")).await?;
    let consumer = queue.consume().start();
    let stopper = consumer.stopper();
    let tries = Arc::new(AtomicUsize::new(0));
    let seen = tries.clone();
    let handling = consumer.handle(move |_| {
        let (try_number, stopper) = (seen.fetch_add(1, Ordering::Relaxed), stopper.clone());
        async move {
            assert!(try_number > 0, "the first try is to fail");
            stopper.stop();
            Ok::<_, std::convert::Infallible>(())
        }
    });
    handling.concurrency(2).archive().retry_delay(Duration::ZERO).await?;
    assert_eq!(tries.load(Ordering::Relaxed), 2);
    assert_eq!(queue.metrics().include_archive(true).await?.archive_length, Some(1));
    Ok(())
}

#[tokio::test]
async fn what_a_handler_has_settled_itself_is_left_alone() -> support::Outcome {
    let queue = new_queue(&client()).await;
    queue.send(json!(1)).await?;
    let consumer = queue.consume().start();
    let stopper = consumer.stopper();
    let handling = consumer.handle(move |message| {
        stopper.stop();
        async move { message.archive().await.map(|_| ()) }
    });
    handling.await?;
    assert_eq!(queue.metrics().include_archive(true).await?.archive_length, Some(1));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_tasks_share_a_producer() -> support::Outcome {
    let queue = new_queue(&client()).await;
    let producer = queue.producer_builder().max_in_flight(50).start();
    let tasks: Vec<_> = (0..500)
        .map(|number| {
            let producer = producer.clone();
            tokio::spawn(async move { producer.send(&number).await.map(|sent| sent.msg_id) })
        })
        .collect();
    let mut ids = HashSet::new();
    for task in tasks {
        ids.insert(task.await??);
    }
    assert_eq!(ids.len(), 500);
    let clone = producer.clone();
    producer.close().await;
    assert_eq!(clone.send(json!(1)).await.expect_err("it is closed").code(), Code::Cancelled);
    Ok(())
}

#[tokio::test]
async fn a_policy_is_set_changed_and_cleared() -> support::Outcome {
    let queue = new_queue(&client()).await;
    let policy =
        QueuePolicy::default().with_default_delay(Duration::from_secs(5)).with_max_message_bytes(100);
    queue.update(policy).await?;
    let set = QueuePolicy::default().with_default_visibility_timeout(Duration::from_secs(7));
    let updated = queue.update(set).clear(["default_delay"]).await?;
    let policy = updated.policy.ok_or("it has a policy")?;
    assert_eq!((policy.default_delay, policy.max_message_bytes), (None, Some(100)));
    assert_eq!(policy.default_visibility_timeout.map(|span| span.seconds), Some(7));
    Ok(())
}

#[tokio::test]
async fn operations_of_a_transaction_are_the_calls_themselves() -> support::Outcome {
    let client = client();
    let (orders, results) = (new_queue(&client).await, new_queue(&client).await);
    orders.send(json!(1)).await?;
    let held = orders.read().await?;
    let done = client.transact().with(orders.delete(&held)).with(results.send(json!({ "of": 1 }))).await?;
    assert_eq!(done.results.len(), 2);
    let error = client.transact().with(orders.delete(&held)).with(results.send(json!(2))).await;
    assert!(error.expect_err("it is gone").is(ErrorReason::ReceiptNotFound));
    assert_eq!(results.metrics().await?.queue_length, 1);
    Ok(())
}

#[tokio::test]
async fn the_raw_stubs_are_there() -> support::Outcome {
    let client = client();
    let queue = new_queue(&client).await;
    let request =
        pb::SendRequest { queue: queue.name().to_owned(), message: "1".to_owned(), ..Default::default() };
    let reply = client.raw().queues.send(request.clone()).await?.into_inner();
    assert_eq!(reply.msg_id, 1);
    assert_eq!(client.call(request).await?.msg_id, 2);
    Ok(())
}
