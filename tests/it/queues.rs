//! Queues themselves: made, described, emptied, dropped, whatever their names.

use pgmq_grpc::proto::v1::ValidateNameRequest;
use pgmq_grpc::proto::v1::validate_name_request::Name;
use pgmq_grpc::proto::v1::{
    ArchiveRequest, CreateQueueRequest, CreateQueueResponse, DropQueueRequest, GetQueueMetricsRequest,
    GetQueueRequest, Outcome, Partitioning, PopRequest, PurgeQueueRequest, Queue, QueueKind, ReleaseRequest,
    SendRequest, SetVisibilityTimeoutRequest, set_visibility_timeout_request::Visibility,
};
use tonic::{Code, Status};

use crate::harness::{Refusal, Test, seconds};

/// Names that plain SQL can make and `CreateQueue` refuses.
const ODD_NAMES: [&str; 7] =
    ["Orders", "two words", "a\"quoted\"name", "über-größe", "日本の注文", "2nd", "curly{a}{q}{partition}"];

async fn create(test: &mut Test, queue: &str, kind: QueueKind) -> Result<CreateQueueResponse, Status> {
    let request = CreateQueueRequest { queue: queue.to_owned(), kind: kind.into(), ..Default::default() };
    Ok(test.client.queue.create_queue(request).await?.into_inner())
}

async fn get(test: &mut Test, queue: &str) -> Result<Queue, Status> {
    let request = GetQueueRequest { queue: queue.to_owned() };
    Ok(test.client.queue.get_queue(request).await?.into_inner().queue.expect("a queue"))
}

async fn drop_queue(test: &mut Test, queue: &str) -> Result<(), Status> {
    let request = DropQueueRequest { queue: queue.to_owned() };
    test.client.queue.drop_queue(request).await.map(drop)
}

async fn purge(test: &mut Test, queue: &str) -> Result<i64, Status> {
    let request = PurgeQueueRequest { queue: queue.to_owned() };
    Ok(test.client.queue.purge_queue(request).await?.into_inner().purged_count)
}

#[tokio::test]
async fn a_queue_is_standard_unless_another_kind_is_asked_for() {
    let mut test = Test::start().await;
    for (name, asked, kind, persistence) in [
        ("by_default", QueueKind::Unspecified, QueueKind::Standard, "p"),
        ("standard", QueueKind::Standard, QueueKind::Standard, "p"),
        ("unlogged", QueueKind::Unlogged, QueueKind::Unlogged, "u"),
    ] {
        let made = create(&mut test, name, asked).await.unwrap();
        assert!(made.created);
        let queue = made.queue.unwrap();
        assert_eq!((queue.name.as_str(), queue.kind()), (name, kind));
        let table =
            format!("SELECT relpersistence::text FROM pg_class WHERE oid = 'pgmq.q_{name}'::regclass");
        assert_eq!(test.value::<String>(&table).await, persistence);
        let archive =
            format!("SELECT relpersistence::text FROM pg_class WHERE oid = 'pgmq.a_{name}'::regclass");
        assert_eq!(test.value::<String>(&archive).await, "p");
    }
}

#[tokio::test]
async fn a_queue_is_described_as_it_stands_in_the_meta_table() {
    let mut test = Test::start().await;
    let created = create(&mut test, "orders", QueueKind::Unlogged).await.unwrap().queue.unwrap();
    let got = get(&mut test, "orders").await.unwrap();
    assert_eq!(got, created);
    assert_eq!(got.id, test.value::<i64>("SELECT 'pgmq.q_orders'::regclass::oid::bigint").await);
    let made_at = test.value::<i64>(
        "SELECT floor(extract(epoch FROM created_at))::bigint FROM pgmq.meta WHERE queue_name = 'orders'",
    );
    assert_eq!(got.created_at.unwrap().seconds, made_at.await);
}

#[tokio::test]
async fn creating_again_leaves_the_queue_and_its_messages() {
    let mut test = Test::start().await;
    let first = create(&mut test, "orders", QueueKind::Standard).await.unwrap();
    test.client.send("orders", "1").await;
    let second = create(&mut test, "orders", QueueKind::Standard).await.unwrap();
    assert!(!second.created);
    assert_eq!(second.queue, first.queue);
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 1);
}

