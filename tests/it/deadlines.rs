//! Deadlines: the callers', the server's own, and what becomes of the work behind them.

use std::time::{Duration, Instant};

use pgmq_grpc::proto::v1::*;
use tonic::{Code, Request};

use crate::harness::client::outgoing;
use crate::harness::wire::{call, patient};
use crate::harness::{PATIENCE, Refusal, Test, eventually, seconds};

fn with_timeout<T>(request: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(request);
    request.set_timeout(timeout);
    request
}

fn send() -> SendRequest {
    SendRequest { queue: "orders".to_owned(), message: "{}".to_owned(), ..Default::default() }
}

/// A send that is merged with nobody's, and so has its caller's deadline to itself.
fn send_alone() -> SendBatchRequest {
    SendBatchRequest { queue: "orders".to_owned(), messages: vec![outgoing("{}")] }
}

/// A queue `orders` and a server of these flags, which has connected to the database already.
async fn with_flags(flags: &[&str]) -> Test {
    let test = Test::start_with(flags).await;
    test.run("SELECT pgmq.create('orders')").await;
    let get = GetQueueRequest { queue: "orders".to_owned() };
    patient(&test.server).get_queue(with_timeout(get, PATIENCE)).await.unwrap();
    test
}

/// Waits until no statement of the server runs any more.
async fn expect_nothing_runs(test: &Test) {
    // On a connection of its own: inside a transaction the statistics stand still.
    let sql = test.database.connect().await;
    let running = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgmq-grpc'
        AND datname = current_database() AND state <> 'idle'";
    let ended = async || {
        let row = sql.query_one(running, &[]).await.expect("a count");
        (row.get::<_, i64>(0) == 0).then_some(())
    };
    eventually("the end of the statement", ended).await;
}

#[tokio::test]
async fn a_waiting_read_answers_empty_before_its_callers_deadline() {
    let test = Test::with_queue("orders").await;
    let read = ReadBatchRequest { queue: "orders".to_owned(), wait: seconds(50.0), ..Default::default() };
    let started = Instant::now();
    let timeout = Duration::from_millis(1_200);
    let answer = patient(&test.server).read_batch(with_timeout(read, timeout)).await.unwrap();
    let took = started.elapsed();
    assert!(answer.into_inner().messages.is_empty());
    assert!(took < timeout && took > timeout / 2, "{took:?}");
}

#[tokio::test]
async fn a_call_stuck_behind_a_lock_ends_at_its_deadline_and_its_statement_soon_after() {
    let test = Test::with_queue("orders").await;
    test.run("BEGIN; LOCK TABLE pgmq.q_orders").await;
    let started = Instant::now();
    let timeout = Duration::from_millis(600);
    let status = patient(&test.server).send(with_timeout(send(), timeout)).await.unwrap_err();
    let took = started.elapsed();
    let refusal = Refusal::expect(&status, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    assert!(refusal.metadata.is_empty(), "{refusal:?}");
    assert!(took >= timeout && took < 3 * timeout, "{took:?}");
    expect_nothing_runs(&test).await;
    test.run("COMMIT").await;
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 0);
}

#[tokio::test]
async fn a_statement_that_runs_too_long_is_cancelled_and_writes_nothing() {
    let test = Test::with_queue("orders").await;
    test.run(
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); RETURN NEW; END $$;
         CREATE TRIGGER dawdle BEFORE INSERT ON pgmq.q_orders FOR EACH ROW EXECUTE FUNCTION dawdle()",
    )
    .await;
    let mut client = patient(&test.server);
    let status = client.send_batch(with_timeout(send_alone(), Duration::from_millis(400))).await.unwrap_err();
    Refusal::expect(&status, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    let started = Instant::now();
    expect_nothing_runs(&test).await;
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 0);
}

