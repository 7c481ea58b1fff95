//! Lists: pages, prefixes, tokens, and queues that are broken.

use pgmq_grpc::proto::v1::{
    DropQueueRequest, ListNotificationsRequest, ListQueueMetricsRequest, ListQueuesRequest,
    ListQueuesResponse, ListTopicBindingsRequest,
};
use tonic::{Code, Status};

use crate::harness::{Refusal, Test};

async fn list(
    test: &mut Test,
    page_size: i32,
    token: &str,
    prefix: &str,
) -> Result<ListQueuesResponse, Status> {
    let (page_token, prefix) = (token.to_owned(), prefix.to_owned());
    let request = ListQueuesRequest { page_size, page_token, prefix, ..Default::default() };
    Ok(test.client.queue.list_queues(request).await?.into_inner())
}

fn names(page: &ListQueuesResponse) -> Vec<&str> {
    page.queues.iter().map(|queue| queue.name.as_str()).collect()
}

/// Rows of `pgmq.meta` are all that a list of queues looks at.
async fn list_in_meta(test: &Test, names: &str) {
    test.run(&format!(
        "INSERT INTO pgmq.meta (queue_name, is_partitioned, is_unlogged) SELECT n, false, false FROM {names} AS n"
    ))
    .await;
}

#[tokio::test]
async fn queues_are_listed_by_name_byte_by_byte() {
    let mut test = Test::start().await;
    for name in ["b", "a-1", "a_1", "B", "ä", "a", "日本", "_"] {
        test.sql.execute("SELECT pgmq.create($1)", &[&name.replace('B', "Big")]).await.unwrap();
    }
    let page = list(&mut test, 0, "", "").await.unwrap();
    assert_eq!(names(&page), ["Big", "_", "a", "a-1", "a_1", "b", "ä", "日本"]);
    assert_eq!(page.next_page_token, "");
    let stored = test.value::<i64>("SELECT 'pgmq.\"q_日本\"'::regclass::oid::bigint").await;
    assert_eq!(page.queues[7].id, stored);
}

#[tokio::test]
async fn an_empty_list_is_one_empty_page() {
    let mut test = Test::start().await;
    let page = list(&mut test, 10, "", "").await.unwrap();
    assert_eq!((page.queues.len(), page.next_page_token.as_str()), (0, ""));
}

#[tokio::test]
async fn pages_follow_one_another_without_gaps_or_repeats() {
    let mut test = Test::start().await;
    list_in_meta(&test, "(SELECT 'n' || lpad(i::text, 2, '0') AS n FROM generate_series(1, 7) AS i)").await;
    let (mut seen, mut token) = (Vec::new(), String::new());
    for expected in [3, 3, 1] {
        let page = list(&mut test, 3, &token, "").await.unwrap();
        assert_eq!(page.queues.len(), expected);
        seen.extend(page.queues.iter().map(|queue| queue.name.clone()));
        token = page.next_page_token;
    }
    assert_eq!(token, "");
    assert_eq!(seen, ["n01", "n02", "n03", "n04", "n05", "n06", "n07"]);
    let exactly_one_page = list(&mut test, 7, "", "").await.unwrap();
    assert_eq!(exactly_one_page.next_page_token, "");
}

#[tokio::test]
async fn a_page_goes_on_where_the_one_before_ended_whatever_came_and_went() {
    let mut test = Test::start().await;
    list_in_meta(&test, "unnest(ARRAY['b', 'd', 'f'])").await;
    let first = list(&mut test, 2, "", "").await.unwrap();
    assert_eq!(names(&first), ["b", "d"]);
    test.run("DELETE FROM pgmq.meta WHERE queue_name = 'd'").await;
    list_in_meta(&test, "unnest(ARRAY['a', 'c', 'e'])").await;
    let second = list(&mut test, 2, &first.next_page_token, "").await.unwrap();
    assert_eq!(names(&second), ["e", "f"]);
}

