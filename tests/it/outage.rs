//! The database goes away and comes back; the server stays, says so, and tells the truth about every call meanwhile.

use std::time::Duration;

use nix::sys::signal::Signal;
use pgmq_grpc::proto::v1::{
    DeleteRequest, GetQueueRequest, ListQueuesRequest, Outcome, ReadBatchRequest, ReadRequest, SendRequest,
};
use tonic::{Code, Request, Status};

use crate::harness::{Client, Gate, OwnPostgres, Refusal, Server, Test, eventually, health, seconds};
use crate::read_stream::{Follower, follow};

/// So often that a test notices every change.
const OFTEN: [&str; 2] = ["--health-interval", "100ms"];

/// A server on a Postgres of the test's own.
async fn start_on(postgres: &OwnPostgres) -> (Server, Client) {
    let database = ["--database-url", postgres.url.as_str()];
    let server = Server::start(&[&database[..], &OFTEN].concat()).await;
    let client = Client::connect(&server).await;
    (server, client)
}

fn ask_for(queue: &str) -> GetQueueRequest {
    GetQueueRequest { queue: queue.to_owned() }
}

fn send_to(queue: &str) -> SendRequest {
    SendRequest { queue: queue.to_owned(), message: "{}".to_owned(), ..Default::default() }
}

/// How often a message of the monitor stands in the log.
fn count(server: &Server, message: &str) -> usize {
    server.log().matches(&format!("\"message\":\"{message}\"")).count()
}

/// Checks that an error says that nothing was applied.
#[track_caller]
fn expect_unavailable(status: &Status) {
    let refusal = Refusal::expect(status, Code::Unavailable, "DATABASE_UNAVAILABLE");
    assert_eq!(refusal.retry_delay, Some(Duration::from_secs(1)));
    assert!(refusal.message.contains("nothing was applied"), "{}", refusal.message);
}

#[tokio::test]
async fn a_server_comes_up_without_its_database_and_works_when_that_comes() {
    let mut postgres = OwnPostgres::start().await;
    postgres.stop().await;

    let (server, mut client) = start_on(&postgres).await;
    assert!(server.log().contains("the database does not answer\""), "{}", server.log());
    health::not_serving(&client).await;
    for refused in [
        client.queue.get_queue(ask_for("orders")).await.unwrap_err(),
        client.queue.list_queues(ListQueuesRequest::default()).await.unwrap_err(),
        client.queue.send(send_to("orders")).await.unwrap_err(),
        client
            .queue
            .read(ReadRequest { queue: "orders".to_owned(), ..Default::default() })
            .await
            .unwrap_err(),
    ] {
        expect_unavailable(&refused);
        // At once, and not after a wait for a connection that cannot come.
        assert!(refused.message().contains("cannot be reached"), "{refused:?}");
    }

    postgres.start_again().await;
    health::serving(&client).await;
    client.create("orders").await;
    client.send("orders", "{}").await;
    assert_eq!(client.read_one("orders").await.msg_id, 1);
    assert_eq!(count(&server, "database unavailable"), 1, "{}", server.log());
    assert_eq!(count(&server, "database ready"), 1, "{}", server.log());
}

#[tokio::test]
async fn a_database_that_hangs_is_an_error_before_the_deadline() {
    let postgres = OwnPostgres::start().await;
    postgres.signal(Signal::SIGSTOP);
    let (_server, mut client) = start_on(&postgres).await;
    health::not_serving(&client).await;

    let mut request = Request::new(ask_for("orders"));
    request.set_timeout(Duration::from_secs(3));
    expect_unavailable(&client.queue.get_queue(request).await.unwrap_err());

    postgres.signal(Signal::SIGCONT);
    health::serving(&client).await;
    client.create("orders").await;
}

