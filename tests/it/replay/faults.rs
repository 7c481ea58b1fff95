//! Replays that fail in the middle: every message is in exactly one place, and the answer is true.

use nix::sys::signal::Signal;
use pgmq_grpc::proto::v1::{ArchiveFilter, ReplayArchivedMessagesRequest};
use tonic::{Code, Status};

use super::delete::until_nothing_runs;
use super::{archive_of, bodies, replay, replay_of, replayed};
use crate::harness::{Client, Gate, Refusal, Server, Test, eventually};

/// Checks that each of so many messages is either in the archive or in the queue, and gives how many are in the queue.
async fn expect_each_in_one_place(test: &Test, count: i64) -> i64 {
    let (archived, queued) = (bodies(test, "a_orders").await, bodies(test, "q_orders").await);
    let mut all: Vec<i64> =
        archived.iter().chain(&queued).map(|body| body.parse().expect("an id as body")).collect();
    all.sort_unstable();
    assert!(all.iter().copied().eq(1..=count), "{} archived, {} queued", archived.len(), queued.len());
    i64::try_from(queued.len()).unwrap()
}

#[tokio::test]
async fn a_server_that_is_killed_in_the_middle_leaves_each_message_in_one_place() {
    const ALL: i64 = 30_000;
    let test = archive_of(ALL).await;
    let mut client = test.client.clone();
    let request = ReplayArchivedMessagesRequest { max_messages: 1_000_000, ..replay_of("orders") };
    let replaying = tokio::spawn(async move { client.admin.replay_archived_messages(request).await });
    let sent = "SELECT count(*) FROM pgmq.q_orders";
    eventually("a first step", async || (test.value::<i64>(sent).await > 0).then_some(())).await;
    test.server.signal(Signal::SIGKILL);
    let _ = replaying.await.unwrap();
    until_nothing_runs(&test).await;
    expect_each_in_one_place(&test, ALL).await;

    let server = Server::start_on(&test.database, &[]).await;
    let mut client = Client::connect(&server).await;
    while replay(&mut client, replay_of("orders")).await.more {}
    assert_eq!(expect_each_in_one_place(&test, ALL).await, ALL);
    let in_order = "SELECT bool_and(message::text::bigint = place) FROM (SELECT message, row_number() OVER (ORDER BY msg_id) AS place FROM pgmq.q_orders) AS q";
    assert!(test.value::<bool>(in_order).await);
}

#[tokio::test]
async fn a_server_that_is_killed_within_a_step_has_moved_all_of_it_or_nothing() {
    let test = archive_of(500).await;
    let gate = Gate::close(&test, "orders", "INSERT").await;
    let mut client = test.client.clone();
    let replaying =
        tokio::spawn(async move { client.admin.replay_archived_messages(replay_of("orders")).await });
    gate.arrival(&test, "replay_archived").await;
    test.server.signal(Signal::SIGKILL);
    let _ = replaying.await.unwrap();
    gate.open(&test).await;
    until_nothing_runs(&test).await;
    let queued = expect_each_in_one_place(&test, 500).await;
    assert!(queued == 0 || queued == 500, "{queued}");
}

/// What a replay answers whose connection is cut in the database.
async fn cut_off(test: &Test, filter: ArchiveFilter) -> Status {
    let gate = Gate::close(test, "orders", "INSERT").await;
    let mut client = test.client.clone();
    let request = ReplayArchivedMessagesRequest { filter: Some(filter), ..replay_of("orders") };
    let replaying = tokio::spawn(async move { client.admin.replay_archived_messages(request).await });
    let process = gate.arrival(test, "replay_archived").await;
    gate.terminate(test, process).await;
    let refused = replaying.await.unwrap().unwrap_err();
    gate.open(test).await;
    refused
}

