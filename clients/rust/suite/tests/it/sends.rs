//! Sends: a lone one is a unary call, and those at the same time share a stream. Nobody is to see a difference.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::future::{join_all, poll_immediate};
use pgmq_grpc_client::{Client, Code, Error, ErrorReason, OutgoingMessage};
use serde_json::json;

use crate::support::{self, Loses, client, new_queue};

#[tokio::test]
async fn sends_at_the_same_time_share_a_stream_and_a_lone_one_is_a_call() -> support::Outcome {
    let streams = Loses::first(0, "/Produce");
    let client = Client::builder().layer(streams.clone()).connect(None)?;
    let queue = new_queue(&client).await;
    assert_eq!(queue.send(json!(0)).await?.msg_id, 1);
    assert_eq!(streams.calls(), 0);
    let sent = join_all((1..200).map(async |number| queue.send(&number).await)).await;
    let ids: HashSet<i64> =
        sent.into_iter().map(|sent| sent.map(|sent| sent.msg_id)).collect::<Result<_, _>>()?;
    assert_eq!((ids.len(), streams.calls()), (199, 1));
    let bodies = queue.list_messages().await?.into_iter().map(|message| message.json::<u32>());
    assert_eq!(bodies.collect::<Result<HashSet<u32>, _>>()?, (0..200).collect());
    assert_eq!(queue.send(json!(200)).await?.msg_id, 201);
    Ok(())
}

#[tokio::test]
async fn only_a_message_of_more_than_a_mebibyte_leaves_the_stream() -> support::Outcome {
    let unary = Loses::first(0, "/Send");
    let queue = new_queue(&Client::builder().layer(unary.clone()).connect(None)?).await;
    for (bytes, calls) in [(1_000_000, 1), (1_100_000, 3)] {
        let large = "x".repeat(bytes);
        let bodies = ["alone", large.as_str()];
        let sent = join_all(bodies.map(async |body| queue.send(body).await)).await;
        assert!(sent[0].is_ok(), "{sent:?}");
        assert_eq!(unary.calls(), calls, "{bytes}");
    }
    Ok(())
}

#[tokio::test]
async fn a_bad_message_has_its_own_error_which_is_that_of_a_lone_send() -> support::Outcome {
    let queue = new_queue(&client()).await;
    let bad = [
        OutgoingMessage::text("{oops}"),
        OutgoingMessage::text(""),
        OutgoingMessage::text("1").with_headers_text("[]"),
        OutgoingMessage::text("1").with_group("g".repeat(300)),
        OutgoingMessage::text("1").with_delay(Duration::from_secs(1_000_000_000)),
        OutgoingMessage::text(format!("{:?}", "x".repeat(2_000_000))),
        OutgoingMessage::text(format!("{:?}", "x".repeat(9_000_000))),
    ];
    let facts = |error: &Error| {
        let reason = error.reason().map(str::to_owned);
        (error.code(), reason, error.metadata().clone(), error.outcome_unknown())
    };
    let mut alone = Vec::new();
    for message in &bad {
        alone.push(facts(&queue.send(message.clone()).await.expect_err("it is refused")));
    }
    let (code, reason, _, unknown) = alone[6].clone();
    let alone_large = (code, reason, unknown);
    let good = |count: usize| (0..count).map(|number| OutgoingMessage::text(number.to_string()));
    let sends = good(20).chain(bad.clone()).chain(good(20)).map(async |message| queue.send(message).await);
    let results = join_all(sends).await;
    let together: Vec<_> =
        results[20..20 + bad.len()].iter().map(|result| result.as_ref().map_err(facts)).collect();
    for (number, (result, expected)) in together.into_iter().zip(alone).enumerate() {
        assert_eq!(result.expect_err("it is refused"), expected, "message {number}");
    }
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 40);
    assert_eq!(queue.metrics().await?.queue_length, 40);
    let producer = queue.producer();
    let (good, large) = tokio::join!(producer.send(json!(1)), producer.send(bad[6].clone()));
    good?;
    let large = large.expect_err("no request can be so large");
    assert!(large.is(ErrorReason::MessageTooLarge) && !large.outcome_unknown(), "{large:?}");
    assert_eq!(alone_large, (large.code(), Some("MESSAGE_TOO_LARGE".to_owned()), false));
    Ok(())
}

