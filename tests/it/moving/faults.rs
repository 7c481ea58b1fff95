//! Moves that fail in the middle: every message is in exactly one place, and the answer is true.

use tonic::{Code, Status};

use super::Move;
use crate::harness::{Fate, Gate, Refusal, Test, eventually};

#[tokio::test]
async fn a_server_that_is_killed_in_the_middle_leaves_each_message_in_one_place() {
    const ALL: i64 = 30_000;
    for kind in Move::BOTH {
        let test = kind.of(ALL).await;
        let moving = tokio::spawn(kind.some(test.client.clone(), vec![], 1_000_000));
        let moved = "SELECT count(*) FROM pgmq.q_orders";
        eventually("a first step", async || (test.value::<i64>(moved).await > 0).then_some(())).await;
        test.server.signal(nix::sys::signal::Signal::SIGKILL);
        let _ = moving.await.unwrap();
        test.until_nothing_runs().await;
        let moved = kind.expect_each_in_one_place(&test, ALL).await;
        assert_eq!(moved % 1_000, 0, "{kind:?}: {moved}");

        let (_server, client) = test.another().await;
        assert_eq!(kind.all(&client).await, ALL - moved);
        assert_eq!(kind.expect_each_in_one_place(&test, ALL).await, ALL);
        let in_order = "SELECT bool_and(message::text::bigint = place) FROM (SELECT message, row_number() OVER (ORDER BY msg_id) AS place FROM pgmq.q_orders) AS q";
        assert!(test.value::<bool>(in_order).await, "{kind:?}");
    }
}

#[tokio::test]
async fn a_server_that_is_killed_within_a_step_has_moved_all_of_it_or_nothing() {
    for (kind, fate) in Move::BOTH.into_iter().flat_map(|kind| Fate::BOTH.map(|fate| (kind, fate))) {
        let test = kind.of(500).await;
        let gate = Gate::close(&test, "orders", "INSERT").await;
        let moving = kind.some(test.client.clone(), vec![], 0);
        gate.kill_within(&test, kind.statement(), fate, moving).await;
        let moved = kind.expect_each_in_one_place(&test, 500).await;
        assert!(moved == 0 || moved == 500 && fate == Fate::Finished, "{kind:?} {fate:?}: {moved}");
    }
}

/// What a move answers whose connection is cut in the database.
async fn cut_off(test: &Test, kind: Move, msg_ids: Vec<i64>) -> Status {
    let gate = Gate::close(test, "orders", "INSERT").await;
    let moving = tokio::spawn(kind.some(test.client.clone(), msg_ids, 0));
    let process = gate.arrival(test, kind.statement()).await;
    gate.terminate(test, process).await;
    let refused = moving.await.unwrap().unwrap_err();
    gate.open(test).await;
    refused
}

#[tokio::test]
async fn a_move_by_ids_that_is_cut_off_may_be_repeated() {
    for kind in Move::BOTH {
        let test = kind.of(5).await;
        let refused = cut_off(&test, kind, vec![2, 4]).await;
        Refusal::expect(&refused, Code::Unavailable, "OUTCOME_UNKNOWN_RETRY_SAFE");
        for count in [2, 0] {
            let moved = kind.some(test.client.clone(), vec![2, 4], 0).await.unwrap();
            assert_eq!(moved, (count, false), "{kind:?}");
        }
        assert_eq!(crate::replay::bodies(&test, "q_orders").await, ["2", "4"], "{kind:?}");
    }
}

#[tokio::test]
async fn a_move_by_count_that_is_cut_off_has_an_unknown_outcome() {
    for kind in Move::BOTH {
        let test = kind.of(5).await;
        let refused = cut_off(&test, kind, vec![]).await;
        let refusal = Refusal::expect(&refused, Code::Unknown, "OUTCOME_UNKNOWN");
        assert_eq!(refusal.retry_delay, None);
        assert_eq!(kind.expect_each_in_one_place(&test, 5).await, 0);
    }
}

#[tokio::test]
async fn a_move_by_ids_out_of_an_unlogged_queue_has_an_unknown_outcome() {
    for (kind, source) in [(Move::Replay, "orders"), (Move::Redrive, "dead")] {
        let test = kind.of(5).await;
        test.run(&format!("UPDATE pgmq.meta SET is_unlogged = true WHERE queue_name = '{source}'")).await;
        let refused = cut_off(&test, kind, vec![1]).await;
        Refusal::expect(&refused, Code::Unknown, "OUTCOME_UNKNOWN");
    }
}

#[tokio::test]
async fn a_later_step_that_is_refused_leaves_the_answer_of_those_before() {
    for kind in Move::BOTH {
        let test = kind.of(2_000).await;
        // The lock is there from the second step on.
        test.run(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
               IF NEW.message::bigint > 1000 THEN RAISE lock_not_available; END IF; RETURN NEW; END $$;
             CREATE TRIGGER refuse BEFORE INSERT ON pgmq.q_orders FOR EACH ROW EXECUTE FUNCTION refuse()",
        )
        .await;
        assert_eq!(kind.some(test.client.clone(), vec![], 0).await.unwrap(), (1_000, true), "{kind:?}");
        let refused = kind.some(test.client.clone(), vec![], 0).await.unwrap_err();
        Refusal::expect(&refused, Code::Aborted, "QUEUE_BUSY");
        assert_eq!(kind.expect_each_in_one_place(&test, 2_000).await, 1_000);
    }
}
