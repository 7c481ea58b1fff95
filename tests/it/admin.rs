//! Administration: notifications, indexes, archives, and pgmq itself.

use pgmq_grpc::proto::v1::{
    ConvertArchivePartitionedRequest, CreateFifoIndexRequest, DisableNotificationsRequest, DropQueueRequest,
    EnableNotificationsRequest, InstallPgmqRequest, InstallPgmqResponse, ListNotificationsRequest,
    ListQueuesRequest, NotificationSettings, Ordering, Partitioning, ReadBatchRequest,
    UpdateNotificationsRequest, create_fifo_index_request::Target,
};
use tokio::sync::mpsc;
use tokio_postgres::{AsyncMessage, NoTls};
use tonic::{Code, Status};

use crate::harness::{Client, PATIENCE, Refusal, Server, Test, TestDatabase, is_old_pgmq, seconds};

/// The version that the server carries.
const NEWEST: &str = "1.13.0";

async fn enable(test: &mut Test, queue: &str, interval: Option<f64>) -> Result<NotificationSettings, Status> {
    let throttle_interval = interval.and_then(seconds);
    let request = EnableNotificationsRequest { queue: queue.to_owned(), throttle_interval };
    Ok(test.client.admin.enable_notifications(request).await?.into_inner().settings.expect("settings"))
}

async fn update(test: &mut Test, queue: &str, interval: Option<f64>) -> Result<NotificationSettings, Status> {
    let throttle_interval = interval.and_then(seconds);
    let request = UpdateNotificationsRequest { queue: queue.to_owned(), throttle_interval };
    Ok(test.client.admin.update_notifications(request).await?.into_inner().settings.expect("settings"))
}

async fn disable(test: &mut Test, queue: &str) -> Result<(), Status> {
    let request = DisableNotificationsRequest { queue: queue.to_owned() };
    test.client.admin.disable_notifications(request).await.map(drop)
}

async fn list(test: &mut Test, prefix: &str) -> Vec<NotificationSettings> {
    let request = ListNotificationsRequest { prefix: prefix.to_owned(), ..Default::default() };
    test.client.admin.list_notifications(request).await.expect("a list").into_inner().notifications
}

async fn index(test: &mut Test, target: Option<Target>) -> Result<(), Status> {
    test.client.admin.create_fifo_index(CreateFifoIndexRequest { target }).await.map(drop)
}

async fn install(client: &mut Client) -> Result<InstallPgmqResponse, Status> {
    Ok(client.admin.install_pgmq(InstallPgmqRequest {}).await?.into_inner())
}

/// How many indexes over the headers a queue has.
async fn fifo_indexes(test: &Test, queue: &str) -> i64 {
    test.value(&format!(
        "SELECT count(*) FROM pg_indexes WHERE schemaname = 'pgmq' AND tablename = 'q_{queue}' AND indexdef LIKE '%headers%'"
    ))
    .await
}

/// A plain SQL listener: the channels of the notifications that reach it.
async fn listen(test: &Test, channel: &str) -> (tokio_postgres::Client, mpsc::UnboundedReceiver<String>) {
    let (client, mut connection) =
        tokio_postgres::connect(&test.database.url, NoTls).await.expect("a connection");
    let (heard, notifications) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) =
            futures_util::future::poll_fn(|context| connection.poll_message(context)).await
        {
            if let AsyncMessage::Notification(notification) = message {
                let _ = heard.send(notification.channel().to_owned());
            }
        }
    });
    client.batch_execute(&format!("LISTEN \"{channel}\"")).await.expect("a listener");
    (client, notifications)
}

#[tokio::test]
async fn a_plain_sql_listener_hears_of_messages_while_notifications_are_enabled() {
    let mut test = Test::with_queue("orders").await;
    let channel = "pgmq.q_orders.INSERT";
    let (listener, mut heard) = listen(&test, channel).await;
    test.client.send("orders", "1").await;

    enable(&mut test, "orders", Some(0.0)).await.unwrap();
    test.client.send("orders", "2").await;
    let first = tokio::time::timeout(PATIENCE, heard.recv()).await.expect("a notification");
    assert_eq!(first.as_deref(), Some(channel));

    disable(&mut test, "orders").await.unwrap();
    test.client.send("orders", "3").await;
    // Notifications come in the order of commits, and before the reply to a later statement of the listener.
    listener.batch_execute("SELECT 1").await.unwrap();
    assert!(heard.try_recv().is_err());
}