#[tokio::test]
async fn a_queue_made_by_plain_sql_is_found_by_a_create() {
    let mut test = Test::start().await;
    test.run("SELECT pgmq.create('orders')").await;
    assert!(!create(&mut test, "orders", QueueKind::Standard).await.unwrap().created);
}

#[tokio::test]
async fn an_existing_queue_is_an_error_where_that_is_asked_for() {
    let mut test = Test::start().await;
    let request = CreateQueueRequest { queue: "orders".into(), fail_if_exists: true, ..Default::default() };
    assert!(test.client.queue.create_queue(request.clone()).await.unwrap().into_inner().created);
    for kind in [QueueKind::Standard, QueueKind::Unlogged] {
        let again = CreateQueueRequest { kind: kind.into(), ..request.clone() };
        let status = test.client.queue.create_queue(again).await.unwrap_err();
        let refusal = Refusal::expect(&status, Code::AlreadyExists, "QUEUE_ALREADY_EXISTS");
        assert_eq!(refusal.metadata["queue"], "orders");
    }
}

#[tokio::test]
async fn a_queue_of_another_kind_is_named_and_left_alone() {
    let mut test = Test::start().await;
    for (name, has, asked, word) in [
        ("kept", QueueKind::Standard, QueueKind::Unlogged, "QUEUE_KIND_STANDARD"),
        ("fast", QueueKind::Unlogged, QueueKind::Standard, "QUEUE_KIND_UNLOGGED"),
        ("cut", QueueKind::Standard, QueueKind::Partitioned, "QUEUE_KIND_STANDARD"),
    ] {
        let made = create(&mut test, name, has).await.unwrap().queue.unwrap();
        let status = create(&mut test, name, asked).await.unwrap_err();
        let refusal = Refusal::expect(&status, Code::FailedPrecondition, "QUEUE_KIND_MISMATCH");
        assert_eq!((refusal.metadata["queue"].as_str(), refusal.metadata["kind"].as_str()), (name, word));
        assert_eq!(get(&mut test, name).await.unwrap(), made);
    }
}

#[tokio::test]
async fn partitioning_is_only_for_partitioned_queues_and_must_be_readable() {
    let mut test = Test::start().await;
    let cut = |interval: &str, retention: &str, premake: i32| {
        Some(Partitioning { interval: interval.into(), retention: retention.into(), premake })
    };
    for (kind, partitioning) in [
        (QueueKind::Standard, cut("", "", 0)),
        (QueueKind::Unlogged, cut("10000", "100000", 4)),
        (QueueKind::Partitioned, cut("often", "", 0)),
        (QueueKind::Partitioned, cut("0", "", 0)),
        (QueueKind::Partitioned, cut("10000", "1 day", 0)),
        (QueueKind::Partitioned, cut("1 day", "100000", 0)),
        (QueueKind::Partitioned, cut("1 dayss", "", 0)),
        (QueueKind::Partitioned, cut("1 day'; DROP TABLE pgmq.meta; --", "", 0)),
        (QueueKind::Partitioned, cut("", "", -1)),
    ] {
        let request =
            CreateQueueRequest { queue: "cut".into(), kind: kind.into(), partitioning, ..Default::default() };
        let status = test.client.queue.create_queue(request).await.unwrap_err();
        Refusal::expect_invalid(&status, "INVALID_PARTITIONING", "partitioning");
    }
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.meta").await, 0);
}

#[tokio::test]
async fn queues_created_at_once_by_many_are_created_once() {
    let test = Test::start().await;
    let calls = (0..16).map(|_| {
        let mut client = test.client.clone();
        async move {
            let request = CreateQueueRequest { queue: "orders".into(), ..Default::default() };
            client.queue.create_queue(request).await.unwrap().into_inner().created
        }
    });
    let created = futures_util::future::join_all(calls).await;
    assert_eq!(created.iter().filter(|&&created| created).count(), 1);
}

#[tokio::test]
async fn a_name_that_differs_in_case_only_is_no_second_queue() {
    let mut test = Test::start().await;
    test.run("SELECT pgmq.create('Orders')").await;
    let status = create(&mut test, "orders", QueueKind::Standard).await.unwrap_err();
    let refusal = Refusal::expect(&status, Code::AlreadyExists, "QUEUE_ALREADY_EXISTS");
    assert_eq!(refusal.metadata["queue"], "Orders");
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.meta").await, 1);
}

