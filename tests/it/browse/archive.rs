//! Archives: by id, by the time of archiving, in pages.

use pgmq_grpc::proto::v1::{
    ArchiveFilter, ArchiveRequest, ArchivedMessage, ListArchivedMessagesRequest, ListArchivedMessagesResponse,
};
use prost_types::Timestamp;

use crate::bad_input::contents;
use crate::harness::{Client, Refusal, Test};
use crate::read_batch::micros;

async fn page(client: &mut Client, request: ListArchivedMessagesRequest) -> ListArchivedMessagesResponse {
    client.admin.list_archived_messages(request).await.expect("a page").into_inner()
}

/// All pages of an archive's list.
pub(crate) async fn archived_pages(
    client: &mut Client,
    mut request: ListArchivedMessagesRequest,
) -> Vec<Vec<ArchivedMessage>> {
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

/// The ids of the archived messages that a filter means, however large the pages are.
pub(crate) async fn archived_ids(client: &mut Client, queue: &str, filter: ArchiveFilter) -> Vec<i64> {
    let filter = Some(filter);
    let request = ListArchivedMessagesRequest { queue: queue.to_owned(), filter, ..Default::default() };
    let ids = |pages: Vec<Vec<ArchivedMessage>>| -> Vec<i64> {
        pages.into_iter().flatten().map(|archived| archived.message.unwrap().msg_id).collect()
    };
    let largest = ListArchivedMessagesRequest { page_size: 1_000, ..request.clone() };
    let in_large_pages = ids(archived_pages(client, largest).await);
    if in_large_pages.len() < 100 {
        let smallest = ListArchivedMessagesRequest { page_size: 1, ..request };
        assert_eq!(ids(archived_pages(client, smallest).await), in_large_pages);
    }
    in_large_pages
}

/// Midnight of a day in January 2026.
pub(crate) fn day(day: i64) -> Option<Timestamp> {
    Some(Timestamp { seconds: 1_767_225_600 + (day - 1) * 86_400, nanos: 0 })
}

/// A queue of which messages 1 to `count` are archived, each on the day of its id, at noon.
pub(crate) async fn with_archive(count: i64) -> Test {
    let mut test = Test::with_queue("orders").await;
    let bodies: Vec<String> = (1..=count).map(|n| n.to_string()).collect();
    test.client.send_all("orders", &bodies.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let msg_ids = (1..=count).collect();
    let request = ArchiveRequest { queue: "orders".to_owned(), msg_ids, ..Default::default() };
    test.client.queue.archive(request).await.unwrap();
    test.run(
        "UPDATE pgmq.a_orders SET archived_at = '2025-12-31 12:00Z'::timestamptz + msg_id * interval '24 h'",
    )
    .await;
    test
}

#[tokio::test]
async fn archived_messages_are_listed_by_id_as_they_were_archived() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_to_group("orders", "a", r#"{"n": 1}"#).await;
    let read = test.client.read_one("orders").await;
    let request = ArchiveRequest { queue: "orders".to_owned(), msg_ids: vec![1], ..Default::default() };
    test.client.queue.archive(request).await.unwrap();
    let before = contents(&test).await;

    let request = ListArchivedMessagesRequest { queue: "orders".to_owned(), ..Default::default() };
    let listed = archived_pages(&mut test.client, request).await.concat();

    let expected = pgmq_grpc::proto::v1::Message { receipt: String::new(), ..read };
    assert_eq!(listed[0].message, Some(expected));
    let archived_at = "SELECT (extract(epoch FROM archived_at) * 1000000)::bigint FROM pgmq.a_orders";
    assert_eq!(micros(listed[0].archived_at.as_ref()), test.value::<i64>(archived_at).await);
    assert_eq!(listed.len(), 1);
    assert_eq!(contents(&test).await, before);
}

#[tokio::test]
async fn a_filter_means_what_meets_all_its_conditions() {
    let mut test = with_archive(9).await;
    for (msg_ids, archived_after, archived_before, expected) in [
        (vec![], None, None, vec![1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (vec![], day(7), None, vec![7, 8, 9]),
        (vec![], None, day(3), vec![1, 2]),
        (vec![], day(3), day(5), vec![3, 4]),
        (vec![9, 77, 2, 2, 5], None, None, vec![2, 5, 9]),
        (vec![9, 2, 5], day(3), None, vec![5, 9]),
        (vec![9, 2, 5], day(3), day(6), vec![5]),
        (vec![77], None, None, vec![]),
        (vec![], day(50), None, vec![]),
    ] {
        let filter = ArchiveFilter { msg_ids, archived_after, archived_before };
        assert_eq!(archived_ids(&mut test.client, "orders", filter.clone()).await, expected, "{filter:?}");
    }
}

#[tokio::test]
async fn a_span_of_time_begins_with_its_first_moment_and_ends_before_its_last() {
    let mut test = with_archive(3).await;
    let noon =
        |number| day(number).map(|midnight| Timestamp { seconds: midnight.seconds + 43_200, nanos: 0 });
    let filter = ArchiveFilter { archived_after: noon(1), archived_before: noon(2), ..Default::default() };
    assert_eq!(archived_ids(&mut test.client, "orders", filter).await, [1]);
}

#[tokio::test]
async fn a_large_archive_is_searched_by_time_wherever_the_matches_are() {
    let mut test = Test::with_queue("orders").await;
    // The lower the id, the later it was archived.
    test.run(
        "INSERT INTO pgmq.a_orders (msg_id, vt, message, archived_at)
         SELECT n, now(), '1', '2026-01-01Z'::timestamptz + (50000 - n) * interval '1 minute'
         FROM generate_series(1, 50000) AS n",
    )
    .await;
    let day_of = |after, before| ArchiveFilter {
        archived_after: after,
        archived_before: before,
        ..Default::default()
    };
    // Few are found by their times, many by their ids.
    for (filter, condition) in [
        (day_of(None, day(2)), "archived_at < '2026-01-02Z'"),
        (day_of(day(34), None), "archived_at >= '2026-02-03Z'"),
        (day_of(day(2), day(22)), "archived_at >= '2026-01-02Z' AND archived_at < '2026-01-22Z'"),
        (day_of(day(2), None), "archived_at >= '2026-01-02Z'"),
    ] {
        let expected = format!(
            "SELECT coalesce(array_agg(msg_id ORDER BY msg_id), '{{}}') FROM pgmq.a_orders WHERE {condition}"
        );
        let expected: Vec<i64> = test.value(&expected).await;
        assert!(!expected.is_empty());
        let found = archived_ids(&mut test.client, "orders", filter).await;
        assert!(found == expected, "{condition}: {} instead of {}", found.len(), expected.len());
    }
    // The first page of many that are far behind is empty, and says that more follow.
    let filter = Some(day_of(None, day(22)));
    let request = ListArchivedMessagesRequest { queue: "orders".to_owned(), filter, ..Default::default() };
    let first = page(&mut test.client, request).await;
    assert!(first.messages.is_empty() && !first.next_page_token.is_empty());
}

#[tokio::test]
async fn a_token_of_another_filter_is_refused() {
    let mut test = with_archive(4).await;
    let filter = ArchiveFilter { archived_after: day(1), ..Default::default() };
    let request = ListArchivedMessagesRequest {
        queue: "orders".to_owned(),
        filter: Some(filter.clone()),
        page_size: 1,
        ..Default::default()
    };
    let page_token = page(&mut test.client, request.clone()).await.next_page_token;
    assert!(!page_token.is_empty());
    for changed in [
        ArchiveFilter::default(),
        ArchiveFilter { archived_after: day(2), ..filter.clone() },
        ArchiveFilter { archived_before: day(9), ..filter.clone() },
        ArchiveFilter { msg_ids: vec![2], ..filter },
    ] {
        let request = ListArchivedMessagesRequest {
            filter: Some(changed),
            page_token: page_token.clone(),
            ..request.clone()
        };
        let refused = test.client.admin.list_archived_messages(request).await.unwrap_err();
        Refusal::expect_invalid(&refused, "INVALID_PAGE_TOKEN", "page_token");
    }
}

/// An archive as only partitioned ones can be, in which ids are not unique: three of 1, one of 2, and four of 3.
pub(crate) async fn with_equal_ids() -> Test {
    let test = Test::with_queue("orders").await;
    test.run(
        "ALTER TABLE pgmq.a_orders DROP CONSTRAINT a_orders_pkey;
         INSERT INTO pgmq.a_orders (msg_id, vt, archived_at, message)
         SELECT msg_id, now(), '2026-01-01 12:00Z'::timestamptz + place * interval '1 h', to_jsonb(place)
         FROM unnest(ARRAY[1, 1, 1, 2, 3, 3, 3, 3]) WITH ORDINALITY AS w(msg_id, place)",
    )
    .await;
    test
}

#[tokio::test]
async fn messages_with_the_same_id_are_each_listed_once_whatever_the_pages() {
    let mut test = with_equal_ids().await;
    each_is_listed_once(&mut test).await;
    // Now not even the moment tells them apart.
    test.run("UPDATE pgmq.a_orders SET archived_at = '2026-01-01 12:00Z'").await;
    each_is_listed_once(&mut test).await;
}

#[tokio::test]
async fn messages_at_the_same_place_of_several_partitions_are_each_listed_once() {
    let mut test = with_equal_ids().await;
    test.run(
        "ALTER TABLE pgmq.a_orders RENAME TO former;
         CREATE TABLE pgmq.a_orders (LIKE pgmq.former INCLUDING DEFAULTS) PARTITION BY LIST (read_ct)",
    )
    .await;
    for place in 1..=8 {
        let partition = format!("pgmq.a_orders_{place}");
        test.run(&format!(
            "CREATE TABLE {partition} PARTITION OF pgmq.a_orders FOR VALUES IN ({place});
             INSERT INTO pgmq.a_orders (msg_id, read_ct, vt, archived_at, message)
             SELECT msg_id, {place}, vt, '2026-01-01 12:00Z', message FROM pgmq.former WHERE message = '{place}'"
        ))
        .await;
    }
    let places: i64 = test.value("SELECT count(DISTINCT ctid) FROM pgmq.a_orders").await;
    assert_eq!(places, 1);
    each_is_listed_once(&mut test).await;
}

async fn each_is_listed_once(test: &mut Test) {
    let filters = [
        ArchiveFilter::default(),
        ArchiveFilter { archived_after: day(1), ..Default::default() },
        ArchiveFilter { msg_ids: vec![1, 2, 3], ..Default::default() },
    ];
    for filter in filters {
        for page_size in 1..=9 {
            let (queue, filter) = ("orders".to_owned(), Some(filter.clone()));
            let request = ListArchivedMessagesRequest { queue, filter, page_size, ..Default::default() };
            let listed = archived_pages(&mut test.client, request).await.concat();
            let mut bodies: Vec<String> =
                listed.into_iter().map(|archived| archived.message.unwrap().message).collect();
            bodies.sort_unstable();
            assert_eq!(bodies, ["1", "2", "3", "4", "5", "6", "7", "8"], "pages of {page_size}");
        }
    }
}

#[tokio::test]
async fn messages_with_the_same_id_that_no_page_can_hold_together_are_listed_all_the_same() {
    let mut test = with_equal_ids().await;
    // Those of the first id with the fourth are more than a page, and so are those of the last.
    test.run("UPDATE pgmq.a_orders SET message = to_jsonb(repeat('x', 300000)) WHERE message::text::int IN (1, 2, 4, 5, 6, 7, 8)")
        .await;
    let request = ListArchivedMessagesRequest { queue: "orders".to_owned(), ..Default::default() };
    let listed = archived_pages(&mut test.client, request).await.concat();
    let ids: Vec<i64> = listed.iter().map(|archived| archived.message.as_ref().unwrap().msg_id).collect();
    assert_eq!(ids, [1, 1, 1, 2, 3, 3, 3, 3]);
    let whole: Vec<bool> =
        listed.iter().map(|archived| !archived.message.as_ref().unwrap().texts_omitted).collect();
    assert_eq!(whole, [true, true, true, true, true, true, true, false]);
    let moments: std::collections::BTreeSet<_> =
        listed.iter().map(|archived| archived.archived_at.as_ref().unwrap().seconds).collect();
    assert_eq!(moments.len(), 8);
}
