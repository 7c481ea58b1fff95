//! What is refused before anything is sent, what a closed client says, and what becomes of messages that fail.

use std::future::IntoFuture as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join;
use pgmq_grpc_client::{Client, Code, Error, Outcome, QueuePolicy, RetryBackoff};
use serde_json::json;
use tokio::sync::{Barrier, Notify};
use tokio::time::timeout;

use crate::support::{self, client, eventually, new_queue};

const LONG: Duration = Duration::from_secs(60);

fn refused(error: &Error) {
    assert_eq!((error.code(), error.outcome_unknown()), (Code::InvalidArgument, false), "{error:?}");
}

#[tokio::test]
async fn a_target_without_a_port_is_refused() {
    for target in [
        "",
        "127.0.0.1",
        "127.0.0.1:99999",
        "127.0.0.1:0",
        "dns:///queues",
        "http://127.0.0.1",
        "::1:1",
        ":1",
    ] {
        let error = Client::connect(target).expect_err(target);
        refused(&error);
        assert!(error.message().contains("a target is host:port"), "{target}: {error:?}");
    }
    for target in ["a:1", "[::1]:65535", "dns:///a.b:443", "dns:a:1", "http://a:1", "unix:/a"] {
        assert!(Client::connect(target).is_ok(), "{target}");
    }
}

#[tokio::test]
async fn nothing_has_left_for_a_name_that_nobody_knows() -> support::Outcome {
    let error =
        Client::connect("nowhere.invalid:1")?.queue("any").send(json!(1)).await.expect_err("no such name");
    assert_eq!((error.code(), error.outcome_unknown()), (Code::Unavailable, false), "{error:?}");
    Ok(())
}

#[tokio::test]
async fn the_longest_spans_are_long_and_no_panic() -> support::Outcome {
    let client = Client::builder().timeout(Duration::MAX).connect(None)?;
    let queue = new_queue(&client).await;
    let producer = queue.producer_builder().timeout(Duration::MAX).start();
    let alone = queue.send(json!(1)).timeout(Duration::MAX).into_future();
    let (alone, shared) = join(alone, queue.send(json!(2)).into_future()).await;
    assert_eq!(alone?.msg_id + shared?.msg_id + producer.send(json!(3)).await?.msg_id, 6);
    refused(&queue.read().wait(Duration::MAX).await.expect_err("the server waits for less"));
    let mut consumer = queue.consume().start();
    let message = consumer.try_next().await?.ok_or("there is a message")?;
    refused(&message.extend(Duration::MAX).await.expect_err("the server extends by less"));
    refused(&message.release(Duration::MAX).await.expect_err("the server delays by less"));
    assert_eq!(message.delete().await?, Outcome::Done);
    Ok(())
}

#[tokio::test]
async fn nothing_at_a_time_is_refused() -> support::Outcome {
    let queue = new_queue(&client()).await;
    queue.send(json!(1)).await?;
    let handling = queue.consume().start().handle(async |_| Ok::<_, Error>(())).concurrency(0);
    refused(&handling.await.expect_err("none at a time"));
    let producer = queue.producer_builder().max_in_flight(0).start();
    refused(&producer.send(json!(2)).await.expect_err("none at a time"));
    producer.close().await;
    let metrics = queue.metrics().await?;
    assert_eq!(metrics.queue_length, 1);
    Ok(())
}

#[tokio::test]
async fn a_closed_client_refuses_everything() -> support::Outcome {
    let own = client();
    let queue = new_queue(&own).await;
    queue.send_batch((0..10).map(|number| json!(number))).await?;
    let read = queue.read().visibility_timeout(LONG).await?.pop().ok_or("there is a message")?;
    let mut consumer = queue.consume().visibility_timeout(LONG).start();
    let consumed = consumer.try_next().await?.ok_or("there is a message")?;
    let mut watcher = queue.watch().await?;
    let producer = queue.producer();
    producer.send(json!(10)).await?;
    own.clone().close().await;
    own.clone().close().await;
    let closed = |what: &str, error: Result<(), Error>| {
        let error = error.expect_err(what);
        let facts = (error.code(), error.message(), error.outcome_unknown());
        assert_eq!(facts, (Code::Cancelled, "the client is closed", false), "{what}");
    };
    closed("get", queue.get().await.map(|_| ()));
    closed("send", queue.send(json!(1)).await.map(|_| ()));
    closed("batch", queue.send_batch([json!(1)]).await.map(|_| ()));
    closed("list", queue.list_messages().await.map(|_| ()));
    closed("delete", read.delete().await.map(|_| ()));
    closed("delete over the stream", consumed.delete().await.map(|_| ()));
    closed("produce", producer.send(json!(1)).await.map(|_| ()));
    closed("a new producer", queue.producer().send(json!(1)).await.map(|_| ()));
    closed("consume", timeout(LONG, queue.consume().start().try_next()).await?.map(|_| ()));
    let handling = queue.consume().start().handle(async |_| Ok::<_, Error>(()));
    closed("handle", timeout(LONG, handling).await?);
    closed("watch", queue.watch().await.map(|_| ()));
    closed("call", own.call(pgmq_grpc_client::pb::GetServerInfoRequest::default()).await.map(|_| ()));
    assert!(timeout(LONG, consumer.try_next()).await??.is_none());
    assert!(timeout(LONG, async { while watcher.next().await.is_some() {} }).await.is_ok());
    // What was not handed out was given back: uncounted, but for what had come when the stream was gone.
    let other = client();
    let visible =
        async || other.get_queue_metrics(queue.name()).await.is_ok_and(|metrics| metrics.visible_length == 9);
    eventually("nine messages that are visible", visible).await;
    Ok(())
}

