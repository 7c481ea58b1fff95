//! Deletes from an archive.

use nix::sys::signal::Signal;
use pgmq_grpc::proto::v1::{
    ArchiveFilter, DeleteArchivedMessagesRequest, DeleteArchivedMessagesResponse, Outcome,
};
use tonic::Code;

use super::archive_of;
use crate::browse::archive::{archived_ids, day, with_archive};
use crate::harness::{Client, Gate, Refusal, eventually};
use crate::settle::archive;

fn delete_of(filter: ArchiveFilter) -> DeleteArchivedMessagesRequest {
    DeleteArchivedMessagesRequest { queue: "orders".to_owned(), filter: Some(filter), ..Default::default() }
}

async fn delete(client: &mut Client, request: DeleteArchivedMessagesRequest) -> (i64, bool) {
    let deleted = client.admin.delete_archived_messages(request).await.expect("a delete");
    let DeleteArchivedMessagesResponse { deleted_count, more } = deleted.into_inner();
    (deleted_count, more)
}

#[tokio::test]
async fn a_delete_takes_what_its_filter_means_and_leaves_the_rest() {
    let mut test = with_archive(9).await;
    test.client.send("orders", "10").await;
    let by =
        |msg_ids, archived_after, archived_before| ArchiveFilter { msg_ids, archived_after, archived_before };
    for (filter, deleted, left) in [
        (by(vec![], None, day(4)), 3, vec![4, 5, 6, 7, 8, 9]),
        (by(vec![], None, day(4)), 0, vec![4, 5, 6, 7, 8, 9]),
        (by(vec![5, 7, 77, 10], None, None), 2, vec![4, 6, 8, 9]),
        (by(vec![4, 9], day(9), None), 1, vec![4, 6, 8]),
        (by(vec![], day(6), day(7)), 1, vec![4, 8]),
        (ArchiveFilter::default(), 2, vec![]),
    ] {
        assert_eq!(delete(&mut test.client, delete_of(filter)).await, (deleted, false));
        assert_eq!(archived_ids(&mut test.client, "orders", ArchiveFilter::default()).await, left);
    }
    assert_eq!(test.client.read_one("orders").await.message, "10");
}

#[tokio::test]
async fn a_delete_takes_no_more_than_it_may_lowest_ids_first() {
    let mut test = archive_of(2_500).await;
    let up_to = |max_messages| DeleteArchivedMessagesRequest {
        queue: "orders".to_owned(),
        max_messages,
        ..Default::default()
    };
    assert_eq!(delete(&mut test.client, up_to(1_200)).await, (1_200, true));
    assert_eq!(test.value::<i64>("SELECT min(msg_id) FROM pgmq.a_orders").await, 1_201);
    assert_eq!(delete(&mut test.client, up_to(0)).await, (1_300, false));
    assert_eq!(delete(&mut test.client, up_to(0)).await, (0, false));
}

#[tokio::test]
async fn by_default_a_delete_takes_ten_thousand() {
    let mut test = archive_of(10_001).await;
    assert_eq!(delete(&mut test.client, delete_of(ArchiveFilter::default())).await, (10_000, true));
    assert_eq!(delete(&mut test.client, delete_of(ArchiveFilter::default())).await, (1, false));
}

#[tokio::test]
async fn a_message_that_somebody_has_locked_is_passed_over_and_told_and_a_call_that_deletes_none_fails() {
    let mut test = archive_of(5).await;
    let holder = test.database.connect().await;
    holder.batch_execute("BEGIN; SELECT FROM pgmq.a_orders WHERE msg_id = 3 FOR UPDATE").await.unwrap();
    assert_eq!(delete(&mut test.client, delete_of(ArchiveFilter::default())).await, (4, true));
    let again = test.client.admin.delete_archived_messages(delete_of(ArchiveFilter::default())).await;
    let refusal = Refusal::expect(&again.unwrap_err(), Code::Aborted, "QUEUE_BUSY");
    assert_eq!(refusal.metadata["queue"], "orders");
    holder.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(delete(&mut test.client, delete_of(ArchiveFilter::default())).await, (1, false));
}

