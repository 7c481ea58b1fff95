//! How a change reaches every server, whoever has made it.

use std::time::{Duration, Instant};

use pgmq_grpc::proto::v1::{
    DeadLetterPolicy, ListQueuesRequest, Ordering, Outcome, QueuePolicy, RetryBackoff, SendRequest,
};
use tonic::Code;

use super::updating::orders;
use super::{clear, create, full, policy_of, set};
use crate::harness::{
    Client, DeafProxy, OwnPostgres, Refusal, Server, SilentProxy, Test, eventually, seconds,
};
use crate::read_batch::{all_of, ids, now, until_a_reader_waits};
use crate::read_stream::{Follower, follow};
use crate::settle::{outcomes, release};

fn hidden_for(timeout: f64) -> QueuePolicy {
    QueuePolicy { default_visibility_timeout: seconds(timeout), ..Default::default() }
}

/// For how long a server hides what is read there now.
async fn timeout_at(client: &Client) -> f64 {
    let timeout = Follower::open(client, follow("orders")).await.started.visibility_timeout;
    timeout.expect("a timeout").seconds as f64
}

pub(super) async fn until_hidden_for(client: &Client, timeout: f64) {
    eventually("the policy at another server", async || (timeout_at(client).await == timeout).then_some(()))
        .await;
}

#[tokio::test]
async fn a_change_is_seen_by_the_next_call_at_once_and_soon_at_every_other_server() {
    let mut test = Test::with_queue("orders").await;
    let hears = Server::start_on(&test.database, &[]).await;
    let hearing = Client::connect(&hears).await;
    for timeout in [41.0, 42.0, 43.0] {
        set(&mut test.client, "orders", hidden_for(timeout)).await;
        assert_eq!(timeout_at(&test.client).await, timeout);
        until_hidden_for(&hearing, timeout).await;
    }
}

#[tokio::test]
async fn a_change_by_plain_sql_is_seen_too() {
    let mut test = Test::with_queue("orders").await;
    test.run(
        "INSERT INTO pgmq_grpc.queue_policy (queue_name, queue_created_at, default_visibility_timeout_s)
         SELECT queue_name, created_at, 55 FROM pgmq.meta",
    )
    .await;
    until_hidden_for(&test.client, 55.0).await;
    assert_eq!(policy_of(&mut test.client, "orders").await, Some(hidden_for(55.0)));
    test.run("UPDATE pgmq_grpc.queue_policy SET default_visibility_timeout_s = 56").await;
    until_hidden_for(&test.client, 56.0).await;
    test.run("TRUNCATE pgmq_grpc.queue_policy").await;
    until_hidden_for(&test.client, 30.0).await;
}

#[tokio::test]
async fn a_queue_made_anew_is_read_without_the_policy_of_the_old_one() {
    let mut test = Test::with_queue("orders").await;
    let hears = Server::start_on(&test.database, &[]).await;
    let hearing = Client::connect(&hears).await;
    set(&mut test.client, "orders", hidden_for(61.0)).await;
    until_hidden_for(&hearing, 61.0).await;
    let drop_queue = pgmq_grpc::proto::v1::DropQueueRequest { queue: "orders".to_owned() };
    test.client.queue.drop_queue(drop_queue).await.unwrap();
    // Its policy went with it.
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq_grpc.queue_policy").await, 0);
    test.client.create("orders").await;
    assert_eq!(timeout_at(&test.client).await, 30.0);
    until_hidden_for(&hearing, 30.0).await;
}

#[tokio::test]
async fn a_queue_that_plain_sql_made_anew_loses_its_policy_at_a_server_that_nobody_calls() {
    let mut test = Test::with_queue("orders").await;
    let begun = Instant::now();
    for _ in 0..6 {
        set(&mut test.client, "orders", hidden_for(61.0)).await;
        assert_eq!(timeout_at(&test.client).await, 61.0);
        test.run("SELECT pgmq.drop_queue('orders'), pgmq.create('orders')").await;
        until_hidden_for(&test.client, 30.0).await;
    }
    // By the rare looks of one who has no policy to lose, each but the first would have come 15 s after the one before.
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
}

