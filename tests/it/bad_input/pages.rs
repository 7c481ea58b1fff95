//! Pages of lists: tokens that were forged, changed, or made for another list or filter.

use pgmq_grpc::proto::v1::*;
use prost::Message;

use super::{Case, check, refused};
use crate::harness::Test;
use crate::harness::wire::{Call, call};

/// Every list with a token and a filter.
fn lists(token: &str, filter: &str) -> [Call; 7] {
    let (page_token, prefix) = (|| token.to_owned(), || filter.to_owned());
    let queue = || "orders".to_owned();
    let msg_ids = || if filter.is_empty() { vec![] } else { vec![1, 2] };
    [
        call(ListQueuesRequest {
            page_size: 1,
            page_token: page_token(),
            prefix: prefix(),
            ..Default::default()
        }),
        call(ListQueueMetricsRequest {
            page_size: 1,
            page_token: page_token(),
            prefix: prefix(),
            include_archive: false,
        }),
        call(ListTopicBindingsRequest { page_size: 1, page_token: page_token(), queue: prefix() }),
        call(ListNotificationsRequest { page_size: 1, page_token: page_token(), prefix: prefix() }),
        call(ListClientsRequest {
            page_size: 1,
            page_token: page_token(),
            queue: prefix(),
            ..Default::default()
        }),
        call(ListMessagesRequest {
            queue: queue(),
            page_size: 1,
            page_token: page_token(),
            msg_ids: msg_ids(),
            ..Default::default()
        }),
        call(ListArchivedMessagesRequest {
            queue: queue(),
            page_size: 1,
            page_token: page_token(),
            filter: Some(ArchiveFilter { msg_ids: msg_ids(), ..Default::default() }),
        }),
    ]
}

fn refused_everywhere(token: &str, filter: &str) -> [Case; 7] {
    lists(token, filter).map(|call| refused(call, "INVALID_PAGE_TOKEN", "page_token"))
}

/// The tokens of the second pages of all lists without a filter.
async fn tokens(test: &Test) -> [String; 7] {
    let mut tokens = Vec::new();
    let [queues, metrics, bindings, notifications, clients, messages, archived] = lists("", "");
    let reply = async |call: Call| call.make(&test.client.channel).await.unwrap();
    tokens.push(ListQueuesResponse::decode(reply(queues).await).unwrap().next_page_token);
    tokens.push(ListQueueMetricsResponse::decode(reply(metrics).await).unwrap().next_page_token);
    tokens.push(ListTopicBindingsResponse::decode(reply(bindings).await).unwrap().next_page_token);
    tokens.push(ListNotificationsResponse::decode(reply(notifications).await).unwrap().next_page_token);
    tokens.push(ListClientsResponse::decode(reply(clients).await).unwrap().next_page_token);
    tokens.push(ListMessagesResponse::decode(reply(messages).await).unwrap().next_page_token);
    tokens.push(ListArchivedMessagesResponse::decode(reply(archived).await).unwrap().next_page_token);
    assert!(tokens.iter().all(|token| !token.is_empty()), "{tokens:?}");
    tokens.try_into().unwrap()
}

/// A database in which every list has two pages of one.
async fn with_two_pages() -> Test {
    let mut test = Test::start().await;
    for queue in ["orders", "orders_b"] {
        test.client.create(queue).await;
        let bind = BindTopicRequest { pattern: "logs.*".to_owned(), queue: queue.to_owned() };
        test.client.topic.bind_topic(bind).await.unwrap();
        let enable = EnableNotificationsRequest { queue: queue.to_owned(), throttle_interval: None };
        test.client.admin.enable_notifications(enable).await.unwrap();
        test.client.send_all(queue, &["1", "2", "3", "4"]).await;
        let archive = ArchiveRequest { queue: queue.to_owned(), msg_ids: vec![1, 2], ..Default::default() };
        test.client.queue.archive(archive).await.unwrap();
    }
    test
}

#[tokio::test]
async fn a_token_that_is_none_of_ours_is_refused() {
    let test = Test::with_queue("orders").await;
    let huge = "A".repeat(1 << 20);
    for token in ["x", "orders", "ü", "\0", "====", "AAAAAAAAAAAA", "' OR 1=1 --", " ", &huge] {
        check(&test, refused_everywhere(token, "")).await;
    }
}

#[tokio::test]
async fn a_token_that_was_cut_or_changed_is_refused() {
    let test = with_two_pages().await;
    for token in tokens(&test).await {
        let last = token.chars().last().unwrap();
        let changed = format!("{}{}", &token[..token.len() - 1], if last == 'A' { 'E' } else { 'A' });
        let first_changed = format!("B{}", &token[1..]);
        for bad in [&token[1..], &token[..token.len() - 1], &changed, &first_changed, &token.repeat(2)] {
            check(&test, refused_everywhere(bad, "")).await;
        }
    }
}

#[tokio::test]
async fn a_token_belongs_to_one_list_and_one_filter() {
    let test = with_two_pages().await;
    let tokens = tokens(&test).await;
    for (at, token) in tokens.iter().enumerate() {
        check(&test, refused_everywhere(token, "orders")).await;
        for (other, case) in refused_everywhere(token, "").into_iter().enumerate() {
            if other != at {
                check(&test, [case]).await;
            }
        }
        lists(token, "")[at].make(&test.client.channel).await.unwrap();
    }
}

#[tokio::test]
async fn a_prefix_that_no_name_can_have_is_refused() {
    let test = Test::with_queue("orders").await;
    let [queues, metrics, _, notifications, ..] = lists("", "a\0");
    let cases = [queues, metrics, notifications].map(|call| refused(call, "INVALID_QUEUE_NAME", "prefix"));
    check(&test, cases).await;
}
