//! What is done to servers and databases while callers call.

use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use rand::Rng;

use super::plain_sql::connect;
use super::worker::Worker;
use crate::harness::{OwnPostgres, Server};
use crate::history::record::FaultKind;

/// Terminates some of the servers' backends, again and again.
pub(super) async fn terminate_backends(mut worker: Worker) {
    while worker.pause(4_000).await {
        let Some(client) = connect(&worker.run).await else { continue };
        let from = worker.run.now();
        let share = f64::from(worker.random.random_range(1..=10)) / 10.0;
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid() AND random() < $1::float8";
        if client.query(sql, &[&share]).await.is_ok() {
            worker.run.record_fault(FaultKind::Terminated, from);
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

    /// Kills or stops one server and starts it again, again and again.
    pub(super) async fn end_and_start(mut self, mut worker: Worker) -> Self {
        while worker.pause(5_000).await {
            let number = worker.random.random_range(0..self.running.len());
            let server = self.running[number].take().expect("a running server");
            let from = worker.run.now();
            let how = if worker.chance(50) { "killed" } else { "stopped" };
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

/// Restarts Postgres, again and again: as an administrator does, or without writing anything.
pub(super) async fn restart_postgres(mut postgres: OwnPostgres, mut worker: Worker) -> OwnPostgres {
    let run = Arc::clone(&worker.run);
    while run.goes_on(Duration::from_millis(worker.random.random_range(1_500..4_000))).await {
        let from = run.now();
        let how = if worker.chance(60) { "crashed" } else { "stopped" };
        match how {
            "crashed" => postgres.crash().await,
            _ => postgres.stop().await,
        }
        run.goes_on(worker.millis(700)).await;
        postgres.start_again().await;
        run.record_fault(FaultKind::Restarted(how), from);
    }
    postgres
}