#[tokio::test]
async fn a_prefix_is_exact_and_no_pattern() {
    let mut test = Test::start().await;
    list_in_meta(&test, "unnest(ARRAY['orders', 'orders_eu', 'Orders', 'o%ers', 'o_ders', 'order'])").await;
    for (prefix, expected) in [
        ("orders", vec!["orders", "orders_eu"]),
        ("O", vec!["Orders"]),
        ("o%", vec!["o%ers"]),
        ("o_", vec!["o_ders"]),
        ("orders_eu2", vec![]),
        ("\\", vec![]),
    ] {
        assert_eq!(names(&list(&mut test, 0, "", prefix).await.unwrap()), expected, "{prefix}");
    }
    let first = list(&mut test, 1, "", "orders").await.unwrap();
    let second = list(&mut test, 1, &first.next_page_token, "orders").await.unwrap();
    assert_eq!((names(&second), second.next_page_token.as_str()), (vec!["orders_eu"], ""));
}

#[tokio::test]
async fn a_page_has_a_hundred_items_by_default_and_a_thousand_at_most() {
    let mut test = Test::start().await;
    list_in_meta(&test, "(SELECT 'n' || lpad(i::text, 4, '0') AS n FROM generate_series(1, 1001) AS i)")
        .await;
    for (asked, given) in [(0, 100), (999, 999), (1_000, 1_000), (1_001, 1_000), (i32::MAX, 1_000)] {
        let page = list(&mut test, asked, "", "").await.unwrap();
        assert_eq!(page.queues.len(), given);
        assert_ne!(page.next_page_token, "");
    }
    let page = list(&mut test, 5_000, "", "").await.unwrap();
    let last = list(&mut test, 5_000, &page.next_page_token, "").await.unwrap();
    assert_eq!((names(&last), last.next_page_token.as_str()), (vec!["n1001"], ""));
}

#[tokio::test]
async fn a_negative_size_is_refused_by_every_list() {
    let mut test = Test::start().await;
    let page_size = -1;
    let client = &mut test.client;
    for status in [
        client
            .queue
            .list_queues(ListQueuesRequest { page_size, ..Default::default() })
            .await
            .map(drop)
            .unwrap_err(),
        client
            .queue
            .list_queue_metrics(ListQueueMetricsRequest { page_size, ..Default::default() })
            .await
            .map(drop)
            .unwrap_err(),
        client
            .topic
            .list_topic_bindings(ListTopicBindingsRequest { page_size, ..Default::default() })
            .await
            .map(drop)
            .unwrap_err(),
        client
            .admin
            .list_notifications(ListNotificationsRequest { page_size, ..Default::default() })
            .await
            .map(drop)
            .unwrap_err(),
    ] {
        Refusal::expect_invalid(&status, "INVALID_COUNT", "page_size");
    }
}

#[tokio::test]
async fn a_token_is_bound_to_its_list_and_filter() {
    let mut test = Test::start().await;
    list_in_meta(&test, "unnest(ARRAY['a1', 'a2', 'b1'])").await;
    let token = list(&mut test, 1, "", "").await.unwrap().next_page_token;
    let changed = list(&mut test, 1, &token, "a").await.unwrap_err();
    Refusal::expect_invalid(&changed, "INVALID_PAGE_TOKEN", "page_token");
    let request = ListQueueMetricsRequest { page_token: token.clone(), ..Default::default() };
    let other_list = test.client.queue.list_queue_metrics(request).await.unwrap_err();
    Refusal::expect_invalid(&other_list, "INVALID_PAGE_TOKEN", "page_token");
    let request = ListNotificationsRequest { page_token: token.clone(), ..Default::default() };
    let other_service = test.client.admin.list_notifications(request).await.unwrap_err();
    Refusal::expect_invalid(&other_service, "INVALID_PAGE_TOKEN", "page_token");
    let other_size = list(&mut test, 5, &token, "").await.unwrap();
    assert_eq!(names(&other_size), ["a2", "b1"]);
}

