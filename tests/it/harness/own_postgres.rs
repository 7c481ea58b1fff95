//! A Postgres of one test's own, which it may stop, freeze, kill and configure.

use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgmq_grpc::pg::embedded::{Embedded, Options};
use tempfile::TempDir;
use tokio_postgres::NoTls;

use super::postgres::{Postgres, stop_with_this_process};

/// A Postgres on a Unix socket and on a port of 127.0.0.1, whose data outlives its stops.
pub(crate) struct OwnPostgres {
    // Stopped before its directory is removed.
    running: Option<Embedded>,
    options: Options,
    /// Its address on the Unix socket, the same after every start.
    pub(crate) url: String,
    /// Its port on 127.0.0.1, the same after every start.
    pub(crate) port: u16,
    data_dir: PathBuf,
    _directory: TempDir,
}

impl OwnPostgres {
    /// Starts one without pgmq.
    pub(crate) async fn start() -> Self {
        let shared = tokio::task::spawn_blocking(Postgres::shared).await.expect("a running Postgres");
        Self::start_with(shared.binaries.clone()).await
    }

    /// The same of other programs than this run's.
    pub(crate) async fn start_with(binaries: PathBuf) -> Self {
        let directory = open_directory();
        let data_dir = directory.path().canonicalize().expect("a directory").join("data");
        let port = free_port();
        let options = Options {
            data_dir: Some(data_dir.clone()),
            bin_dir: Some(binaries),
            tcp_port: Some(port),
            ..Options::default()
        };
        let running = Embedded::start(&options).await.expect("a running Postgres");
        stop_with_this_process(&running);
        let url = running.url();
        let postgres = Self { running: Some(running), options, url, port, data_dir, _directory: directory };
        // No machine crashes here; everything else may.
        postgres.run("ALTER SYSTEM SET fsync = off").await;
        postgres.run("SELECT pg_reload_conf()").await;
        postgres
    }

    /// Starts it again.
    pub(crate) async fn start_again(&mut self) {
        assert!(self.running.is_none(), "it runs already");
        self.running = Some(Embedded::start(&self.options).await.expect("a running Postgres"));
    }

    /// Stops it as an administrator does: connections are cut, everything is written.
    pub(crate) async fn stop(&mut self) {
        self.running.take().expect("a running Postgres").stop().await.expect("a stop");
    }

    /// Ends it without writing anything: the next start recovers from the log.
    pub(crate) async fn crash(&mut self) {
        self.signal(Signal::SIGQUIT);
        self.running.take().expect("a running Postgres").ended().await;
    }

    /// Sends a signal to the postmaster.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(postmaster(&self.data_dir).expect("a postmaster"), signal).expect("a living postmaster");
    }

    /// A plain SQL user's connection.
    pub(crate) async fn connect(&self) -> tokio_postgres::Client {
        let (client, connection) = tokio_postgres::connect(&self.url, NoTls).await.expect("a connection");
        tokio::spawn(connection);
        client
    }

    /// Runs plain SQL.
    pub(crate) async fn run(&self, sql: &str) {
        let client = self.connect().await;
        client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// The directory of the cluster, where its user can read files.
    pub(crate) fn cluster(&self) -> PathBuf {
        self.data_dir.join("postgres")
    }
}

/// A temporary directory that the user of Postgres may enter, too.
pub(crate) fn open_directory() -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).expect("an open directory");
    directory
}

/// A port that nobody had a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port()
}

/// The postmaster of a server's data directory, if one lives.
pub(crate) fn postmaster(data_dir: &Path) -> Option<Pid> {
    let text = fs::read_to_string(data_dir.join("postgres/postmaster.pid")).ok()?;
    let pid: i32 = text.lines().next()?.trim().parse().ok()?;
    let command_line = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
    command_line.contains(data_dir.to_str()?).then(|| Pid::from_raw(pid))
}

/// A data directory for embedded Postgres servers; whatever still runs in it at the end is killed.
pub(crate) struct DataDir {
    path: PathBuf,
    directory: TempDir,
}

impl DataDir {
    /// A path in a fresh directory, where nothing is yet.
    pub(crate) fn new() -> Self {
        let directory = open_directory();
        let path = directory.path().canonicalize().expect("a directory").join("data");
        Self { path, directory }
    }

    /// The path to give to `--data-dir`.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The directory around it, which nobody else uses.
    pub(crate) fn parent(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for DataDir {
    fn drop(&mut self) {
        if let Some(postmaster) = postmaster(&self.path) {
            // Its children end with it, and its data is about to be removed.
            let _ = kill(postmaster, Signal::SIGQUIT);
        }
    }
}
