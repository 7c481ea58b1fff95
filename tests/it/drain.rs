//! The orderly end: everybody gets a true answer, nothing that was read is lost, and nobody can hold it up.

mod goaway;

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use nix::sys::signal::Signal;
use pgmq_grpc::proto::v1::{
    ClosingReason, GetQueueRequest, Ordering, ReadBatchRequest, ReadRequest, ReadResponse, SendRequest,
};
use tokio::task::JoinHandle;
use tonic::transport::Endpoint;
use tonic::{Code, Response, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::harness::{Client, Gate, Refusal, Server, Test, TestDatabase, eventually, health, seconds};

fn read(queue: &str) -> ReadRequest {
    ReadRequest { queue: queue.to_owned(), ..Default::default() }
}

fn wait_for(queue: &str) -> ReadBatchRequest {
    ReadBatchRequest { queue: queue.to_owned(), wait: seconds(50.0), ..Default::default() }
}

async fn draining(server: &Server) {
    eventually("the drain", async || server.log().contains("\"draining\"").then_some(())).await;
}

/// Waits until a read of the server has found a queue empty.
async fn waiting_read(test: &Test) {
    let found = "SELECT FROM pg_stat_activity
        WHERE datname = current_database() AND query ~ '^-- pgmq-grpc: (next_visible|look_around)' LIMIT 1";
    eventually("the read", async || test.sql.query_opt(found, &[]).await.unwrap().map(drop)).await;
}

/// Reads on until the stream is closed in order, and gives the reason.
async fn closing_reason(stream: &mut Streaming<ReadResponse>) -> ClosingReason {
    loop {
        let answer = stream.message().await.expect("an orderly end").expect("a closing before the end");
        if let Some(closing) = answer.closing {
            assert!(closing.retry_delay.is_some());
            assert!(stream.message().await.expect("an end with OK").is_none());
            return closing.reason();
        }
    }
}

async fn everybody_gets_a_true_answer_after(signal: Signal) {
    let mut test = Test::with_queue("orders").await;
    health::serving(&test.client).await;
    let watched = HealthCheckRequest { service: "pgmq.v1.QueueService".to_owned() };
    let watch = HealthClient::new(test.client.channel.clone()).watch(watched).await;
    let mut watch = watch.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    // The call first: the queries of a stream look like those of a call.
    let mut reader = Client::connect(&test.server).await;
    let waiting = tokio::spawn(async move { reader.queue.read_batch(wait_for("orders")).await });
    waiting_read(&test).await;
    let stream = test.client.queue.read(read("orders")).await;
    let mut stream = stream.unwrap().into_inner();
    assert!(stream.message().await.unwrap().unwrap().started.is_some());

    test.server.signal(signal);

    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert_eq!(closing_reason(&mut stream).await, ClosingReason::Draining);
    assert!(waiting.await.unwrap().unwrap().into_inner().messages.is_empty());
    let (status, log) = test.server.exit().await;
    assert_eq!(status.code(), Some(0), "{log}");
    for message in ["draining", "stopped"] {
        assert_eq!(log.matches(&format!("\"message\":\"{message}\"")).count(), 1, "{log}");
    }
}

#[tokio::test]
async fn everybody_gets_a_true_answer_after_sigterm() {
    everybody_gets_a_true_answer_after(Signal::SIGTERM).await;
}

#[tokio::test]
async fn everybody_gets_a_true_answer_after_ctrl_c() {
    everybody_gets_a_true_answer_after(Signal::SIGINT).await;
}

/// A send that is stuck in the database.
async fn stuck_send(test: &Test) -> (Gate, JoinHandle<Result<Response<i64>, Status>>) {
    let gate = Gate::close(test, "orders", "INSERT").await;
    let mut client = test.client.clone();
    let sending = tokio::spawn(async move {
        let send = SendRequest { queue: "orders".to_owned(), message: "{}".to_owned(), ..Default::default() };
        client.queue.send(send).await.map(|sent| Response::new(sent.into_inner().msg_id))
    });
    gate.arrival(test, "send").await;
    (gate, sending)
}

#[tokio::test]
async fn a_call_under_way_is_answered_and_new_ones_are_refused() {
    let test = Test::with_queue("orders").await;
    let (gate, sending) = stuck_send(&test).await;

    test.server.signal(Signal::SIGTERM);
    draining(&test.server).await;

    // On the open connection; the transport may have heard of the end already and says so in its own words.
    let ask = GetQueueRequest { queue: "orders".to_owned() };
    let refused = test.client.clone().queue.get_queue(ask).await.unwrap_err();
    if refused.metadata().contains_key("pgmq-reason") {
        Refusal::expect(&refused, Code::Unavailable, "DRAINING");
    }
    let uri = format!("http://{}", test.server.address);
    eventually("a closed door", async || Endpoint::from_shared(uri.clone()).unwrap().connect().await.err())
        .await;

    gate.open(&test).await;
    assert_eq!(sending.await.unwrap().unwrap().into_inner(), 1);
    let (status, log) = test.server.exit().await;
    assert_eq!(status.code(), Some(0), "{log}");
    let stored = test.sql.query_one("SELECT count(*) FROM pgmq.q_orders", &[]).await.unwrap();
    assert_eq!(stored.get::<_, i64>(0), 1);
}

#[tokio::test]
async fn a_stuck_call_is_cut_off_at_the_limit_and_the_end_is_a_failure() {
    let database = TestDatabase::create().await;
    let mut server = Server::start_on(&database, &["--drain-timeout", "100ms"]).await;
    server.expect_errors();
    let client = Client::connect(&server).await;
    let sql = database.connect().await;
    let mut test = Test { database, server, client, sql };
    test.client.create("orders").await;
    let (_gate, sending) = stuck_send(&test).await;

    test.server.signal(Signal::SIGTERM);

    let (status, log) = test.server.exit().await;
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("calls were still running after the drain limit of 100ms"), "{log}");
    assert!(sending.await.unwrap().is_err());
}