#[tokio::test]
async fn a_queue_that_is_missing_is_told_to_each() {
    let client = client();
    let nowhere = client.queue("not_there");
    let results = join_all((0..10).map(async |number| nowhere.send(&number).await)).await;
    for result in results {
        let error = result.expect_err("there is no such queue");
        assert!(error.is(ErrorReason::QueueNotFound) && !error.outcome_unknown(), "{error:?}");
    }
}

#[tokio::test]
async fn options_go_over_the_stream_too() -> support::Outcome {
    let queue = new_queue(&client()).await;
    let keyed = || queue.send(json!("keyed")).deduplication_id("once").headers(&json!({ "trace": 1 }));
    let (_, first, second) =
        tokio::try_join!(queue.send(json!(0)), keyed(), keyed().delay(Duration::from_secs(1000)).group("g"))?;
    assert_eq!(first.msg_id, second.msg_id);
    assert_eq!((first.deduplicated, second.deduplicated), (false, true));
    let (_, delayed) = tokio::try_join!(
        queue.send(json!(0)),
        queue.send(json!(1)).delay(Duration::from_secs(1000)).group("g")
    )?;
    let listed = queue.list_messages().msg_ids([first.msg_id, delayed.msg_id]).await?;
    assert_eq!(listed[0].headers_text.replace(' ', ""), r#"{"trace":1}"#);
    assert_eq!(listed[1].headers_text.replace(' ', ""), r#"{"x-pgmq-group":"g"}"#);
    assert!(listed[1].vt > listed[1].enqueued_at + Duration::from_secs(900));
    Ok(())
}

#[tokio::test]
async fn a_caller_that_goes_away_harms_no_other() -> support::Outcome {
    let queue = new_queue(&client()).await;
    let mut sends: Vec<_> = (0..30).map(|number| Some(Box::pin(queue.send(&number).into_future()))).collect();
    for send in sends.iter_mut().flatten() {
        assert!(poll_immediate(send).await.is_none());
    }
    for send in sends.iter_mut().step_by(3) {
        *send = None;
    }
    let kept = join_all(sends.into_iter().flatten()).await;
    assert_eq!(kept.len(), 20);
    kept.into_iter().collect::<Result<Vec<_>, _>>()?;
    assert!(queue.metrics().await?.queue_length >= 20);
    Ok(())
}

#[tokio::test]
async fn without_a_server_sends_fail_as_lone_ones_do() {
    let free =
        std::net::TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("an address");
    let client = Client::connect(free.to_string().as_str()).expect("the target is usable");
    let queue = client.queue("any");
    for result in join_all((0..10).map(async |number| queue.send(&number).idempotent().await)).await {
        let error = result.expect_err("nobody listens");
        assert_eq!((error.code(), error.reason(), error.outcome_unknown()), (Code::Unavailable, None, false));
    }
}

#[tokio::test]
async fn what_has_not_left_within_its_deadline_is_not_sent() {
    // It takes connections and says nothing.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let target = mute.local_addr().expect("an address").to_string();
    let client = Client::connect(target.as_str()).expect("the target is usable");
    let queue = client.queue("any");
    let send = async |number: u32| queue.send(&number).timeout(Duration::from_millis(200)).await;
    let (_, second) = tokio::join!(send(1), send(2));
    let error = second.expect_err("nobody answers");
    assert_eq!((error.code(), error.outcome_unknown()), (Code::DeadlineExceeded, false));
}

#[tokio::test]
async fn close_waits_for_what_is_under_way() -> support::Outcome {
    let client = client();
    let queue = new_queue(&client).await;
    let sends: Vec<_> = (0..50)
        .map(|number| {
            let queue = queue.clone();
            tokio::spawn(async move { queue.send(&number).await })
        })
        .collect();
    // The runtime has one thread, so all of them begin.
    tokio::task::yield_now().await;
    client.clone().close().await;
    assert!(sends.iter().all(tokio::task::JoinHandle::is_finished));
    for send in sends {
        send.await??;
    }
    assert_eq!(queue.send(json!(50)).await.expect_err("it is closed").code(), Code::Cancelled);
    let other = support::client();
    assert_eq!(other.get_queue_metrics(queue.name()).await?.queue_length, 50);
    client.close().await;
    Ok(())
}
