//! Partitioned queues and archives, where the extension pg_partman can be had.
//!
//! `PGMQ_GRPC_TEST_POSTGRES=system` with Debian's postgresql-15-partman has it; the downloaded ones do not.

use pgmq_grpc::proto::v1::{
    ArchiveFilter, ArchiveRequest, ConvertArchivePartitionedRequest, CreateQueueRequest, CreateQueueResponse,
    DeleteArchivedMessagesRequest, DeleteRequest, DropQueueRequest, EnableNotificationsRequest,
    GetQueueMetricsRequest, GetQueueRequest, GetServerInfoRequest, ListQueueMetricsRequest, Ordering,
    Outcome, Partitioning, PopRequest, PurgeQueueRequest, QueueKind, ReadBatchRequest, ReadRequest,
    RedriveMessagesRequest, ReleaseRequest, ReplayArchivedMessagesRequest, SendRequest, SendTopicRequest,
    SetVisibilityTimeoutRequest, SettleAction, TransactOperation, TransactRequest,
    set_visibility_timeout_request::Visibility, transact_operation::Operation,
};
use tonic::{Code, Status};

use crate::browse::archive::archived_ids;
use crate::browse::{messages_of, pages};
use crate::consume::{Consumer, start, stop};
use crate::harness::{
    Client, Refusal, Server, Test, TestDatabase, default_layout, eventually, is_old_pgmq, moment_in, seconds,
    skip,
};
use crate::replay::{replay, replay_of};

const INSTALL: &str = "CREATE SCHEMA partman; CREATE EXTENSION pg_partman SCHEMA partman";

/// A test with pg_partman, unless it cannot be had here.
pub(crate) async fn with_partman() -> Option<Test> {
    let database = TestDatabase::create().await;
    let sql = database.connect().await;
    if !can_have_partman(&sql).await {
        return None;
    }
    sql.batch_execute(INSTALL).await.expect("pg_partman");
    let server = Server::start_on(&database, &[]).await;
    let client = Client::connect(&server).await;
    Some(Test { database, server, client, sql })
}

#[expect(clippy::disallowed_methods, reason = "the suite is set up by the environment")]
async fn can_have_partman(sql: &tokio_postgres::Client) -> bool {
    let available = "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'pg_partman')";
    if sql.query_one(available, &[]).await.unwrap().get(0) {
        return true;
    }
    // Only the system's Postgres is expected to have it.
    match std::env::var("PGMQ_GRPC_TEST_POSTGRES").as_deref() {
        Ok("system") => skip("partitioned queues", "this Postgres has no pg_partman"),
        _ => eprintln!("SKIPPED partitioned queues: run them with PGMQ_GRPC_TEST_POSTGRES=system"),
    }
    false
}

fn partitioned(queue: &str, interval: &str, retention: &str, premake: i32) -> CreateQueueRequest {
    CreateQueueRequest {
        queue: queue.to_owned(),
        kind: QueueKind::Partitioned.into(),
        partitioning: Some(Partitioning { interval: interval.into(), retention: retention.into(), premake }),
        ..Default::default()
    }
}

async fn create(test: &mut Test, request: CreateQueueRequest) -> Result<CreateQueueResponse, Status> {
    Ok(test.client.queue.create_queue(request).await?.into_inner())
}

#[tokio::test]
async fn partitioned_queues_need_pg_partman() {
    let mut test = Test::start().await;
    let status = create(&mut test, partitioned("cut", "", "", 0)).await.unwrap_err();
    Refusal::expect(&status, Code::FailedPrecondition, "PARTMAN_NOT_INSTALLED");
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.meta").await, 0);
}

