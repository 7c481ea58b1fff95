//! Receipts: forged, cut, changed, foreign, and those of a queue that was made anew.

use pgmq_grpc::domain::{QueueName, Receipt, Timestamp};
use pgmq_grpc::proto::v1::set_visibility_timeout_request::Visibility;
use pgmq_grpc::proto::v1::transact_operation::Operation;
use pgmq_grpc::proto::v1::*;
use tonic::Code;

use super::{Case, check, contents, good_send, refused, transact};
use crate::harness::wire::{Call, call};
use crate::harness::{Refusal, Test, seconds};

/// A well-formed receipt of a delivery that never was; any text for a name that no queue can have.
pub(super) fn never_given(queue: &str) -> String {
    match QueueName::try_from(queue.to_owned()) {
        Ok(_) => forged(queue, 1_700_000_000_000_000, 1),
        Err(_) => "none".to_owned(),
    }
}

/// A well-formed receipt with a moment of one's own choice, everywhere.
fn forged(queue: &str, unix_micros: i64, msg_id: i64) -> String {
    let queue = QueueName::try_from(queue.to_owned()).unwrap();
    let at = Timestamp::from_unix_micros(unix_micros);
    Receipt::new(&queue, at, msg_id, 1, at, Some(at)).encode()
}

/// Every RPC that takes receipts, with these; and the path of the list.
fn settles(receipts: &[String]) -> Vec<(Call, &'static str)> {
    let queue = || "orders".to_owned();
    let receipts = || receipts.to_vec();
    let delete = || DeleteRequest { queue: queue(), receipts: receipts(), msg_ids: vec![] };
    let archive = || ArchiveRequest { queue: queue(), receipts: receipts(), msg_ids: vec![] };
    let release = || ReleaseRequest { queue: queue(), receipts: receipts(), delay: None };
    let dead_letter = || DeadLetterRequest { queue: queue(), receipts: receipts(), reason: String::new() };
    let set = || SetVisibilityTimeoutRequest {
        queue: queue(),
        receipts: receipts(),
        visibility: seconds(5.0).map(Visibility::VisibilityTimeout),
        ..Default::default()
    };
    let within = |operation| call(transact([Operation::Send(good_send()), operation]));
    vec![
        (call(delete()), "receipts"),
        (call(archive()), "receipts"),
        (call(release()), "receipts"),
        (call(dead_letter()), "receipts"),
        (call(set()), "receipts"),
        (within(Operation::Delete(delete())), "operations[1].delete.receipts"),
        (within(Operation::Archive(archive())), "operations[1].archive.receipts"),
        (within(Operation::Release(release())), "operations[1].release.receipts"),
        (within(Operation::DeadLetter(dead_letter())), "operations[1].dead_letter.receipts"),
        (within(Operation::SetVisibilityTimeout(set())), "operations[1].set_visibility_timeout.receipts"),
    ]
}

/// The bad receipt second, after a good one, in every RPC.
fn bad_second(good: &str, bad: &str) -> Vec<Case> {
    let settles = settles(&[good.to_owned(), bad.to_owned()]);
    settles.into_iter().map(|(call, list)| refused(call, "INVALID_RECEIPT", format!("{list}[1]"))).collect()
}

#[tokio::test]
async fn a_receipt_that_was_forged_cut_or_changed_is_refused_with_its_index() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["1", "2"]).await;
    let read = test.client.read("orders", 2).await;
    let (good, receipt) = (read[0].receipt.as_str(), read[1].receipt.as_str());
    let (cut, longer) = (&receipt[..receipt.len() - 1], format!("{receipt}A"));
    let flipped: String =
        receipt.chars().map(|c| if c.is_lowercase() { c.to_ascii_uppercase() } else { c }).collect();
    let spaced = format!(" {receipt}");
    let twice = receipt.repeat(2);
    let huge = "A".repeat(1 << 20);
    for bad in ["", "x", "1", "null", "ü", "\0", cut, &longer, &flipped, &spaced, &twice, &huge, "===="] {
        check(&test, bad_second(good, bad)).await;
    }
}

#[tokio::test]
async fn a_receipt_of_another_queue_is_refused_with_its_index() {
    let mut test = Test::with_queue("orders").await;
    test.client.create("invoices").await;
    test.client.send("orders", "1").await;
    test.client.send("invoices", "1").await;
    let good = test.client.read_one("orders").await.receipt;
    let foreign = test.client.read_one("invoices").await.receipt;
    check(&test, bad_second(&good, &foreign)).await;
}

#[tokio::test]
async fn at_most_ten_bad_receipts_are_listed() {
    let test = Test::with_queue("orders").await;
    let receipts = vec!["x".to_owned(); 1_000];
    let request = ReleaseRequest { queue: "orders".to_owned(), receipts, delay: None };
    let status = call(request).make(&test.client.channel).await.unwrap_err();
    let refusal = Refusal::expect(&status, Code::InvalidArgument, "INVALID_RECEIPT");
    assert_eq!(refusal.fields.len(), 10);
    assert_eq!(refusal.fields[9], "receipts[9]");
}

#[tokio::test]
async fn a_well_formed_receipt_of_no_delivery_changes_nothing_whatever_it_holds() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "1").await;
    test.client.read_one("orders").await;
    let last = 253_402_300_799_000_000;
    for moment in [0, 1, -1, last, -last, i64::MAX - 1, i64::MIN + 1, i64::MAX, i64::MIN] {
        for msg_id in [1, 0, -1, i64::MIN, i64::MAX] {
            let receipt = forged("orders", moment, msg_id);
            let before = contents(&test).await;
            let request =
                DeleteRequest { queue: "orders".to_owned(), receipts: vec![receipt], msg_ids: vec![] };
            match test.client.queue.delete(request).await {
                Ok(deleted) => {
                    let outcome = deleted.into_inner().results[0].outcome();
                    assert!([Outcome::Stale, Outcome::NotFound].contains(&outcome), "{moment} {msg_id}");
                }
                Err(status) => {
                    Refusal::expect_invalid(&status, "INVALID_RECEIPT", "receipts[0]");
                }
            }
            assert_eq!(contents(&test).await, before, "{moment} {msg_id}");
        }
    }
}

#[tokio::test]
async fn a_receipt_of_a_queue_that_was_dropped_and_made_anew_is_stale() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "1").await;
    let old = test.client.read_one("orders").await.receipt;
    test.client.queue.drop_queue(DropQueueRequest { queue: "orders".to_owned() }).await.unwrap();
    test.client.create("orders").await;
    assert_eq!(test.client.delete("orders", &[&old]).await, [Outcome::Stale]);
    test.client.send("orders", "1").await;
    let new = test.client.read_one("orders").await.receipt;

    assert_eq!(
        test.client.delete("orders", &[&old, &new, &old]).await,
        [Outcome::Stale, Outcome::Done, Outcome::Stale]
    );
    // Without a dead-letter queue one of them would be refused for that.
    test.client.create("failed").await;
    crate::policies::set(&mut test.client, "orders", crate::dead_letters::at_most(5)).await;
    for (call, _) in settles(&[old]).into_iter().skip(5) {
        let before = contents(&test).await;
        let status = call.make(&test.client.channel).await.unwrap_err();
        Refusal::expect(&status, Code::FailedPrecondition, "STALE_RECEIPT");
        assert_eq!(contents(&test).await, before, "{}", call.text);
    }
}
