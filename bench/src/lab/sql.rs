//! Our own connection to the Postgres of the server under test: it prepares queues and looks at them.

use std::path::Path;

use anyhow::{Context, Result};
use tokio_postgres::{Client, Config, NoTls};

use crate::load::body;
use crate::rounds::Refill;

/// How a queue's table is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// As the server makes it by default.
    Tuned,
    /// As pgmq makes it.
    Pgmq,
}

/// A connection, and how peers make theirs.
pub struct Sql {
    client: Client,
    /// In another database, so that looking is not counted with what is looked at.
    observer: Client,
    /// The directory of the socket.
    pub sockets: String,
    /// The port in the socket's name.
    pub port: u16,
    /// The password of the role `pgmq`.
    pub password: String,
}

impl Sql {
    /// Connects to the Postgres that keeps its data there.
    pub async fn connect(data: &Path, port: u16) -> Result<Sql> {
        let path = data.join("password");
        let password = std::fs::read_to_string(&path).with_context(|| format!("no {}", path.display()))?;
        let password = password.trim().to_owned();
        let mut config = Config::new();
        config.host("127.0.0.1").port(port).user("pgmq").password(&password).dbname("pgmq");
        config.application_name("bench");
        let client = open(&config).await?;
        let observer = open(config.dbname("postgres")).await?;
        let sockets = client.query_one("SHOW unix_socket_directories", &[]).await?.get(0);
        Ok(Sql { client, observer, sockets, port, password })
    }

    /// The same for sqlx, which wants a host where hosts are.
    pub fn url_of_sqlx(&self) -> String {
        let host = self.sockets.replace('%', "%25").replace('/', "%2F");
        format!("postgresql://pgmq:{}@{host}:{}/pgmq", self.password, self.port)
    }

    /// The address over the socket, as libpq and asyncpg understand it.
    pub fn url(&self) -> String {
        format!("postgresql://pgmq:{}@/pgmq?host={}&port={}", self.password, self.sockets, self.port)
    }

    /// A queue as pgmq makes it.
    pub async fn create(&self, queue: &str) -> Result<()> {
        self.client.execute("SELECT pgmq.create($1::text)", &[&queue]).await?;
        Ok(())
    }

    /// Makes every statement that sends to a queue take longer by so many milliseconds, as a slow disk would.
    pub async fn slow_down(&self, queue: &str, millis: u32) -> Result<()> {
        let text = format!(
            "CREATE OR REPLACE FUNCTION public.slow_down() RETURNS trigger LANGUAGE plpgsql AS
               $$ BEGIN PERFORM pg_sleep({millis} / 1000.0); RETURN NULL; END $$;
             CREATE OR REPLACE TRIGGER slow_down AFTER INSERT ON pgmq.q_{queue}
               FOR EACH STATEMENT EXECUTE FUNCTION public.slow_down()"
        );
        self.client.batch_execute(&text).await.context("a trigger that sleeps")
    }

    /// Empties a queue, and fills it: first with messages that somebody holds for an hour, then with visible ones.
    pub async fn refill(&self, refill: &Refill, body_bytes: usize) -> Result<()> {
        let queue = &refill.queue;
        self.client.execute("SELECT pgmq.purge_queue($1::text)", &[queue]).await?;
        if refill.in_flight + refill.messages > 0 {
            self.fill(queue, refill.in_flight, 1, body_bytes).await?;
            self.fill(queue, refill.messages, 0, body_bytes).await?;
            // So that no autovacuum comes into the trial.
            self.client.batch_execute(&format!("VACUUM (ANALYZE) pgmq.q_{queue}")).await?;
        }
        Ok(())
    }

    async fn fill(&self, queue: &str, messages: u64, read_ct: i32, body_bytes: usize) -> Result<()> {
        let statement = format!(
            "INSERT INTO pgmq.q_{queue} (read_ct, vt, message)
             SELECT $3::int, clock_timestamp() + $3::int * interval '1 hour', $1::text::jsonb
             FROM generate_series(1, $2::bigint)"
        );
        self.client.execute(&statement, &[&body(body_bytes), &i64::try_from(messages)?, &read_ct]).await?;
        Ok(())
    }

    /// Whether Postgres vacuums by itself. Its workers' transactions are counted like anybody's, and new queues give them
    /// work, in the catalog above all.
    pub async fn autovacuum(&self, on: bool) -> Result<()> {
        let text = if on { "ALTER SYSTEM RESET autovacuum" } else { "ALTER SYSTEM SET autovacuum = off" };
        self.observer.batch_execute(text).await?;
        self.observer.batch_execute("SELECT pg_reload_conf()").await?;
        Ok(())
    }

    /// How many connections the server has, and how many transactions were committed in its database.
    pub async fn look(&self) -> Result<(i64, i64)> {
        let statement = "SELECT (SELECT count(*) FROM pg_stat_activity
                     WHERE datname = 'pgmq' AND backend_type = 'client backend' AND application_name <> 'bench'),
                    (SELECT xact_commit FROM pg_stat_database WHERE datname = 'pgmq')";
        let row = self.observer.query_one(statement, &[]).await?;
        Ok((row.get(0), row.get(1)))
    }

    /// The version of Postgres.
    pub async fn version(&self) -> Result<String> {
        Ok(self.client.query_one("SHOW server_version", &[]).await?.get(0))
    }
}

async fn open(config: &Config) -> Result<Client> {
    let (client, connection) = config.connect(NoTls).await.context("no connection to Postgres")?;
    tokio::spawn(connection);
    Ok(client)
}