#[tokio::test]
async fn pg_partman_installed_later_is_noticed() {
    let database = TestDatabase::create().await;
    let sql = database.connect().await;
    if !can_have_partman(&sql).await {
        return;
    }
    let server = Server::start_on(&database, &["--health-interval", "100ms"]).await;
    let mut client = Client::connect(&server).await;
    client.queue.create_queue(partitioned("cut", "", "", 0)).await.unwrap_err();
    sql.batch_execute(INSTALL).await.unwrap();
    eventually("pg_partman noticed", async || {
        client.queue.create_queue(partitioned("cut", "", "", 0)).await.ok().map(drop)
    })
    .await;
    let info = client.queue.get_server_info(GetServerInfoRequest {}).await.unwrap().into_inner();
    assert!(info.capabilities.iter().any(|word| word == "partman"));
}

#[tokio::test]
async fn a_partitioned_queue_is_cut_as_asked_or_by_default() {
    let Some(mut test) = with_partman().await else { return };
    let by_default =
        CreateQueueRequest { queue: "a".into(), kind: QueueKind::Partitioned.into(), ..Default::default() };
    for (request, control, interval, retention) in [
        (by_default, "msg_id", "10000", "100000"),
        (partitioned("b", "50", "500", 0), "msg_id", "50", "500"),
        (partitioned("c", "1 day", "7 days", 4), "enqueued_at", "1 day", "7 days"),
        (partitioned("d", "1 hour", "", 0), "enqueued_at", "01:00:00", "10 days"),
    ] {
        let name = request.queue.clone();
        let created = create(&mut test, request).await.unwrap();
        assert!(created.created);
        let queue = created.queue.unwrap();
        assert_eq!((queue.name.as_str(), queue.kind()), (name.as_str(), QueueKind::Partitioned));
        let config = format!(
            "SELECT control || ' ' || partition_interval || ' ' || retention || ' ' || premake
             FROM partman.part_config WHERE parent_table = 'pgmq.q_{name}'"
        );
        assert_eq!(test.value::<String>(&config).await, format!("{control} {interval} {retention} 4"));
        let got = GetQueueRequest { queue: name };
        assert_eq!(test.client.queue.get_queue(got).await.unwrap().into_inner().queue, Some(queue));
    }
}

#[tokio::test]
async fn another_premake_needs_1_13() {
    let Some(mut test) = with_partman().await else { return };
    let created = create(&mut test, partitioned("cut", "", "", 2)).await;
    if is_old_pgmq() {
        let refusal = Refusal::expect(&created.unwrap_err(), Code::Unimplemented, "PGMQ_VERSION_UNSUPPORTED");
        assert_eq!(refusal.metadata["required_version"], "1.13.0");
        assert_eq!(refusal.metadata["pgmq_version"], "1.11.1");
        assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.meta").await, 0);
        assert!(create(&mut test, partitioned("cut", "", "", 4)).await.unwrap().created);
        return;
    }
    assert!(created.unwrap().created);
    let premake = "SELECT premake FROM partman.part_config WHERE parent_table = 'pgmq.q_cut'";
    assert_eq!(test.value::<i32>(premake).await, 2);
    let status = create(&mut test, partitioned("cut", "", "", 3)).await.unwrap_err();
    Refusal::expect(&status, Code::FailedPrecondition, "QUEUE_KIND_MISMATCH");
}

