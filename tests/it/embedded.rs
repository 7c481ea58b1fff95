//! The private Postgres: made once, kept, found again after a crash, never doubled, never left behind.

use std::fs;
use std::process::Command;

use nix::sys::signal::Signal;
use nix::unistd::{Uid, geteuid};
use tokio_postgres::NoTls;

use crate::harness::own_postgres::{DataDir, free_port, open_directory, postmaster};
use crate::harness::postgres::Postgres;
use crate::harness::server::text;
use crate::harness::{Client, Server, eventually, health, skip};

/// The programs of this run's Postgres, so that nothing is downloaded.
async fn binaries() -> &'static str {
    let shared = tokio::task::spawn_blocking(Postgres::shared).await.expect("a running Postgres");
    text(&shared.binaries)
}

async fn start(data_dir: &DataDir) -> Server {
    Server::start(&["--data-dir", text(data_dir.path()), "--postgres-bin-dir", binaries().await]).await
}

/// Ends a server in order.
async fn end(server: Server) -> String {
    server.signal(Signal::SIGTERM);
    let (status, log) = server.exit().await;
    assert_eq!(status.code(), Some(0), "{log}");
    log
}

#[tokio::test]
async fn the_data_is_kept_between_runs_and_postgres_ends_with_its_server() {
    let data_dir = DataDir::new();
    let server = start(&data_dir).await;
    let mut client = Client::connect(&server).await;
    health::serving(&client).await;
    client.create("orders").await;
    client.send("orders", r#"{"total": 42}"#).await;
    let started = server.log_lines().into_iter().find(|line| line.contains("\"started\"")).unwrap();
    assert!(started.contains("\"database\":\"embedded Postgres "), "{started}");
    assert!(started.contains(text(data_dir.path())), "{started}");
    assert!(postmaster(data_dir.path()).is_some());
    end(server).await;
    assert!(postmaster(data_dir.path()).is_none());

    let server = start(&data_dir).await;
    let mut client = Client::connect(&server).await;
    health::serving(&client).await;
    assert_eq!(client.read_one("orders").await.message, r#"{"total": 42}"#);
    let log = end(server).await;
    assert!(!log.contains("created a database"), "{log}");
    assert!(postmaster(data_dir.path()).is_none());
}

#[tokio::test]
async fn a_killed_server_loses_nothing_and_its_postgres_is_adopted() {
    let data_dir = DataDir::new();
    let server = start(&data_dir).await;
    let mut client = Client::connect(&server).await;
    health::serving(&client).await;
    client.create("orders").await;
    client.send("orders", "1").await;
    let before = postmaster(data_dir.path()).unwrap();
    server.signal(Signal::SIGKILL);
    server.exit().await;
    assert_eq!(postmaster(data_dir.path()), Some(before));

    let server = start(&data_dir).await;
    let mut client = Client::connect(&server).await;
    health::serving(&client).await;
    assert_eq!(postmaster(data_dir.path()), Some(before));
    assert_eq!(client.send("orders", "2").await, 2);
    assert_eq!(client.read("orders", 10).await.len(), 2);
    let log = end(server).await;
    assert!(log.contains("adopted postgres"), "{log}");
    assert!(postmaster(data_dir.path()).is_none());
}

#[tokio::test]
async fn a_server_and_a_postgres_that_were_both_killed_lose_nothing() {
    let data_dir = DataDir::new();
    let server = start(&data_dir).await;
    let mut client = Client::connect(&server).await;
    health::serving(&client).await;
    client.create("orders").await;
    client.send("orders", "1").await;
    let before = postmaster(data_dir.path()).unwrap();
    server.signal(Signal::SIGKILL);
    server.exit().await;
    nix::sys::signal::kill(before, Signal::SIGKILL).unwrap();
    eventually("its end", async || postmaster(data_dir.path()).is_none().then_some(())).await;

    let server = start(&data_dir).await;
    let mut client = Client::connect(&server).await;
    health::serving(&client).await;
    assert_eq!(client.read_one("orders").await.message, "1");
    end(server).await;
}

#[tokio::test]
async fn a_second_server_on_the_same_data_is_refused_and_the_first_goes_on() {
    let data_dir = DataDir::new();
    let server = start(&data_dir).await;
    let mut client = Client::connect(&server).await;
    health::serving(&client).await;
    client.create("orders").await;

    let flags = ["--data-dir", text(data_dir.path()), "--postgres-bin-dir", binaries().await];
    let (status, log) = Server::fail_to_start(&flags).await;
    assert_eq!(status.code(), Some(1), "{log}");
    let sentence = format!(
        "the data directory {} is in use by process {}; stop it, or pass another --data-dir",
        data_dir.path().display(),
        server.pid()
    );
    assert!(log.contains(&sentence), "{log}");

    client.send("orders", "{}").await;
    end(server).await;
}

#[tokio::test]
async fn a_postgres_that_dies_takes_its_server_with_it() {
    let data_dir = DataDir::new();
    let mut server = start(&data_dir).await;
    server.expect_errors();
    let killed = postmaster(data_dir.path()).unwrap();
    nix::sys::signal::kill(killed, Signal::SIGQUIT).unwrap();
    let (status, log) = server.exit().await;
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("the embedded postgres ended by itself"), "{log}");
}

#[tokio::test]
async fn an_ephemeral_server_leaves_nothing() {
    let place = open_directory();
    let mut command = Server::command();
    command.env("TMPDIR", place.path());
    let server = Server::start_as(command, &["--ephemeral", "--postgres-bin-dir", binaries().await]).await;
    let mut client = Client::connect(&server).await;
    health::serving(&client).await;
    client.create("orders").await;
    assert_eq!(place.path().read_dir().unwrap().count(), 1);

    end(server).await;

    let left: Vec<_> = place.path().read_dir().unwrap().flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn other_programs_reach_it_on_a_port_if_one_is_asked_for() {
    let data_dir = DataDir::new();
    let port = free_port();
    let data = ["--data-dir", text(data_dir.path()), "--postgres-bin-dir", binaries().await];
    let port_flag = port.to_string();
    let flags = [&data[..], &["--postgres-port", &port_flag]].concat();
    let server = Server::start(&flags).await;
    let mut client = Client::connect(&server).await;
    health::serving(&client).await;
    client.create("orders").await;

    let password = fs::read_to_string(data_dir.path().join("password")).unwrap();
    let url = format!("postgres://pgmq:{password}@127.0.0.1:{port}/pgmq");
    let (sql, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    tokio::spawn(connection);
    sql.execute("SELECT pgmq.send('orders', '{}')", &[]).await.unwrap();
    assert_eq!(client.read_one("orders").await.msg_id, 1);
    assert!(!server.log().contains(&password), "{}", server.log());

    let wrong = format!("postgres://pgmq:wrong@127.0.0.1:{port}/pgmq");
    assert!(tokio_postgres::connect(&wrong, NoTls).await.is_err());
    end(server).await;
}

#[tokio::test]
async fn a_directory_without_programs_is_told_with_the_reason() {
    let data_dir = DataDir::new();
    let empty = open_directory();
    let flags = ["--data-dir", text(data_dir.path()), "--postgres-bin-dir", text(empty.path())];
    let (status, log) = Server::fail_to_start(&flags).await;
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("does not hold a usable Postgres 14 or newer: there is no postgres"), "{log}");
}

#[tokio::test]
async fn without_programs_and_without_network_the_three_ways_out_are_named() {
    let Some(mut command) = without_installed_programs() else {
        eprintln!("SKIPPED a failing download: an installed Postgres cannot be hidden from a server here");
        return;
    };
    let data_dir = DataDir::new();
    command.env("XDG_CACHE_HOME", data_dir.parent());
    for proxy in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        command.env(proxy, "http://127.0.0.1:9");
    }
    let (status, log) = Server::fail_to_start_as(command, &["--data-dir", text(data_dir.path())]).await;
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("downloading postgres 18.6.0 from Maven Central"), "{log}");
    assert!(log.contains("cannot download Postgres 18.6.0"), "{log}");
    for way in ["apt install postgresql", "--postgres-bin-dir DIR", "--database-url URL"] {
        assert!(log.contains(way), "{log}");
    }
}

