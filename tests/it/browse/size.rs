//! Pages have a size, and no message keeps others from being listed.

use pgmq_grpc::proto::v1::{ListArchivedMessagesRequest, ListMessagesRequest, ListMessagesResponse, Message};
use prost::Message as _;

use super::archive::archived_pages;
use super::{messages_of, pages};
use crate::harness::Test;
use crate::read_batch::{body_of, ids};

const PAGE: usize = 1 << 20;

#[tokio::test]
async fn a_page_of_large_messages_stays_below_a_megabyte() {
    let mut test = Test::with_queue("orders").await;
    for _ in 0..5 {
        test.client.send("orders", &body_of(400_000)).await;
    }
    let pages = pages(&mut test.client, messages_of("orders")).await;
    assert_eq!(pages.iter().map(|page| ids(page)).collect::<Vec<_>>(), [vec![1, 2], vec![3, 4], vec![5]]);
    for messages in pages {
        let page = ListMessagesResponse { messages, next_page_token: String::new() };
        assert!(page.encoded_len() < PAGE, "{}", page.encoded_len());
    }
}

#[tokio::test]
async fn a_page_of_many_small_messages_stays_below_a_megabyte() {
    let mut test = Test::with_queue("orders").await;
    test.run(&format!(
        "INSERT INTO pgmq.q_orders (vt, message) SELECT now(), '{}' FROM generate_series(1, 1000)",
        body_of(4_000)
    ))
    .await;
    let request = ListMessagesRequest { page_size: 1_000, ..messages_of("orders") };
    let pages = pages(&mut test.client, request).await;
    assert!(pages.len() > 3, "{}", pages.len());
    assert_eq!(ids(&pages.concat()), (1..=1_000).collect::<Vec<i64>>());
    for messages in pages {
        let page = ListMessagesResponse { messages, next_page_token: String::new() };
        assert!(page.encoded_len() < PAGE, "{}", page.encoded_len());
    }
}

#[tokio::test]
async fn a_message_larger_than_a_page_comes_alone() {
    let mut test = Test::start_with(&["--max-message-bytes", "3MiB"]).await;
    test.client.create("orders").await;
    for bytes in [10, 2_000_000, 10, 3_000_000] {
        test.client.send("orders", &body_of(bytes)).await;
    }
    let pages = pages(&mut test.client, messages_of("orders")).await;
    assert_eq!(pages.iter().map(|page| ids(page)).collect::<Vec<_>>(), [[1], [2], [3], [4]]);
    assert_eq!(pages[3][0].message.len(), 3_000_002);
}

/// What is listed of a message whose body is left out, and of its neighbours.
#[track_caller]
fn expect_second_without_body(messages: &[Message]) {
    assert_eq!(ids(messages), [1, 2, 3]);
    let texts: Vec<_> =
        messages.iter().map(|message| (message.message.as_str(), message.texts_omitted)).collect();
    assert_eq!(texts, [("1", false), ("", true), ("3", false)]);
    assert_eq!(messages[1].headers, r#"{"x-trace": "t"}"#);
}

#[tokio::test]
async fn a_message_too_large_for_any_reply_is_listed_without_its_body() {
    let mut test = Test::with_queue("orders").await;
    test.run(
        "SELECT pgmq.send('orders', '1');
         SELECT pgmq.send('orders', to_jsonb(repeat('x', 4000000)), '{\"x-trace\": \"t\"}'::jsonb);
         SELECT pgmq.send('orders', '3')",
    )
    .await;
    expect_second_without_body(&pages(&mut test.client, messages_of("orders")).await.concat());
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 3);
}

#[tokio::test]
async fn headers_too_large_for_any_reply_are_left_out_too() {
    let mut test = Test::with_queue("orders").await;
    test.run(
        "INSERT INTO pgmq.q_orders (vt, message, headers)
         VALUES (now(), '1', jsonb_build_object('x', repeat('x', 4000000))), (now(), NULL, NULL)",
    )
    .await;
    let messages = pages(&mut test.client, messages_of("orders")).await.concat();
    let texts: Vec<_> = messages
        .iter()
        .map(|message| (message.message.as_str(), message.headers.as_str(), message.texts_omitted))
        .collect();
    // The second one holds SQL NULL, which is nothing that was left out.
    assert_eq!(texts, [("", "", true), ("", "", false)]);
}

#[tokio::test]
async fn a_message_that_postgres_cannot_render_is_listed_without_its_body() {
    // Postgres needs some time to find out.
    let mut test = Test::start_with(&["--default-deadline", "10m"]).await;
    test.client.create("orders").await;
    test.run(
        "SELECT pgmq.send('orders', '1');
         SELECT pgmq.send('orders', jsonb_agg('1e131000'::jsonb), '{\"x-trace\": \"t\"}'::jsonb)
           FROM generate_series(1, 9000);
         SELECT pgmq.send('orders', '3')",
    )
    .await;
    let listed = pages(&mut test.client, messages_of("orders")).await;
    assert_eq!(listed.iter().map(|page| ids(page)).collect::<Vec<_>>(), [vec![1, 2], vec![3]]);
    expect_second_without_body(&listed.concat());

    test.run("SELECT pgmq.archive('orders', ARRAY[1, 2, 3])").await;
    let all = ListArchivedMessagesRequest { queue: "orders".to_owned(), ..Default::default() };
    let archived = archived_pages(&mut test.client, all).await.concat();
    let archived: Vec<Message> = archived.into_iter().map(|archived| archived.message.unwrap()).collect();
    expect_second_without_body(&archived);
}