#[tokio::test]
async fn a_delete_that_is_cut_off_may_be_repeated_but_by_ids_that_a_crash_begins_anew() {
    let retry_safe = (Code::Unavailable, "OUTCOME_UNKNOWN_RETRY_SAFE");
    let unknown = (Code::Unknown, "OUTCOME_UNKNOWN");
    let cases = [(false, vec![2], retry_safe), (true, vec![], retry_safe), (true, vec![2], unknown)];
    for (is_unlogged, msg_ids, (code, reason)) in cases {
        let test = archive_of(5).await;
        test.run(&format!("UPDATE pgmq.meta SET is_unlogged = {is_unlogged}")).await;
        let gate = Gate::by(&test, "TRIGGER gate BEFORE DELETE ON pgmq.a_orders FOR EACH ROW").await;
        let request = delete_of(ArchiveFilter { msg_ids, ..Default::default() });
        let mut client = test.client.clone();
        let deleting = tokio::spawn(async move { client.admin.delete_archived_messages(request).await });
        let process = gate.arrival(&test, "delete_archived").await;
        gate.terminate(&test, process).await;
        let refused = deleting.await.unwrap().unwrap_err();
        Refusal::expect(&refused, code, reason);
        assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.a_orders").await, 5);
    }
}

#[tokio::test]
async fn a_server_that_is_killed_has_deleted_whole_steps() {
    const ALL: i64 = 50_000;
    let test = archive_of(ALL).await;
    let mut client = test.client.clone();
    let request = DeleteArchivedMessagesRequest {
        queue: "orders".to_owned(),
        max_messages: 1_000_000,
        ..Default::default()
    };
    let deleting = tokio::spawn(async move { client.admin.delete_archived_messages(request).await });
    let left = "SELECT count(*) FROM pgmq.a_orders";
    eventually("a first step", async || (test.value::<i64>(left).await < ALL).then_some(())).await;
    test.server.signal(Signal::SIGKILL);
    let _ = deleting.await.unwrap();
    test.until_nothing_runs().await;
    let left: i64 = test.value(left).await;
    assert_eq!(left % 1_000, 0, "{left}");
    let highest: Option<i64> = test.value("SELECT max(msg_id) FROM pgmq.a_orders").await;
    assert!(highest.is_none_or(|highest| highest == ALL), "{highest:?}");
}

/// Deletes until nothing is left, and counts.
async fn delete_all(mut client: Client) -> i64 {
    let mut count = 0;
    loop {
        let request =
            DeleteArchivedMessagesRequest { max_messages: 700, ..delete_of(ArchiveFilter::default()) };
        match client.admin.delete_archived_messages(request).await.map(tonic::Response::into_inner) {
            Ok(done) => {
                count += done.deleted_count;
                if !done.more {
                    return count;
                }
            }
            // The other has had all that is left for longer than this one waits.
            Err(refused) => drop(Refusal::expect(&refused, Code::Aborted, "QUEUE_BUSY")),
        }
    }
}

#[tokio::test]
async fn deletes_at_two_servers_beside_consumers_who_archive_take_each_message_once() {
    const OLD: i64 = 12_000;
    const NEW: i64 = 3_000;
    let mut test = archive_of(OLD).await;
    test.run(&format!("SELECT pgmq.send('orders', to_jsonb(n)) FROM generate_series(1, {NEW}) AS n")).await;
    let (_other, elsewhere) = test.another().await;
    let archiving = [test.client.clone(), elsewhere.clone()].map(|client| tokio::spawn(archive_all(client)));
    let (here, there) = tokio::join!(delete_all(test.client.clone()), delete_all(elsewhere.clone()));
    let mut archived = 0;
    for consumer in archiving {
        archived += consumer.await.unwrap();
    }
    assert_eq!(archived, NEW);
    // What was archived after the others had found nothing any more.
    let rest = delete_all(test.client.clone()).await;
    assert_eq!(here + there + rest, OLD + NEW);
    assert_eq!(archived_ids(&mut test.client, "orders", ArchiveFilter::default()).await, Vec::<i64>::new());
}

/// Reads and archives until nothing is left, and counts.
pub(crate) async fn archive_all(mut client: Client) -> i64 {
    let mut count = 0;
    loop {
        let read = client.read("orders", 100).await;
        if read.is_empty() {
            return count;
        }
        let receipts: Vec<&str> = read.iter().map(|message| message.receipt.as_str()).collect();
        let outcomes = archive(&mut client, "orders", &receipts).await;
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Done), "{outcomes:?}");
        count += i64::try_from(read.len()).unwrap();
    }
}
