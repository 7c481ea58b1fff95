//! Metrics: what is counted where, and what is not.

use pgmq_grpc::proto::v1::{
    ArchiveRequest, DropQueueRequest, GetQueueMetricsRequest, ListQueueMetricsRequest, PopRequest,
    QueueMetrics, RedriveMessagesRequest, ReleaseRequest, ReplayArchivedMessagesRequest, SendRequest,
    send_request,
};
use tonic::Code;

use crate::harness::{Client, Refusal, Server, Test, moment_in, seconds};

async fn measure(test: &mut Test, queue: &str, include_archive: bool) -> QueueMetrics {
    measure_by(&mut test.client, queue, include_archive).await
}

async fn measure_by(client: &mut Client, queue: &str, include_archive: bool) -> QueueMetrics {
    let request = GetQueueMetricsRequest { queue: queue.to_owned(), include_archive };
    let reply = client.queue.get_queue_metrics(request).await.expect("metrics");
    reply.into_inner().metrics.expect("metrics")
}

#[tokio::test]
async fn an_empty_queue_has_neither_messages_nor_ages() {
    let mut test = Test::with_queue("orders").await;
    let metrics = measure(&mut test, "orders", false).await;
    let scraped_at = metrics.scraped_at.expect("a moment");
    assert!((scraped_at.seconds - moment_in(0).seconds).abs() < 30);
    let expected =
        QueueMetrics { queue: "orders".into(), scraped_at: Some(scraped_at), ..Default::default() };
    assert_eq!(metrics, expected);
}

#[tokio::test]
async fn messages_count_as_visible_in_flight_or_delayed() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["1", "2", "3", "4", "5"]).await;
    for schedule in [
        send_request::Schedule::Delay(seconds(60.0).unwrap()),
        send_request::Schedule::VisibleAt(moment_in(3600)),
    ] {
        let request = SendRequest {
            queue: "orders".into(),
            message: "1".into(),
            schedule: Some(schedule),
            ..Default::default()
        };
        test.client.queue.send(request).await.unwrap();
    }
    let read = test.client.read("orders", 3).await;
    test.client.delete("orders", &[&read[0].receipt]).await;
    let receipts = vec![read[1].receipt.clone()];
    let delayed = ReleaseRequest { queue: "orders".into(), receipts, delay: seconds(60.0) };
    test.client.queue.release(delayed).await.unwrap();

    let metrics = measure(&mut test, "orders", false).await;
    assert_eq!(metrics.visible_length, 2);
    assert_eq!(metrics.in_flight_length, 2);
    assert_eq!(metrics.delayed_length, 2);
    assert_eq!(metrics.queue_length, 6);
    assert_eq!(metrics.total_messages, 7);

    let receipts = vec![read[2].receipt.clone()];
    let now = ReleaseRequest { queue: "orders".into(), receipts, delay: None };
    test.client.queue.release(now).await.unwrap();
    let metrics = measure(&mut test, "orders", false).await;
    assert_eq!((metrics.visible_length, metrics.in_flight_length), (3, 1));
}

#[tokio::test]
async fn the_archive_is_counted_only_when_asked_for() {
    let mut test = Test::with_queue("orders").await;
    let msg_ids = test.client.send_all("orders", &["1", "2", "3"]).await;
    let request =
        ArchiveRequest { queue: "orders".into(), msg_ids: msg_ids[..2].to_vec(), ..Default::default() };
    test.client.queue.archive(request).await.unwrap();
    assert_eq!(measure(&mut test, "orders", false).await.archive_length, None);
    let metrics = measure(&mut test, "orders", true).await;
    assert_eq!((metrics.archive_length, metrics.queue_length, metrics.total_messages), (Some(2), 1, 3));

    let request = ListQueueMetricsRequest { include_archive: true, ..Default::default() };
    let listed = test.client.queue.list_queue_metrics(request).await.unwrap().into_inner().metrics;
    assert_eq!(listed[0].archive_length, Some(2));
    let listed = test.client.queue.list_queue_metrics(ListQueueMetricsRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().metrics[0].archive_length, None);
}

#[tokio::test]
async fn ages_are_those_of_the_newest_and_the_oldest_message_in_the_queue() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["1", "2", "3"]).await;
    test.run(
        "UPDATE pgmq.q_orders SET enqueued_at = now() - CASE msg_id WHEN 1 THEN interval '2 hours'
         WHEN 2 THEN interval '1 hour' ELSE interval '1 minute' END",
    )
    .await;
    let ages = |metrics: &QueueMetrics| {
        let seconds = |age: &Option<prost_types::Duration>| age.as_ref().expect("an age").seconds;
        (seconds(&metrics.newest_message_age), seconds(&metrics.oldest_message_age))
    };
    let (newest, oldest) = ages(&measure(&mut test, "orders", false).await);
    assert!((60..90).contains(&newest) && (7_200..7_230).contains(&oldest), "{newest} {oldest}");
    test.client.queue.pop(PopRequest { queue: "orders".into(), max_messages: 1 }).await.unwrap();
    let (_, oldest) = ages(&measure(&mut test, "orders", false).await);
    assert!((3_600..3_630).contains(&oldest), "{oldest}");
}