#[tokio::test]
async fn a_replay_by_ids_that_is_cut_off_may_be_repeated() {
    let mut test = archive_of(5).await;
    let filter = ArchiveFilter { msg_ids: vec![2, 4], ..Default::default() };
    let refused = cut_off(&test, filter.clone()).await;
    Refusal::expect(&refused, Code::Unavailable, "OUTCOME_UNKNOWN_RETRY_SAFE");
    let request = ReplayArchivedMessagesRequest { filter: Some(filter), ..replay_of("orders") };
    for count in [2, 0] {
        assert_eq!(replay(&mut test.client, request.clone()).await, replayed(count, false));
    }
    assert_eq!(bodies(&test, "q_orders").await, ["2", "4"]);
}

#[tokio::test]
async fn a_replay_by_count_that_is_cut_off_has_an_unknown_outcome() {
    let test = archive_of(5).await;
    let refused = cut_off(&test, ArchiveFilter::default()).await;
    let refusal = Refusal::expect(&refused, Code::Unknown, "OUTCOME_UNKNOWN");
    assert_eq!(refusal.retry_delay, None);
    assert_eq!(expect_each_in_one_place(&test, 5).await, 0);
}

#[tokio::test]
async fn a_replay_by_ids_from_an_unlogged_queue_has_an_unknown_outcome() {
    let test = archive_of(5).await;
    test.run("UPDATE pgmq.meta SET is_unlogged = true").await;
    let refused = cut_off(&test, ArchiveFilter { msg_ids: vec![1], ..Default::default() }).await;
    Refusal::expect(&refused, Code::Unknown, "OUTCOME_UNKNOWN");
}

#[tokio::test]
async fn messages_that_a_trigger_swallows_stay_in_the_archive() {
    let mut test = archive_of(5).await;
    test.server.expect_errors();
    test.run(
        "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           IF NEW.message = '3' THEN RETURN NULL; END IF; RETURN NEW; END $$;
         CREATE TRIGGER swallow BEFORE INSERT ON pgmq.q_orders FOR EACH ROW EXECUTE FUNCTION swallow()",
    )
    .await;
    let refused = test.client.admin.replay_archived_messages(replay_of("orders")).await.unwrap_err();
    Refusal::expect(&refused, Code::Internal, "INTERNAL");
    assert_eq!(expect_each_in_one_place(&test, 5).await, 0);
}

#[tokio::test]
async fn a_later_step_that_is_refused_leaves_the_answer_of_those_before() {
    let mut test = archive_of(2_000).await;
    // The lock is there from the second step on.
    test.run(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           IF NEW.message::bigint > 1000 THEN RAISE lock_not_available; END IF; RETURN NEW; END $$;
         CREATE TRIGGER refuse BEFORE INSERT ON pgmq.q_orders FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    .await;
    assert_eq!(replay(&mut test.client, replay_of("orders")).await, replayed(1_000, true));
    let refused = test.client.admin.replay_archived_messages(replay_of("orders")).await.unwrap_err();
    Refusal::expect(&refused, Code::Aborted, "QUEUE_BUSY");
    assert_eq!(expect_each_in_one_place(&test, 2_000).await, 1_000);
}

#[tokio::test]
async fn a_replay_and_a_drop_of_its_queue_do_not_wait_in_a_ring() {
    for _ in 0..5 {
        let test = archive_of(3_000).await;
        let (mut replayer, mut dropper) = (test.client.clone(), test.client.clone());
        let replaying =
            tokio::spawn(async move { replayer.admin.replay_archived_messages(replay_of("orders")).await });
        let drop = pgmq_grpc::proto::v1::DropQueueRequest { queue: "orders".to_owned() };
        let dropped = dropper.queue.drop_queue(drop).await;
        dropped.expect("a drop that waits for one step at most");
        match replaying.await.unwrap() {
            Ok(_) => {}
            Err(refused) => drop_ok(&refused),
        }
    }
}

#[track_caller]
fn drop_ok(refused: &Status) {
    Refusal::expect(refused, Code::NotFound, "QUEUE_NOT_FOUND");
}
