//! One real Postgres for the whole run, started with the first test and stopped when the process ends.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc;

use pgmq_grpc::pg::embedded::{self, Embedded, Options};
use tokio_postgres::{Config, NoTls};

/// The running Postgres, as far as tests need it.
pub(crate) struct Postgres {
    config: Config,
    url: String,
    /// The directory of its programs.
    pub(crate) binaries: PathBuf,
}

impl Postgres {
    /// The Postgres of this run.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(start)
    }

    /// A connection to one of its databases.
    pub(crate) async fn connect(&self, database: &str) -> tokio_postgres::Client {
        let mut config = self.config.clone();
        config.dbname(database).application_name("test");
        let (client, connection) = config.connect(NoTls).await.expect("a connection");
        tokio::spawn(connection);
        client
    }

    /// The URL of one of its databases.
    pub(crate) fn url(&self, database: &str) -> String {
        let (server, _) = self.url.rsplit_once('/').expect("a url with a database");
        format!("{server}/{database}")
    }
}

/// The directory of the programs of the wanted version, downloaded if need be.
pub(crate) async fn wanted_binaries() -> Option<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "the suite is set up by the environment")]
    let wanted = std::env::var("PGMQ_GRPC_TEST_POSTGRES").unwrap_or_else(|_| "18".to_owned());
    match wanted.as_str() {
        "system" => None,
        major => Some(downloaded(major).await),
    }
}

/// A downloaded Postgres of a major version, kept for the next run.
pub(crate) async fn downloaded(major: &str) -> PathBuf {
    // Beside the system's temporary files, where Postgres' own user can read it even if the build directory is closed.
    let cache = std::env::temp_dir().join("pgmq-grpc-test-postgres");
    let binaries = embedded::download(major, &cache).await.expect("a download of Postgres");
    binaries.directory().to_owned()
}

fn start() -> Postgres {
    let (started, running) = mpsc::channel();
    // A thread and a runtime that outlive every test's.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async move {
            let options = Options { ephemeral: true, bin_dir: wanted_binaries().await, ..Options::default() };
            let postgres = Embedded::start(&options).await.expect("a running Postgres");
            stop_with_this_process(&postgres);
            let (client, connection) = postgres.config().connect(NoTls).await.expect("a connection");
            tokio::spawn(connection);
            // Nothing of a test outlives it, so nothing has to survive a crash of the machine.
            for setting in ["fsync = off", "max_connections = 400", "log_min_error_statement = panic"] {
                client.batch_execute(&format!("ALTER SYSTEM SET {setting}")).await.expect("a setting");
            }
            client.batch_execute("SELECT pg_reload_conf()").await.expect("a reload");
            let shared = Postgres {
                config: postgres.config(),
                url: postgres.url(),
                binaries: postgres.binaries().to_owned(),
            };
            eprintln!("tests run on Postgres {}", postgres.version());
            started.send(shared).expect("a test that waits");
            std::future::pending::<()>().await;
            drop(postgres);
        });
    });
    running.recv().expect("a running Postgres")
}

/// The standard input of a small watcher closes however this process ends, and then it stops Postgres.
pub(crate) fn stop_with_this_process(postgres: &Embedded) {
    stop_data_with_this_process(postgres.data_dir());
}

/// The same of the Postgres whose cluster is below a directory.
pub(crate) fn stop_data_with_this_process(data_dir: &Path) {
    let script =
        "read -r _; kill -INT \"$(head -n 1 \"$1/postgres/postmaster.pid\")\"; sleep 5; rm -rf \"$1\"";
    let mut watcher = Command::new("sh")
        .args(["-c", script, "watcher"])
        .arg(data_dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a watcher");
    let mut input = watcher.stdin.take().expect("its input");
    input.flush().expect("an open input");
    // Never closed by us: the end of the process does it.
    std::mem::forget(input);
    std::mem::forget(watcher);
}
