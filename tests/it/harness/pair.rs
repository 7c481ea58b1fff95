//! A real primary with a real standby, made by the programs of an installed Postgres.

use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

use super::own_postgres::{free_port, open_directory};
use super::postgres::stop_data_with_this_process;
use super::{OwnPostgres, eventually, skip};

/// A primary and its streaming standby.
pub(crate) struct Pair {
    pub(crate) primary: OwnPostgres,
    pub(crate) standby: Standby,
    /// The URL that names both, the first primary first.
    pub(crate) url: String,
}

/// A copy of a primary that follows it until it is promoted.
pub(crate) struct Standby {
    // Stopped before its directory is removed.
    running: Option<Child>,
    binaries: PathBuf,
    cluster: PathBuf,
    url: String,
    port: u16,
    _directory: TempDir,
}

impl Pair {
    /// A primary that waits for its standby at every commit; or says why there can be none.
    pub(crate) async fn start(what: &str) -> Option<Self> {
        let pair = Self::start_asynchronous(what).await?;
        pair.primary.run("ALTER SYSTEM SET synchronous_standby_names = '*'").await;
        pair.primary.run("SELECT pg_reload_conf()").await;
        pair.until("sync").await;
        Some(pair)
    }

    /// A primary that does not wait for its standby.
    pub(crate) async fn start_asynchronous(what: &str) -> Option<Self> {
        let Some(binaries) = installed_binaries() else {
            skip(what, "no installed Postgres has pg_basebackup");
            return None;
        };
        let primary = OwnPostgres::start_with(binaries.clone()).await;
        let (login, _) = primary.url.rsplit_once('@').expect("a url with a user");
        let url = |ports: &[u16]| {
            let hosts: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
            format!("{login}@{}/pgmq", hosts.join(","))
        };
        let standby = Standby::start(binaries, &primary, |port| url(&[port])).await;
        let url = url(&[primary.port, standby.port]);
        let pair = Self { primary, standby, url };
        pair.until("async").await;
        Some(pair)
    }

    async fn until(&self, state: &str) {
        let sql = self.primary.connect().await;
        eventually("replication", async || {
            let following = "SELECT FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = $1";
            sql.query_opt(following, &[&state]).await.expect("the replication").map(drop)
        })
        .await;
    }

    /// Ends the stream from the primary, so that what follows there is lost when the standby takes over.
    pub(crate) async fn part(&self) {
        let sql = self.standby.connect().await.expect("a connection");
        sql.batch_execute("ALTER SYSTEM SET primary_conninfo = ''").await.expect("a setting");
        sql.batch_execute("SELECT pg_reload_conf()").await.expect("a reload");
        let primary = self.primary.connect().await;
        eventually("the end of replication", async || {
            let followers =
                primary.query("SELECT FROM pg_stat_replication", &[]).await.expect("the replication");
            followers.is_empty().then_some(())
        })
        .await;
    }
}

impl Standby {
    async fn start(binaries: PathBuf, primary: &OwnPostgres, url: impl Fn(u16) -> String) -> Self {
        let directory = open_directory();
        let cluster = directory.path().join("postgres");
        // The user of the primary must be able to make it.
        let owner = primary.cluster().metadata().expect("the primary's directory");
        if geteuid().is_root() {
            chown(directory.path(), Some(owner.uid()), Some(owner.gid())).expect("an owner");
        }
        let mut backup = command(&binaries.join("pg_basebackup"), directory.path());
        let source = url(primary.port);
        backup.arg("-D").arg(&cluster).args(["-d", &source, "-R", "-X", "stream", "-c", "fast", "--no-sync"]);
        let output =
            tokio::task::spawn_blocking(move || backup.output()).await.expect("no panic").expect("a backup");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        stop_data_with_this_process(directory.path());
        // Not before the backup, which takes long enough for somebody else to get the port.
        let port = free_port();
        let mut standby =
            Self { running: None, binaries, cluster, url: url(port), port, _directory: directory };
        standby.start_again().await;
        standby
    }

    /// Starts it, also after a crash.
    pub(crate) async fn start_again(&mut self) {
        let mut postgres = command(&self.binaries.join("postgres"), &self.cluster);
        postgres.arg("-D").arg(&self.cluster).args(["-c", "listen_addresses=127.0.0.1"]);
        postgres.args(["-c", &format!("port={}", self.port), "-c", "unix_socket_directories="]);
        let mut running = postgres.spawn().expect("a standby");
        eventually("the standby", async || {
            // Somebody had its port for a moment, or it came before the last one was gone.
            if running.try_wait().expect("its state").is_some() {
                running = postgres.spawn().expect("a standby");
            }
            self.connect().await.map(drop)
        })
        .await;
        self.running = Some(running);
    }

    /// Makes it a primary.
    pub(crate) async fn promote(&self) {
        let sql = self.connect().await.expect("a connection");
        let promoted = sql.query_one("SELECT pg_promote(true, 60)", &[]).await.expect("a promotion");
        assert!(promoted.get::<_, bool>(0));
    }

    /// Ends it without a word.
    pub(crate) fn crash(&mut self) {
        self.signal(Signal::SIGQUIT);
        let mut child = self.running.take().expect("a running standby");
        child.wait().expect("its end");
    }

    fn signal(&self, signal: Signal) {
        let child = self.running.as_ref().expect("a running standby");
        kill(Pid::from_raw(i32::try_from(child.id()).expect("a process id")), signal)
            .expect("a living standby");
    }

    /// A plain SQL user's connection, if it takes one.
    pub(crate) async fn connect(&self) -> Option<Client> {
        let (client, connection) = tokio_postgres::connect(&self.url, NoTls).await.ok()?;
        tokio::spawn(connection);
        Some(client)
    }

    /// One number of plain SQL.
    pub(crate) async fn count(&self, table: &str) -> i64 {
        let sql = self.connect().await.expect("a connection");
        sql.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await.expect("a count").get(0)
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        if let Some(mut child) = self.running.take() {
            let _ = kill(Pid::from_raw(i32::try_from(child.id()).unwrap_or(0)), Signal::SIGQUIT);
            let _ = child.wait();
        }
    }
}

/// A program as the owner of a path, which must not be root.
fn command(program: &Path, owned: &Path) -> Command {
    let owner = owned.metadata().expect("a directory");
    let mut command = Command::new(program);
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.env("LC_ALL", "C").env_remove("PGPORT").env_remove("PGDATA");
    if geteuid().is_root() {
        command.uid(owner.uid()).gid(owner.gid());
    }
    // Its complaints are read only where the program ends by itself.
    if program.ends_with("postgres") {
        command.stderr(Stdio::null()).process_group(0);
    }
    command
}

/// The programs of an installed Postgres, the newest that can copy a cluster.
fn installed_binaries() -> Option<PathBuf> {
    let told = Command::new("pg_config").arg("--bindir").output().ok();
    let told = told.and_then(|output| String::from_utf8(output.stdout).ok());
    let mut places: Vec<PathBuf> = told.map(|text| PathBuf::from(text.trim())).into_iter().collect();
    if let Ok(versions) = Path::new("/usr/lib/postgresql").read_dir() {
        let mut versions: Vec<PathBuf> = versions.flatten().map(|entry| entry.path()).collect();
        versions.sort_by_key(|path| {
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<u32>().ok())
        });
        places.extend(versions.iter().rev().map(|version| version.join("bin")));
    }
    places.into_iter().find(|place| {
        ["pg_basebackup", "postgres", "initdb"].iter().all(|program| place.join(program).is_file())
    })
}
