//! The primary is lost and a standby takes over: with several hosts in its URL the server follows by itself, loses
//! nothing that it acknowledged, and never takes an old primary for the true one.

mod policies;

use std::time::Duration;

use pgmq_grpc::proto::v1::transact_operation::Operation;
use pgmq_grpc::proto::v1::{
    DeleteRequest, Outcome, ReadRequest, SendRequest, TransactOperation, TransactRequest,
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status};

use crate::harness::{
    Client, OwnPostgres, PATIENCE, Pair, Refusal, Server, Test, eventually, health, seconds,
};
use crate::read_stream::{Follower, follow};

/// A server whose monitor notices every change soon.
async fn start_on(url: &str) -> (Server, Client) {
    let server = Server::start(&["--database-url", url, "--health-interval", "100ms"]).await;
    let client = Client::connect(&server).await;
    health::serving(&client).await;
    (server, client)
}

fn send_to(queue: &str) -> SendRequest {
    SendRequest { queue: queue.to_owned(), message: "{}".to_owned(), ..Default::default() }
}

fn delete_from(queue: &str, receipt: &str) -> DeleteRequest {
    DeleteRequest { queue: queue.to_owned(), receipts: vec![receipt.to_owned()], ..Default::default() }
}

/// A request that outlasts every wait of a test.
fn patient<T>(request: T) -> Request<T> {
    let mut request = Request::new(request);
    request.set_timeout(2 * PATIENCE);
    request
}

/// Sends until it works.
async fn send_at_last(client: &mut Client, queue: &str) -> i64 {
    eventually("a send", async || {
        let sent = client.queue.send(patient(send_to(queue))).await;
        sent.ok().map(|sent| sent.into_inner().msg_id)
    })
    .await
}

/// Waits until so many statements have been committed and wait for their standby.
async fn until_commits_wait(sql: &tokio_postgres::Client, wanted: i64) -> Vec<i32> {
    let waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    eventually("commits that wait", async || {
        let rows = sql.query(waiting, &[]).await.expect("the activity");
        (rows.len() as i64 >= wanted).then(|| rows.iter().map(|row| row.get(0)).collect())
    })
    .await
}

#[track_caller]
fn expect_unknown(status: &Status) {
    let refusal = Refusal::expect(status, Code::Unknown, "OUTCOME_UNKNOWN");
    assert_eq!(refusal.retry_delay, None);
}

#[track_caller]
fn expect_retry_safe(status: &Status) {
    let refusal = Refusal::expect(status, Code::Unavailable, "OUTCOME_UNKNOWN_RETRY_SAFE");
    assert!(refusal.retry_delay.is_some());
}

