//! Redrives that fail in the middle: every message is in exactly one place, and the answer is true.

use std::time::Duration;

use nix::sys::signal::Signal;
use pgmq_grpc::proto::v1::{DropQueueRequest, PurgeQueueRequest, RedriveMessagesRequest};
use tonic::{Code, Request, Status};

use super::{length, redrive, redrive_of, redriven, with_dead_letters};
use crate::harness::{Client, Gate, Refusal, Server, Test, eventually};
use crate::replay::bodies;
use crate::replay::delete::until_nothing_runs;

/// Checks that each of so many messages is in one of the two queues, and gives how many are back.
async fn expect_each_in_one_place(test: &Test, count: i64) -> i64 {
    let (dead, back) = (bodies(test, "q_dead").await, bodies(test, "q_orders").await);
    let mut all: Vec<i64> =
        dead.iter().chain(&back).map(|body| body.parse().expect("an id as body")).collect();
    all.sort_unstable();
    assert!(all.iter().copied().eq(1..=count), "{} dead, {} back", dead.len(), back.len());
    i64::try_from(back.len()).unwrap()
}

#[tokio::test]
async fn a_server_that_is_killed_in_the_middle_leaves_each_message_in_one_place() {
    const ALL: i64 = 30_000;
    let test = with_dead_letters(ALL).await;
    let mut client = test.client.clone();
    let request = RedriveMessagesRequest { max_messages: 1_000_000, ..redrive_of("dead") };
    let redriving = tokio::spawn(async move { client.admin.redrive_messages(request).await });
    eventually("a first step", async || (length(&test, "orders").await > 0).then_some(())).await;
    test.server.signal(Signal::SIGKILL);
    let _ = redriving.await.unwrap();
    until_nothing_runs(&test).await;
    let back = expect_each_in_one_place(&test, ALL).await;
    assert_eq!(back % 1_000, 0, "{back}");

    let server = Server::start_on(&test.database, &[]).await;
    let mut client = Client::connect(&server).await;
    while redrive(&mut client, redrive_of("dead")).await.more {}
    assert_eq!(expect_each_in_one_place(&test, ALL).await, ALL);
    let in_order = "SELECT bool_and(message::text::bigint = place) FROM (SELECT message, row_number() OVER (ORDER BY msg_id) AS place FROM pgmq.q_orders) AS q";
    assert!(test.value::<bool>(in_order).await);
}

#[tokio::test]
async fn a_server_that_is_killed_within_a_step_has_moved_all_of_it_or_nothing() {
    let test = with_dead_letters(500).await;
    let gate = Gate::close(&test, "orders", "INSERT").await;
    let mut client = test.client.clone();
    let redriving = tokio::spawn(async move { client.admin.redrive_messages(redrive_of("dead")).await });
    gate.arrival(&test, "redrive").await;
    test.server.signal(Signal::SIGKILL);
    let _ = redriving.await.unwrap();
    gate.open(&test).await;
    until_nothing_runs(&test).await;
    let back = expect_each_in_one_place(&test, 500).await;
    assert!(back == 0 || back == 500, "{back}");
}

/// What a redrive answers whose connection is cut in the database.
async fn cut_off(test: &Test, request: RedriveMessagesRequest) -> Status {
    let gate = Gate::close(test, "orders", "INSERT").await;
    let mut client = test.client.clone();
    let redriving = tokio::spawn(async move { client.admin.redrive_messages(request).await });
    let process = gate.arrival(test, "redrive").await;
    gate.terminate(test, process).await;
    let refused = redriving.await.unwrap().unwrap_err();
    gate.open(test).await;
    refused
}

#[tokio::test]
async fn a_redrive_by_ids_that_is_cut_off_may_be_repeated() {
    let mut test = with_dead_letters(5).await;
    let by_ids = RedriveMessagesRequest { msg_ids: vec![2, 4], ..redrive_of("dead") };
    let refused = cut_off(&test, by_ids.clone()).await;
    Refusal::expect(&refused, Code::Unavailable, "OUTCOME_UNKNOWN_RETRY_SAFE");
    for count in [2, 0] {
        assert_eq!(redrive(&mut test.client, by_ids.clone()).await, redriven(count, false));
    }
    assert_eq!(bodies(&test, "q_orders").await, ["2", "4"]);
}

#[tokio::test]
async fn a_redrive_by_count_that_is_cut_off_has_an_unknown_outcome() {
    let test = with_dead_letters(5).await;
    let refused = cut_off(&test, redrive_of("dead")).await;
    let refusal = Refusal::expect(&refused, Code::Unknown, "OUTCOME_UNKNOWN");
    assert_eq!(refusal.retry_delay, None);
    assert_eq!(expect_each_in_one_place(&test, 5).await, 0);
}

#[tokio::test]
async fn a_redrive_by_ids_out_of_an_unlogged_queue_has_an_unknown_outcome() {
    let test = with_dead_letters(5).await;
    test.run("UPDATE pgmq.meta SET is_unlogged = true WHERE queue_name = 'dead'").await;
    let by_ids = RedriveMessagesRequest { msg_ids: vec![1], ..redrive_of("dead") };
    let refused = cut_off(&test, by_ids).await;
    Refusal::expect(&refused, Code::Unknown, "OUTCOME_UNKNOWN");
}

