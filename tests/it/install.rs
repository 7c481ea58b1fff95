//! How pgmq comes into a database, and what a server does while it is not there.

use pgmq_grpc::proto::v1::{
    CreateQueueRequest, GetQueueRequest, GetServerInfoRequest, InstallPgmqRequest, ListQueuesRequest,
    ReadBatchRequest, ReadRequest, SendRequest, TestRoutingRequest,
};
use tonic::Code;

use crate::harness::database::install_pgmq;
use crate::harness::{Client, Refusal, Server, TestDatabase, eventually, health};

#[tokio::test]
async fn an_empty_database_gets_the_pgmq_of_the_crate() {
    let database = TestDatabase::create_empty().await;
    let server = Server::start_on(&database, &[]).await;
    let mut client = Client::connect(&server).await;

    health::serving(&client).await;
    let info = client.queue.get_server_info(GetServerInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.pgmq_version, pgmq_grpc::pg::CARRIED_VERSION);
    assert_eq!(info.pgmq_installed_by, "sql");
    client.create("orders").await;
    assert_eq!(client.send("orders", "{}").await, 1);
    assert!(server.log().contains("\"pgmq installed\""), "{}", server.log());
}

#[tokio::test]
async fn two_servers_that_start_at_once_on_an_empty_database_both_come_up() {
    let database = TestDatabase::create_empty().await;
    let (one, other) = tokio::join!(Server::start_on(&database, &[]), Server::start_on(&database, &[]));
    let (mut one, mut other) = (Client::connect(&one).await, Client::connect(&other).await);

    health::serving(&one).await;
    health::serving(&other).await;
    one.create("orders").await;
    other.send("orders", r#"{"from": "other"}"#).await;
    assert_eq!(one.read_one("orders").await.message, r#"{"from": "other"}"#);
}

#[tokio::test]
async fn a_server_that_may_not_install_serves_once_somebody_else_has() {
    let database = TestDatabase::create_empty().await;
    let server = Server::start_on(&database, &["--no-install", "--health-interval", "100ms"]).await;
    let mut client = Client::connect(&server).await;

    assert!(server.log().contains(r#""pgmq":"not installed""#), "{}", server.log());
    health::not_serving(&client).await;
    expect_not_installed(&mut client).await;
    let refused = client.admin.install_pgmq(InstallPgmqRequest {}).await.unwrap_err();
    let refusal = Refusal::expect(&refused, Code::FailedPrecondition, "PGMQ_NOT_INSTALLED");
    assert!(refusal.message.contains("--no-install"), "{}", refusal.message);

    install_pgmq(&database.url).await;
    health::serving(&client).await;
    client.create("orders").await;
    client.send("orders", "{}").await;
    assert_eq!(client.read_one("orders").await.msg_id, 1);
}

/// Every way to use a queue names the remedy.
async fn expect_not_installed(client: &mut Client) {
    let queue = || "orders".to_owned();
    let create = CreateQueueRequest { queue: queue(), ..Default::default() };
    let send = SendRequest { queue: queue(), message: "{}".to_owned(), ..Default::default() };
    let read_batch = ReadBatchRequest { queue: queue(), ..Default::default() };
    let read = ReadRequest { queue: queue(), ..Default::default() };
    for refused in [
        client.queue.create_queue(create).await.unwrap_err(),
        client.queue.get_queue(GetQueueRequest { queue: queue() }).await.unwrap_err(),
        client.queue.list_queues(ListQueuesRequest::default()).await.unwrap_err(),
        client.queue.send(send).await.unwrap_err(),
        client.queue.read_batch(read_batch).await.unwrap_err(),
        client.queue.read(read).await.unwrap_err(),
        client.topic.test_routing(TestRoutingRequest { routing_key: "a.b".to_owned() }).await.unwrap_err(),
    ] {
        let refusal = Refusal::expect(&refused, Code::FailedPrecondition, "PGMQ_NOT_INSTALLED");
        assert!(refusal.message.contains("InstallPgmq"), "{}", refusal.message);
    }
    let info = client.queue.get_server_info(GetServerInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.pgmq_version.as_str(), info.pgmq_installed_by.as_str()), ("", ""));
}

#[tokio::test]
async fn a_role_that_may_not_install_is_told_so() {
    let database = TestDatabase::create_empty().await;
    let sql = database.connect().await;
    let role = format!("{}_guest", database.name);
    sql.batch_execute(&format!("CREATE ROLE {role} LOGIN PASSWORD 'guest'")).await.unwrap();
    let (_, place) = database.url.split_once('@').expect("a url with a user");
    let url = format!("postgresql://{role}:guest@{place}");

    let mut server = Server::start(&["--database-url", &url, "--health-interval", "100ms"]).await;
    server.expect_errors();
    let mut client = Client::connect(&server).await;
    health::not_serving(&client).await;
    expect_not_installed(&mut client).await;
    let refused = client.admin.install_pgmq(InstallPgmqRequest {}).await.unwrap_err();
    Refusal::expect(&refused, Code::PermissionDenied, "PERMISSION_DENIED");

    checks(&sql, 3).await;
    let log = server.log();
    assert_eq!(log.matches("\"pgmq is missing in the database\"").count(), 1, "{log}");
    assert!(log.contains("may not install pgmq"), "{log}");
}

/// Waits until the monitor has checked the database so many times more.
async fn checks(sql: &tokio_postgres::Client, more: usize) {
    let mut seen = std::collections::HashSet::new();
    let last = "SELECT max(query_start)::text FROM pg_stat_activity
        WHERE datname = current_database() AND query LIKE '-- pgmq-grpc: probe%'";
    eventually("another check", async || {
        let row = sql.query_one(last, &[]).await.unwrap();
        seen.extend(row.get::<_, Option<String>>(0));
        (seen.len() > more).then_some(())
    })
    .await;
}