#[tokio::test]
async fn an_unlogged_queue_works_like_any_other() {
    let mut test = Test::start().await;
    create(&mut test, "fast", QueueKind::Unlogged).await.unwrap();
    let ids = test.client.send_all("fast", &["1", "2", "3"]).await;
    assert_eq!(ids, [1, 2, 3]);
    let read = test.client.read("fast", 2).await;
    assert_eq!(test.client.delete("fast", &[&read[0].receipt]).await, [Outcome::Done]);
    let request = ArchiveRequest {
        queue: "fast".into(),
        receipts: vec![read[1].receipt.clone()],
        ..Default::default()
    };
    let archived = test.client.queue.archive(request).await.unwrap().into_inner();
    assert_eq!(archived.results[0].outcome(), Outcome::Done);
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.a_fast").await, 1);
    let pop = PopRequest { queue: "fast".into(), ..Default::default() };
    assert_eq!(test.client.queue.pop(pop).await.unwrap().into_inner().messages[0].message, "3");
    assert_eq!(purge(&mut test, "fast").await.unwrap(), 0);
    drop_queue(&mut test, "fast").await.unwrap();
}

#[tokio::test]
async fn a_purge_removes_all_messages_and_keeps_the_archive_and_the_ids() {
    let mut test = Test::with_queue("orders").await;
    let ids = test.client.send_all("orders", &["1", "2", "3"]).await;
    let read = test.client.read("orders", 2).await;
    let request = ArchiveRequest { queue: "orders".into(), msg_ids: vec![ids[0]], ..Default::default() };
    test.client.queue.archive(request).await.unwrap();

    assert_eq!(purge(&mut test, "orders").await.unwrap(), 2);
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 0);
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.a_orders").await, 1);
    assert_eq!(test.client.delete("orders", &[&read[1].receipt]).await, [Outcome::NotFound]);
    assert_eq!(test.client.send("orders", "4").await, 4);
    assert_eq!(purge(&mut test, "orders").await.unwrap(), 1);
    assert_eq!(purge(&mut test, "orders").await.unwrap(), 0);
}

#[tokio::test]
async fn a_drop_removes_the_queue_with_all_that_belongs_to_it() {
    let mut test = Test::with_queue("orders").await;
    test.run("SELECT pgmq.bind_topic('#', 'orders'); SELECT pgmq.enable_notify_insert('orders')").await;
    drop_queue(&mut test, "orders").await.unwrap();
    for left in ["pgmq.meta", "pgmq.topic_bindings", "pgmq.notify_insert_throttle"] {
        assert_eq!(test.value::<i64>(&format!("SELECT count(*) FROM {left}")).await, 0, "{left}");
    }
    for table in ["pgmq.q_orders", "pgmq.a_orders"] {
        assert!(test.value::<bool>(&format!("SELECT to_regclass('{table}') IS NULL")).await, "{table}");
    }
    let status = drop_queue(&mut test, "orders").await.unwrap_err();
    Refusal::expect(&status, Code::NotFound, "QUEUE_NOT_FOUND");
}

#[tokio::test]
async fn a_queue_made_anew_is_another_one() {
    let mut test = Test::start().await;
    let first = create(&mut test, "orders", QueueKind::Standard).await.unwrap().queue.unwrap();
    test.client.send("orders", "1").await;
    drop_queue(&mut test, "orders").await.unwrap();
    let second = create(&mut test, "orders", QueueKind::Unlogged).await.unwrap();
    assert!(second.created);
    let second = second.queue.unwrap();
    assert_ne!(second.id, first.id);
    assert_eq!(second.kind(), QueueKind::Unlogged);
    assert!(test.client.read("orders", 1).await.is_empty());
    assert_eq!(test.client.send("orders", "1").await, 1);
}