#[tokio::test]
async fn messages_that_a_trigger_swallows_stay_where_they_are() {
    let mut test = with_dead_letters(5).await;
    test.server.expect_errors();
    test.run(
        "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           IF NEW.message = '3' THEN RETURN NULL; END IF; RETURN NEW; END $$;
         CREATE TRIGGER swallow BEFORE INSERT ON pgmq.q_orders FOR EACH ROW EXECUTE FUNCTION swallow()",
    )
    .await;
    let refused = test.client.admin.redrive_messages(redrive_of("dead")).await.unwrap_err();
    Refusal::expect(&refused, Code::Internal, "INTERNAL");
    assert_eq!(expect_each_in_one_place(&test, 5).await, 0);
}

#[tokio::test]
async fn a_later_step_that_is_refused_leaves_the_answer_of_those_before() {
    let mut test = with_dead_letters(2_000).await;
    // The lock is there from the second step on.
    test.run(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           IF NEW.message::bigint > 1000 THEN RAISE lock_not_available; END IF; RETURN NEW; END $$;
         CREATE TRIGGER refuse BEFORE INSERT ON pgmq.q_orders FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    .await;
    assert_eq!(redrive(&mut test.client, redrive_of("dead")).await, redriven(1_000, true));
    let refused = test.client.admin.redrive_messages(redrive_of("dead")).await.unwrap_err();
    Refusal::expect(&refused, Code::Aborted, "QUEUE_BUSY");
    assert_eq!(expect_each_in_one_place(&test, 2_000).await, 1_000);
}

/// From now on every statement that sends to `orders` takes a second.
async fn slow_down(test: &Test) {
    test.run(
        "CREATE FUNCTION slow_down() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           PERFORM pg_sleep(1); RETURN NULL; END $$;
         CREATE TRIGGER slow_down BEFORE INSERT ON pgmq.q_orders FOR EACH STATEMENT EXECUTE FUNCTION slow_down()",
    )
    .await;
}

#[tokio::test]
async fn a_redrive_ends_well_before_its_deadline() {
    let mut test = with_dead_letters(20_000).await;
    slow_down(&test).await;
    let mut request = Request::new(RedriveMessagesRequest { max_messages: 20_000, ..redrive_of("dead") });
    request.set_timeout(Duration::from_secs(12));
    let done = test.client.admin.redrive_messages(request).await.expect("an answer in time").into_inner();
    assert!(done.more && (1_000..20_000).contains(&done.moved_count), "{done:?}");
    assert_eq!(expect_each_in_one_place(&test, 20_000).await, done.moved_count);
}

#[tokio::test]
async fn a_redrive_rests_after_each_step_for_as_long_as_it_took() {
    let mut test = with_dead_letters(2_500).await;
    slow_down(&test).await;
    assert_eq!(redrive(&mut test.client, redrive_of("dead")).await, redriven(2_500, false));
    // Each statement's beginning, a second of its own, and a second of rest.
    let shortest = "SELECT extract(epoch FROM min(gap))::float8 FROM (SELECT enqueued_at - lag(enqueued_at) OVER (ORDER BY enqueued_at) AS gap
        FROM (SELECT DISTINCT enqueued_at FROM pgmq.q_orders) AS steps) AS gaps";
    let shortest: f64 = test.value(shortest).await;
    assert!(shortest > 1.9, "{shortest}");
}

#[tokio::test]
async fn a_redrive_beside_dead_lettering_drops_and_purges_does_not_wait_in_a_ring() {
    let test = with_dead_letters(3_000).await;
    test.run("INSERT INTO pgmq.q_orders (vt, message) SELECT now(), to_jsonb(n) FROM generate_series(3001, 6000) AS n").await;
    let [mut redriver, mut purger, mut dropper] = [(); 3].map(|()| test.client.clone());
    let mover = test.database.connect().await;
    // It locks the source before the dead-letter queue.
    let dead_letter =
        "WITH gone AS (DELETE FROM pgmq.q_orders AS q USING (SELECT c.msg_id FROM pgmq.q_orders AS c
          ORDER BY c.msg_id LIMIT 50 FOR UPDATE SKIP LOCKED) AS chosen
        WHERE q.msg_id = chosen.msg_id RETURNING q.message)
      INSERT INTO pgmq.q_dead (vt, message, headers)
        SELECT now(), g.message, '{\"x-pgmq-dead-letter\": {\"queue\": \"orders\"}}' FROM gone AS g";
    let redriving = async {
        for _ in 0..40 {
            match redriver.admin.redrive_messages(redrive_of("dead")).await {
                Ok(_) => {}
                Err(refused) => drop(Refusal::expect(&refused, Code::NotFound, "QUEUE_NOT_FOUND")),
            }
        }
    };
    let moving = async {
        for _ in 0..400 {
            if let Err(failed) = mover.batch_execute(dead_letter).await {
                assert_eq!(
                    failed.code().map(tokio_postgres::error::SqlState::code),
                    Some("42P01"),
                    "{failed:?}"
                );
            }
        }
    };
    let purging = async {
        for n in 0..40 {
            let queue = ["orders", "dead"][n % 2].to_owned();
            match purger.queue.purge_queue(PurgeQueueRequest { queue }).await {
                Ok(_) => {}
                Err(refused) => drop(Refusal::expect(&refused, Code::NotFound, "QUEUE_NOT_FOUND")),
            }
        }
    };
    let dropping = async {
        for n in 0..20 {
            let queue = ["orders", "dead"][n % 2];
            dropper.queue.drop_queue(DropQueueRequest { queue: queue.to_owned() }).await.expect("a drop");
            dropper.create(queue).await;
        }
    };
    tokio::join!(redriving, moving, purging, dropping);
}