#[tokio::test]
async fn a_deadline_that_has_passed_already_is_told() {
    let test = Test::with_queue("orders").await;
    let mut client = patient(&test.server);
    for timeout in [Duration::ZERO, Duration::from_nanos(1)] {
        let status = client.send(with_timeout(send(), timeout)).await.unwrap_err();
        Refusal::expect(&status, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    }
}

#[tokio::test]
async fn a_caller_without_a_deadline_has_the_servers() {
    let mut test = with_flags(&["--default-deadline", "500ms"]).await;
    test.run("BEGIN; LOCK TABLE pgmq.q_orders").await;
    let started = Instant::now();
    let status = test.client.queue.send(send()).await.unwrap_err();
    Refusal::expect(&status, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    assert!(started.elapsed() < Duration::from_millis(1_500), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_callers_deadline_is_stronger_than_the_servers() {
    let test = with_flags(&["--default-deadline", "300ms"]).await;
    test.run("BEGIN; LOCK TABLE pgmq.q_orders").await;
    // The lock's own limit of 2 s comes first.
    let status = patient(&test.server).send(with_timeout(send(), Duration::from_secs(20))).await.unwrap_err();
    Refusal::expect(&status, Code::Aborted, "QUEUE_BUSY");
}

#[tokio::test]
async fn a_waiting_read_has_the_servers_deadline_too() {
    let mut test = with_flags(&["--default-deadline", "1s"]).await;
    let read = ReadBatchRequest { queue: "orders".to_owned(), wait: seconds(50.0), ..Default::default() };
    let started = Instant::now();
    assert!(test.client.read_as(read).await.is_empty());
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_stream_ends_at_its_callers_deadline() {
    let test = Test::with_queue("orders").await;
    let read = ReadRequest { queue: "orders".to_owned(), ..Default::default() };
    let opened = patient(&test.server).read(with_timeout(read, Duration::from_millis(700))).await;
    let mut replies = opened.unwrap().into_inner();
    assert!(replies.message().await.unwrap().unwrap().started.is_some());
    let status = replies.message().await.unwrap_err();
    Refusal::expect(&status, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
}

#[tokio::test]
async fn the_one_connection_is_good_again_after_a_deadline() {
    let mut test = with_flags(&["--pool-size", "1"]).await;
    test.run("BEGIN; LOCK TABLE pgmq.q_orders").await;
    let mut client = patient(&test.server);
    for _ in 0..3 {
        let status = client.send(with_timeout(send(), Duration::from_millis(300))).await.unwrap_err();
        // The first statement may still hold the connection when the next call comes.
        let refusal = Refusal::of(&status);
        assert!(["DEADLINE_EXCEEDED", "OVERLOADED"].contains(&refusal.reason.as_str()), "{refusal:?}");
    }
    expect_nothing_runs(&test).await;
    test.run("COMMIT").await;
    let before = test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await;
    assert_eq!(before, 0);
    // Who comes while the server takes note that the lock was not free in time hears so, too.
    let request = SendRequest { queue: "orders".to_owned(), message: "1".to_owned(), ..Default::default() };
    eventually("a send", async || {
        let sent = test.client.queue.clone().send(request.clone()).await;
        sent.map_err(|refused| drop(Refusal::expect(&refused, Code::Aborted, "QUEUE_BUSY"))).ok()
    })
    .await;
    assert_eq!(test.client.read_one("orders").await.message, "1");
}

#[tokio::test]
async fn a_caller_who_leaves_does_not_spoil_the_connection() {
    let mut test = with_flags(&["--pool-size", "1"]).await;
    test.run("BEGIN; LOCK TABLE pgmq.q_orders").await;
    let mut leaving = test.client.queue.clone();
    let waiting = tokio::spawn(async move { leaving.send(send()).await });
    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'pgmq.q_orders'::regclass";
    eventually("a waiting send", async || (test.value::<i64>(waits).await == 1).then_some(())).await;
    waiting.abort();
    test.run("COMMIT").await;
    test.client.send("orders", "1").await;
}

#[tokio::test]
async fn a_server_with_too_many_waiting_calls_refuses_more_at_once() {
    let test = with_flags(&["--pool-size", "1", "--max-waiting-calls", "1"]).await;
    test.run("BEGIN; LOCK TABLE pgmq.q_orders").await;
    let holder = tokio::spawn({
        let channel = test.client.channel.clone();
        async move { call(send_alone()).make(&channel).await }
    });
    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'pgmq.q_orders'::regclass";
    eventually("a waiting send", async || (test.value::<i64>(waits).await == 1).then_some(())).await;

    let others = (0..6).map(|_| {
        let channel = test.client.channel.clone();
        tokio::spawn(async move {
            let started = Instant::now();
            (call(send_alone()).make(&channel).await, started.elapsed())
        })
    });
    let others: Vec<_> = others.collect();
    let mut refused = 0;
    let mut waited = 0;
    // Frees the connection once the refusals have come.
    for other in others {
        let (answer, took) = match tokio::time::timeout(Duration::from_secs(1), other).await {
            Ok(answered) => answered.unwrap(),
            Err(_) => {
                waited += 1;
                continue;
            }
        };
        let Err(status) = answer else {
            waited += 1;
            continue;
        };
        let refusal = Refusal::expect(&status, Code::Unavailable, "OVERLOADED");
        let delay = refusal.retry_delay.expect("a delay");
        let pushback = status.metadata().get("grpc-retry-pushback-ms").unwrap().to_str().unwrap();
        assert_eq!(pushback, delay.as_millis().to_string());
        assert!(took < Duration::from_millis(900), "{took:?}");
        refused += 1;
    }
    assert_eq!((waited, refused), (1, 5));
    test.run("COMMIT").await;
    holder.await.unwrap().unwrap();
    eventually("a free connection", async || test.client.queue.clone().send(send()).await.ok()).await;
}

#[tokio::test]
async fn a_call_whose_turn_does_not_come_before_its_deadline_was_not_applied() {
    let test = with_flags(&["--pool-size", "1"]).await;
    test.run("BEGIN; LOCK TABLE pgmq.q_orders").await;
    let holder = tokio::spawn({
        let channel = test.client.channel.clone();
        async move { call(send_alone()).make(&channel).await }
    });
    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'pgmq.q_orders'::regclass";
    eventually("a waiting send", async || (test.value::<i64>(waits).await == 1).then_some(())).await;
    let status = patient(&test.server)
        .send_batch(with_timeout(send_alone(), Duration::from_millis(500)))
        .await
        .unwrap_err();
    Refusal::expect(&status, Code::Unavailable, "OVERLOADED");
    test.run("COMMIT").await;
    holder.await.unwrap().unwrap();
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 1);
}

#[tokio::test]
async fn a_merged_call_that_was_not_handed_over_before_its_deadline_is_not_applied() {
    let test = with_flags(&["--pool-size", "1"]).await;
    test.run("BEGIN; LOCK TABLE pgmq.q_orders").await;
    let holder = tokio::spawn({
        let channel = test.client.channel.clone();
        async move { call(send()).make(&channel).await }
    });
    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'pgmq.q_orders'::regclass";
    eventually("a waiting send", async || (test.value::<i64>(waits).await == 1).then_some(())).await;
    let status =
        patient(&test.server).send(with_timeout(send(), Duration::from_millis(500))).await.unwrap_err();
    Refusal::expect(&status, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    test.run("COMMIT").await;
    holder.await.unwrap().unwrap();
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 1);
}