#[tokio::test]
async fn a_queue_dropped_and_made_anew_by_plain_sql_goes_on_working() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "1").await;
    test.run("SELECT pgmq.drop_queue('orders'); SELECT pgmq.create_unlogged('orders')").await;
    assert_eq!(test.client.send("orders", "1").await, 1);
    assert_eq!(test.client.read("orders", 5).await.len(), 1);
    test.run("SELECT pgmq.drop_queue('orders')").await;
    let request = SendRequest { queue: "orders".into(), message: "1".into(), ..Default::default() };
    let status = test.client.queue.send(request).await.unwrap_err();
    Refusal::expect(&status, Code::NotFound, "QUEUE_NOT_FOUND");
}

#[tokio::test]
async fn a_missing_queue_is_named_in_the_error() {
    let mut test = Test::start().await;
    for status in [
        get(&mut test, "nowhere").await.unwrap_err(),
        drop_queue(&mut test, "nowhere").await.unwrap_err(),
        purge(&mut test, "nowhere").await.unwrap_err(),
    ] {
        let refusal = Refusal::expect(&status, Code::NotFound, "QUEUE_NOT_FOUND");
        assert_eq!(refusal.metadata["queue"], "nowhere");
    }
}

#[tokio::test]
async fn a_locked_queue_is_busy_for_purge_and_drop() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "1").await;
    test.run("BEGIN; LOCK TABLE pgmq.q_orders IN ACCESS SHARE MODE").await;
    for status in
        [purge(&mut test, "orders").await.unwrap_err(), drop_queue(&mut test, "orders").await.unwrap_err()]
    {
        let refusal = Refusal::expect(&status, Code::Aborted, "QUEUE_BUSY");
        assert!(refusal.retry_delay.is_some());
    }
    test.run("COMMIT").await;
    assert_eq!(purge(&mut test, "orders").await.unwrap(), 1);
    drop_queue(&mut test, "orders").await.unwrap();
}

#[tokio::test]
async fn queues_with_odd_names_of_plain_sql_are_usable_by_every_call() {
    let mut test = Test::start().await;
    for name in ODD_NAMES {
        test.sql.execute("SELECT pgmq.create($1)", &[&name]).await.unwrap();
        assert_eq!(get(&mut test, name).await.unwrap().name, name);

        assert_eq!(test.client.send(name, "1").await, 1);
        assert_eq!(test.client.send_all(name, &["2", "3", "4", "5"]).await, [2, 3, 4, 5]);
        let read = test.client.read(name, 3).await;
        assert_eq!(read.len(), 3, "{name}");
        assert_eq!(test.client.delete(name, &[&read[0].receipt]).await, [Outcome::Done]);
        let receipts = vec![read[1].receipt.clone()];
        let request = ArchiveRequest { queue: name.into(), receipts, ..Default::default() };
        let archived = test.client.queue.archive(request).await.unwrap().into_inner();
        assert_eq!(archived.results[0].outcome(), Outcome::Done);
        let receipts = vec![read[2].receipt.clone()];
        let request = SetVisibilityTimeoutRequest {
            queue: name.into(),
            receipts: receipts.clone(),
            visibility: Some(Visibility::VisibilityTimeout(seconds(60.0).unwrap())),
            ..Default::default()
        };
        let set = test.client.queue.set_visibility_timeout(request).await.unwrap().into_inner();
        assert_eq!(set.results[0].outcome(), Outcome::Done);
        let request = ReleaseRequest { queue: name.into(), receipts, delay: None };
        let released = test.client.queue.release(request).await.unwrap().into_inner();
        assert_eq!(released.results[0].outcome(), Outcome::Done);
        let request = PopRequest { queue: name.into(), max_messages: 1 };
        assert_eq!(test.client.queue.pop(request).await.unwrap().into_inner().messages[0].msg_id, 3);

        let request = GetQueueMetricsRequest { queue: name.into(), include_archive: true };
        let metrics =
            test.client.queue.get_queue_metrics(request).await.unwrap().into_inner().metrics.unwrap();
        assert_eq!((metrics.queue_length, metrics.archive_length, metrics.total_messages), (2, Some(1), 5));
        assert_eq!(purge(&mut test, name).await.unwrap(), 2);
        drop_queue(&mut test, name).await.unwrap();
        assert!(get(&mut test, name).await.is_err());
    }
    let left = "SELECT count(*) FROM pg_tables WHERE schemaname = 'pgmq' AND tablename ~ '^[aq]_'";
    assert_eq!(test.value::<i64>(left).await, 0);
}

