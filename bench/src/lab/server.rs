//! The server under test, with the Postgres that it embeds.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use super::free_port;

/// A first start makes a cluster.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A drain and a last checkpoint.
const STOP_LIMIT: Duration = Duration::from_secs(90);

/// A running server.
pub struct Server {
    child: Child,
    /// Where it listens, as `127.0.0.1:port`.
    pub address: String,
    /// Its process.
    pub pid: u32,
    /// The first process of its Postgres.
    pub postmaster: u32,
    /// Where its Postgres listens beside the socket.
    pub postgres_port: u16,
    /// Where its Postgres keeps the data.
    pub data: PathBuf,
}

impl Server {
    /// Starts it with the settings that it has by itself.
    pub async fn start(program: &Path, postgres: &Path, data: &Path, log: &Path) -> Result<Server> {
        let postgres_port = free_port()?;
        let mut command = Command::new(program);
        for (variable, _) in std::env::vars().filter(|(name, _)| name.starts_with("PGMQ_GRPC_")) {
            command.env_remove(variable);
        }
        command.env_remove("DATABASE_URL").env_remove("RUST_LOG");
        command.args(["--listen", "127.0.0.1:0", "--log", "info", "--log-format", "json"]);
        command.arg("--data-dir").arg(data).arg("--postgres-bin-dir").arg(postgres);
        command.arg("--postgres-port").arg(postgres_port.to_string());
        let errors = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        // A group of its own: Ctrl-C is for us, who end it in order.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors).process_group(0).kill_on_drop(true);
        let mut child = command.spawn().with_context(|| format!("cannot run {}", program.display()))?;
        let pid = child.id().context("a process that has ended")?;
        let address = wait_for_start(&mut child, log).await?;
        let pid_file = data.join("postgres/postmaster.pid");
        let text = fs::read_to_string(&pid_file).with_context(|| format!("no {}", pid_file.display()))?;
        let postmaster = text.lines().next().unwrap_or_default().trim().parse().context("postmaster.pid")?;
        Ok(Server { child, address, pid, postmaster, postgres_port, data: data.to_owned() })
    }

    /// Ends it in order.
    pub async fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.pid)?), Signal::SIGTERM)?;
        match timeout(STOP_LIMIT, self.child.wait()).await {
            Ok(status) => drop(status?),
            Err(_) => bail!("the server did not end within {} s", STOP_LIMIT.as_secs()),
        }
        Ok(())
    }
}

async fn wait_for_start(child: &mut Child, log: &Path) -> Result<String> {
    let began = Instant::now();
    loop {
        let text = fs::read_to_string(log).unwrap_or_default();
        let records = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        for record in records {
            let listen = record["listen"].as_str().or(record["fields"]["listen"].as_str());
            if let Some(address) = listen.and_then(|listen| listen.split(',').next()) {
                return Ok(address.to_owned());
            }
        }
        if let Some(status) = child.try_wait()? {
            bail!("the server ended with {status}:\n{text}");
        }
        if began.elapsed() > START_LIMIT {
            bail!("the server did not start within {} s:\n{text}", START_LIMIT.as_secs());
        }
        sleep(Duration::from_millis(20)).await;
    }
}
