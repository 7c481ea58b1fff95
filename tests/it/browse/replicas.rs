//! Looks at one server beside a consumer at another, and after the end of the first.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use nix::sys::signal::Signal;
use pgmq_grpc::proto::v1::{ArchiveRequest, ListArchivedMessagesRequest, ListMessagesRequest, Outcome};

use super::archive::archived_pages;
use super::{listed, messages_of, page};
use crate::harness::{Client, Test};
use crate::settle::archive;

const ALL: i64 = 2_000;

/// The ids of messages that are about to be archived or are so, and of those that certainly are.
#[derive(Default)]
struct Progress {
    begun: BTreeSet<i64>,
    done: BTreeSet<i64>,
}

/// Reads and archives a few at a time until nothing is left.
async fn consume(mut client: Client, progress: Arc<Mutex<Progress>>) {
    loop {
        let read = client.read("orders", 20).await;
        if read.is_empty() {
            return;
        }
        let ids = read.iter().map(|message| message.msg_id);
        progress.lock().unwrap().begun.extend(ids.clone());
        let receipts: Vec<&str> = read.iter().map(|message| message.receipt.as_str()).collect();
        let outcomes = archive(&mut client, "orders", &receipts).await;
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Done));
        progress.lock().unwrap().done.extend(ids);
    }
}

fn archived_of(page_size: i32) -> ListArchivedMessagesRequest {
    ListArchivedMessagesRequest { queue: "orders".to_owned(), page_size, ..Default::default() }
}

#[track_caller]
fn expect_ascending(ids: &[i64]) {
    assert!(ids.is_sorted_by(|one, next| one < next), "{ids:?}");
}

#[tokio::test]
async fn lists_beside_a_consumer_at_another_server_show_what_is_there_all_the_while_once() {
    let mut test = Test::with_queue("orders").await;
    test.run(&format!("SELECT pgmq.send('orders', to_jsonb(n)) FROM generate_series(1, {ALL}) AS n")).await;
    let (_other, elsewhere) = test.another().await;
    let progress = Arc::new(Mutex::new(Progress::default()));
    let consuming = tokio::spawn(consume(elsewhere, Arc::clone(&progress)));
    let archived_by_now = || progress.lock().unwrap().done.clone();
    let touched_by_now = || progress.lock().unwrap().begun.clone();
    while !consuming.is_finished() {
        let gone = archived_by_now();
        let shown =
            listed(&mut test.client, ListMessagesRequest { page_size: 300, ..messages_of("orders") }).await;
        let touched = touched_by_now();
        expect_ascending(&shown);
        let shown: BTreeSet<i64> = shown.into_iter().collect();
        assert!(shown.is_disjoint(&gone), "{:?}", shown.intersection(&gone));
        let missing: Vec<i64> = (1..=ALL).filter(|id| !touched.contains(id) && !shown.contains(id)).collect();
        assert_eq!(missing, Vec::<i64>::new());

        let gone = archived_by_now();
        let shown = archived_pages(&mut test.client, archived_of(300)).await.concat();
        let shown: Vec<i64> = shown.into_iter().map(|archived| archived.message.unwrap().msg_id).collect();
        expect_ascending(&shown);
        let shown: BTreeSet<i64> = shown.into_iter().collect();
        assert!(shown.is_superset(&gone), "{:?}", gone.difference(&shown));
        assert!(shown.is_subset(&touched_by_now()));
    }
    consuming.await.unwrap();
    // Whatever was looked at was read by the consumer alone.
    let read_once = "SELECT count(*) FROM pgmq.a_orders WHERE read_ct = 1";
    assert_eq!(test.value::<i64>(read_once).await, ALL);
}

#[tokio::test]
async fn a_list_goes_on_at_another_server_where_a_killed_one_has_left_off() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["1", "2", "3", "4", "5", "6"]).await;
    let request = ArchiveRequest { queue: "orders".to_owned(), msg_ids: vec![1, 3, 5], ..Default::default() };
    test.client.queue.archive(request).await.unwrap();
    let messages = ListMessagesRequest { page_size: 1, ..messages_of("orders") };
    let first = page(&mut test.client, messages.clone()).await.next_page_token;
    let archived = test.client.admin.list_archived_messages(archived_of(1)).await.unwrap().into_inner();
    test.server.signal(Signal::SIGKILL);

    let (_other, mut elsewhere) = test.another().await;
    let rest = ListMessagesRequest { page_token: first, ..messages };
    assert_eq!(listed(&mut elsewhere, rest).await, [4, 6]);
    let rest = ListArchivedMessagesRequest { page_token: archived.next_page_token, ..archived_of(1) };
    let rest = archived_pages(&mut elsewhere, rest).await.concat();
    let rest: Vec<i64> = rest.into_iter().map(|archived| archived.message.unwrap().msg_id).collect();
    assert_eq!(rest, [3, 5]);
}