#[tokio::test]
async fn forged_tokens_are_refused_by_every_list() {
    let mut test = Test::start().await;
    list_in_meta(&test, "unnest(ARRAY['a1', 'a2', 'b1'])").await;
    let token = list(&mut test, 1, "", "").await.unwrap().next_page_token;
    let mut flipped = token.clone().into_bytes();
    flipped[8] = if flipped[8] == b'A' { b'B' } else { b'A' };
    let flipped = String::from_utf8(flipped).unwrap();
    for forged in ["x", "2", "AAAA", "not base64!", "\0", "ä", &token[..token.len() - 2], &flipped] {
        let page_token = forged.to_owned();
        let client = &mut test.client;
        for status in [
            client
                .queue
                .list_queues(ListQueuesRequest { page_token: page_token.clone(), ..Default::default() })
                .await
                .map(drop)
                .unwrap_err(),
            client
                .queue
                .list_queue_metrics(ListQueueMetricsRequest {
                    page_token: page_token.clone(),
                    ..Default::default()
                })
                .await
                .map(drop)
                .unwrap_err(),
            client
                .topic
                .list_topic_bindings(ListTopicBindingsRequest {
                    page_token: page_token.clone(),
                    ..Default::default()
                })
                .await
                .map(drop)
                .unwrap_err(),
            client
                .admin
                .list_notifications(ListNotificationsRequest { page_token, ..Default::default() })
                .await
                .map(drop)
                .unwrap_err(),
        ] {
            Refusal::expect_invalid(&status, "INVALID_PAGE_TOKEN", "page_token");
        }
    }
}

#[tokio::test]
async fn a_broken_queue_breaks_neither_list_and_can_be_dropped() {
    let mut test = Test::start().await;
    for name in ["first", "gone", "last"] {
        test.client.create(name).await;
        test.client.send(name, "1").await;
    }
    test.run("DROP TABLE pgmq.q_gone, pgmq.a_gone").await;
    list_in_meta(&test, "unnest(ARRAY['it''s; $odd --', 'never made'])").await;
    let all = ["first", "gone", "it's; $odd --", "last", "never made"];

    let page = list(&mut test, 0, "", "").await.unwrap();
    assert_eq!(names(&page), all);
    let ids: Vec<bool> = page.queues.iter().map(|queue| queue.id != 0).collect();
    assert_eq!(ids, [true, false, false, true, false]);

    let request = ListQueueMetricsRequest { include_archive: true, ..Default::default() };
    let metrics = test.client.queue.list_queue_metrics(request).await.unwrap().into_inner().metrics;
    let measured: Vec<_> =
        metrics.iter().map(|metrics| (metrics.queue.as_str(), metrics.queue_length)).collect();
    assert_eq!(measured, all.map(|name| (name, i64::from(name == "first" || name == "last"))));
    for metrics in metrics {
        let broken = metrics.queue != "first" && metrics.queue != "last";
        assert_eq!(metrics.error.is_some(), broken, "{}", metrics.queue);
        let Some(error) = metrics.error else { continue };
        let expected = match metrics.queue.as_str() {
            "it's; $odd --" => (i32::from(Code::InvalidArgument), "INVALID_QUEUE_NAME"),
            _ => (i32::from(Code::NotFound), "QUEUE_NOT_FOUND"),
        };
        let reason = error.reason().as_str_name().trim_start_matches("ERROR_REASON_");
        assert_eq!((error.code, reason), expected);
        assert!(metrics.scraped_at.is_none() && metrics.archive_length.is_none());
    }

    for broken in ["gone", "never made"] {
        test.client.queue.drop_queue(DropQueueRequest { queue: broken.into() }).await.unwrap();
    }
    assert_eq!(names(&list(&mut test, 0, "", "").await.unwrap()), ["first", "it's; $odd --", "last"]);
}
