//! `Watch`: what happens to queues, told without reading from them.

mod together;

use std::time::{Instant, SystemTime};

use nix::sys::signal::Signal;
use pgmq_grpc::proto::v1::{
    ClosingReason, CreateQueueRequest, DropQueueRequest, QueueEvent, QueueEventKind, ReadBatchRequest,
    SendRequest, StreamStarted, WatchRequest, WatchResponse, send_request,
};
use tonic::{Code, Status, Streaming};

use crate::harness::{Client, OwnPostgres, PATIENCE, Refusal, Server, Test, eventually, health, seconds};

struct Watcher {
    started: StreamStarted,
    stream: Streaming<WatchResponse>,
}

impl Watcher {
    async fn open(client: &Client, queues: &[&str]) -> Self {
        Self::open_as(client, watch(queues)).await
    }

    async fn open_as(client: &Client, request: WatchRequest) -> Self {
        let mut stream = client.queue.clone().watch(request).await.expect("a stream").into_inner();
        let first = stream.message().await.expect("a first reply").expect("a first reply");
        assert!(first.events.is_empty() && first.closing.is_none() && first.heartbeat.is_none());
        Self { started: first.started.expect("started comes first"), stream }
    }

    async fn next(&mut self) -> Option<Result<WatchResponse, Status>> {
        let next = tokio::time::timeout(PATIENCE, self.stream.message()).await;
        next.expect("a reply or an end").transpose()
    }

    /// The next event of a queue and a kind; others before it do not count.
    async fn event(&mut self, queue: &str, kind: QueueEventKind) -> QueueEvent {
        let begun = Instant::now();
        loop {
            assert!(begun.elapsed() < PATIENCE, "no {kind:?} of {queue}");
            let reply = self.next().await.expect("no end").expect("no error");
            let wanted = |event: &QueueEvent| event.queue == queue && event.kind() == kind;
            if let Some(event) = reply.events.into_iter().find(wanted) {
                return event;
            }
        }
    }
}

fn watch(queues: &[&str]) -> WatchRequest {
    WatchRequest { queues: queues.iter().map(|&queue| queue.to_owned()).collect(), ..Default::default() }
}

async fn refused(test: &Test, request: WatchRequest) -> Status {
    test.client.queue.clone().watch(request).await.expect_err("a refusal")
}

#[tokio::test]
async fn a_send_shows_and_nothing_is_read() {
    let mut test = Test::with_queue("orders").await;
    let mut watcher = Watcher::open(&test.client, &["orders"]).await;
    assert_eq!(watcher.started.heartbeat_interval, seconds(25.0));
    test.client.send("orders", "{}").await;
    let event = watcher.event("orders", QueueEventKind::Sent).await;
    assert!(event.at.is_some());
    assert_eq!(test.value::<i32>("SELECT read_ct FROM pgmq.q_orders").await, 0);
}

#[tokio::test]
async fn a_delayed_message_shows_when_it_is_sent_and_when_it_falls_due() {
    let mut test = Test::with_queue("orders").await;
    let mut watcher = Watcher::open(&test.client, &["orders"]).await;
    let delayed = SendRequest {
        queue: "orders".to_owned(),
        message: "{}".to_owned(),
        schedule: seconds(2.0).map(send_request::Schedule::Delay),
        ..Default::default()
    };
    test.client.queue.send(delayed).await.unwrap();
    watcher.event("orders", QueueEventKind::Sent).await;
    assert!(test.client.read("orders", 1).await.is_empty());
    watcher.event("orders", QueueEventKind::Visible).await;
    assert_eq!(test.client.read("orders", 1).await.len(), 1);
}

#[tokio::test]
async fn a_message_whose_timeout_ends_shows() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let read = ReadBatchRequest {
        queue: "orders".to_owned(),
        visibility_timeout: seconds(2.0),
        ..Default::default()
    };
    assert_eq!(test.client.read_as(read).await.len(), 1);
    let mut watcher = Watcher::open(&test.client, &["orders"]).await;
    watcher.event("orders", QueueEventKind::Visible).await;
    assert_eq!(test.client.read_one("orders").await.read_ct, 2);
}