#[tokio::test]
async fn creating_again_takes_the_same_partitioning_and_no_other() {
    let Some(mut test) = with_partman().await else { return };
    create(&mut test, partitioned("ids", "1000", "5000", 0)).await.unwrap();
    create(&mut test, partitioned("days", "1 day", "2 weeks", 0)).await.unwrap();
    for same in [
        partitioned("ids", "1000", "5000", 4),
        CreateQueueRequest { partitioning: None, ..partitioned("ids", "", "", 0) },
        partitioned("days", "24 hours", "14 days", 0),
        CreateQueueRequest { partitioning: None, ..partitioned("days", "", "", 0) },
    ] {
        assert!(!create(&mut test, same.clone()).await.unwrap().created, "{same:?}");
    }
    for other in [
        partitioned("ids", "2000", "5000", 0),
        partitioned("ids", "1000", "", 0),
        partitioned("ids", "1 day", "", 0),
        partitioned("days", "1 day", "15 days", 0),
        partitioned("days", "", "", 0),
        CreateQueueRequest { queue: "ids".into(), ..Default::default() },
        CreateQueueRequest { queue: "days".into(), kind: QueueKind::Unlogged.into(), ..Default::default() },
    ] {
        let status = create(&mut test, other.clone()).await.unwrap_err();
        let refusal = Refusal::expect(&status, Code::FailedPrecondition, "QUEUE_KIND_MISMATCH");
        assert_eq!(refusal.metadata["kind"], "QUEUE_KIND_PARTITIONED", "{other:?}");
        assert_eq!(refusal.metadata["queue"], other.queue);
    }
    let again = CreateQueueRequest { fail_if_exists: true, ..partitioned("ids", "1000", "5000", 0) };
    let status = create(&mut test, again).await.unwrap_err();
    Refusal::expect(&status, Code::AlreadyExists, "QUEUE_ALREADY_EXISTS");
}

#[tokio::test]
async fn an_interval_that_pg_partman_refuses_is_an_invalid_partitioning() {
    let Some(mut test) = with_partman().await else { return };
    let status = create(&mut test, partitioned("cut", "100000 years", "1 day", 0)).await.unwrap_err();
    Refusal::expect_invalid(&status, "INVALID_PARTITIONING", "partitioning");
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.meta").await, 0);
}

/// Cut by id with several partitions in use, and cut by time.
const CUTS: [(&str, &str, &str); 2] = [("by_id", "10", "1000"), ("by_time", "1 day", "7 days")];

#[tokio::test]
async fn messages_of_a_partitioned_queue_are_sent_read_and_settled_like_any() {
    let Some(mut test) = with_partman().await else { return };
    for (queue, interval, retention) in CUTS {
        create(&mut test, partitioned(queue, interval, retention, 0)).await.unwrap();
        assert_eq!(test.client.send(queue, "0").await, 1);
        let bodies: Vec<String> = (1..30).map(|n: i32| n.to_string()).collect();
        let bodies: Vec<&str> = bodies.iter().map(String::as_str).collect();
        assert_eq!(test.client.send_all(queue, &bodies).await, (2..=30).collect::<Vec<i64>>());

        let read = test.client.read(queue, 20).await;
        assert_eq!(
            read.iter().map(|message| message.msg_id).collect::<Vec<_>>(),
            (1..=20).collect::<Vec<_>>()
        );
        let deleted = [read[0].receipt.as_str(), read[10].receipt.as_str(), read[0].receipt.as_str()];
        assert_eq!(test.client.delete(queue, &deleted).await, [Outcome::Done; 3]);
        assert_eq!(test.client.delete(queue, &deleted[..1]).await, [Outcome::NotFound]);

        let receipts = vec![read[1].receipt.clone(), read[15].receipt.clone()];
        let request = ArchiveRequest { queue: queue.into(), receipts, ..Default::default() };
        let archived = test.client.queue.archive(request).await.unwrap().into_inner().results;
        assert!(archived.iter().all(|result| result.outcome() == Outcome::Done));
        let kept = format!("SELECT array_agg(msg_id ORDER BY msg_id) FROM pgmq.a_{queue}");
        assert_eq!(test.value::<Vec<i64>>(&kept).await, [2, 16]);

        let receipts = vec![read[2].receipt.clone()];
        let request = ReleaseRequest { queue: queue.into(), receipts: receipts.clone(), delay: None };
        let released = test.client.queue.release(request.clone()).await.unwrap().into_inner().results;
        assert_eq!(released[0].outcome(), Outcome::Done);
        assert_eq!(test.client.read_one(queue).await.msg_id, 3);
        let stale = test.client.queue.release(request).await.unwrap().into_inner().results;
        assert_eq!(stale[0].outcome(), Outcome::Stale);
        assert_eq!(test.client.delete(queue, &[&receipts[0]]).await, [Outcome::Stale]);

        let request = SetVisibilityTimeoutRequest {
            queue: queue.into(),
            msg_ids: vec![4, 12],
            visibility: Some(Visibility::VisibilityTimeout(seconds(0.0).unwrap())),
            return_messages: true,
            ..Default::default()
        };
        let set = test.client.queue.set_visibility_timeout(request).await.unwrap().into_inner();
        assert_eq!(set.messages.iter().map(|message| message.msg_id).collect::<Vec<_>>(), [4, 12]);
        let request = PopRequest { queue: queue.into(), max_messages: 3 };
        let popped = test.client.queue.pop(request).await.unwrap().into_inner().messages;
        assert_eq!(popped.iter().map(|message| message.msg_id).collect::<Vec<_>>(), [4, 12, 21]);
        let request = DeleteRequest { queue: queue.into(), msg_ids: vec![30, 99], ..Default::default() };
        let deleted = test.client.queue.delete(request).await.unwrap().into_inner().results;
        let outcomes: Vec<_> = deleted.iter().map(pgmq_grpc::proto::v1::ItemResult::outcome).collect();
        assert_eq!(outcomes, [Outcome::Done, Outcome::NotFound]);

        let request = PurgeQueueRequest { queue: queue.into() };
        assert_eq!(test.client.queue.purge_queue(request).await.unwrap().into_inner().purged_count, 22);
    }
}