#[tokio::test]
async fn a_refused_password_is_told_without_it() {
    let test = Test::start().await;
    let (before, place) = test.database.url.split_once('@').expect("a url with a user");
    let (user, _) = before.rsplit_once(':').expect("a password");
    let url = format!("{user}:zanzibar4711@{place}");
    let server = Server::start(&["--database-url", &url]).await;
    let mut client = Client::connect(&server).await;

    health::not_serving(&client).await;
    let refused = client.queue.get_queue(ask_for("orders")).await.unwrap_err();
    expect_unavailable(&refused);
    assert!(refused.message().contains("refused this server's credentials"), "{refused:?}");
    let log = server.log();
    assert!(log.contains("password authentication failed"), "{log}");
    assert!(!log.contains("zanzibar4711"), "{log}");
}

#[tokio::test]
async fn an_orderly_restart_of_the_database_needs_none_of_the_server() {
    let mut postgres = OwnPostgres::start().await;
    let (server, mut client) = start_on(&postgres).await;
    health::serving(&client).await;
    client.create("orders").await;
    client.send_all("orders", &["1", "2", "3"]).await;
    let read = client.read_one("orders").await;

    postgres.stop().await;
    health::not_serving(&client).await;
    expect_unavailable(&client.queue.get_queue(ask_for("orders")).await.unwrap_err());
    expect_unavailable(&client.queue.send(send_to("orders")).await.unwrap_err());
    let delete = DeleteRequest {
        queue: "orders".to_owned(),
        receipts: vec![read.receipt.clone()],
        ..Default::default()
    };
    expect_unavailable(&client.queue.delete(delete).await.unwrap_err());

    postgres.start_again().await;
    health::serving(&client).await;
    assert_eq!(client.delete("orders", &[&read.receipt]).await, [Outcome::Done]);
    assert_eq!(client.send("orders", "4").await, 4);
    let left: Vec<i64> = client.read("orders", 10).await.iter().map(|message| message.msg_id).collect();
    assert_eq!(left, [2, 3, 4]);
    assert_eq!(count(&server, "database unavailable"), 1, "{}", server.log());
    assert_eq!(count(&server, "database ready"), 2, "{}", server.log());
}

#[tokio::test]
async fn a_crash_of_the_database_loses_nothing_that_was_acknowledged() {
    let mut postgres = OwnPostgres::start().await;
    let (_server, mut client) = start_on(&postgres).await;
    health::serving(&client).await;
    client.create("orders").await;
    let sender = tokio::spawn(send_until_refused(client.clone()));
    eventually("some messages", async || {
        let sql = postgres.connect().await;
        let stored: i64 = sql.query_one("SELECT count(*) FROM pgmq.q_orders", &[]).await.ok()?.get(0);
        (stored > 20).then_some(())
    })
    .await;

    postgres.crash().await;
    let (acknowledged, refused) = sender.await.unwrap();
    match refused.code() {
        Code::Unknown => drop(Refusal::expect(&refused, Code::Unknown, "OUTCOME_UNKNOWN")),
        _ => expect_unavailable(&refused),
    }

    postgres.start_again().await;
    health::serving(&client).await;
    let sql = postgres.connect().await;
    let rows = sql.query("SELECT msg_id FROM pgmq.q_orders", &[]).await.unwrap();
    let stored: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
    assert!(acknowledged.iter().all(|msg_id| stored.contains(msg_id)), "{acknowledged:?} {stored:?}");
    // Only the last one was in doubt.
    assert!(stored.len() <= acknowledged.len() + 1, "{acknowledged:?} {stored:?}");
}

async fn send_until_refused(mut client: Client) -> (Vec<i64>, Status) {
    let mut acknowledged = Vec::new();
    loop {
        match client.queue.send(send_to("orders")).await {
            Ok(sent) => acknowledged.push(sent.into_inner().msg_id),
            Err(refused) => return (acknowledged, refused),
        }
    }
}