#[tokio::test]
async fn a_released_message_shows() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let held = test.client.read_one("orders").await;
    let mut watcher = Watcher::open(&test.client, &["orders"]).await;
    crate::settle::release(&mut test.client, "orders", &[&held.receipt], None).await;
    watcher.event("orders", QueueEventKind::Visible).await;
}

#[tokio::test]
async fn what_plain_sql_sends_shows() {
    let test = Test::with_queue("orders").await;
    let mut watcher = Watcher::open(&test.client, &["orders"]).await;
    for _ in 0..2 {
        test.run("SELECT pgmq.send('orders', '{}'::jsonb)").await;
        let event = watcher.event("orders", QueueEventKind::Sent).await;
        let sent: SystemTime = test.value("SELECT max(enqueued_at) FROM pgmq.q_orders").await;
        assert!(SystemTime::try_from(event.at.unwrap()).unwrap() > sent, "noticed before it was sent");
    }
}

#[tokio::test]
async fn what_is_sent_at_another_replica_shows() {
    let test = Test::with_queue("orders").await;
    let other = Server::start_on(&test.database, &[]).await;
    let mut elsewhere = Client::connect(&other).await;
    let mut watcher = Watcher::open(&test.client, &["orders"]).await;
    elsewhere.send("orders", "{}").await;
    watcher.event("orders", QueueEventKind::Sent).await;
}

#[tokio::test]
async fn several_queues_are_watched_and_no_others() {
    let mut test = Test::with_queue("a").await;
    for queue in ["b", "c"] {
        test.client.create(queue).await;
    }
    let mut watcher = Watcher::open(&test.client, &["a", "b", "a"]).await;
    test.client.send("c", "{}").await;
    test.client.send("b", "{}").await;
    watcher.event("b", QueueEventKind::Sent).await;
    test.client.send("a", "{}").await;
    let reply = loop {
        let reply = watcher.next().await.unwrap().unwrap();
        assert!(reply.events.iter().all(|event| event.queue != "c"), "{reply:?}");
        if reply.events.iter().any(|event| event.queue == "a") {
            break reply;
        }
    };
    assert!(reply.events.iter().any(|event| event.kind() == QueueEventKind::Sent));
}

#[tokio::test]
async fn many_watchers_cost_one_look() {
    let database = crate::harness::TestDatabase::create().await;
    let server = Server::start_on(&database, &["--log", "info,pgmq_grpc=trace"]).await;
    let mut client = Client::connect(&server).await;
    client.create("orders").await;
    let started = Instant::now();
    let mut watchers = Vec::new();
    for _ in 0..20 {
        watchers.push(Watcher::open(&client, &["orders"]).await);
    }
    for _ in 0..3 {
        client.send("orders", "{}").await;
        for watcher in &mut watchers {
            watcher.event("orders", QueueEventKind::Sent).await;
        }
    }
    let is_look = |line: &&String| line.contains("\"statement\":\"watch");
    let looks = server.log_lines().iter().filter(is_look).count() as u128;
    let most = started.elapsed().as_millis() / 100 + 2;
    assert!(looks > 0 && looks <= most, "{looks} looks, {most} are allowed");
}

#[tokio::test]
async fn a_quiet_watch_has_heartbeats() {
    let test = Test::with_queue("orders").await;
    let request = WatchRequest { heartbeat_interval: seconds(1.0), ..watch(&["orders"]) };
    let mut watcher = Watcher::open_as(&test.client, request).await;
    assert_eq!(watcher.started.heartbeat_interval, seconds(1.0));
    for _ in 0..2 {
        let reply = watcher.next().await.unwrap().unwrap();
        assert!(reply.heartbeat.is_some() && reply.events.is_empty(), "{reply:?}");
    }
}

#[tokio::test]
async fn a_drain_closes_a_watch() {
    let test = Test::with_queue("orders").await;
    let mut watcher = Watcher::open(&test.client, &["orders"]).await;
    test.server.signal(Signal::SIGTERM);
    let closing = watcher.next().await.unwrap().unwrap().closing.expect("closing");
    assert_eq!(closing.reason(), ClosingReason::Draining);
    assert!(watcher.next().await.is_none(), "and then OK");
    let (status, log) = test.server.exit().await;
    assert!(status.success(), "{log}");
}