/// The program where it finds no Postgres: neither on the PATH, nor at the distribution's place, nor kept from an
/// earlier download.
fn without_installed_programs() -> Option<Command> {
    const HIDDEN: &str = "for place in /usr/lib/postgresql /var/cache/pgmq-grpc; do
        if [ -d $place ]; then mount -t tmpfs tmpfs $place || exit 1; fi; done";
    let hides = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
    if hides(Command::new("unshare").args(["-m", "sh", "-c", HIDDEN])) {
        let mut command = Command::new("unshare");
        let script = format!("{HIDDEN}; PATH=; export PATH; exec \"$0\" \"$@\"");
        command.args(["-m", "sh", "-c", &script, env!("CARGO_BIN_EXE_pgmq-grpc")]);
        without_settings(&mut command);
        return Some(command);
    }
    let nothing_to_hide = !geteuid().is_root() && fs::read_dir("/usr/lib/postgresql").is_err();
    nothing_to_hide.then(|| {
        let mut command = Server::command();
        command.env("PATH", "");
        command
    })
}

/// Takes out of a command's environment what [`Server::command`] takes out.
fn without_settings(command: &mut Command) {
    for (variable, value) in Server::command().get_envs() {
        if value.is_none() {
            command.env_remove(variable);
        }
    }
}

