//! Older pgmq versions: what they lack is told, the rest works, and an upgrade happens under a running server.
//!
//! Versions older than the oldest that the suite runs on are simulated by dropping what they lack.

use pgmq_grpc::proto::v1::{
    BindTopicRequest, CreateFifoIndexRequest, DeleteRequest, DisableNotificationsRequest,
    EnableNotificationsRequest, GetServerInfoRequest, GetServerInfoResponse, InstallPgmqRequest,
    ListNotificationsRequest, ListTopicBindingsRequest, Ordering, Outcome, ReadBatchRequest, ReadRequest,
    SendTopicBatchRequest, SendTopicRequest, TestRoutingRequest, TransactOperation, TransactRequest,
    UnbindTopicRequest, UpdateNotificationsRequest, create_fifo_index_request::Target,
    transact_operation::Operation,
};
use tonic::{Code, Status};

use crate::harness::client::outgoing;
use crate::harness::database::install_old_pgmq;
use crate::harness::{Client, Refusal, Server, Test, TestDatabase, is_old_pgmq};

/// A test on a database that plain SQL has changed before the server came.
async fn after(sql: &str) -> Test {
    let database = TestDatabase::create().await;
    let connection = database.connect().await;
    connection.batch_execute(sql).await.expect("plain SQL");
    start_on(database).await
}

async fn start_on(database: TestDatabase) -> Test {
    let server = Server::start_on(&database, &[]).await;
    let client = Client::connect(&server).await;
    let sql = database.connect().await;
    Test { database, server, client, sql }
}

async fn info(test: &mut Test) -> GetServerInfoResponse {
    test.client.queue.get_server_info(GetServerInfoRequest {}).await.expect("an answer").into_inner()
}

fn installed_version() -> &'static str {
    if is_old_pgmq() { "1.11.1" } else { "1.13.0" }
}

/// Checks that calls say which version they need, and that the capabilities say it in advance.
async fn expect_unsupported(test: &mut Test, required: &str, capability: &str, refused: Vec<Status>) {
    for status in refused {
        let refusal = Refusal::expect(&status, Code::Unimplemented, "PGMQ_VERSION_UNSUPPORTED");
        assert_eq!(refusal.metadata["required_version"], required);
        assert_eq!(refusal.metadata["pgmq_version"], installed_version());
    }
    let capabilities = info(test).await.capabilities;
    assert!(!capabilities.iter().any(|word| word == capability), "{capabilities:?}");
    test.client.create("works").await;
    test.client.send("works", "1").await;
    let read = test.client.read_one("works").await;
    assert_eq!(test.client.delete("works", &[&read.receipt]).await, [Outcome::Done]);
}

async fn read_with(test: &mut Test, ordering: Ordering) -> [Status; 2] {
    let (queue, ordering) = ("orders".to_owned(), ordering.into());
    let batch = ReadBatchRequest { queue: queue.clone(), ordering, ..Default::default() };
    let stream = ReadRequest { queue, ordering, ..Default::default() };
    [
        test.client.queue.read_batch(batch).await.map(drop).unwrap_err(),
        test.client.queue.read(stream).await.map(drop).unwrap_err(),
    ]
}

#[tokio::test]
async fn the_installed_version_and_what_it_can_do_are_told() {
    let mut test = Test::start().await;
    let info = info(&mut test).await;
    assert_eq!(info.server_version, env!("CARGO_PKG_VERSION"));
    assert_eq!((info.pgmq_version.as_str(), info.pgmq_installed_by.as_str()), (installed_version(), "sql"));
    assert_eq!(info.postgres_version, test.value::<String>("SELECT current_setting('server_version')").await);
    assert!(!info.replica.is_empty());
    let mut expected = vec![
        "clients",
        "deduplication",
        "fenced-receipts",
        "fifo-indexes",
        "grouped-head-reads",
        "grouped-reads",
        "notification-settings",
        "notifications",
        "policies",
        "premake",
        "topics",
    ];
    expected.retain(|&word| word != "premake" || !is_old_pgmq());
    assert_eq!(info.capabilities, expected);
}