#[tokio::test]
async fn the_oldest_visible_message_is_not_one_that_somebody_holds_or_that_waits() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["1", "2", "3", "4"]).await;
    test.run("UPDATE pgmq.q_orders SET enqueued_at = now() - (10 - msg_id) * interval '1 hour'").await;
    let hours = |age: Option<prost_types::Duration>| age.map(|age| age.seconds / 3_600);
    assert_eq!(hours(measure(&mut test, "orders", false).await.oldest_visible_message_age), Some(9));
    test.client.read_one("orders").await;
    test.run("UPDATE pgmq.q_orders SET vt = now() + interval '1 hour' WHERE msg_id = 2").await;
    let metrics = measure(&mut test, "orders", false).await;
    assert_eq!(hours(metrics.oldest_visible_message_age), Some(7));
    assert_eq!(hours(metrics.oldest_message_age), Some(9));
    test.client.read("orders", 10).await;
    assert_eq!(measure(&mut test, "orders", false).await.oldest_visible_message_age, None);
}

/// The counts of `orders` as a server tells them: dead-lettered, redriven, replayed.
async fn moves(client: &mut Client) -> (i64, i64, i64) {
    let metrics = measure_by(client, "orders", false).await;
    let list = ListQueueMetricsRequest { prefix: "orders".into(), ..Default::default() };
    let listed = client.queue.list_queue_metrics(list).await.unwrap().into_inner().metrics.remove(0);
    let counts = |metrics: &QueueMetrics| {
        (metrics.dead_lettered_count, metrics.redriven_count, metrics.replayed_count)
    };
    assert_eq!(counts(&metrics), counts(&listed));
    counts(&metrics)
}

/// Redrives two messages to `orders`, and replays three.
async fn redrive_and_replay(test: &mut Test) {
    test.run(
        r#"INSERT INTO pgmq.q_dead (vt, message, headers)
             SELECT now(), '1', '{"x-pgmq-dead-letter": {"queue": "orders"}}' FROM generate_series(1, 2);
           SELECT pgmq.send_batch('orders', ARRAY['1', '2', '3']::jsonb[]);
           WITH sent AS (SELECT msg_id FROM pgmq.q_orders) SELECT pgmq.archive('orders', array_agg(msg_id)) FROM sent"#,
    )
    .await;
    let redrive = RedriveMessagesRequest { dead_letter_queue: "dead".into(), ..Default::default() };
    let replay =
        ReplayArchivedMessagesRequest { queue: "orders".into(), max_messages: 3, ..Default::default() };
    assert_eq!(test.client.admin.redrive_messages(redrive).await.unwrap().into_inner().moved_count, 2);
    let replayed = test.client.admin.replay_archived_messages(replay).await.unwrap().into_inner();
    assert_eq!(replayed.replayed_count, 3);
}

#[tokio::test]
async fn a_server_counts_what_it_moves_until_the_queue_is_another_one() {
    let mut test = Test::with_queue("orders").await;
    test.client.create("dead").await;
    let other = Server::start_on(&test.database, &[]).await;
    let mut elsewhere = Client::connect(&other).await;
    assert_eq!(moves(&mut test.client).await, (0, 0, 0));
    redrive_and_replay(&mut test).await;
    assert_eq!(moves(&mut test.client).await, (0, 2, 3));
    assert_eq!(moves(&mut elsewhere).await, (0, 0, 0));
    // It is there already.
    test.client.create("orders").await;
    redrive_and_replay(&mut test).await;
    assert_eq!(moves(&mut test.client).await, (0, 4, 6));

    test.client.queue.drop_queue(DropQueueRequest { queue: "orders".into() }).await.unwrap();
    test.client.create("orders").await;
    redrive_and_replay(&mut test).await;
    assert_eq!(moves(&mut test.client).await, (0, 2, 3));
    test.run("SELECT pgmq.drop_queue('orders'); SELECT pgmq.create('orders')").await;
    assert_eq!(moves(&mut test.client).await, (0, 0, 0));
}

#[tokio::test]
async fn an_age_of_a_message_from_the_future_is_zero() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "1").await;
    test.run("UPDATE pgmq.q_orders SET enqueued_at = now() + interval '1 hour'").await;
    let metrics = measure(&mut test, "orders", false).await;
    assert_eq!(metrics.newest_message_age, seconds(0.0));
}