#[tokio::test]
async fn calls_and_streams_go_on_at_the_promoted_standby_and_nothing_acknowledged_is_lost() {
    let Some(mut pair) = Pair::start("a failover").await else { return };
    let (server, mut client) = start_on(&pair.url).await;
    client.create("orders").await;
    client.create("events").await;
    let before = client.send_all("orders", &["1", "2", "3"]).await;
    let held = client.read_one("orders").await;
    let request = ReadRequest { visibility_timeout: seconds(600.0), ..follow("events") };
    let mut stream = Follower::open(&client, request).await;
    client.send("events", r#""before""#).await;
    let first = stream.message().await;
    assert_eq!(first.message, r#""before""#);
    let over = CancellationToken::new();
    let sender = tokio::spawn(send_until_refused(client.clone(), over.clone()));
    eventually("some messages", async || (pair.standby.count("pgmq.q_orders").await > 5).then_some(())).await;

    pair.primary.crash().await;
    pair.standby.promote().await;

    // A send that waits for its connection can be served by the new primary.
    over.cancel();
    let (acknowledged, refused) = sender.await.unwrap();
    if let Some(refused) = refused {
        let reason = Refusal::of(&refused).reason;
        assert!(["OUTCOME_UNKNOWN", "DATABASE_UNAVAILABLE"].contains(&reason.as_str()), "{refused:?}");
    }
    let after = send_at_last(&mut client, "orders").await;
    health::serving(&client).await;
    assert_eq!(client.delete("orders", &[&held.receipt]).await, [Outcome::Done]);
    assert_eq!(client.delete("events", &[&first.receipt]).await, [Outcome::Done]);
    client.send("events", r#""after""#).await;
    assert_eq!(stream.message().await.message, r#""after""#);
    let sql = pair.standby.connect().await.unwrap();
    let rows = sql.query("SELECT msg_id FROM pgmq.q_orders", &[]).await.unwrap();
    let stored: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
    let expected = before.iter().chain(&acknowledged).chain([&after]).filter(|&&id| id != held.msg_id);
    for msg_id in expected {
        assert!(stored.contains(msg_id), "{msg_id} was acknowledged, and is lost: {stored:?}");
    }
    assert!(server.log().contains("another primary has taken over"), "{}", server.log());
}

/// Sends one message after the other until one is refused, or it is told that all is over.
async fn send_until_refused(mut client: Client, over: CancellationToken) -> (Vec<i64>, Option<Status>) {
    let mut acknowledged = Vec::new();
    while !over.is_cancelled() {
        match client.queue.send(patient(send_to("orders"))).await {
            Ok(sent) => acknowledged.push(sent.into_inner().msg_id),
            Err(refused) => return (acknowledged, Some(refused)),
        }
    }
    (acknowledged, None)
}

#[tokio::test]
async fn writes_that_wait_for_a_standby_have_an_unknown_outcome() {
    let mut postgres = OwnPostgres::start().await;
    let (_server, mut client) = start_on(&postgres.url).await;
    for queue in ["orders", "other", "third"] {
        client.create(queue).await;
    }
    client.send("other", "{}").await;
    client.send("other", "{}").await;
    let held = [client.read_one("other").await, client.read_one("other").await];
    // A standby that never comes.
    postgres.run("ALTER SYSTEM SET synchronous_standby_names = 'nobody'").await;
    postgres.run("SELECT pg_reload_conf()").await;
    let sql = postgres.connect().await;
    let write = |client: &Client, receipt: &str| {
        let (mut sender, mut deleter, mut transactor) = (client.clone(), client.clone(), client.clone());
        let delete = delete_from("other", receipt);
        let operation = TransactOperation { operation: Some(Operation::Send(send_to("third"))) };
        let transact = TransactRequest { operations: vec![operation], ..Default::default() };
        tokio::spawn(async move {
            tokio::join!(
                sender.queue.send(patient(send_to("orders"))),
                deleter.queue.delete(patient(delete)),
                transactor.queue.transact(patient(transact)),
            )
        })
    };

    // Somebody cancels the wait: Postgres answers that all is well, and warns.
    let writing = write(&client, &held[0].receipt);
    for process in until_commits_wait(&sql, 3).await {
        sql.execute("SELECT pg_cancel_backend($1)", &[&process]).await.unwrap();
    }
    let (sent, deleted, transacted) = writing.await.unwrap();
    expect_unknown(&sent.unwrap_err());
    expect_retry_safe(&deleted.unwrap_err());
    expect_unknown(&transacted.unwrap_err());

    // The primary is lost meanwhile.
    let writing = write(&client, &held[1].receipt);
    until_commits_wait(&sql, 3).await;
    postgres.crash().await;
    let (sent, deleted, transacted) = writing.await.unwrap();
    expect_unknown(&sent.unwrap_err());
    expect_retry_safe(&deleted.unwrap_err());
    expect_unknown(&transacted.unwrap_err());
}

#[tokio::test]
async fn an_old_primary_that_comes_back_serves_nothing() {
    let Some(mut pair) = Pair::start_asynchronous("the return of an old primary").await else { return };
    let (server, mut client) = start_on(&pair.url).await;
    client.create("orders").await;
    let held = {
        client.send("orders", "{}").await;
        client.read_one("orders").await
    };
    let standby = &pair.standby;
    eventually("the read on the standby", async || {
        let sql = standby.connect().await?;
        sql.query_opt("SELECT FROM pgmq.q_orders WHERE read_ct = 1", &[]).await.ok()?.map(drop)
    })
    .await;
    pair.primary.crash().await;
    pair.standby.promote().await;
    send_at_last(&mut client, "orders").await;

    // The first host of the URL is back, and takes itself for the primary.
    pair.primary.start_again().await;
    for _ in 0..5 {
        client.send("orders", "{}").await;
    }
    assert_eq!(pair.standby.count("pgmq.q_orders").await, 7);

    // Alone, it is still refused.
    pair.standby.crash();
    health::not_serving(&client).await;
    let refused = eventually("a refusal of the old primary", async || {
        let refused = client.queue.send(patient(send_to("orders"))).await.unwrap_err();
        // The very first can have been under way.
        (Refusal::of(&refused).reason == "DATABASE_UNAVAILABLE").then_some(refused)
    })
    .await;
    assert!(refused.message().contains("an old primary"), "{refused:?}");
    let settled = client.queue.delete(delete_from("orders", &held.receipt)).await.unwrap_err();
    Refusal::expect(&settled, Code::Unavailable, "DATABASE_UNAVAILABLE");
    let zombie = pair.primary.connect().await;
    let count: i64 = zombie.query_one("SELECT count(*) FROM pgmq.q_orders", &[]).await.unwrap().get(0);
    assert_eq!(count, 1);
    assert!(server.log().contains("an old primary is refused"), "{}", server.log());

    pair.standby.start_again().await;
    health::serving(&client).await;
    assert_eq!(client.delete("orders", &[&held.receipt]).await, [Outcome::Done]);
}

#[tokio::test]
async fn of_two_primaries_at_once_the_newer_is_found_and_used() {
    let Some(pair) = Pair::start_asynchronous("two primaries").await else { return };
    let (server, mut client) = start_on(&pair.url).await;
    client.create("orders").await;
    client.send("orders", "{}").await;
    let standby = &pair.standby;
    eventually("the queue on the standby", async || {
        let sql = standby.connect().await?;
        sql.query_opt("SELECT FROM pgmq.q_orders", &[]).await.ok()?.map(drop)
    })
    .await;

    // Nobody tells the old one, and its connections are as good as ever.
    pair.standby.promote().await;
    eventually("the take-over", async || {
        server.log().contains("another primary has taken over").then_some(())
    })
    .await;
    let old = pair.primary.connect().await;
    let count = "SELECT count(*) FROM pgmq.q_orders";
    let before: i64 = old.query_one(count, &[]).await.unwrap().get(0);
    for _ in 0..5 {
        send_at_last(&mut client, "orders").await;
    }

    let after: i64 = old.query_one(count, &[]).await.unwrap().get(0);
    assert_eq!(before, after);
    assert!(pair.standby.count("pgmq.q_orders").await >= 6);
}

#[tokio::test]
async fn announcements_are_made_and_heard_at_the_newer_of_two_primaries() {
    let Some(pair) = Pair::start_asynchronous("announcements after a take-over").await else { return };
    let flags = ["--database-url", &pair.url, "--health-interval", "100ms", "--log", "info,pgmq_grpc=debug"];
    let server = Server::start(&flags).await;
    let mut client = Client::connect(&server).await;
    health::serving(&client).await;
    client.create("orders").await;
    let old = pair.primary.connect().await;
    eventually("a listener at the primary", async || (listeners(&old).await == 1).then_some(())).await;
    let standby = &pair.standby;
    eventually("the queue on the standby", async || {
        let sql = standby.connect().await?;
        sql.query_opt("SELECT FROM pgmq.q_orders", &[]).await.ok()?;
        Some(())
    })
    .await;

    // The old primary lives on, and its connections with it.
    pair.standby.promote().await;

    let new = pair.standby.connect().await.unwrap();
    eventually("a listener at the new primary", async || (listeners(&new).await == 1).then_some(())).await;
    eventually("no listener at the old one", async || (listeners(&old).await == 0).then_some(())).await;
    let mut stream = Follower::open(&client, follow("orders")).await;
    eventually("an announcement", async || {
        new.batch_execute("SELECT pg_notify('pgmq_grpc', '1 another queues\naorders')").await.ok()?;
        server.log().contains("announcement heard").then_some(())
    })
    .await;
    let sent = send_at_last(&mut client, "orders").await;
    assert_eq!(stream.message().await.msg_id, sent);
}

/// How many connections of servers announce at a Postgres.
async fn listeners(sql: &tokio_postgres::Client) -> i64 {
    let listening = "SELECT count(*) FROM pg_stat_activity
        WHERE query LIKE '-- pgmq-grpc: announce%' OR query LIKE '-- pgmq-grpc: listen%'";
    sql.query_one(listening, &[]).await.expect("the activity").get(0)
}

#[tokio::test]
async fn a_receipt_of_a_read_that_the_standby_never_saw_settles_no_later_delivery() {
    let Some(mut pair) = Pair::start_asynchronous("a lagging standby").await else { return };
    let (_server, mut client) = start_on(&pair.url).await;
    client.create("orders").await;
    let msg_id = client.send("orders", "{}").await;
    let standby = &pair.standby;
    eventually("the message on the standby", async || {
        let sql = standby.connect().await?;
        sql.query_opt("SELECT FROM pgmq.q_orders", &[]).await.ok()?.map(drop)
    })
    .await;
    pair.part().await;
    let lost = client.read_one("orders").await;
    pair.primary.crash().await;
    pair.standby.promote().await;

    let again = eventually("the message at the new primary", async || {
        let request =
            pgmq_grpc::proto::v1::ReadBatchRequest { queue: "orders".to_owned(), ..Default::default() };
        client.queue.read_batch(request).await.ok()?.into_inner().messages.pop()
    })
    .await;

    // The same message, the same count, and yet another delivery.
    assert_eq!((again.msg_id, again.read_ct), (msg_id, lost.read_ct));
    assert_eq!(client.delete("orders", &[&lost.receipt]).await, [Outcome::Stale]);
    assert_eq!(client.delete("orders", &[&again.receipt]).await, [Outcome::Done]);
    assert_eq!(client.delete("orders", &[&lost.receipt]).await, [Outcome::NotFound]);
}

#[tokio::test]
async fn settings_of_the_role_change_no_isolation_and_weak_commits_are_warned_of() {
    let mut test = Test::with_queue("orders").await;
    test.run(
        "CREATE TABLE seen (isolation text);
         CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           INSERT INTO seen VALUES (current_setting('transaction_isolation')); RETURN NEW; END $$;
         CREATE TRIGGER look BEFORE INSERT ON pgmq.q_orders FOR EACH ROW EXECUTE FUNCTION look()",
    )
    .await;
    let name = &test.database.name;
    for setting in ["default_transaction_isolation = 'serializable'", "synchronous_commit = off"] {
        test.run(&format!("ALTER ROLE pgmq IN DATABASE {name} SET {setting}")).await;
    }
    let (server, mut client) = start_on(&test.database.url).await;

    client.send("orders", "{}").await;

    assert_eq!(test.value::<String>("SELECT isolation FROM seen").await, "read committed");
    let plain = test.database.connect().await;
    let row = plain.query_one("SHOW transaction_isolation", &[]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0), "serializable");
    let warnings = server.log().matches("acknowledged sends can be lost in a crash").count();
    assert_eq!(warnings, 1, "{}", server.log());
    // As everywhere else, nothing was lost of what the test's own server knows.
    assert_eq!(test.client.read("orders", 10).await.len(), 1);
}

#[tokio::test]
async fn a_role_that_may_not_ask_for_its_position_is_served_all_the_same() {
    let test = Test::with_queue("orders").await;
    test.run("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC").await;
    let (user, url) = with_ordinary_role(&test).await;
    let (server, mut client) = start_on(&url).await;
    client.send("orders", "{}").await;
    let log = server.log();
    assert_eq!(log.matches("does not tell its system identifier").count(), 1, "{log}");

    test.run("REVOKE EXECUTE ON FUNCTION pg_current_wal_lsn() FROM PUBLIC").await;
    let (server, mut client) = start_on(&url).await;
    client.send("orders", "{}").await;
    let log = server.log();
    assert_eq!(log.matches("does not tell its timeline").count(), 1, "{log}");
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 2);
    drop((server, client));
    test.run(&format!("DROP OWNED BY {user}; DROP ROLE {user}")).await;
}

/// A role that may use pgmq and nothing else, and the URL with which it comes.
async fn with_ordinary_role(test: &Test) -> (String, String) {
    let user = format!("ordinary_{}", test.database.name);
    test.run(&format!(
        "CREATE ROLE {user} LOGIN PASSWORD 'secret';
         GRANT ALL ON SCHEMA pgmq TO {user};
         GRANT ALL ON ALL TABLES IN SCHEMA pgmq TO {user};
         GRANT ALL ON ALL SEQUENCES IN SCHEMA pgmq TO {user}"
    ))
    .await;
    let (_, place) = test.database.url.rsplit_once('@').expect("a url with a user");
    let url = format!("postgresql://{user}:secret@{place}");
    (user, url)
}

#[tokio::test]
async fn a_database_that_only_reads_is_unavailable() {
    let test = Test::with_queue("orders").await;
    let name = &test.database.name;
    test.run(&format!("ALTER DATABASE {name} SET default_transaction_read_only = on")).await;
    let server = Server::start(&["--database-url", &test.database.url, "--health-interval", "100ms"]).await;
    let mut client = Client::connect(&server).await;

    let refused = client.queue.send(send_to("orders")).await.unwrap_err();

    let refusal = Refusal::expect(&refused, Code::Unavailable, "DATABASE_UNAVAILABLE");
    assert!(refusal.message.contains("read-only"), "{refusal:?}");
    assert_eq!(refusal.retry_delay, Some(Duration::from_secs(1)));
    health::not_serving(&client).await;
    test.sql.batch_execute("SET default_transaction_read_only = off").await.unwrap();
    test.run(&format!("ALTER DATABASE {name} RESET default_transaction_read_only")).await;
    health::serving(&client).await;
    client.send("orders", "{}").await;
}
