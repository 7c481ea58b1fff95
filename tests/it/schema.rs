//! The schema of the servers themselves: made, found, kept from servers that may not make it, newer than they are.

use pgmq_grpc::proto::v1::GetServerInfoRequest;
use tokio_postgres::Client as Sql;

use crate::harness::{Client, Server, TestDatabase, eventually, health};

/// The versions that the schema's history holds.
async fn versions(sql: &Sql) -> Vec<i32> {
    let history = "SELECT version FROM pgmq_grpc.refinery_schema_history ORDER BY version";
    sql.query(history, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

async fn exists(sql: &Sql) -> bool {
    let found = "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'pgmq_grpc')";
    sql.query_one(found, &[]).await.unwrap().get(0)
}

/// Whether a server says that deduplication works here.
async fn deduplicates(client: &mut Client) -> bool {
    let info = client.queue.get_server_info(GetServerInfoRequest {}).await.unwrap().into_inner();
    info.capabilities.iter().any(|word| word == "deduplication")
}

async fn eventually_deduplicates(client: &mut Client) {
    eventually("deduplication", async || deduplicates(client).await.then_some(())).await;
}

/// Whether everything works that does without the schema.
async fn serves(client: &mut Client) -> bool {
    health::serving(client).await;
    let sent = client.send("orders", "{}").await;
    client.read_one("orders").await.msg_id == sent
}

/// A role that may use pgmq and what it has, but make nothing; and its URL.
pub(crate) async fn guest_of(database: &TestDatabase, sql: &Sql) -> (String, String) {
    let role = format!("{}_guest", database.name);
    let rights = format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'guest'; GRANT USAGE ON SCHEMA pgmq TO {role};
         GRANT ALL ON ALL TABLES IN SCHEMA pgmq TO {role}; GRANT ALL ON ALL SEQUENCES IN SCHEMA pgmq TO {role}"
    );
    sql.batch_execute(&rights).await.unwrap();
    let (_, place) = database.url.split_once('@').expect("a url with a user");
    let url = format!("postgresql://{role}:guest@{place}");
    (role, url)
}

const OFTEN: [&str; 2] = ["--health-interval", "100ms"];

#[tokio::test]
async fn the_first_server_makes_the_schema_and_the_next_one_finds_it() {
    let database = TestDatabase::create().await;
    let sql = database.connect().await;
    assert!(!exists(&sql).await);

    let first = Server::start_on(&database, &[]).await;
    assert!(deduplicates(&mut Client::connect(&first).await).await, "{}", first.log());
    assert!(first.log().contains("schema pgmq_grpc ready"), "{}", first.log());
    let made = versions(&sql).await;
    assert_eq!(made.first(), Some(&1));
    drop(first);

    let next = Server::start_on(&database, &[]).await;
    assert!(deduplicates(&mut Client::connect(&next).await).await, "{}", next.log());
    assert_eq!(versions(&sql).await, made);
}

#[tokio::test]
async fn the_schema_of_an_older_server_is_brought_up_to_date() {
    let database = TestDatabase::create().await;
    let sql = database.connect().await;
    let made = {
        let server = Server::start_on(&database, &[]).await;
        eventually_deduplicates(&mut Client::connect(&server).await).await;
        versions(&sql).await
    };
    // As the first version left it, with a key.
    sql.batch_execute(
        "DROP TABLE pgmq_grpc.client, pgmq_grpc.replica, pgmq_grpc.unlogged_contents, pgmq_grpc.queue_policy;
         DROP FUNCTION pgmq_grpc.announce_policies();
         ALTER TABLE pgmq_grpc.deduplication DROP COLUMN contents, DROP COLUMN sent_to;
         DELETE FROM pgmq_grpc.refinery_schema_history WHERE version > 1;
         UPDATE pgmq_grpc.compatibility SET oldest_server = 1;
         INSERT INTO pgmq_grpc.deduplication VALUES ('q', now(), 'kept', '', 1, 'infinity')",
    )
    .await
    .unwrap();
    let server = Server::start_on(&database, &[]).await;
    eventually_deduplicates(&mut Client::connect(&server).await).await;
    assert_eq!(versions(&sql).await, made);
    let kept =
        "SELECT count(*) FROM pgmq_grpc.deduplication WHERE to_regclass('pgmq_grpc.client') IS NOT NULL";
    assert_eq!(sql.query_one(kept, &[]).await.unwrap().get::<_, i64>(0), 1);
    // Servers of the first two versions would not keep the columns of the third; what came since is in nobody's way.
    let oldest = sql.query_one("SELECT oldest_server FROM pgmq_grpc.compatibility", &[]).await.unwrap();
    assert_eq!(oldest.get::<_, i32>(0), 3);
}

#[tokio::test]
async fn servers_that_start_at_once_make_the_schema_together() {
    let database = TestDatabase::create().await;
    let flags: [&str; 0] = [];
    let start = || Server::start_on(&database, &flags);
    let (one, two, three, four) = tokio::join!(start(), start(), start(), start());

    for server in [&one, &two, &three, &four] {
        eventually_deduplicates(&mut Client::connect(server).await).await;
        assert!(!server.log().contains("cannot be made"), "{}", server.log());
    }
    let mut once = versions(&database.connect().await).await;
    let all = once.len();
    once.dedup();
    assert_eq!(once.len(), all);
}

#[tokio::test]
async fn a_server_that_may_not_install_serves_without_the_schema_and_uses_it_once_another_made_it() {
    let database = TestDatabase::create().await;
    let sql = database.connect().await;
    let server = Server::start_on(&database, &[&["--no-install"][..], &OFTEN].concat()).await;
    let mut client = Client::connect(&server).await;

    client.create("orders").await;
    assert!(serves(&mut client).await);
    assert!(!exists(&sql).await);
    assert!(!deduplicates(&mut client).await);
    assert_eq!(server.log().matches("schema pgmq_grpc missing or old").count(), 1, "{}", server.log());

    let other = Server::start_on(&database, &[]).await;
    eventually_deduplicates(&mut Client::connect(&other).await).await;
    eventually_deduplicates(&mut client).await;
}

#[tokio::test]
async fn a_role_that_may_make_nothing_serves_without_the_schema_and_uses_what_it_is_given() {
    let database = TestDatabase::create().await;
    let sql = database.connect().await;
    sql.batch_execute("SELECT pgmq.create('orders')").await.unwrap();
    let (role, url) = guest_of(&database, &sql).await;
    let server = Server::start(&[&["--database-url", &url][..], &OFTEN].concat()).await;
    let mut client = Client::connect(&server).await;

    assert!(serves(&mut client).await);
    assert!(!deduplicates(&mut client).await);
    assert_eq!(server.log().matches("schema pgmq_grpc missing or old").count(), 1, "{}", server.log());

    let owner = Server::start_on(&database, &[]).await;
    eventually_deduplicates(&mut Client::connect(&owner).await).await;
    eventually("a closed schema", async || server.log().contains("schema pgmq_grpc closed").then_some(()))
        .await;
    assert!(serves(&mut client).await);

    let grant = format!(
        "GRANT USAGE ON SCHEMA pgmq_grpc TO {role};
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA pgmq_grpc TO {role}"
    );
    sql.batch_execute(&grant).await.unwrap();
    eventually_deduplicates(&mut client).await;
}

#[tokio::test]
async fn a_role_that_is_given_the_right_makes_the_schema_without_a_restart() {
    let database = TestDatabase::create().await;
    let sql = database.connect().await;
    let (role, url) = guest_of(&database, &sql).await;
    let server = Server::start(&[&["--database-url", &url][..], &OFTEN].concat()).await;
    let mut client = Client::connect(&server).await;
    assert!(!deduplicates(&mut client).await);

    sql.batch_execute(&format!("GRANT CREATE ON DATABASE {} TO {role}", database.name)).await.unwrap();

    eventually_deduplicates(&mut client).await;
}

#[tokio::test]
async fn a_newer_schema_is_used_as_long_as_it_only_adds() {
    let database = TestDatabase::create().await;
    let sql = database.connect().await;
    drop(Server::start_on(&database, &[]).await);
    sql.batch_execute(
        "CREATE TABLE pgmq_grpc.of_tomorrow (id integer);
         INSERT INTO pgmq_grpc.refinery_schema_history VALUES (1000, 'tomorrow', '2030-01-01T00:00:00Z', '1')",
    )
    .await
    .unwrap();

    let server = Server::start_on(&database, &[]).await;
    assert!(deduplicates(&mut Client::connect(&server).await).await);
    assert!(server.log().contains("with additions of a newer server"), "{}", server.log());
    drop(server);

    sql.batch_execute("UPDATE pgmq_grpc.compatibility SET oldest_server = 1000").await.unwrap();
    let server = Server::start_on(&database, &[]).await;
    let mut client = Client::connect(&server).await;
    client.create("orders").await;
    assert!(serves(&mut client).await);
    assert!(!deduplicates(&mut client).await);
    assert!(server.log().contains("schema pgmq_grpc too new"), "{}", server.log());
}

#[tokio::test]
async fn what_a_newer_server_changes_is_noticed_over_the_same_connection() {
    let database = TestDatabase::create().await;
    let sql = database.connect().await;
    let server = Server::start_on(&database, &OFTEN).await;
    let mut client = Client::connect(&server).await;
    eventually_deduplicates(&mut client).await;
    client.create("orders").await;
    let oldest = "SELECT oldest_server FROM pgmq_grpc.compatibility";
    let before: i32 = sql.query_one(oldest, &[]).await.unwrap().get(0);

    sql.batch_execute("UPDATE pgmq_grpc.compatibility SET oldest_server = 1000").await.unwrap();
    eventually("no deduplication", async || (!deduplicates(&mut client).await).then_some(())).await;
    assert!(serves(&mut client).await);
    assert_eq!(server.log().matches("schema pgmq_grpc too new").count(), 1, "{}", server.log());

    sql.execute("UPDATE pgmq_grpc.compatibility SET oldest_server = $1", &[&before]).await.unwrap();
    eventually_deduplicates(&mut client).await;
    assert!(!server.log().contains("unavailable"), "{}", server.log());
}