#[tokio::test]
async fn a_name_is_used_in_its_exact_case_only() {
    let mut test = Test::start().await;
    test.run("SELECT pgmq.create('Orders')").await;
    test.client.send("Orders", "1").await;
    for wrong in ["orders", "ORDERS"] {
        for status in [
            get(&mut test, wrong).await.map(drop).unwrap_err(),
            purge(&mut test, wrong).await.map(drop).unwrap_err(),
            drop_queue(&mut test, wrong).await.unwrap_err(),
            test.client
                .queue
                .send(SendRequest { queue: wrong.into(), message: "1".into(), ..Default::default() })
                .await
                .unwrap_err(),
            test.client
                .queue
                .read_batch(pgmq_grpc::proto::v1::ReadBatchRequest {
                    queue: wrong.into(),
                    ..Default::default()
                })
                .await
                .unwrap_err(),
            test.client
                .queue
                .pop(PopRequest { queue: wrong.into(), ..Default::default() })
                .await
                .unwrap_err(),
            test.client
                .queue
                .get_queue_metrics(GetQueueMetricsRequest { queue: wrong.into(), ..Default::default() })
                .await
                .unwrap_err(),
        ] {
            Refusal::expect(&status, Code::NotFound, "QUEUE_NOT_FOUND");
        }
    }
    let untouched = "SELECT count(*) FROM pgmq.q_orders WHERE read_ct = 0";
    assert_eq!(test.value::<i64>(untouched).await, 1);
}

#[tokio::test]
async fn what_is_left_of_a_queue_without_its_table_is_dropped_before_it_is_made_anew() {
    let mut test = Test::with_queue("orders").await;
    let archive = ArchiveRequest { queue: "orders".to_owned(), msg_ids: vec![1], ..Default::default() };
    test.client.send("orders", "1").await;
    test.client.queue.archive(archive.clone()).await.unwrap();
    test.run("DROP TABLE pgmq.q_orders").await;

    let send = SendRequest { queue: "orders".into(), message: "1".into(), ..Default::default() };
    let status = test.client.queue.send(send).await.unwrap_err();
    Refusal::expect(&status, Code::NotFound, "QUEUE_NOT_FOUND");
    // As that error says, but first it has to go.
    let create = CreateQueueRequest { queue: "orders".to_owned(), ..Default::default() };
    let status = test.client.queue.create_queue(create.clone()).await.unwrap_err();
    let refusal = Refusal::expect(&status, Code::FailedPrecondition, "QUEUE_KIND_MISMATCH");
    assert!(refusal.message.contains("DropQueue"), "{refusal:?}");
    drop_queue(&mut test, "orders").await.unwrap();
    assert!(test.value::<bool>("SELECT to_regclass('pgmq.a_orders') IS NULL").await);

    assert!(test.client.queue.create_queue(create).await.unwrap().into_inner().created);
    assert_eq!(test.client.send("orders", "2").await, 1);
    let archived = test.client.queue.archive(archive).await.unwrap().into_inner().results;
    assert_eq!(archived[0].outcome(), Outcome::Done);

    // One that never had any tables.
    test.run("INSERT INTO pgmq.meta VALUES ('nothing', false, false)").await;
    drop_queue(&mut test, "nothing").await.unwrap();
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.meta").await, 1);
}

#[tokio::test]
async fn good_names_are_valid_and_make_nothing() {
    let mut test = Test::start().await;

    for name in [
        Name::Queue("my-queue_2".to_owned()),
        Name::RoutingKey("logs.error".to_owned()),
        Name::Pattern("logs.*.#".to_owned()),
    ] {
        test.client.queue.validate_name(ValidateNameRequest { name: Some(name) }).await.unwrap();
    }

    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.meta").await, 0);
}

#[tokio::test]
async fn purges_at_once_do_not_collide() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["{}"; 10]).await;
    let purges = (0..12).map(|_| {
        let mut client = test.client.clone();
        async move { client.queue.purge_queue(PurgeQueueRequest { queue: "orders".to_owned() }).await }
    });
    let purged = futures_util::future::join_all(purges).await;
    let counts: Vec<i64> =
        purged.into_iter().map(|purged| purged.unwrap().into_inner().purged_count).collect();
    assert_eq!(counts.iter().sum::<i64>(), 10, "{counts:?}");
}
