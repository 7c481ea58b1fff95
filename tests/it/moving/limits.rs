//! How many messages a move takes, and for how long.

use std::time::Duration;

use tonic::Code;

use super::{Move, slow_down};
use crate::harness::{Client, Refusal};
use crate::replay::bodies;

#[tokio::test]
async fn a_move_takes_no_more_than_it_may_and_says_whether_more_is_there() {
    for kind in Move::BOTH {
        let test = kind.of(2_600).await;
        for (up_to, taken) in
            [(1, (1, true)), (1_500, (1_500, true)), (1_099, (1_099, false)), (1, (0, false))]
        {
            assert_eq!(kind.some(test.client.clone(), vec![], up_to).await.unwrap(), taken, "{kind:?}");
        }
        assert_eq!(bodies(&test, "q_orders").await.len(), 2_600);
    }
}

#[tokio::test]
async fn by_default_a_move_takes_ten_thousand() {
    for kind in Move::BOTH {
        let test = kind.of(10_001).await;
        for taken in [(10_000, true), (1, false)] {
            assert_eq!(kind.some(test.client.clone(), vec![], 0).await.unwrap(), taken, "{kind:?}");
        }
    }
}

#[tokio::test]
async fn a_thousand_ids_are_taken() {
    for kind in Move::BOTH {
        let test = kind.of(1_100).await;
        let msg_ids = (101..=1_100).collect();
        assert_eq!(kind.some(test.client.clone(), msg_ids, 0).await.unwrap(), (1_000, false), "{kind:?}");
        assert_eq!(bodies(&test, kind.source()).await.len(), 100);
    }
}

#[tokio::test]
async fn more_messages_than_one_search_finds_are_moved_in_one_call() {
    for kind in Move::BOTH {
        let test = kind.of(25_000).await;
        let moved = kind.some(test.client.clone(), vec![], 1_000_000).await.unwrap();
        assert_eq!(moved, (25_000, false), "{kind:?}");
        let expected: Vec<String> = (1..=25_000).map(|n: i64| n.to_string()).collect();
        assert!(bodies(&test, "q_orders").await == expected, "{kind:?}");
    }
}

#[tokio::test]
async fn a_message_that_somebody_has_locked_is_passed_over_and_told_and_a_call_that_moves_none_fails() {
    for kind in Move::BOTH {
        let test = kind.of(3).await;
        let holder = test.database.connect().await;
        let lock = format!("BEGIN; SELECT FROM pgmq.{} WHERE msg_id = 2 FOR UPDATE", kind.source());
        holder.batch_execute(&lock).await.unwrap();
        let all = async |client: &Client| kind.some(client.clone(), vec![], 0).await;
        assert_eq!(all(&test.client).await.unwrap(), (2, true), "{kind:?}");
        let refusal = Refusal::expect(&all(&test.client).await.unwrap_err(), Code::Aborted, "QUEUE_BUSY");
        assert_eq!(refusal.metadata["queue"], kind.source_queue());
        holder.batch_execute("ROLLBACK").await.unwrap();
        assert_eq!(all(&test.client).await.unwrap(), (1, false), "{kind:?}");
    }
}

async fn ends_well_before_its_deadline(kind: Move) {
    const ALL: i64 = 20_000;
    let test = kind.of(ALL).await;
    slow_down(&test).await;
    let moving = kind.within(Duration::from_secs(12), test.client.clone(), vec![], 20_000);
    let (moved, more) = moving.await.expect("an answer in time");
    assert!(more && (1_000..ALL).contains(&moved), "{kind:?}: {moved}");
    assert_eq!(kind.expect_each_in_one_place(&test, ALL).await, moved);
}

#[tokio::test]
async fn a_move_ends_well_before_its_deadline() {
    tokio::join!(ends_well_before_its_deadline(Move::Replay), ends_well_before_its_deadline(Move::Redrive));
}
