//! What replicas tell each other.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use pgmq_grpc::proto::v1::{CreateQueueRequest, DropQueueRequest, QueueKind, ReadRequest};
use tokio_postgres::{AsyncMessage, NoTls};

use crate::harness::{Client, DeafProxy, OwnPostgres, Server, Test, eventually, seconds};
use crate::read_batch::{ids, waiting_for};
use crate::read_stream::{Follower, follow};

/// A test with a queue `orders`, and a second server on its database that logs what it hears.
async fn pair() -> (Test, Server, Client) {
    let test = Test::with_queue("orders").await;
    let other = Server::start_on(&test.database, &["--log", "info,pgmq_grpc=debug"]).await;
    until_listening(&test, 2).await;
    let elsewhere = Client::connect(&other).await;
    (test, other, elsewhere)
}

/// Waits until so many servers listen and have said so.
async fn until_listening(test: &Test, servers: i64) {
    let listening = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND query LIKE '%pgmq-grpc: announce%' AND pid <> pg_backend_pid()";
    eventually("a server that listens", async || {
        (test.value::<i64>(listening).await == servers).then_some(())
    })
    .await;
}

/// Everything that is announced from now on, as plain SQL hears it.
async fn hear(test: &Test) -> (tokio_postgres::Client, Arc<Mutex<Vec<String>>>) {
    let (client, mut connection) = tokio_postgres::connect(&test.database.url, NoTls).await.unwrap();
    let payloads = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&payloads);
    tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|context| connection.poll_message(context)).await {
            if let AsyncMessage::Notification(notification) = message {
                kept.lock().unwrap().push(notification.payload().to_owned());
            }
        }
    });
    client.batch_execute("LISTEN pgmq_grpc").await.unwrap();
    (client, payloads)
}