#[tokio::test]
async fn an_old_watch_is_closed() {
    let test = Test::of_short_lives("orders", &[]).await;
    let mut watcher = Watcher::open(&test.fresh_client().await, &["orders"]).await;
    let closing = watcher.next().await.unwrap().unwrap().closing.expect("closing");
    assert_eq!(closing.reason(), ClosingReason::StreamAge);
    assert!(watcher.next().await.is_none());
}

#[tokio::test]
async fn a_dropped_queue_ends_its_watch() {
    let mut test = Test::with_queue("orders").await;
    let mut watcher = Watcher::open(&test.client, &["orders"]).await;
    test.client.queue.drop_queue(DropQueueRequest { queue: "orders".to_owned() }).await.unwrap();
    let closing = watcher.next().await.unwrap().unwrap().closing.expect("closing");
    assert_eq!(closing.reason(), ClosingReason::QueueDropped);
    let gone = watcher.next().await.expect("an error").expect_err("an error");
    Refusal::expect(&gone, Code::NotFound, "QUEUE_NOT_FOUND");

    // A queue of the same name is another one, and can be watched.
    test.client
        .queue
        .create_queue(CreateQueueRequest { queue: "orders".to_owned(), ..Default::default() })
        .await
        .unwrap();
    let mut watcher = Watcher::open(&test.client, &["orders"]).await;
    test.client.send("orders", "{}").await;
    watcher.event("orders", QueueEventKind::Sent).await;
}

#[tokio::test]
async fn a_watch_outlives_its_connections() {
    let mut test = Test::with_queue("orders").await;
    let mut watcher = Watcher::open(&test.client, &["orders"]).await;
    test.database.terminate_connections().await;
    test.sql = test.database.connect().await;
    test.run("SELECT pgmq.send('orders', '{}'::jsonb)").await;
    watcher.event("orders", QueueEventKind::Sent).await;
}

#[tokio::test]
async fn a_watch_outlives_a_restart_of_its_database() {
    let mut postgres = OwnPostgres::start().await;
    let server = Server::start(&["--database-url", &postgres.url, "--health-interval", "100ms"]).await;
    let mut client = Client::connect(&server).await;
    health::serving(&client).await;
    client.create("orders").await;
    let mut watcher = Watcher::open(&client, &["orders"]).await;
    postgres.crash().await;
    health::not_serving(&client).await;
    postgres.start_again().await;
    postgres.run("SELECT pgmq.send('orders', '{}'::jsonb)").await;
    watcher.event("orders", QueueEventKind::Sent).await;
}

#[tokio::test]
async fn a_wrong_watch_is_refused() {
    let test = Test::with_queue("orders").await;
    let missing = refused(&test, watch(&["orders", "missing"])).await;
    let refusal = Refusal::expect(&missing, Code::NotFound, "QUEUE_NOT_FOUND");
    assert_eq!((refusal.metadata["queue"].as_str(), refusal.metadata["index"].as_str()), ("missing", "1"));

    Refusal::expect_invalid(&refused(&test, watch(&[])).await, "MISSING_FIELD", "queues");
    Refusal::expect_invalid(&refused(&test, watch(&["orders", ""])).await, "MISSING_FIELD", "queues[1]");
    let many: Vec<&str> = vec!["orders"; 101];
    Refusal::expect_invalid(&refused(&test, watch(&many)).await, "INVALID_COUNT", "queues");
    let hasty = WatchRequest { heartbeat_interval: seconds(0.5), ..watch(&["orders"]) };
    Refusal::expect_invalid(&refused(&test, hasty).await, "INVALID_DURATION", "heartbeat_interval");
}

#[tokio::test]
async fn a_queue_that_nobody_watches_any_more_is_left_alone() {
    let database = crate::harness::TestDatabase::create().await;
    let server = Server::start_on(&database, &["--log", "info,pgmq_grpc=trace"]).await;
    let mut client = Client::connect(&server).await;
    client.create("orders").await;
    drop(Watcher::open(&client, &["orders"]).await);
    let looks = || server.log_lines().iter().filter(|line| line.contains("\"statement\":\"watch")).count();
    // Its task ends with the look after the one during which the last watcher left.
    let mut before = looks();
    eventually("the last look", async || {
        tokio::time::sleep(std::time::Duration::from_millis(2_500)).await;
        let now = looks();
        let is_last = now == before;
        before = now;
        is_last.then_some(())
    })
    .await;
}
