//! Releases and changes of the visibility timeout.

use pgmq_grpc::proto::v1::set_visibility_timeout_request::Visibility;
use pgmq_grpc::proto::v1::{ItemResult, Outcome, SetVisibilityTimeoutRequest, SetVisibilityTimeoutResponse};

use super::{outcomes, release, texts};
use crate::harness::{Client, Test, moment_in, seconds};
use crate::read_batch::{all_of, ids, micros, waiting_for};

/// Hides deliveries for so many seconds from now.
pub(crate) async fn set(client: &mut Client, queue: &str, receipts: &[&str], span_s: f64) -> Vec<ItemResult> {
    change(client, by_receipts(queue, receipts, seconds(span_s).map(Visibility::VisibilityTimeout)))
        .await
        .results
}

fn by_receipts(
    queue: &str,
    receipts: &[&str],
    visibility: Option<Visibility>,
) -> SetVisibilityTimeoutRequest {
    SetVisibilityTimeoutRequest {
        queue: queue.to_owned(),
        receipts: texts(receipts),
        visibility,
        ..Default::default()
    }
}

async fn change(client: &mut Client, request: SetVisibilityTimeoutRequest) -> SetVisibilityTimeoutResponse {
    client.queue.set_visibility_timeout(request).await.expect("a change").into_inner()
}

async fn vt_of(test: &Test, msg_id: i64) -> i64 {
    let vt = format!(
        "SELECT (extract(epoch FROM vt) * 1000000)::bigint FROM pgmq.q_orders WHERE msg_id = {msg_id}"
    );
    test.value::<i64>(&vt).await
}

/// How many seconds a message is still hidden, rounded.
async fn hidden_s(test: &Test, msg_id: i64) -> i64 {
    let hidden = format!(
        "SELECT round(extract(epoch FROM vt - clock_timestamp()) / 60)::bigint * 60
         FROM pgmq.q_orders WHERE msg_id = {msg_id}"
    );
    test.value::<i64>(&hidden).await
}

#[tokio::test]
async fn a_released_message_is_visible_at_once_and_counts_as_read() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let held = test.client.read_one("orders").await;
    let released = release(&mut test.client, "orders", &[&held.receipt], None).await;
    assert_eq!(outcomes(&released), [Outcome::Done]);
    assert_eq!(micros(released[0].vt.as_ref()), vt_of(&test, 1).await);
    assert_eq!(test.value::<i32>("SELECT read_ct FROM pgmq.q_orders").await, 1);
    assert_eq!(test.client.read_one("orders").await.read_ct, 2);
    let late = release(&mut test.client, "orders", &[&held.receipt], None).await;
    assert_eq!(outcomes(&late), [Outcome::Stale]);
}

#[tokio::test]
async fn a_message_released_with_a_delay_comes_after_it() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let held = test.client.read_one("orders").await;
    let released = release(&mut test.client, "orders", &[&held.receipt], Some(0.4)).await;
    let due = micros(released[0].vt.as_ref());
    let again = test.client.read_as(waiting_for("orders")).await;
    assert_eq!(again[0].read_ct, 2);
    assert!(micros(again[0].last_read_at.as_ref()) >= due);
}

#[tokio::test]
async fn a_release_may_be_repeated_and_counts_its_delay_anew() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let held = test.client.read_one("orders").await;
    for delay_s in [3_600.0, 600.0, 43_200.0] {
        let released = release(&mut test.client, "orders", &[&held.receipt], Some(delay_s)).await;
        assert_eq!(outcomes(&released), [Outcome::Done]);
        assert_eq!(hidden_s(&test, 1).await, delay_s as i64);
    }
    assert_eq!(test.client.delete("orders", &[&held.receipt]).await, [Outcome::Done]);
    let gone = release(&mut test.client, "orders", &[&held.receipt], None).await;
    assert_eq!((gone[0].outcome(), gone[0].vt), (Outcome::NotFound, None));
}

#[tokio::test]
async fn a_visibility_timeout_is_set_by_receipt_and_leaves_the_receipt_valid() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let held = test.client.read_one("orders").await;
    let results = set(&mut test.client, "orders", &[&held.receipt], 3_600.0).await;
    assert_eq!(outcomes(&results), [Outcome::Done]);
    assert_eq!(micros(results[0].vt.as_ref()), vt_of(&test, 1).await);
    assert_eq!(hidden_s(&test, 1).await, 3_600);
    let shorter = set(&mut test.client, "orders", &[&held.receipt], 600.0).await;
    assert_eq!(outcomes(&shorter), [Outcome::Done]);
    assert_eq!(hidden_s(&test, 1).await, 600);
    assert_eq!(test.client.delete("orders", &[&held.receipt]).await, [Outcome::Done]);
}

