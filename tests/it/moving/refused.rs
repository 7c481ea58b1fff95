//! Messages that the database refuses to have moved: they stay, the others go, and whoever calls again is told.

use pgmq_grpc::proto::v1::{ArchiveFilter, DeleteArchivedMessagesRequest};
use tonic::{Code, Status};

use super::Move;
use crate::harness::{Client, Refusal, Test};
use crate::replay::{archive_of, bodies};

/// Refuses a change of the messages of a table whose bodies are one of the numbers: by an error, or by swallowing it.
async fn refuse(test: &Test, change: &str, table: &str, refusal: &str, numbers: &str) {
    let row = if change == "INSERT" { "NEW" } else { "OLD" };
    test.run(&format!(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {refusal}; END $$;
         CREATE TRIGGER refuse BEFORE {change} ON pgmq.{table} FOR EACH ROW
           WHEN ({row}.message::bigint IN ({numbers})) EXECUTE FUNCTION refuse()"
    ))
    .await;
}

/// Checks that a call is refused by the database because of a message.
#[track_caller]
fn expect_refused(status: &Status, msg_id: i64) {
    let refusal = Refusal::expect(status, Code::FailedPrecondition, "REFUSED_BY_DATABASE");
    assert_eq!(refusal.metadata["msg_id"], msg_id.to_string(), "{refusal:?}");
    assert!(refusal.retry_delay.is_none(), "{refusal:?}");
}

const REFUSALS: [&str; 2] = ["RAISE 'no'", "RETURN NULL"];

#[tokio::test]
async fn messages_that_are_refused_stay_and_the_others_are_moved() {
    for kind in Move::BOTH {
        for refusal in REFUSALS {
            for (change, table) in [("INSERT", "q_orders"), ("DELETE", kind.source())] {
                let text = format!("{kind:?} {refusal} {change}");
                let test = kind.of(1_200).await;
                refuse(&test, change, table, refusal, "1, 700, 1200").await;
                let moved = kind.some(test.client.clone(), vec![], 0).await;
                assert_eq!(moved.unwrap(), (1_197, true), "{text}");
                assert_eq!(bodies(&test, kind.source()).await, ["1", "700", "1200"], "{text}");
                assert_eq!(kind.expect_each_in_one_place(&test, 1_200).await, 1_197);
                let order = bodies(&test, "q_orders").await;
                assert!(order.is_sorted_by_key(|body| body.parse::<i64>().unwrap()), "{text}");
                for msg_ids in [vec![], vec![700]] {
                    let first = msg_ids.first().copied().unwrap_or(1);
                    let refused = kind.some(test.client.clone(), msg_ids, 0).await.unwrap_err();
                    expect_refused(&refused, first);
                }
                test.run(&format!("DROP TRIGGER refuse ON pgmq.{table}")).await;
                assert_eq!(kind.some(test.client.clone(), vec![], 0).await.unwrap(), (3, false), "{text}");
            }
        }
    }
}

#[tokio::test]
async fn a_move_of_few_goes_on_behind_messages_that_are_refused() {
    for kind in Move::BOTH {
        let test = kind.of(5).await;
        refuse(&test, "INSERT", "q_orders", "RAISE 'no'", "1, 2").await;
        assert_eq!(kind.some(test.client.clone(), vec![], 1).await.unwrap(), (1, true), "{kind:?}");
        assert_eq!(bodies(&test, "q_orders").await, ["3"]);
    }
}

async fn delete(client: &mut Client) -> Result<(i64, bool), Status> {
    let filter = Some(ArchiveFilter::default());
    let request = DeleteArchivedMessagesRequest { queue: "orders".to_owned(), filter, ..Default::default() };
    let deleted = client.admin.delete_archived_messages(request).await?.into_inner();
    Ok((deleted.deleted_count, deleted.more))
}

#[tokio::test]
async fn archived_messages_whose_delete_is_refused_stay_and_the_others_are_deleted() {
    for refusal in REFUSALS {
        let mut test = archive_of(5).await;
        refuse(&test, "DELETE", "a_orders", refusal, "2, 4").await;
        assert_eq!(delete(&mut test.client).await.unwrap(), (3, true), "{refusal}");
        assert_eq!(bodies(&test, "a_orders").await, ["2", "4"]);
        expect_refused(&delete(&mut test.client).await.unwrap_err(), 2);
    }
}

#[tokio::test]
async fn messages_that_others_hold_are_busy_and_not_refused() {
    for kind in Move::BOTH {
        let test = kind.of(2).await;
        refuse(&test, "DELETE", kind.source(), "RETURN NULL", "1").await;
        let other = test.database.connect().await;
        other.batch_execute(&format!("BEGIN; SELECT FROM pgmq.{} FOR UPDATE", kind.source())).await.unwrap();
        let busy = kind.some(test.client.clone(), vec![], 0).await.unwrap_err();
        Refusal::expect(&busy, Code::Aborted, "QUEUE_BUSY");
    }
}