#[tokio::test]
async fn an_open_stream_outlives_a_restart_of_the_database() {
    let mut postgres = OwnPostgres::start().await;
    let (_server, mut client) = start_on(&postgres).await;
    health::serving(&client).await;
    client.create("orders").await;
    let request = ReadRequest { visibility_timeout: seconds(600.0), ..follow("orders") };
    let mut stream = Follower::open(&client, request).await;
    client.send("orders", r#""before""#).await;
    assert_eq!(stream.message().await.message, r#""before""#);

    postgres.stop().await;
    health::not_serving(&client).await;
    // It still lives: heartbeats come while there is no database.
    for _ in 0..2 {
        stream.heartbeat().await;
    }
    postgres.start_again().await;
    health::serving(&client).await;

    client.send("orders", r#""after""#).await;
    let message = stream.message().await;
    assert_eq!((message.message.as_str(), message.read_ct), (r#""after""#, 1));
}

#[tokio::test]
async fn a_waiting_read_is_told_that_the_database_is_gone() {
    let mut postgres = OwnPostgres::start().await;
    let (_server, mut client) = start_on(&postgres).await;
    health::serving(&client).await;
    client.create("orders").await;
    let mut reader = client.clone();
    let waiting = tokio::spawn(async move {
        let request =
            ReadBatchRequest { queue: "orders".to_owned(), wait: seconds(50.0), ..Default::default() };
        let mut request = Request::new(request);
        request.set_timeout(Duration::from_secs(60));
        reader.queue.read_batch(request).await
    });
    let sql = postgres.connect().await;
    eventually("the read", async || {
        let reads = "SELECT FROM pg_stat_activity WHERE query LIKE '-- pgmq-grpc: next_visible%'";
        sql.query_opt(reads, &[]).await.unwrap().map(drop)
    })
    .await;

    postgres.stop().await;

    let refused = waiting.await.unwrap().unwrap_err();
    let refusal = Refusal::of(&refused);
    assert_eq!(refusal.code, Code::Unavailable, "{refusal:?}");
    let truths = ["DATABASE_UNAVAILABLE", "OUTCOME_UNKNOWN_RETRY_SAFE"];
    assert!(truths.contains(&refusal.reason.as_str()), "{refusal:?}");
}

#[tokio::test]
async fn calls_work_again_after_all_connections_were_cut() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    test.database.terminate_connections().await;
    // The test's own connection was cut too; and the server must have heard of it before a write goes out.
    let mut client = test.client.clone();
    eventually("an answer", async || match client.queue.get_queue(ask_for("orders")).await {
        Ok(_) => Some(()),
        Err(refused) => {
            expect_unavailable(&refused);
            None
        }
    })
    .await;
    assert_eq!(test.client.send("orders", "{}").await, 2);
    assert_eq!(test.client.read("orders", 10).await.len(), 2);
}

#[tokio::test]
async fn a_send_that_is_cut_off_in_the_database_has_an_unknown_outcome() {
    let test = Test::with_queue("orders").await;
    let gate = Gate::close(&test, "orders", "INSERT").await;
    let mut sender = test.client.clone();
    let sending = tokio::spawn(async move { sender.queue.send(send_to("orders")).await });

    let process = gate.arrival(&test, "send").await;
    gate.terminate(&test, process).await;

    let refused = sending.await.unwrap().unwrap_err();
    let refusal = Refusal::expect(&refused, Code::Unknown, "OUTCOME_UNKNOWN");
    assert_eq!(refusal.retry_delay, None);
    gate.open(&test).await;
    assert_eq!(test.client.clone().send("orders", "{}").await, 2);
}

#[tokio::test]
async fn a_delete_by_receipt_that_is_cut_off_may_be_repeated() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let receipt = test.client.read_one("orders").await.receipt;
    let gate = Gate::close(&test, "orders", "DELETE").await;
    let mut client = test.client.clone();
    let delete =
        DeleteRequest { queue: "orders".to_owned(), receipts: vec![receipt.clone()], ..Default::default() };
    let deleting = tokio::spawn(async move { client.queue.delete(delete).await });

    let process = gate.arrival(&test, "delete").await;
    gate.terminate(&test, process).await;

    let refused = deleting.await.unwrap().unwrap_err();
    let refusal = Refusal::expect(&refused, Code::Unavailable, "OUTCOME_UNKNOWN_RETRY_SAFE");
    assert!(refusal.retry_delay.is_some());
    gate.open(&test).await;
    assert_eq!(test.client.delete("orders", &[&receipt]).await, [Outcome::Done]);
}