#[tokio::test]
async fn a_partitioned_queue_is_streamed_and_read_in_groups() {
    let Some(mut test) = with_partman().await else { return };
    for (queue, interval, retention) in CUTS {
        create(&mut test, partitioned(queue, interval, retention, 0)).await.unwrap();
        for (group, message) in [("a", "1"), ("a", "2"), ("b", "3")] {
            test.client.send_to_group(queue, group, message).await;
        }
        let ordering = Ordering::GroupedHead.into();
        let request =
            ReadBatchRequest { queue: queue.into(), ordering, max_messages: 5, ..Default::default() };
        let heads = test.client.read_as(request).await;
        assert_eq!(heads.iter().map(|message| message.msg_id).collect::<Vec<_>>(), [1, 3]);
        test.client.delete(queue, &[&heads[0].receipt, &heads[1].receipt]).await;

        let request = ReadRequest { queue: queue.into(), max_messages: 2, ..Default::default() };
        let mut stream = test.client.queue.read(request).await.unwrap().into_inner();
        let mut streamed = Vec::new();
        while let Some(reply) = stream.message().await.unwrap() {
            for message in reply.messages {
                streamed.push(message.msg_id);
            }
            if streamed == [2] {
                test.client.send(queue, "4").await;
            }
        }
        assert_eq!(streamed, [2, 4]);

        test.client.send_all(queue, &["5", "6"]).await;
        let mut consumer = Consumer::start(&test.client, start(queue)).await;
        let held = consumer.take(2).await;
        consumer.send(stop());
        consumer.stopped(1).await;
        let given_back = consumer.settle(SettleAction::GiveBack, &[&held[0], &held[1]]).await;
        assert_eq!(given_back, [Outcome::Done; 2]);
        let again = test.client.read(queue, 5).await;
        let again: Vec<_> = again.iter().map(|message| (message.msg_id, message.read_ct)).collect();
        assert_eq!(again, [(5, 1), (6, 1)]);
    }
}

