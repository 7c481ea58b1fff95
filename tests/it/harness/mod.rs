//! What every test stands on: one real Postgres a run, one database a test, real servers, real clients.
//!
//! `PGMQ_GRPC_TEST_POSTGRES` chooses the Postgres: a major version such as `14` (downloaded once), or `system` for the
//! installed one; 18 by default. `PGMQ_GRPC_TEST_PGMQ=1.11` runs the suite on pgmq 1.11.1 instead of the newest.
//! `PGMQ_GRPC_TEST_LAYOUT=pgmq` lays out the queues that tests create as pgmq makes them.

pub(crate) mod client;
pub(crate) mod database;
pub(crate) mod deaf_proxy;
pub(crate) mod gate;
pub(crate) mod grpcurl;
pub(crate) mod health;
pub(crate) mod own_postgres;
pub(crate) mod pair;
pub(crate) mod postgres;
pub(crate) mod refusal;
pub(crate) mod server;
pub(crate) mod silent_proxy;
pub(crate) mod wire;

use std::time::{Duration, Instant};

pub(crate) use client::Client;
pub(crate) use database::TestDatabase;
pub(crate) use deaf_proxy::DeafProxy;
pub(crate) use gate::{Fate, Gate};
pub(crate) use own_postgres::OwnPostgres;
pub(crate) use pair::Pair;
pub(crate) use refusal::Refusal;
pub(crate) use server::Server;
pub(crate) use silent_proxy::SilentProxy;

/// How long anything may take that a test waits for; far beyond what a slow machine needs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A database of its own, a server on it, and a client of that.
pub(crate) struct Test {
    pub(crate) database: TestDatabase,
    pub(crate) server: Server,
    pub(crate) client: Client,
    /// A plain SQL user of the same database.
    pub(crate) sql: tokio_postgres::Client,
}

impl Test {
    /// With a server of default settings.
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With a server of these further flags.
    pub(crate) async fn start_with(flags: &[&str]) -> Self {
        let database = TestDatabase::create().await;
        let server = Server::start_on(&database, flags).await;
        let client = Client::connect(&server).await;
        let sql = database.connect().await;
        Self { database, server, client, sql }
    }

    /// The same with a queue of a name.
    pub(crate) async fn with_queue(queue: &str) -> Self {
        let mut test = Self::start().await;
        test.client.create(queue).await;
        test
    }

    /// With a server whose streams and connections are old after a second, and a queue. tonic's client does not repeat
    /// what an old connection did not take, so each step takes a [`Test::fresh_client`].
    pub(crate) async fn of_short_lives(queue: &str, flags: &[&str]) -> Self {
        let test = Self::start_with(&[&["--max-stream-age", "1s"], flags].concat()).await;
        test.run(&format!("SELECT pgmq.create('{queue}')")).await;
        test
    }

    /// A client over a connection of its own.
    pub(crate) async fn fresh_client(&self) -> Client {
        Client::connect(&self.server).await
    }

    /// Another server of default settings on the same database, and a client of that.
    pub(crate) async fn another(&self) -> (Server, Client) {
        self.another_with(&[]).await
    }

    /// The same with further flags.
    pub(crate) async fn another_with(&self, flags: &[&str]) -> (Server, Client) {
        let server = Server::start_on(&self.database, flags).await;
        let client = Client::connect(&server).await;
        (server, client)
    }

    /// Waits until the connections of servers that were killed are gone, and nobody else is there.
    pub(crate) async fn until_nothing_runs(&self) {
        let others = "SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND backend_type = 'client backend' AND application_name <> 'test'";
        eventually("an end of all connections", async || {
            (self.value::<i64>(others).await == 0).then_some(())
        })
        .await;
    }

    /// One value of one row of plain SQL.
    pub(crate) async fn value<T>(&self, sql: &str) -> T
    where
        T: for<'a> tokio_postgres::types::FromSql<'a>,
    {
        let row = self.sql.query_one(sql, &[]).await;
        row.unwrap_or_else(|error| panic!("{sql}: {error:?}")).get(0)
    }

    /// Runs plain SQL.
    pub(crate) async fn run(&self, sql: &str) {
        self.sql.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
}

/// Asks again and again until the answer is there.
///
/// # Panics
/// After [`PATIENCE`], naming what was waited for.
pub(crate) async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(started.elapsed() < PATIENCE, "{what} did not happen within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A span of protobuf.
pub(crate) fn seconds(seconds: f64) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(Duration::from_secs_f64(seconds)).ok()
}

/// The system's clock as protobuf's moment, so many seconds ahead.
pub(crate) fn moment_in(seconds: i64) -> prost_types::Timestamp {
    let mut moment = prost_types::Timestamp::from(std::time::SystemTime::now());
    moment.seconds += seconds;
    moment
}

/// Which pgmq the suite runs on.
#[expect(clippy::disallowed_methods, reason = "the suite is set up by the environment")]
pub(crate) fn is_old_pgmq() -> bool {
    std::env::var("PGMQ_GRPC_TEST_PGMQ").is_ok_and(|version| version.starts_with("1.11"))
}

/// The layout of queues that a test creates without one.
#[expect(clippy::disallowed_methods, reason = "the suite is set up by the environment")]
pub(crate) fn default_layout() -> String {
    std::env::var("PGMQ_GRPC_TEST_LAYOUT").unwrap_or_else(|_| "tuned".to_owned())
}

/// Says aloud that a test cannot run here, or fails where it must (`CI=true`).
#[expect(clippy::disallowed_methods, reason = "the suite is set up by the environment")]
pub(crate) fn skip(what: &str, why: &str) {
    assert!(std::env::var("CI").is_err(), "{what} must run in CI: {why}");
    eprintln!("SKIPPED {what}: {why}");
}