#[tokio::test]
async fn messages_sent_at_no_finite_moment_are_counted_and_have_no_age() {
    let mut test = Test::with_queue("orders").await;
    let ages = |metrics: &QueueMetrics| {
        [&metrics.newest_message_age, &metrics.oldest_message_age, &metrics.oldest_visible_message_age]
            .map(|age| age.map(|age| age.seconds))
    };
    let insert = "INSERT INTO pgmq.q_orders (vt, enqueued_at, message) VALUES";
    test.run(&format!("{insert} (now(), '-infinity', '1'), (now(), 'infinity', '1')")).await;
    let metrics = measure(&mut test, "orders", false).await;
    assert_eq!((metrics.queue_length, metrics.visible_length, metrics.total_messages), (2, 2, 2));
    assert_eq!(ages(&metrics), [None; 3]);

    // Others beside them have theirs, also one that is too old for an integer of seconds.
    test.run(&format!(
        "{insert} ('infinity', now() - interval '2 hours', '1'), (now(), '4000-01-01 BC', '1')"
    ))
    .await;
    let metrics = measure(&mut test, "orders", false).await;
    assert_eq!((metrics.queue_length, metrics.visible_length, metrics.delayed_length), (4, 3, 1));
    let [newest, oldest, oldest_visible] = ages(&metrics).map(|age| age.expect("an age"));
    assert!((7_200..7_230).contains(&newest), "{newest}");
    let years = oldest / (365 * 24 * 3_600);
    assert!((6_000..6_100).contains(&years) && oldest == oldest_visible, "{oldest} {oldest_visible}");

    let listed = test.client.queue.list_queue_metrics(ListQueueMetricsRequest::default()).await.unwrap();
    let listed = listed.into_inner().metrics.remove(0);
    assert_eq!((listed.error, listed.queue_length), (None, 4));
}

#[tokio::test]
async fn what_pgmq_measures_too_is_the_same() {
    let mut test = Test::with_queue("orders").await;
    for _ in 0..2 {
        let metrics = measure(&mut test, "orders", false).await;
        let row = test.sql.query_one("SELECT * FROM pgmq.metrics('orders')", &[]).await.unwrap();
        assert_eq!(metrics.queue_length, row.get::<_, i64>("queue_length"));
        assert_eq!(metrics.total_messages, row.get::<_, i64>("total_messages"));
        let ages = [
            (metrics.newest_message_age, "newest_msg_age_sec"),
            (metrics.oldest_message_age, "oldest_msg_age_sec"),
        ];
        for (ours, column) in ages {
            let theirs = row.get::<_, Option<i32>>(column).map(i64::from);
            assert_eq!(ours.is_some(), theirs.is_some(), "{column}");
            let later = theirs.zip(ours).map_or(0, |(theirs, ours)| theirs - ours.seconds);
            assert!((0..30).contains(&later), "{column}: {later}");
        }
        test.client.send_all("orders", &["1", "2", "3"]).await;
        test.run(
            "DELETE FROM pgmq.q_orders WHERE msg_id = 3;
             UPDATE pgmq.q_orders SET enqueued_at = now() - msg_id * interval '1 hour'",
        )
        .await;
    }
}

#[tokio::test]
async fn all_queues_are_measured_as_each_one_is() {
    let mut test = Test::start().await;
    for (name, count) in [("b", 2), ("a", 1), ("c", 0)] {
        test.client.create(name).await;
        test.client.send_all(name, &vec!["1"; count.max(1)]).await;
        test.run(&format!("DELETE FROM pgmq.q_{name} WHERE msg_id > {count}")).await;
    }
    let first = ListQueueMetricsRequest { page_size: 2, ..Default::default() };
    let first = test.client.queue.list_queue_metrics(first).await.unwrap().into_inner();
    let second = ListQueueMetricsRequest {
        page_size: 2,
        page_token: first.next_page_token.clone(),
        ..Default::default()
    };
    let second = test.client.queue.list_queue_metrics(second).await.unwrap().into_inner();
    assert_eq!(second.next_page_token, "");
    let all: Vec<_> = first.metrics.iter().chain(&second.metrics).collect();
    let counts: Vec<_> = all.iter().map(|metrics| (metrics.queue.as_str(), metrics.queue_length)).collect();
    assert_eq!(counts, [("a", 1), ("b", 2), ("c", 0)]);
    let alone = measure(&mut test, "b", false).await;
    assert_eq!((alone.visible_length, alone.total_messages), (all[1].visible_length, all[1].total_messages));

    let request = ListQueueMetricsRequest { prefix: "b".into(), ..Default::default() };
    let listed = test.client.queue.list_queue_metrics(request).await.unwrap().into_inner();
    assert_eq!((listed.metrics.len(), listed.metrics[0].queue.as_str()), (1, "b"));
}

#[tokio::test]
async fn only_partitioned_queues_have_a_default_partition() {
    let mut test = Test::with_queue("a").await;
    test.client.create("a_default").await;
    for queue in ["a", "a_default"] {
        assert_eq!(measure(&mut test, queue, false).await.default_partition_length, None, "{queue}");
    }
}

#[tokio::test]
async fn a_missing_queue_cannot_be_measured() {
    let mut test = Test::with_queue("gone").await;
    test.run("DROP TABLE pgmq.q_gone").await;
    for queue in ["gone", "nowhere"] {
        let request = GetQueueMetricsRequest { queue: queue.into(), ..Default::default() };
        let status = test.client.queue.get_queue_metrics(request).await.unwrap_err();
        let refusal = Refusal::expect(&status, Code::NotFound, "QUEUE_NOT_FOUND");
        assert_eq!(refusal.metadata["queue"], queue);
    }
}