#[tokio::test]
async fn a_partitioned_queue_takes_part_in_transactions_and_topics() {
    let Some(mut test) = with_partman().await else { return };
    test.client.create("results").await;
    for (queue, interval, retention) in CUTS {
        create(&mut test, partitioned(queue, interval, retention, 0)).await.unwrap();
        test.client.send(queue, "1").await;
        let read = test.client.read_one(queue).await;
        let delete =
            DeleteRequest { queue: queue.into(), receipts: vec![read.receipt], ..Default::default() };
        let send = SendRequest { queue: "results".into(), message: "2".into(), ..Default::default() };
        let operations = [Operation::Delete(delete), Operation::Send(send)];
        let operations =
            operations.map(|operation| TransactOperation { operation: Some(operation) }).to_vec();
        let request = TransactRequest { operations, ..Default::default() };
        test.client.queue.transact(request.clone()).await.unwrap();
        let status = test.client.queue.transact(request).await.unwrap_err();
        Refusal::expect(&status, Code::FailedPrecondition, "RECEIPT_NOT_FOUND");
        assert_eq!(test.value::<i64>(&format!("SELECT count(*) FROM pgmq.q_{queue}")).await, 0);

        test.run(&format!("SELECT pgmq.bind_topic('k.*', '{queue}')")).await;
    }
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_results").await, 2);
    let request = SendTopicRequest { routing_key: "k.x".into(), message: "1".into(), ..Default::default() };
    let copies = test.client.topic.send_topic(request).await.unwrap().into_inner().copies;
    let queues: Vec<_> = copies.iter().map(|copy| (copy.queue.as_str(), copy.msg_id)).collect();
    assert_eq!(queues, [("by_id", 2), ("by_time", 2)]);
}

#[tokio::test]
async fn dead_letters_are_moved_out_of_a_partitioned_queue_and_into_one() {
    let Some(mut test) = with_partman().await else { return };
    for (queue, interval, retention) in CUTS {
        create(&mut test, partitioned(queue, interval, retention, 0)).await.unwrap();
    }
    for (dead_letter_queue, source) in [("by_id", "by_time"), ("by_time", "by_id")] {
        test.run(&format!(
            r#"INSERT INTO pgmq.q_{dead_letter_queue} (vt, message, headers)
               SELECT now(), to_jsonb(n), '{{"x-pgmq-dead-letter": {{"queue": "{source}"}}}}' FROM generate_series(1, 120) AS n"#
        ))
        .await;
        let request =
            RedriveMessagesRequest { dead_letter_queue: dead_letter_queue.into(), ..Default::default() };
        let done = test.client.admin.redrive_messages(request).await.unwrap().into_inner();
        assert_eq!((done.moved_count, done.more), (120, false));
        let bodies = format!("SELECT array_agg(message::text::bigint ORDER BY msg_id) FROM pgmq.q_{source}");
        assert!(test.value::<Vec<i64>>(&bodies).await.into_iter().eq(1..=120));
        let request = PurgeQueueRequest { queue: source.into() };
        test.client.queue.purge_queue(request).await.unwrap();
        assert_eq!(test.value::<i64>(&format!("SELECT count(*) FROM pgmq.q_{dead_letter_queue}")).await, 0);
    }
}

#[tokio::test]
async fn metrics_of_a_partitioned_queue_tell_of_its_default_partition() {
    let Some(mut test) = with_partman().await else { return };
    for (queue, interval, retention) in CUTS {
        create(&mut test, partitioned(queue, interval, retention, 0)).await.unwrap();
        test.client.send_all(queue, &["1", "2", "3"]).await;
        test.client.read(queue, 1).await;
        let request = ArchiveRequest { queue: queue.into(), msg_ids: vec![3], ..Default::default() };
        test.client.queue.archive(request).await.unwrap();
        let request = GetQueueMetricsRequest { queue: queue.into(), include_archive: true };
        let metrics =
            test.client.queue.get_queue_metrics(request).await.unwrap().into_inner().metrics.unwrap();
        assert_eq!((metrics.queue_length, metrics.visible_length, metrics.in_flight_length), (2, 1, 1));
        assert_eq!((metrics.total_messages, metrics.archive_length), (3, Some(1)));
        let expected = (!is_old_pgmq()).then_some(0);
        assert_eq!(metrics.default_partition_length, expected);
    }
    if is_old_pgmq() {
        return;
    }
    test.run("INSERT INTO pgmq.q_by_id (msg_id, vt, message) VALUES (900000, now(), '1'); ANALYZE pgmq.q_by_id_default")
        .await;
    let listed = test.client.queue.list_queue_metrics(ListQueueMetricsRequest::default()).await.unwrap();
    let lengths: Vec<_> =
        listed.into_inner().metrics.iter().map(|metrics| metrics.default_partition_length).collect();
    assert_eq!(lengths, [Some(1), Some(0)]);
}