#[tokio::test]
async fn a_moment_of_visibility_is_taken_as_it_is() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let held = test.client.read_one("orders").await;
    let moment = moment_in(7_200);
    let at = by_receipts("orders", &[&held.receipt], Some(Visibility::VisibleAt(moment)));
    let results = change(&mut test.client, at).await.results;
    assert_eq!(micros(results[0].vt.as_ref()), micros(Some(&moment)));
    assert_eq!(vt_of(&test, 1).await, micros(Some(&moment)));
}

#[tokio::test]
async fn a_visibility_timeout_of_zero_and_a_past_moment_mean_at_once() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    for (round, visibility) in
        [seconds(0.0).map(Visibility::VisibilityTimeout), Some(Visibility::VisibleAt(moment_in(-3_600)))]
            .into_iter()
            .enumerate()
    {
        let held = test.client.read_one("orders").await;
        assert_eq!(usize::try_from(held.read_ct), Ok(round + 1));
        let results =
            change(&mut test.client, by_receipts("orders", &[&held.receipt], visibility)).await.results;
        assert_eq!(outcomes(&results), [Outcome::Done]);
    }
    assert_eq!(test.client.read_one("orders").await.read_ct, 3);
}

#[tokio::test]
async fn ids_change_the_visibility_whoever_holds_the_message() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["1", "2"]).await;
    let held = test.client.read_one("orders").await;
    let request = SetVisibilityTimeoutRequest {
        queue: "orders".to_owned(),
        msg_ids: vec![2, 1, 5, 2],
        visibility: seconds(600.0).map(Visibility::VisibilityTimeout),
        ..Default::default()
    };
    let answer = change(&mut test.client, request).await;
    assert_eq!(outcomes(&answer.results), [Outcome::Done, Outcome::Done, Outcome::NotFound, Outcome::Done]);
    assert_eq!(answer.results[0], answer.results[3]);
    assert!(answer.messages.is_empty());
    assert_eq!((hidden_s(&test, 1).await, hidden_s(&test, 2).await), (600, 600));
    assert_eq!(test.client.delete("orders", &[&held.receipt]).await, [Outcome::Done]);
}

#[tokio::test]
async fn changed_messages_come_back_when_asked_for() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["1", "2", "3"]).await;
    let held = test.client.read_as(all_of("orders")).await;
    test.client.delete("orders", &[&held[1].receipt]).await;
    let receipts: Vec<&str> = held.iter().rev().map(|message| message.receipt.as_str()).collect();
    let mut request = by_receipts("orders", &receipts, seconds(600.0).map(Visibility::VisibilityTimeout));
    request.return_messages = true;
    let answer = change(&mut test.client, request).await;
    assert_eq!(outcomes(&answer.results), [Outcome::Done, Outcome::NotFound, Outcome::Done]);
    assert_eq!(ids(&answer.messages), [1, 3]);
    assert_eq!(answer.messages[0].vt, answer.results[2].vt);
    assert_eq!((answer.messages[1].message.as_str(), answer.messages[1].read_ct), ("3", 1));
    // The receipts that come with them name the same deliveries.
    assert_eq!(answer.messages[0].receipt, held[0].receipt);

    let by_ids = SetVisibilityTimeoutRequest {
        queue: "orders".to_owned(),
        msg_ids: vec![3, 1],
        visibility: Some(Visibility::VisibleAt(moment_in(60))),
        return_messages: true,
        ..Default::default()
    };
    let answer = change(&mut test.client, by_ids).await;
    assert_eq!(ids(&answer.messages), [1, 3]);
    assert!(answer.messages.iter().all(|message| message.receipt.is_empty()));
}

#[tokio::test]
async fn changed_messages_that_fit_no_reply_still_have_results() {
    let mut test = Test::with_queue("orders").await;
    for _ in 0..4 {
        test.client.send("orders", &crate::read_batch::body_of(1_000_000)).await;
    }
    let request = SetVisibilityTimeoutRequest {
        queue: "orders".to_owned(),
        msg_ids: vec![1, 2, 3, 4],
        visibility: seconds(60.0).map(Visibility::VisibilityTimeout),
        return_messages: true,
        ..Default::default()
    };
    let answer = change(&mut test.client, request).await;
    assert_eq!(outcomes(&answer.results), [Outcome::Done; 4]);
    assert_eq!(ids(&answer.messages), [1, 2, 3]);
}