#[tokio::test]
async fn a_second_signal_ends_the_server_at_once() {
    let mut test = Test::with_queue("orders").await;
    test.server.expect_errors();
    let (_gate, sending) = stuck_send(&test).await;

    test.server.signal(Signal::SIGTERM);
    draining(&test.server).await;
    test.server.signal(Signal::SIGINT);

    let (status, log) = test.server.exit().await;
    assert_eq!((status.code(), status.signal()), (Some(1), None), "{log}");
    assert!(log.contains("ended at once by a second signal"), "{log}");
    assert!(sending.await.unwrap().is_err());
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_nothing_and_loses_nothing() {
    let mut test = Test::with_queue("orders").await;
    // Far more than fits into the windows of this connection, which is never read.
    let body = format!("\"{}\"", "x".repeat(200_000));
    for _ in 0..10 {
        test.client.send_all("orders", &[body.as_str(); 5]).await;
    }
    let endpoint = Endpoint::from_shared(format!("http://{}", test.server.address)).unwrap();
    let endpoint = endpoint.initial_stream_window_size(65_535).initial_connection_window_size(65_535);
    let channel = endpoint.connect().await.unwrap();
    let mut lazy = pgmq_grpc::proto::v1::queue_service_client::QueueServiceClient::new(channel);
    let request = ReadRequest { visibility_timeout: seconds(43_200.0), ..read("orders") };
    let _unread = lazy.read(request).await.unwrap();
    let hidden = "SELECT count(*) FROM pgmq.q_orders WHERE vt > now()";
    eventually("a read", async || (test.value::<i64>(hidden).await > 0).then_some(())).await;

    test.server.signal(Signal::SIGTERM);

    let (status, log) = test.server.exit().await;
    assert_eq!(status.code(), Some(0), "{log}");
    // The transport had taken over no more than a few replies; everything else is visible again and counts as unread.
    let row = test.sql.query_one(hidden, &[]).await.unwrap();
    let handed_over: i64 = row.get(0);
    assert!(handed_over < 25, "{handed_over} of 50 are hidden");
    let inconsistent = "SELECT count(*) FROM pgmq.q_orders WHERE (vt > now()) <> (read_ct > 0)";
    let row = test.sql.query_one(inconsistent, &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 0);
}

#[tokio::test]
async fn messages_that_come_during_the_drain_stay_in_their_queue() {
    let mut test = Test::with_queue("orders").await;
    let mut streams = Vec::new();
    for ordering in [Ordering::Unordered, Ordering::GroupedHead] {
        let request = ReadRequest { ordering: ordering.into(), ..read("orders") };
        let Ok(stream) = test.client.queue.read(request).await else {
            // A pgmq that lacks this ordering.
            continue;
        };
        streams.push(stream.into_inner());
    }
    waiting_read(&test).await;

    test.server.signal(Signal::SIGTERM);
    draining(&test.server).await;
    let sent: i64 = test.value("SELECT * FROM pgmq.send('orders', '{}')").await;

    let mut received = Vec::new();
    for stream in &mut streams {
        while let Some(answer) = stream.message().await.unwrap() {
            received.extend(answer.messages.into_iter().map(|message| message.msg_id));
        }
    }
    let (status, log) = test.server.exit().await;
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(received.len() <= 1, "{received:?}");
    let visible = "SELECT msg_id FROM pgmq.q_orders WHERE vt <= clock_timestamp()";
    let left = test.sql.query(visible, &[]).await.unwrap();
    let left: Vec<i64> = left.iter().map(|row| row.get(0)).collect();
    // Somebody has it, or it is there for the next reader.
    assert_eq!([received, left].concat(), [sent]);
}

#[tokio::test]
async fn a_health_watch_does_not_hold_up_the_end() {
    let test = Test::start_with(&["--drain-timeout", "10m"]).await;
    let watched = HealthCheckRequest::default();
    let watch = HealthClient::new(test.client.channel.clone()).watch(watched).await;
    let _watch = watch.unwrap().into_inner();

    let started = std::time::Instant::now();
    test.server.signal(Signal::SIGTERM);

    let (status, log) = test.server.exit().await;
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(started.elapsed() < Duration::from_secs(30));
}