#[tokio::test]
async fn a_partitioned_queue_is_dropped_with_all_its_partitions() {
    let Some(mut test) = with_partman().await else { return };
    for _ in 0..2 {
        for (queue, interval, retention) in CUTS {
            assert!(create(&mut test, partitioned(queue, interval, retention, 0)).await.unwrap().created);
            test.client.send(queue, "1").await;
            let request = EnableNotificationsRequest { queue: queue.into(), ..Default::default() };
            test.client.admin.enable_notifications(request).await.unwrap();
            test.client.queue.drop_queue(DropQueueRequest { queue: queue.into() }).await.unwrap();
        }
        for left in [
            "pgmq.meta",
            "partman.part_config",
            "pg_class WHERE relnamespace = 'pgmq'::regnamespace AND relname ~ '^[aq]_'",
        ] {
            assert_eq!(test.value::<i64>(&format!("SELECT count(*) FROM {left}")).await, 0, "{left}");
        }
    }
}

#[tokio::test]
async fn an_archive_is_converted_once_and_goes_on_working() {
    let Some(mut test) = with_partman().await else { return };
    for (queue, interval, retention, column) in
        [("ids", "", "", "msg_id"), ("days", "1 day", "7 days", "archived_at")]
    {
        test.client.create(queue).await;
        test.client.send_all(queue, &["1", "2"]).await;
        let archive =
            |msg_id| ArchiveRequest { queue: queue.into(), msg_ids: vec![msg_id], ..Default::default() };
        test.client.queue.archive(archive(1)).await.unwrap();
        let partitioning =
            Partitioning { interval: interval.into(), retention: retention.into(), premake: 0 };
        let request = ConvertArchivePartitionedRequest {
            queue: queue.into(),
            partitioning: Some(partitioning),
            leading_partition: 5,
        };
        for _ in 0..2 {
            test.client.admin.convert_archive_partitioned(request.clone()).await.unwrap();
        }
        let control =
            format!("SELECT control FROM partman.part_config WHERE parent_table = 'pgmq.a_{queue}'");
        assert_eq!(test.value::<String>(&control).await, column);
        test.client.queue.archive(archive(2)).await.unwrap();
        for (table, msg_id) in [(format!("a_{queue}_old"), 1_i64), (format!("a_{queue}"), 2)] {
            let ids = format!("SELECT array_agg(msg_id) FROM pgmq.{table}");
            assert_eq!(test.value::<Vec<i64>>(&ids).await, [msg_id], "{table}");
        }
        let request = GetQueueMetricsRequest { queue: queue.into(), include_archive: true };
        let metrics =
            test.client.queue.get_queue_metrics(request).await.unwrap().into_inner().metrics.unwrap();
        assert_eq!(metrics.archive_length, Some(1));
        test.client.queue.drop_queue(DropQueueRequest { queue: queue.into() }).await.unwrap();
    }
}