#[tokio::test]
async fn a_database_without_pgmq_has_neither_version_nor_capabilities() {
    let database = TestDatabase::create_empty().await;
    let server = Server::start_on(&database, &["--no-install"]).await;
    let mut client = Client::connect(&server).await;
    let info = client.queue.get_server_info(GetServerInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.pgmq_version.as_str(), info.pgmq_installed_by.as_str()), ("", ""));
    assert_eq!(info.capabilities, Vec::<String>::new());
    assert!(!info.postgres_version.is_empty());
}

#[tokio::test]
async fn pgmq_is_upgraded_under_a_running_server_and_everything_goes_on() {
    let database = TestDatabase::create_empty().await;
    install_old_pgmq(&database.url).await;
    let mut test = start_on(database).await;
    assert_eq!(info(&mut test).await.pgmq_version, "1.11.1");
    test.client.create("orders").await;
    test.client.send_all("orders", &["1", "2", "3"]).await;
    let before = test.client.read_one("orders").await;

    for previous in ["1.11.1", "1.13.0"] {
        let installed = test.client.admin.install_pgmq(InstallPgmqRequest {}).await.unwrap().into_inner();
        assert_eq!(
            (installed.previous_version.as_str(), installed.pgmq_version.as_str()),
            (previous, "1.13.0")
        );
    }

    let info = info(&mut test).await;
    assert_eq!(info.pgmq_version, "1.13.0");
    assert!(info.capabilities.iter().any(|word| word == "premake"));
    assert_eq!(test.client.delete("orders", &[&before.receipt]).await, [Outcome::Done]);
    let after = test.client.read("orders", 5).await;
    assert_eq!(after.iter().map(|message| message.message.as_str()).collect::<Vec<_>>(), ["2", "3"]);
    assert_eq!(test.client.send("orders", "4").await, 4);
    let metrics =
        pgmq_grpc::proto::v1::GetQueueMetricsRequest { queue: "orders".into(), ..Default::default() };
    let metrics = test.client.queue.get_queue_metrics(metrics).await.unwrap().into_inner().metrics.unwrap();
    assert_eq!(metrics.queue_length, 3);
}

#[tokio::test]
async fn an_upgrade_under_load_loses_nothing() {
    let database = TestDatabase::create_empty().await;
    install_old_pgmq(&database.url).await;
    let mut test = start_on(database).await;
    test.client.create("orders").await;
    let mut sender = test.client.clone();
    let (upgraded, mut is_upgraded) = tokio::sync::oneshot::channel::<()>();
    let sending = tokio::spawn(async move {
        let mut sent = Vec::new();
        while is_upgraded.try_recv().is_err() {
            sent.push(sender.send("orders", "1").await);
            sender.read("orders", 1).await;
        }
        sent
    });
    test.client.admin.install_pgmq(InstallPgmqRequest {}).await.unwrap();
    upgraded.send(()).unwrap();
    let sent = sending.await.unwrap();
    let stored: Vec<i64> = test.value("SELECT array_agg(msg_id ORDER BY msg_id) FROM pgmq.q_orders").await;
    assert_eq!(stored, sent);
}

#[tokio::test]
async fn a_pgmq_installed_by_hand_works_and_is_not_upgraded() {
    let mut test = after("DROP TABLE pgmq.__pgmq_migrations").await;
    let told = info(&mut test).await;
    assert_eq!((told.pgmq_version.as_str(), told.pgmq_installed_by.as_str()), ("", "unknown"));
    test.client.create("orders").await;
    assert_eq!(test.client.send("orders", "1").await, 1);
    let status = test.client.admin.install_pgmq(InstallPgmqRequest {}).await.unwrap_err();
    Refusal::expect(&status, Code::Unimplemented, "PGMQ_VERSION_UNSUPPORTED");
}