#[tokio::test]
async fn notifications_are_throttled_as_asked() {
    let mut test = Test::with_queue("orders").await;
    let (listener, mut heard) = listen(&test, "pgmq.q_orders.INSERT").await;
    for (interval, expected) in [(Some(86_400.0), 1), (Some(0.0), 3)] {
        enable(&mut test, "orders", interval).await.unwrap();
        for _ in 0..3 {
            test.client.send("orders", "1").await;
        }
        listener.batch_execute("SELECT 1").await.unwrap();
        let mut count = 0;
        while heard.try_recv().is_ok() {
            count += 1;
        }
        assert_eq!(count, expected, "{interval:?}");
    }
}

#[tokio::test]
async fn an_interval_is_kept_in_whole_milliseconds() {
    let mut test = Test::with_queue("orders").await;
    for (asked, kept_ms) in
        [(None, 250), (Some(0.0), 0), (Some(0.001_2), 2), (Some(1.5), 1_500), (Some(86_400.0), 86_400_000)]
    {
        let stored =
            "SELECT throttle_interval_ms FROM pgmq.notify_insert_throttle WHERE queue_name = 'orders'";
        let settings = enable(&mut test, "orders", asked).await.unwrap();
        assert_eq!(settings.queue, "orders");
        assert_eq!(settings.throttle_interval, seconds(f64::from(kept_ms) / 1_000.0));
        assert_eq!(settings.last_notified_at, None);
        assert_eq!(test.value::<i32>(stored).await, kept_ms);
        test.run("UPDATE pgmq.notify_insert_throttle SET throttle_interval_ms = 77").await;
        let settings = update(&mut test, "orders", asked).await.unwrap();
        assert_eq!(settings.throttle_interval, seconds(f64::from(kept_ms) / 1_000.0));
        assert_eq!(test.value::<i32>(stored).await, kept_ms);
    }
    for too_long in [86_400.001, -1.0] {
        let interval = Some(prost_types::Duration {
            seconds: too_long as i64,
            nanos: if too_long > 0.0 { 1_000_000 } else { 0 },
        });
        let request = EnableNotificationsRequest { queue: "orders".into(), throttle_interval: interval };
        let status = test.client.admin.enable_notifications(request).await.unwrap_err();
        Refusal::expect_invalid(&status, "INVALID_DURATION", "throttle_interval");
        let request = UpdateNotificationsRequest { queue: "orders".into(), throttle_interval: interval };
        let status = test.client.admin.update_notifications(request).await.unwrap_err();
        Refusal::expect_invalid(&status, "INVALID_DURATION", "throttle_interval");
    }
}

#[tokio::test]
async fn queues_that_notify_are_listed_with_their_last_notification() {
    let mut test = Test::start().await;
    for queue in ["b", "a1", "a2", "silent"] {
        test.client.create(queue).await;
    }
    for (queue, interval) in [("b", 1.0), ("a1", 2.0), ("a2", 0.0)] {
        enable(&mut test, queue, Some(interval)).await.unwrap();
    }
    test.client.send("a2", "1").await;
    let listed = list(&mut test, "").await;
    let names: Vec<_> = listed.iter().map(|settings| settings.queue.as_str()).collect();
    assert_eq!(names, ["a1", "a2", "b"]);
    assert_eq!(listed[0].throttle_interval, seconds(2.0));
    let notified: Vec<_> = listed.iter().map(|settings| settings.last_notified_at.is_some()).collect();
    assert_eq!(notified, [false, true, false]);

    assert_eq!(list(&mut test, "a").await, listed[..2]);
    let request = ListNotificationsRequest { page_size: 2, ..Default::default() };
    let page = test.client.admin.list_notifications(request).await.unwrap().into_inner();
    assert_eq!(page.notifications, listed[..2]);
    let request = ListNotificationsRequest { page_token: page.next_page_token, ..Default::default() };
    let page = test.client.admin.list_notifications(request).await.unwrap().into_inner();
    assert_eq!((page.notifications.as_slice(), page.next_page_token.as_str()), (&listed[2..], ""));

    update(&mut test, "a2", Some(0.0)).await.unwrap();
    assert_eq!(list(&mut test, "a2").await[0].last_notified_at, None);
    test.client.queue.drop_queue(DropQueueRequest { queue: "b".into() }).await.unwrap();
    disable(&mut test, "a1").await.unwrap();
    assert_eq!(list(&mut test, "").await.len(), 1);
}