/// Lists, replays and deletes on a queue with messages 1 to 30 of which the first 25 are archived.
async fn browse_and_replay(test: &mut Test, queue: &str) {
    let listed = pages(&mut test.client, messages_of(queue)).await.concat();
    assert_eq!(
        listed.iter().map(|message| message.msg_id).collect::<Vec<_>>(),
        (26..=30).collect::<Vec<_>>()
    );
    let all = ArchiveFilter::default;
    assert_eq!(archived_ids(&mut test.client, queue, all()).await, (1..=25).collect::<Vec<_>>());
    let recent = ArchiveFilter { archived_after: Some(moment_in(-3_600)), ..all() };
    assert_eq!(archived_ids(&mut test.client, queue, recent.clone()).await, (1..=25).collect::<Vec<_>>());
    let some = ArchiveFilter { msg_ids: vec![3, 24, 26], ..recent };
    assert_eq!(archived_ids(&mut test.client, queue, some.clone()).await, [3, 24]);

    let request = ReplayArchivedMessagesRequest { filter: Some(some), ..replay_of(queue) };
    assert_eq!(replay(&mut test.client, request).await.replayed_count, 2);
    let request = ReplayArchivedMessagesRequest { max_messages: 3, ..replay_of(queue) };
    let replayed = replay(&mut test.client, request).await;
    assert_eq!((replayed.replayed_count, replayed.more), (3, true));
    let bodies: Vec<String> =
        test.client.read(queue, 100).await.into_iter().map(|message| message.message).collect();
    assert_eq!(bodies, ["26", "27", "28", "29", "30", "3", "24", "1", "2", "4"]);
    let request = DeleteArchivedMessagesRequest { queue: queue.into(), ..Default::default() };
    let deleted = test.client.admin.delete_archived_messages(request).await.unwrap().into_inner();
    assert_eq!((deleted.deleted_count, deleted.more), (20, false));
    assert!(archived_ids(&mut test.client, queue, all()).await.is_empty());
}

async fn send_and_archive(test: &mut Test, queue: &str) {
    let bodies: Vec<String> = (1..=30).map(|n: i32| n.to_string()).collect();
    let bodies: Vec<&str> = bodies.iter().map(String::as_str).collect();
    test.client.send_all(queue, &bodies).await;
    let request = ArchiveRequest { queue: queue.into(), msg_ids: (1..=25).collect(), ..Default::default() };
    test.client.queue.archive(request).await.unwrap();
}

#[tokio::test]
async fn a_partitioned_archive_is_listed_replayed_and_emptied_like_any() {
    let Some(mut test) = with_partman().await else { return };
    for (queue, interval, retention) in CUTS {
        create(&mut test, partitioned(queue, interval, retention, 0)).await.unwrap();
        send_and_archive(&mut test, queue).await;
        browse_and_replay(&mut test, queue).await;
    }
    for (queue, interval, retention) in [("conv_ids", "10", "1000"), ("conv_days", "1 day", "7 days")] {
        test.client.create(queue).await;
        let partitioning =
            Partitioning { interval: interval.into(), retention: retention.into(), premake: 0 };
        let request = ConvertArchivePartitionedRequest {
            queue: queue.into(),
            partitioning: Some(partitioning),
            ..Default::default()
        };
        test.client.admin.convert_archive_partitioned(request).await.unwrap();
        send_and_archive(&mut test, queue).await;
        browse_and_replay(&mut test, queue).await;
    }
    // Each has an index on ids if it is tuned; of pgmq's layout only the one that was converted by ids.
    let indexed = "SELECT array_agg(c.relname::text ORDER BY c.relname) FROM pg_class AS c WHERE c.relkind = 'p' AND c.relname LIKE 'a\\_%'
        AND EXISTS (SELECT FROM pg_index AS i JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
          WHERE i.indrelid = c.oid AND a.attname = 'msg_id')";
    let expected: &[&str] = match default_layout().as_str() {
        "tuned" => &["a_by_id", "a_by_time", "a_conv_days", "a_conv_ids"],
        _ => &["a_conv_ids"],
    };
    assert_eq!(test.value::<Vec<String>>(indexed).await, expected);
}