#[tokio::test]
async fn reads_of_the_heads_of_groups_need_1_11_1() {
    let mut test =
        after("SELECT pgmq.create('orders'); DROP FUNCTION pgmq.read_grouped_head(text, integer, integer)")
            .await;
    let refused = read_with(&mut test, Ordering::GroupedHead).await.to_vec();
    expect_unsupported(&mut test, "1.11.1", "grouped-head-reads", refused).await;
    let ordering = Ordering::GroupedRoundRobin.into();
    let other = ReadBatchRequest { queue: "orders".into(), ordering, ..Default::default() };
    assert!(test.client.read_as(other).await.is_empty());
}

#[tokio::test]
async fn grouped_reads_need_1_9() {
    let mut test = after(
        "SELECT pgmq.create('orders'); DROP FUNCTION pgmq.read_grouped(text, integer, integer);
         DROP FUNCTION pgmq.read_grouped_rr(text, integer, integer)",
    )
    .await;
    let mut refused = read_with(&mut test, Ordering::Grouped).await.to_vec();
    refused.extend(read_with(&mut test, Ordering::GroupedRoundRobin).await);
    expect_unsupported(&mut test, "1.9.0", "grouped-reads", refused).await;
}

#[tokio::test]
async fn fifo_indexes_need_1_9() {
    let mut test = after("SELECT pgmq.create('orders'); DROP FUNCTION pgmq.create_fifo_index").await;
    let mut refused = Vec::new();
    for target in [Target::Queue("orders".into()), Target::AllQueues(true)] {
        let request = CreateFifoIndexRequest { target: Some(target) };
        refused.push(test.client.admin.create_fifo_index(request).await.unwrap_err());
    }
    expect_unsupported(&mut test, "1.9.0", "fifo-indexes", refused).await;
}

#[tokio::test]
async fn topics_need_1_11() {
    let drops = "SELECT pgmq.create('orders');
        DROP FUNCTION pgmq.send_batch_topic(text, jsonb[], jsonb[], timestamptz)";
    let mut test = after(drops).await;
    let (pattern, routing_key, queue) = ("#".to_owned(), "k".to_owned(), "orders".to_owned());
    let topic = &mut test.client.topic;
    let send =
        SendTopicRequest { routing_key: routing_key.clone(), message: "1".into(), ..Default::default() };
    let mut refused = vec![
        topic
            .bind_topic(BindTopicRequest { pattern: pattern.clone(), queue: queue.clone() })
            .await
            .map(drop)
            .unwrap_err(),
        topic.unbind_topic(UnbindTopicRequest { pattern, queue }).await.map(drop).unwrap_err(),
        topic.list_topic_bindings(ListTopicBindingsRequest::default()).await.map(drop).unwrap_err(),
        topic
            .test_routing(TestRoutingRequest { routing_key: routing_key.clone() })
            .await
            .map(drop)
            .unwrap_err(),
        topic.send_topic(send.clone()).await.map(drop).unwrap_err(),
        topic
            .send_topic_batch(SendTopicBatchRequest {
                routing_key,
                messages: vec![outgoing("1")],
                require_match: false,
            })
            .await
            .map(drop)
            .unwrap_err(),
    ];
    let operations = vec![TransactOperation { operation: Some(Operation::SendTopic(send)) }];
    refused.push(
        test.client.queue.transact(TransactRequest { operations, ..Default::default() }).await.unwrap_err(),
    );
    expect_unsupported(&mut test, "1.11.0", "topics", refused).await;
}

#[tokio::test]
async fn changing_and_listing_notifications_need_1_11() {
    let mut test =
        after("SELECT pgmq.create('orders'); DROP FUNCTION pgmq.update_notify_insert(text, integer)").await;
    let update = UpdateNotificationsRequest { queue: "orders".into(), ..Default::default() };
    let refused = vec![
        test.client.admin.update_notifications(update).await.map(drop).unwrap_err(),
        test.client
            .admin
            .list_notifications(ListNotificationsRequest::default())
            .await
            .map(drop)
            .unwrap_err(),
    ];
    let enable = EnableNotificationsRequest { queue: "orders".into(), ..Default::default() };
    test.client.admin.enable_notifications(enable).await.unwrap();
    expect_unsupported(&mut test, "1.11.0", "notification-settings", refused).await;
}

