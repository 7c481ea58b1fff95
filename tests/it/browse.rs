//! `ListMessages` and `ListArchivedMessages`: looks into a queue and its archive that change nothing.

pub(crate) mod archive;
mod replicas;
mod size;

use pgmq_grpc::proto::v1::{ListMessagesRequest, ListMessagesResponse, Message, MessageState};

use crate::bad_input::contents;
use crate::harness::{Client, Test};
use crate::read_batch::ids;
use crate::settle::release;

pub(crate) fn messages_of(queue: &str) -> ListMessagesRequest {
    ListMessagesRequest { queue: queue.to_owned(), ..Default::default() }
}

async fn page(client: &mut Client, request: ListMessagesRequest) -> ListMessagesResponse {
    client.admin.list_messages(request).await.expect("a page").into_inner()
}

/// All pages of a list, each with what it holds.
pub(crate) async fn pages(client: &mut Client, mut request: ListMessagesRequest) -> Vec<Vec<Message>> {
    let mut pages = Vec::new();
    loop {
        let page = page(client, request.clone()).await;
        pages.push(page.messages);
        if page.next_page_token.is_empty() {
            return pages;
        }
        request.page_token = page.next_page_token;
    }
}

async fn listed(client: &mut Client, request: ListMessagesRequest) -> Vec<i64> {
    ids(&pages(client, request).await.concat())
}

#[tokio::test]
async fn messages_are_listed_by_id_and_nothing_changes() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_to_group("orders", "a", r#"{"n": 1}"#).await;
    test.client.send_all("orders", &["2", "3", "4", "5", "6", "7"]).await;
    let read = test.client.read_one("orders").await;
    let before = contents(&test).await;

    let request = ListMessagesRequest { page_size: 3, ..messages_of("orders") };
    let pages = pages(&mut test.client, request).await;

    let of_pages: Vec<Vec<i64>> = pages.iter().map(|page| ids(page)).collect();
    assert_eq!(of_pages, [vec![1, 2, 3], vec![4, 5, 6], vec![7]]);
    assert_eq!(pages[0][0], Message { receipt: String::new(), ..read });
    let second = &pages[0][1];
    assert_eq!((second.read_ct, second.message.as_str(), second.headers.as_str()), (0, "2", ""));
    assert!(pages.iter().flatten().all(|message| message.receipt.is_empty() && !message.texts_omitted));
    assert_eq!(contents(&test).await, before);
}

#[tokio::test]
async fn an_empty_queue_has_one_empty_page() {
    let mut test = Test::with_queue("orders").await;
    assert_eq!(pages(&mut test.client, messages_of("orders")).await, [vec![]]);
}

#[tokio::test]
async fn a_list_shows_messages_in_the_state_that_is_asked_for() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["1", "2", "3", "4"]).await;
    let read = test.client.read("orders", 3).await;
    release(&mut test.client, "orders", &[&read[0].receipt], None).await;
    release(&mut test.client, "orders", &[&read[1].receipt], Some(600.0)).await;
    test.run("SELECT pgmq.send('orders', '5', 600)").await;
    for (state, expected) in [
        (MessageState::Unspecified, vec![1, 2, 3, 4, 5]),
        (MessageState::Visible, vec![1, 4]),
        (MessageState::InFlight, vec![2, 3]),
        (MessageState::Delayed, vec![5]),
    ] {
        let in_state = || ListMessagesRequest { state: state.into(), ..messages_of("orders") };
        assert_eq!(listed(&mut test.client, in_state()).await, expected, "{state:?}");
        let singly = ListMessagesRequest { page_size: 1, ..in_state() };
        assert_eq!(listed(&mut test.client, singly).await, expected, "{state:?}");
        let by_id = ListMessagesRequest { msg_ids: vec![5, 4, 3], ..in_state() };
        let expected: Vec<i64> = expected.into_iter().filter(|msg_id| *msg_id > 2).collect();
        assert_eq!(listed(&mut test.client, by_id).await, expected, "{state:?}");
    }
}

#[tokio::test]
async fn a_list_shows_certain_messages_once_each_and_by_id() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["1", "2", "3", "4", "5"]).await;
    let msg_ids = vec![5, 99, 2, -1, 5, 4, i64::MAX];
    for page_size in [0, 1, 2] {
        let request = ListMessagesRequest { msg_ids: msg_ids.clone(), page_size, ..messages_of("orders") };
        assert_eq!(listed(&mut test.client, request).await, [2, 4, 5]);
    }
}

#[tokio::test]
async fn what_is_far_behind_is_found_in_pages_of_bounded_work() {
    let mut test = Test::with_queue("orders").await;
    test.run(
        "INSERT INTO pgmq.q_orders (vt, message) SELECT now(), '1' FROM generate_series(1, 50000);
         INSERT INTO pgmq.q_orders (vt, message) SELECT now() + interval '1 h', '2' FROM generate_series(1, 3)",
    )
    .await;
    let state = MessageState::Delayed.into();
    let pages = pages(&mut test.client, ListMessagesRequest { state, ..messages_of("orders") }).await;
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [0, 0, 0, 0, 0, 3]);
    assert_eq!(ids(&pages[5]), [50_001, 50_002, 50_003]);
}

#[tokio::test]
async fn messages_that_go_and_come_between_pages_disturb_no_other() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["1", "2", "3", "4", "5"]).await;
    let request = ListMessagesRequest { page_size: 2, ..messages_of("orders") };
    let first = page(&mut test.client, request.clone()).await;
    assert_eq!(ids(&first.messages), [1, 2]);
    test.run("DELETE FROM pgmq.q_orders WHERE msg_id IN (1, 2, 3)").await;
    test.client.send("orders", "6").await;
    let rest = ListMessagesRequest { page_token: first.next_page_token, ..request };
    assert_eq!(listed(&mut test.client, rest).await, [4, 5, 6]);
}

#[tokio::test]
async fn a_token_of_another_queue_or_other_ids_is_refused() {
    let mut test = Test::with_queue("orders").await;
    test.client.create("others").await;
    test.client.send_all("orders", &["1", "2"]).await;
    let request = ListMessagesRequest { page_size: 1, ..messages_of("orders") };
    let page_token = page(&mut test.client, request.clone()).await.next_page_token;
    for changed in [
        ListMessagesRequest { queue: "others".to_owned(), ..request.clone() },
        ListMessagesRequest { msg_ids: vec![1], ..request.clone() },
        ListMessagesRequest { state: MessageState::Visible.into(), ..request.clone() },
    ] {
        let request = ListMessagesRequest { page_token: page_token.clone(), ..changed };
        let refused = test.client.admin.list_messages(request).await.unwrap_err();
        crate::harness::Refusal::expect_invalid(&refused, "INVALID_PAGE_TOKEN", "page_token");
    }
}
