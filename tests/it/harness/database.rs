//! A database a test, made from a template that has pgmq.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Sender, channel};

use sqlx::postgres::PgPoolOptions;
use tokio::sync::OnceCell;

use super::is_old_pgmq;
use super::postgres::Postgres;

/// A database of one test's own; dropped with the value.
pub(crate) struct TestDatabase {
    pub(crate) name: String,
    pub(crate) url: String,
}

impl TestDatabase {
    /// A database with pgmq.
    pub(crate) async fn create() -> Self {
        static TEMPLATE: OnceCell<()> = OnceCell::const_new();
        TEMPLATE.get_or_init(make_template).await;
        Self::create_from("template_pgmq").await
    }

    /// A database without pgmq.
    pub(crate) async fn create_empty() -> Self {
        Self::create_from("template0").await
    }

    async fn create_from(template: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let postgres = tokio::task::spawn_blocking(Postgres::shared).await.expect("a running Postgres");
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let admin = postgres.connect("pgmq").await;
        let create = format!("CREATE DATABASE {name} TEMPLATE {template}");
        admin.batch_execute(&create).await.expect("a database");
        Self { url: postgres.url(&name), name }
    }

    /// A plain SQL user's connection.
    pub(crate) async fn connect(&self) -> tokio_postgres::Client {
        Postgres::shared().connect(&self.name).await
    }

    /// Cuts every other connection to this database.
    pub(crate) async fn terminate_connections(&self) {
        let admin = Postgres::shared().connect("pgmq").await;
        let terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1";
        admin.query(terminate, &[&self.name]).await.expect("terminated connections");
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let _ = janitor().send(self.name.clone());
    }
}

/// A thread that drops databases behind the tests' backs.
fn janitor() -> &'static Sender<String> {
    static JANITOR: OnceLock<Sender<String>> = OnceLock::new();
    JANITOR.get_or_init(|| {
        let (sender, names) = channel::<String>();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().expect("a runtime");
            for name in names {
                runtime.block_on(async {
                    let admin = Postgres::shared().connect("pgmq").await;
                    let drop = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
                    let _ = admin.batch_execute(&drop).await;
                });
            }
        });
        sender
    })
}

async fn make_template() {
    let postgres = tokio::task::spawn_blocking(Postgres::shared).await.expect("a running Postgres");
    let admin = postgres.connect("pgmq").await;
    admin.batch_execute("CREATE DATABASE template_pgmq TEMPLATE template0").await.expect("a template");
    install_pgmq(&postgres.url("template_pgmq")).await;
}

/// Installs the pgmq of this run from the official crate.
pub(crate) async fn install_pgmq(url: &str) {
    if is_old_pgmq() {
        install_old_pgmq(url).await;
        return;
    }
    let pool = PgPoolOptions::new().max_connections(1).connect(url).await.expect("a pool");
    pgmq::install::install_sql_from_embedded(&pool).await.expect("pgmq installed");
    pool.close().await;
}

/// Installs pgmq 1.11.1.
pub(crate) async fn install_old_pgmq(url: &str) {
    let pool =
        sqlx_0_8::postgres::PgPoolOptions::new().max_connections(1).connect(url).await.expect("a pool");
    pgmq_1_11::install::install_sql_from_embedded(&pool).await.expect("pgmq 1.11 installed");
    pool.close().await;
}