#[tokio::test]
async fn notifications_need_1_8() {
    let mut test =
        after("SELECT pgmq.create('orders'); DROP FUNCTION pgmq.enable_notify_insert(text, integer)").await;
    let enable = EnableNotificationsRequest { queue: "orders".into(), ..Default::default() };
    let disable = DisableNotificationsRequest { queue: "orders".into() };
    let refused = vec![
        test.client.admin.enable_notifications(enable).await.map(drop).unwrap_err(),
        test.client.admin.disable_notifications(disable).await.map(drop).unwrap_err(),
    ];
    expect_unsupported(&mut test, "1.8.0", "notifications", refused).await;
}

#[tokio::test]
async fn a_queue_that_an_upgraded_pgmq_1_10_0_made_says_what_it_lacks() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "1").await;
    let before = test.client.read_one("orders").await;
    test.run(
        "ALTER TABLE pgmq.q_orders DROP COLUMN last_read_at; ALTER TABLE pgmq.a_orders DROP COLUMN last_read_at;
         UPDATE pgmq.q_orders SET vt = now()",
    )
    .await;
    test.client.send("orders", "2").await;
    let read = |ordering: Ordering| ReadBatchRequest {
        queue: "orders".to_owned(),
        ordering: ordering.into(),
        ..Default::default()
    };
    let plain = test.client.queue.read_batch(read(Ordering::Unordered)).await.unwrap_err();
    let grouped = test.client.queue.read_batch(read(Ordering::GroupedHead)).await.unwrap_err();
    let stream = ReadRequest { queue: "orders".to_owned(), ..Default::default() };
    let mut stream = test.client.queue.read(stream).await.unwrap().into_inner();
    let streamed = loop {
        match stream.message().await {
            Ok(started) => assert!(started.expect("no end").messages.is_empty()),
            Err(status) => break status,
        }
    };
    let delete = DeleteRequest {
        queue: "orders".to_owned(),
        receipts: vec![before.receipt.clone()],
        ..Default::default()
    };
    let settled = test.client.queue.delete(delete).await.unwrap_err();
    for status in [plain, streamed, grouped, settled] {
        let refusal = Refusal::expect(&status, Code::FailedPrecondition, "REFUSED_BY_DATABASE");
        assert_eq!(refusal.metadata["sqlstate"], "42703");
        assert!(refusal.message.contains("last_read_at"), "{refusal:?}");
    }
    test.run(
        "ALTER TABLE pgmq.q_orders ADD COLUMN last_read_at timestamptz;
         ALTER TABLE pgmq.a_orders ADD COLUMN last_read_at timestamptz",
    )
    .await;
    let read = test.client.read("orders", 5).await;
    let receipts: Vec<&str> = read.iter().map(|message| message.receipt.as_str()).collect();
    assert_eq!(test.client.delete("orders", &receipts).await, [Outcome::Done; 2]);
}

#[tokio::test]
async fn a_change_of_pgmq_by_plain_sql_is_noticed() {
    let database = TestDatabase::create_empty().await;
    install_old_pgmq(&database.url).await;
    let server = Server::start_on(&database, &["--health-interval", "100ms"]).await;
    let mut client = Client::connect(&server).await;
    client.create("orders").await;
    let sql = database.connect().await;
    sql.batch_execute("DROP FUNCTION pgmq.read_grouped_head(text, integer, integer)").await.unwrap();
    crate::harness::eventually("the loss of grouped head reads", async || {
        let info = client.queue.get_server_info(GetServerInfoRequest {}).await.unwrap().into_inner();
        (!info.capabilities.iter().any(|word| word == "grouped-head-reads")).then_some(())
    })
    .await;
}