#[tokio::test]
async fn notifications_need_a_queue_and_an_update_needs_them_enabled() {
    let mut test = Test::with_queue("orders").await;
    for status in [
        enable(&mut test, "nowhere", None).await.map(drop).unwrap_err(),
        update(&mut test, "nowhere", None).await.map(drop).unwrap_err(),
        disable(&mut test, "nowhere").await.unwrap_err(),
    ] {
        let refusal = Refusal::expect(&status, Code::NotFound, "QUEUE_NOT_FOUND");
        assert_eq!(refusal.metadata["queue"], "nowhere");
    }
    let status = update(&mut test, "orders", None).await.unwrap_err();
    let refusal = Refusal::expect(&status, Code::FailedPrecondition, "NOTIFICATIONS_NOT_ENABLED");
    assert_eq!(refusal.metadata["queue"], "orders");
    disable(&mut test, "orders").await.unwrap();
    enable(&mut test, "orders", None).await.unwrap();
    disable(&mut test, "orders").await.unwrap();
    let status = update(&mut test, "orders", None).await.unwrap_err();
    Refusal::expect(&status, Code::FailedPrecondition, "NOTIFICATIONS_NOT_ENABLED");
}

#[tokio::test]
async fn a_queue_in_use_is_busy_for_enabling() {
    let mut test = Test::with_queue("orders").await;
    test.run("BEGIN; INSERT INTO pgmq.q_orders (vt, message) VALUES (now(), '1')").await;
    let status = enable(&mut test, "orders", None).await.unwrap_err();
    assert!(Refusal::expect(&status, Code::Aborted, "QUEUE_BUSY").retry_delay.is_some());
    test.run("COMMIT").await;
    enable(&mut test, "orders", None).await.unwrap();
}

#[tokio::test]
async fn the_fifo_index_is_made_once_for_one_queue_or_for_all() {
    let mut test = Test::start().await;
    for queue in ["a", "b", "c"] {
        test.client.create(queue).await;
    }
    test.run("SELECT pgmq.create('Odd One')").await;
    for _ in 0..2 {
        index(&mut test, Some(Target::Queue("a".into()))).await.unwrap();
        index(&mut test, Some(Target::Queue("Odd One".into()))).await.unwrap();
        let counts = [fifo_indexes(&test, "a").await, fifo_indexes(&test, "odd one").await];
        assert_eq!((counts, fifo_indexes(&test, "b").await), ([1, 1], 0));
    }
    for _ in 0..2 {
        index(&mut test, Some(Target::AllQueues(true))).await.unwrap();
        for queue in ["a", "b", "c", "odd one"] {
            assert_eq!(fifo_indexes(&test, queue).await, 1, "{queue}");
        }
    }
    test.client.send_to_group("a", "g", "1").await;
    let ordering = Ordering::GroupedHead.into();
    let request = ReadBatchRequest { queue: "a".into(), ordering, ..Default::default() };
    assert_eq!(test.client.read_as(request).await.len(), 1);
}

#[tokio::test]
async fn a_fifo_index_needs_a_target_that_exists() {
    let mut test = Test::with_queue("orders").await;
    let status = index(&mut test, None).await.unwrap_err();
    Refusal::expect_invalid(&status, "MISSING_FIELD", "target");
    let status = index(&mut test, Some(Target::AllQueues(false))).await.unwrap_err();
    Refusal::expect_invalid(&status, "MISSING_FIELD", "target");
    let status = index(&mut test, Some(Target::Queue(String::new()))).await.unwrap_err();
    Refusal::expect_invalid(&status, "MISSING_FIELD", "queue");
    for missing in ["nowhere", "Orders"] {
        let status = index(&mut test, Some(Target::Queue(missing.into()))).await.unwrap_err();
        Refusal::expect(&status, Code::NotFound, "QUEUE_NOT_FOUND");
    }
}