/// One server straight on a Postgres, with a queue `orders`, and one through a proxy.
async fn two_servers(postgres: &OwnPostgres, proxy: u16) -> [(Server, Client); 2] {
    let (login, _) = postgres.url.rsplit_once('@').expect("a url with a user");
    let url = format!("{login}@127.0.0.1:{proxy}/pgmq?sslmode=disable");
    let hearing = Server::start(&["--database-url", &postgres.url]).await;
    let mut client = Client::connect(&hearing).await;
    crate::harness::health::serving(&client).await;
    client.create("orders").await;
    let server = Server::start(&["--database-url", &url]).await;
    let behind = Client::connect(&server).await;
    [(hearing, client), (server, behind)]
}

#[tokio::test]
async fn a_server_that_hears_nothing_looks_by_itself() {
    let postgres = OwnPostgres::start().await;
    let proxy = DeafProxy::start(postgres.port).await;
    let [(_hearing, mut client), (_server, deaf)] = two_servers(&postgres, proxy.port).await;
    for timeout in [51.0, 52.0] {
        set(&mut client, "orders", hidden_for(timeout)).await;
        until_hidden_for(&deaf, timeout).await;
    }
    // What makes no noise at all is found as well, and what is left of the old queue goes.
    let sql = postgres.connect().await;
    sql.batch_execute("SELECT pgmq.drop_queue('orders'), pgmq.create('orders')").await.unwrap();
    until_hidden_for(&deaf, 30.0).await;
    eventually("the policy of a dropped queue removed", async || {
        let left = sql.query_one("SELECT count(*) FROM pgmq_grpc.queue_policy", &[]).await.unwrap();
        (left.get::<_, i64>(0) == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_server_whose_listening_connection_is_dead_without_a_close_looks_by_itself() {
    let postgres = OwnPostgres::start().await;
    let proxy = SilentProxy::start(postgres.port).await;
    let [(_hearing, mut client), (_server, behind)] = two_servers(&postgres, proxy.port).await;
    let sql = postgres.connect().await;
    eventually("two servers that hear", async || {
        let announced = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '-- pgmq-grpc: announce%'";
        (sql.query_one(announced, &[]).await.unwrap().get::<_, i64>(0) == 2).then_some(())
    })
    .await;
    set(&mut client, "orders", hidden_for(41.0)).await;
    until_hidden_for(&behind, 41.0).await;
    proxy.silence();
    let begun = Instant::now();
    for timeout in [51.0, 52.0, 53.0, 54.0, 55.0, 56.0] {
        // Who knows of no policy looks seldom.
        clear(&mut client, "orders", &["default_visibility_timeout"]).await;
        until_hidden_for(&behind, 30.0).await;
        set(&mut client, "orders", hidden_for(timeout)).await;
        until_hidden_for(&behind, timeout).await;
    }
    // By the rare looks of one who hears, each would have come 15 s after the one before.
    assert!(begun.elapsed() < Duration::from_secs(75), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_server_knows_the_policies_with_its_first_call() {
    let mut test = Test::with_queue("orders").await;
    set(&mut test.client, "orders", hidden_for(71.0)).await;
    for _ in 0..3 {
        let server = Server::start_on(&test.database, &[]).await;
        assert_eq!(timeout_at(&Client::connect(&server).await).await, 71.0);
    }
}

/// A test whose server was given a policy for `orders`, and another server that was there before and has heard of it.
async fn heard_of(policy: QueuePolicy) -> (Test, Server, Client) {
    let mut test = orders().await;
    let (other, elsewhere) = test.another().await;
    // What changes together is heard of together.
    let policy = QueuePolicy { default_visibility_timeout: seconds(45.0), ..policy };
    set(&mut test.client, "orders", policy).await;
    until_hidden_for(&elsewhere, 45.0).await;
    (test, other, elsewhere)
}

#[tokio::test]
async fn what_is_sent_at_another_server_has_the_delay_the_size_and_the_window_of_its_queue() {
    let (test, _other, mut elsewhere) = heard_of(QueuePolicy {
        default_delay: seconds(3_600.0),
        max_message_bytes: Some(5),
        deduplication_window: seconds(7_200.0),
        ..Default::default()
    })
    .await;
    let keyed = |message: &str| SendRequest {
        queue: "orders".to_owned(),
        message: message.to_owned(),
        deduplication_id: "a".to_owned(),
        ..Default::default()
    };
    let refused = elsewhere.queue.send(keyed("123456")).await.unwrap_err();
    Refusal::expect_invalid(&refused, "MESSAGE_TOO_LARGE", "message");
    elsewhere.queue.send(keyed("12345")).await.unwrap();
    let minutes = "SELECT ARRAY[extract(epoch FROM q.vt - q.enqueued_at), extract(epoch FROM d.expires_at - q.enqueued_at)]::float8[]
        FROM pgmq.q_orders AS q JOIN pgmq_grpc.deduplication AS d USING (msg_id)";
    let minutes: Vec<f64> = test.value(minutes).await;
    assert_eq!(minutes.iter().map(|span| (span / 60.0).round()).collect::<Vec<_>>(), [60.0, 120.0]);
}

#[tokio::test]
async fn what_is_read_at_another_server_comes_in_the_order_and_after_the_wait_of_its_queue() {
    let (mut test, _other, mut elsewhere) = heard_of(QueuePolicy {
        default_ordering: Ordering::GroupedHead.into(),
        default_wait: seconds(50.0),
        ..Default::default()
    })
    .await;
    for body in ["1", "2"] {
        test.client.send_to_group("orders", "a", body).await;
    }
    let head = elsewhere.read_as(all_of("orders")).await;
    assert_eq!(ids(&head), [1]);
    let since = now(&test).await;
    let waiting = tokio::spawn(async move { elsewhere.read_as(all_of("orders")).await });
    until_a_reader_waits(&test, &since).await;
    assert!(!waiting.is_finished());
    assert_eq!(test.client.delete("orders", &[&head[0].receipt]).await, [Outcome::Done]);
    assert_eq!(ids(&waiting.await.unwrap()), [2]);
}

#[tokio::test]
async fn what_is_released_at_another_server_waits_or_goes_aside_as_its_queue_says() {
    let span = seconds(1_000.0);
    let (test, _other, mut elsewhere) = heard_of(QueuePolicy {
        dead_letter: Some(DeadLetterPolicy { queue: "failed".to_owned(), max_receives: 2 }),
        retry_backoff: Some(RetryBackoff { minimum: span, maximum: span, multiplier: 1.0, jitter: 0.0 }),
        ..Default::default()
    })
    .await;
    let request = ListQueuesRequest { dead_letter_queue: "failed".to_owned(), ..Default::default() };
    let listed = elsewhere.queue.list_queues(request).await.unwrap().into_inner().queues;
    assert_eq!(listed.iter().map(|queue| queue.name.as_str()).collect::<Vec<_>>(), ["orders"]);

    elsewhere.send("orders", "{}").await;
    let held = elsewhere.read_one("orders").await;
    let released = release(&mut elsewhere, "orders", &[&held.receipt], None).await;
    assert_eq!(outcomes(&released), [Outcome::Done]);
    let hidden = "SELECT extract(epoch FROM vt - last_read_at)::float8 FROM pgmq.q_orders";
    assert!(test.value::<f64>(hidden).await >= 1_000.0);
    test.run("UPDATE pgmq.q_orders SET vt = clock_timestamp() - interval '1 second'").await;
    let held = elsewhere.read_one("orders").await;
    release(&mut elsewhere, "orders", &[&held.receipt], None).await;
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 0);
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_failed").await, 1);
}

#[tokio::test]
async fn of_two_servers_that_make_a_queue_at_once_one_gives_it_its_policy() {
    let mut test = Test::with_queue("failed").await;
    let (_other, mut elsewhere) = test.another().await;
    for round in 0..10 {
        let (same, other) = (format!("same_{round}"), format!("other_{round}"));
        let (here, there) = tokio::join!(
            create(&mut test.client, &same, Some(full())),
            create(&mut elsewhere, &same, Some(full()))
        );
        assert!(here.unwrap().created != there.unwrap().created, "{round}");

        let (here, there) = tokio::join!(
            create(&mut test.client, &other, Some(full())),
            create(&mut elsewhere, &other, Some(hidden_for(61.0)))
        );
        let (policy, refused) = match (here, there) {
            (Ok(_), Err(refused)) => (full(), refused),
            (Err(refused), Ok(_)) => (hidden_for(61.0), refused),
            both => panic!("{both:?}"),
        };
        let refusal = Refusal::expect(&refused, Code::FailedPrecondition, "QUEUE_KIND_MISMATCH");
        assert_eq!(refusal.metadata["policy_field"], "default_visibility_timeout");
        assert_eq!(policy_of(&mut test.client, &other).await, Some(policy));
    }
}
