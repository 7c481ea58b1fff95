//! Dead letters of one queue at two servers at once.

use futures_util::future::join_all;
use pgmq_grpc::proto::v1::{ItemResult, Outcome};

use super::{count, dead_letter, moved, orders, read_all};
use crate::harness::{Client, Test};
use crate::settle::release;

/// Two servers and what is read of so many messages.
async fn held(test: &mut Test, messages: usize) -> Vec<String> {
    test.client.send_all("orders", &vec!["{}"; messages]).await;
    read_all(test, "orders").await.into_iter().map(|message| message.receipt).collect()
}

/// Checks that of each two calls one has settled the message, and gives how often it was the first.
#[track_caller]
fn first_has_won(both: &[(Vec<ItemResult>, Vec<ItemResult>)]) -> i64 {
    let mut times = 0;
    for (first, second) in both {
        match (first[0].outcome(), second[0].outcome()) {
            (Outcome::Done, Outcome::NotFound) => times += 1,
            (Outcome::NotFound, Outcome::Done) => {}
            other => panic!("{other:?}"),
        }
    }
    times
}

async fn letters_because_of(test: &Test, reason: &str) -> i64 {
    test.value(&format!(
        "SELECT count(*) FROM pgmq.q_failed WHERE headers -> 'x-pgmq-dead-letter' ->> 'reason' = '{reason}'"
    ))
    .await
}

#[tokio::test]
async fn of_two_who_set_a_message_aside_at_two_servers_one_does() {
    const MESSAGES: usize = 100;
    let mut test = orders(5).await;
    let (_other, mut elsewhere) = test.another().await;
    let held = held(&mut test, MESSAGES).await;
    let aside = |client: &Client, receipt: &str, reason: &'static str| {
        let (mut client, receipt) = (client.clone(), receipt.to_owned());
        async move { dead_letter(&mut client, "orders", &[&receipt], reason).await }
    };
    let calls = held.iter().map(|receipt| {
        let (here, there) = (aside(&test.client, receipt, "here"), aside(&elsewhere, receipt, "there"));
        async { tokio::join!(here, there) }
    });
    let here = first_has_won(&join_all(calls).await);

    let all = i64::try_from(MESSAGES).unwrap();
    assert_eq!((count(&test, "orders").await, count(&test, "failed").await), (0, all));
    assert_eq!(letters_because_of(&test, "here").await, here);
    assert_eq!(letters_because_of(&test, "there").await, all - here);
    // Each server counts what it has moved itself.
    assert_eq!(moved(&mut test.client, "orders").await, here);
    assert_eq!(moved(&mut elsewhere, "orders").await, all - here);
}

#[tokio::test]
async fn a_last_release_and_a_dead_letter_at_two_servers_move_a_message_once() {
    const MESSAGES: usize = 100;
    let mut test = orders(1).await;
    let (_other, mut elsewhere) = test.another().await;
    let held = held(&mut test, MESSAGES).await;
    let calls = held.iter().map(|receipt| {
        let (mut here, mut there) = (test.client.clone(), elsewhere.clone());
        async move {
            let receipts = [receipt.as_str()];
            tokio::join!(
                release(&mut here, "orders", &receipts, None),
                dead_letter(&mut there, "orders", &receipts, "there")
            )
        }
    });
    let released = first_has_won(&join_all(calls).await);

    let all = i64::try_from(MESSAGES).unwrap();
    assert_eq!((count(&test, "orders").await, count(&test, "failed").await), (0, all));
    assert_eq!(letters_because_of(&test, "max_receives").await, released);
    assert_eq!(moved(&mut test.client, "orders").await, released);
    assert_eq!(moved(&mut elsewhere, "orders").await, all - released);
}