async fn until_heard(server: &Server, what: &str) {
    eventually(what, async || {
        let is_heard = |line: &String| line.contains("announcement heard") && line.contains(what);
        server.log_lines().iter().any(is_heard).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_send_is_announced_to_the_other_servers() {
    let (mut test, other, _elsewhere) = pair().await;
    let (_listener, payloads) = hear(&test).await;
    test.client.send("orders", "{}").await;
    until_heard(&other, "\"orders\"").await;
    assert!(!test.server.log().contains("announcement heard"), "a server does not hear itself");
    eventually("the announcement", async || {
        payloads.lock().unwrap().iter().any(|payload| payload.ends_with(" queues\naorders")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_announcement_ends_a_wait_at_another_server() {
    let (test, other, mut elsewhere) = pair().await;
    let mut reader = elsewhere.clone();
    let reading = tokio::spawn(async move { reader.read_as(waiting_for("orders")).await });
    let mut here = test.client.clone();
    let sent = here.send("orders", "{}").await;
    assert_eq!(ids(&reading.await.unwrap()), [sent]);
    until_heard(&other, "\"orders\"").await;

    let request = ReadRequest { queue: "orders".to_owned(), ..Default::default() };
    let mut stream = Follower::open(&elsewhere, request).await;
    let sent = here.send("orders", "{}").await;
    assert_eq!(stream.message().await.msg_id, sent);
    elsewhere.send("orders", "{}").await;
}

#[tokio::test]
async fn settles_and_remade_queues_are_announced_too() {
    let (mut test, other, mut elsewhere) = pair().await;
    elsewhere.send("orders", "{}").await;
    let held = test.client.read_one("orders").await;
    test.client.delete("orders", &[&held.receipt]).await;
    until_heard(&other, "Settled").await;

    let queue = || "orders".to_owned();
    test.client.queue.drop_queue(DropQueueRequest { queue: queue() }).await.unwrap();
    let kind = QueueKind::Unlogged.into();
    test.client
        .queue
        .create_queue(CreateQueueRequest { queue: queue(), kind, ..Default::default() })
        .await
        .unwrap();
    until_heard(&other, "Remade").await;
    assert_eq!(elsewhere.send("orders", "{}").await, 1);
}

#[tokio::test]
async fn many_sends_are_few_announcements() {
    let (mut test, _other, _elsewhere) = pair().await;
    let (_listener, payloads) = hear(&test).await;
    let started = Instant::now();
    for _ in 0..300 {
        test.client.send("orders", "{}").await;
    }
    eventually("an announcement", async || (!payloads.lock().unwrap().is_empty()).then_some(())).await;
    let most = started.elapsed().as_millis() / 50 + 2;
    let heard = payloads.lock().unwrap().len() as u128;
    assert!(heard <= most, "{heard} announcements, {most} are allowed");
}

#[tokio::test]
async fn a_server_that_was_cut_off_listens_again() {
    let (mut test, other, _elsewhere) = pair().await;
    test.database.terminate_connections().await;
    test.sql = test.database.connect().await;
    until_listening(&test, 2).await;
    let is_start = |line: &&String| line.contains("listening for announcements");
    eventually("another start", async || {
        (other.log_lines().iter().filter(is_start).count() == 2).then_some(())
    })
    .await;
    eventually("a send", async || {
        let request = pgmq_grpc::proto::v1::SendRequest {
            queue: "orders".to_owned(),
            message: "{}".to_owned(),
            ..Default::default()
        };
        test.client.queue.send(request).await.ok()
    })
    .await;
    until_heard(&other, "\"orders\"").await;
}

#[tokio::test]
async fn what_others_say_on_the_channel_is_no_trouble() {
    let (mut test, other, mut elsewhere) = pair().await;
    for payload in ["", "nonsense", "9 someone else\nx", "1 someone queues\nq", "1 someone queues\naorders"] {
        test.run(&format!("SELECT pg_notify('pgmq_grpc', '{payload}')")).await;
    }
    until_heard(&other, "\"orders\"").await;
    let sent = test.client.send("orders", "{}").await;
    assert_eq!(elsewhere.read_one("orders").await.msg_id, sent);
}

/// How often a server has looked at its idle queues.
fn looks(server: &Server) -> usize {
    server.log().matches("\"statement\":\"look_around\"").count()
}

#[tokio::test]
async fn an_announcement_alone_wakes_a_stream_that_nobody_looks_after() {
    let mut test = Test::with_queue("orders").await;
    let other = Server::start_on(&test.database, &["--log", "info,pgmq_grpc=trace"]).await;
    until_listening(&test, 2).await;
    let elsewhere = Client::connect(&other).await;
    let mut stream = Follower::open(&elsewhere, follow("orders")).await;
    // The looks find it too, once a second; between two of them only the announcement does.
    eventually("a message between two looks", async || {
        let idle_since = looks(&other);
        eventually("the stream's rest", async || (looks(&other) >= idle_since + 2).then_some(())).await;
        let before = looks(&other);
        let sent = test.client.send("orders", "{}").await;
        assert_eq!(stream.message().await.msg_id, sent);
        (looks(&other) == before).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_moment_of_a_delayed_message_is_announced() {
    let (mut test, other, elsewhere) = pair().await;
    let mut stream = Follower::open(&elsewhere, follow("orders")).await;
    let delay = Some(pgmq_grpc::proto::v1::send_request::Schedule::Delay(seconds(1.5).unwrap()));
    let (queue, message) = ("orders".to_owned(), "{}".to_owned());
    let request = pgmq_grpc::proto::v1::SendRequest { queue, message, schedule: delay, ..Default::default() };
    let sent = test.client.queue.send(request).await.unwrap().into_inner().msg_id;
    until_heard(&other, "Due(").await;
    assert_eq!(stream.message().await.msg_id, sent);
}

#[tokio::test]
async fn a_server_that_hears_nothing_says_so_once_and_looks_by_itself() {
    let postgres = OwnPostgres::start().await;
    let deaf = DeafProxy::start(postgres.port).await;
    let (login, _) = postgres.url.rsplit_once('@').expect("a url with a user");
    let url = format!("{login}@127.0.0.1:{}/pgmq?sslmode=disable", deaf.port);
    let hearing = Server::start(&["--database-url", &postgres.url]).await;
    let mut client = Client::connect(&hearing).await;
    crate::harness::health::serving(&client).await;
    client.create("orders").await;
    let server = Server::start(&["--database-url", &url]).await;
    let elsewhere = Client::connect(&server).await;
    let mut stream = Follower::open(&elsewhere, follow("orders")).await;

    let told = || server.log().matches("no announcements arrive").count();
    eventually("a word about it", async || (told() > 0).then_some(())).await;
    for _ in 0..3 {
        let sent = client.send("orders", "{}").await;
        assert_eq!(stream.message().await.msg_id, sent);
    }

    assert_eq!(told(), 1);
    assert!(!hearing.log().contains("no announcements arrive"));
}