#[tokio::test]
async fn an_archive_cannot_be_converted_without_what_that_needs() {
    let mut test = Test::with_queue("orders").await;
    let request = ConvertArchivePartitionedRequest { queue: "orders".into(), ..Default::default() };
    for (queue, code, reason) in [
        ("orders", Code::FailedPrecondition, "PARTMAN_NOT_INSTALLED"),
        ("nowhere", Code::NotFound, "QUEUE_NOT_FOUND"),
    ] {
        let request = ConvertArchivePartitionedRequest { queue: queue.into(), ..request.clone() };
        let status = test.client.admin.convert_archive_partitioned(request).await.unwrap_err();
        Refusal::expect(&status, code, reason);
    }
    let cut = |interval: &str, premake: i32| {
        Some(Partitioning { interval: interval.into(), premake, ..Default::default() })
    };
    for (partitioning, leading_partition, reason, field) in [
        (cut("often", 0), 0, "INVALID_PARTITIONING", "partitioning"),
        (cut("", 4), 0, "INVALID_PARTITIONING", "partitioning.premake"),
        (None, -1, "INVALID_COUNT", "leading_partition"),
    ] {
        let request = ConvertArchivePartitionedRequest { partitioning, leading_partition, ..request.clone() };
        let status = test.client.admin.convert_archive_partitioned(request).await.unwrap_err();
        Refusal::expect_invalid(&status, reason, field);
    }
    let request = ConvertArchivePartitionedRequest { queue: "two words".into(), ..request };
    let status = test.client.admin.convert_archive_partitioned(request).await.unwrap_err();
    Refusal::expect_invalid(&status, "INVALID_QUEUE_NAME", "queue");
    let plain = "SELECT relkind = 'r' FROM pg_class WHERE oid = 'pgmq.a_orders'::regclass";
    assert!(test.value::<bool>(plain).await);
}

#[tokio::test]
async fn installing_what_is_there_changes_nothing() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "1").await;
    let before = if is_old_pgmq() { "1.11.1" } else { NEWEST };
    for previous in [before, NEWEST] {
        let installed = install(&mut test.client).await.unwrap();
        let expected = InstallPgmqResponse { previous_version: previous.into(), pgmq_version: NEWEST.into() };
        assert_eq!(installed, expected);
    }
    assert_eq!(test.client.read_one("orders").await.message, "1");
}

#[tokio::test]
async fn pgmq_is_installed_again_where_somebody_removed_it() {
    let mut test = Test::start().await;
    test.run("DROP SCHEMA pgmq CASCADE").await;
    let missing = test.client.queue.list_queues(ListQueuesRequest::default()).await.unwrap_err();
    Refusal::expect(&missing, Code::FailedPrecondition, "PGMQ_NOT_INSTALLED");
    let installed = install(&mut test.client).await.unwrap();
    assert_eq!(
        installed,
        InstallPgmqResponse { previous_version: String::new(), pgmq_version: NEWEST.into() }
    );
    test.client.create("orders").await;
    assert_eq!(test.client.send("orders", "1").await, 1);
}

#[tokio::test]
async fn a_server_that_must_not_install_refuses_to() {
    let database = TestDatabase::create_empty().await;
    let server = Server::start_on(&database, &["--no-install"]).await;
    let mut client = Client::connect(&server).await;
    let status = install(&mut client).await.unwrap_err();
    let refusal = Refusal::expect(&status, Code::FailedPrecondition, "PGMQ_NOT_INSTALLED");
    assert!(refusal.message.contains("--no-install"), "{}", refusal.message);
    let sql = database.connect().await;
    let row = sql.query_one("SELECT to_regnamespace('pgmq') IS NULL", &[]).await.unwrap();
    assert!(row.get::<_, bool>(0));
}