/// The program as the user `nobody`, in a directory that this user owns; none if we cannot become another user.
fn as_somebody(data_dir: &DataDir) -> Option<Command> {
    use std::os::unix::process::CommandExt;
    let nobody = nix::unistd::User::from_name("nobody").ok().flatten()?;
    if !geteuid().is_root() {
        return None;
    }
    nix::unistd::chown(data_dir.parent(), Some(nobody.uid), Some(nobody.gid)).ok()?;
    // The build directory may be closed to others.
    let program = data_dir.parent().join("pgmq-grpc");
    fs::copy(env!("CARGO_BIN_EXE_pgmq-grpc"), &program).ok()?;
    let mut command = Command::new(program);
    without_settings(&mut command);
    command.uid(nobody.uid.as_raw()).gid(nobody.gid.as_raw()).env("HOME", data_dir.parent());
    Some(command)
}

#[tokio::test]
async fn an_ordinary_user_has_one_too() {
    let data_dir = DataDir::new();
    let Some(command) = as_somebody(&data_dir) else {
        // Then every other test here has shown it.
        eprintln!("SKIPPED a change of user: the tests do not run as root");
        return;
    };
    let flags = ["--data-dir", text(data_dir.path()), "--postgres-bin-dir", binaries().await];
    let server = Server::start_as(command, &flags).await;
    let mut client = Client::connect(&server).await;
    health::serving(&client).await;
    client.create("orders").await;
    assert_eq!(client.send("orders", "{}").await, 1);
    assert_eq!(owner(&data_dir.path().join("postgres")), owner(data_dir.parent()));
    end(server).await;
    assert!(postmaster(data_dir.path()).is_none());
}

#[tokio::test]
async fn under_root_it_runs_as_somebody_else() {
    if !geteuid().is_root() {
        skip("the switch from root", "the tests do not run as root");
        return;
    }
    let data_dir = DataDir::new();
    let server = start(&data_dir).await;
    let process = postmaster(data_dir.path()).unwrap();
    assert_ne!(owner(format!("/proc/{process}").as_ref()), Uid::from_raw(0));
    assert_ne!(owner(&data_dir.path().join("postgres")), Uid::from_raw(0));
    end(server).await;
}

fn owner(path: &std::path::Path) -> Uid {
    use std::os::unix::fs::MetadataExt;
    Uid::from_raw(fs::metadata(path).unwrap().uid())
}
