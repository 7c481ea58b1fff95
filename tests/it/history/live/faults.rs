//! What is done to servers and databases while callers call.

use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use rand::Rng;

use super::plain_sql::connect;
use super::worker::Worker;
use crate::harness::{OwnPostgres, Pair, Server};
use crate::history::record::FaultKind;

/// Terminates some of the servers' backends, again and again, and once at least.
pub(super) async fn terminate_backends(mut worker: Worker) {
    loop {
        let over = !worker.pause(4_000).await;
        let Some(client) = connect(&worker.run).await else { continue };
        let from = worker.run.now();
        let share = f64::from(worker.random.random_range(1..=10)) / 10.0;
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid() AND random() < $1::float8";
        if client.query(sql, &[&share]).await.is_ok() {
            worker.run.record_fault(FaultKind::Terminated, from);
        }
        if over {
            return;
        }
    }
}

/// The servers of a run, which keep their addresses.
pub(super) struct Servers {
    flags: Vec<Vec<String>>,
    running: Vec<Option<Server>>,
}

impl Servers {
    /// Starts so many on one database.
    pub(super) async fn start(count: usize, database_url: &str, flags: &[&str]) -> Self {
        let mut servers = Self { flags: Vec::new(), running: Vec::new() };
        for _ in 0..count {
            let listen = format!("127.0.0.1:{}", crate::harness::own_postgres::free_port());
            let own = ["--listen", &listen, "--database-url", database_url];
            servers.flags.push(own.iter().chain(flags).map(|&flag| flag.to_owned()).collect());
            servers.running.push(None);
        }
        for number in 0..count {
            servers.start_one(number).await;
        }
        servers
    }

    async fn start_one(&mut self, number: usize) {
        let flags: Vec<&str> = self.flags[number].iter().map(String::as_str).collect();
        let mut server = Server::start(&flags).await;
        // Refused messages and lost connections are what the run is about.
        server.expect_errors();
        self.running[number] = Some(server);
    }

    pub(super) fn addresses(&self) -> Vec<String> {
        self.flags.iter().map(|flags| flags[1].clone()).collect()
    }

    /// Kills and stops servers in turn and starts them again, again and again, and each once at least.
    pub(super) async fn end_and_start(mut self, mut worker: Worker) -> Self {
        for turn in 0.. {
            let over = !worker.pause(5_000).await;
            if over && turn >= 2 {
                break;
            }
            let number = worker.random.random_range(0..self.running.len());
            let server = self.running[number].take().expect("a running server");
            let from = worker.run.now();
            let how = ["killed", "stopped"][turn % 2];
            match how {
                "killed" => server.signal(Signal::SIGKILL),
                _ => server.signal(Signal::SIGTERM),
            }
            let (_, log) = server.exit().await;
            assert!(!log.contains("panicked"), "{log}");
            self.start_one(number).await;
            worker.run.record_fault(FaultKind::ServerEnded(how), from);
        }
        self
    }
}

/// Loses the primary once and promotes its standby; later the old primary comes back and does not know.
pub(super) async fn promote(mut pair: Pair, mut worker: Worker) -> Pair {
    let pause = Duration::from_millis(worker.random.random_range(1_500..4_000));
    worker.goes_on(pause).await;
    let from = worker.run.now();
    pair.primary.crash().await;
    worker.pause(700).await;
    pair.standby.promote().await;
    worker.run.record_fault(FaultKind::Promoted, from);
    worker.goes_on(Duration::from_secs(2)).await;
    let from = worker.run.now();
    pair.primary.start_again().await;
    worker.run.record_fault(FaultKind::Restarted("returned with an old timeline"), from);
    pair
}

/// Restarts Postgres, again and again: without writing anything and as an administrator does, in turn, each once at least.
pub(super) async fn restart_postgres(mut postgres: OwnPostgres, mut worker: Worker) -> OwnPostgres {
    let run = Arc::clone(&worker.run);
    for turn in 0.. {
        let pause = Duration::from_millis(worker.random.random_range(1_500..4_000));
        let over = !worker.goes_on(pause).await;
        if over && turn >= 2 {
            break;
        }
        let from = run.now();
        let how = ["crashed", "stopped"][turn % 2];
        match how {
            "crashed" => postgres.crash().await,
            _ => postgres.stop().await,
        }
        worker.pause(700).await;
        postgres.start_again().await;
        run.record_fault(FaultKind::Restarted(how), from);
    }
    postgres
}