#[tokio::test]
async fn close_waits_for_handlers_which_may_send_still() -> support::Outcome {
    let (own, other) = (client(), client());
    let queue = new_queue(&other).await;
    queue.send_batch((0..3).map(|number| json!(number))).await?;
    let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (has_begun, may_go_on, target) = (begun.clone(), go_on.clone(), own.queue(queue.name()));
    let consumer = target.consume().visibility_timeout(LONG).start();
    let handling = tokio::spawn(async move {
        let work = move |_| {
            let (begun, go_on, target) = (has_begun.clone(), may_go_on.clone(), target.clone());
            async move {
                begun.notify_one();
                go_on.notified().await;
                target.send(json!("sent by the handler")).await.map(|_| ())
            }
        };
        consumer.handle(work).await
    });
    begun.notified().await;
    let closed = Arc::new(AtomicBool::new(false));
    let note = closed.clone();
    let closing = tokio::spawn(async move {
        own.close().await;
        note.store(true, Ordering::Relaxed);
    });
    let given_back = async || queue.metrics().await.is_ok_and(|metrics| metrics.visible_length == 2);
    eventually("two messages that are visible", given_back).await;
    assert!(!closed.load(Ordering::Relaxed));
    go_on.notify_one();
    timeout(LONG, closing).await??;
    timeout(LONG, handling).await???;
    // One is deleted, and one was sent.
    assert_eq!(queue.metrics().await?.visible_length, 3);
    Ok(())
}

#[tokio::test]
async fn handlers_may_close_their_client() -> support::Outcome {
    let (own, other) = (client(), client());
    let queue = new_queue(&other).await;
    queue.send_batch([json!(1), json!(2)]).await?;
    let both = Arc::new(Barrier::new(2));
    let consumer = own.queue(queue.name()).consume().start();
    let handling = consumer.handle(move |message| {
        let (client, both) = (own.clone(), both.clone());
        async move {
            both.wait().await;
            message.delete().await?;
            client.close().await;
            Ok::<_, Error>(())
        }
    });
    timeout(LONG, handling.concurrency(2)).await??;
    assert_eq!(queue.metrics().await?.queue_length, 0);
    Ok(())
}

/// How long the message of a queue is hidden after its handler has failed once, in seconds.
async fn hidden(
    policy: QueuePolicy,
    panics: bool,
    delay: Option<Duration>,
) -> Result<f64, Box<dyn std::error::Error>> {
    let queue = new_queue(&client()).await;
    queue.update(policy).await?;
    queue.send(json!("poison")).await?;
    let consumer = queue.consume().start();
    let (stopper, tries) = (consumer.stopper(), Arc::new(AtomicUsize::new(0)));
    let count = tries.clone();
    let handling = consumer.handle(move |_| {
        stopper.stop();
        count.fetch_add(1, Ordering::Relaxed);
        async move {
            assert!(!panics, "as it is asked");
            Err::<(), _>("it fails")
        }
    });
    match delay {
        Some(delay) => handling.retry_delay(delay).await?,
        None => handling.await?,
    }
    assert_eq!(tries.load(Ordering::Relaxed), 1);
    let message = queue.list_messages().await?.pop().ok_or("it is there")?;
    let read = message.last_read_at.ok_or("it was read")?;
    Ok(message.vt.duration_since(read)?.as_secs_f64())
}

#[tokio::test]
async fn a_message_that_fails_makes_no_hot_loop() -> support::Outcome {
    let none = QueuePolicy::default().with_default_visibility_timeout(LONG);
    let half_an_hour = RetryBackoff::default()
        .with_minimum(Duration::from_secs(1800))
        .with_maximum(Duration::from_secs(3600));
    let policy = none.clone().with_retry_backoff(half_an_hour);
    // The most is for slow machines: without a release it would be a minute.
    for panics in [false, true] {
        let seconds = hidden(none.clone(), panics, None).await?;
        assert!((0.75..30.0).contains(&seconds), "{seconds}");
    }
    let seconds = hidden(policy.clone(), false, None).await?;
    assert!(seconds > 1000.0, "the policy's backoff counts, and not {seconds}");
    let seconds = hidden(policy, false, Some(Duration::from_secs(300))).await?;
    assert!((299.0..360.0).contains(&seconds), "what is given counts, and not {seconds}");
    Ok(())
}
