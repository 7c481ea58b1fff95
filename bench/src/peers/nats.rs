//! NATS with JetStream.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use tokio::process::Command;

use super::broker::{Broker, fresh_directory};
use crate::lab::free_port;

/// A running server.
pub struct Nats {
    broker: Broker,
    directory: PathBuf,
    /// Where it listens.
    pub url: String,
}

impl Nats {
    /// Starts one. `synced` makes it sync before each answer, as Postgres and quorum queues do.
    pub async fn start(output: &Path, name: &str, synced: bool) -> Result<Nats> {
        let program = output.join("bin/nats-server");
        if !program.is_file() || cfg!(not(feature = "peers")) {
            bail!("the NATS server, or its client, was not installed");
        }
        let directory = output.join(name);
        fresh_directory(&directory)?;
        let port = free_port()?;
        let sync = if synced { "sync_interval: always" } else { "" };
        let settings = format!(
            "listen: 127.0.0.1:{port}\nmax_payload: 1048576\n\
             jetstream {{\n  store_dir: \"{}\"\n  max_file_store: 20GB\n  {sync}\n}}\n",
            directory.display()
        );
        let file = directory.join("nats.conf");
        fs::write(&file, settings)?;
        let mut command = Command::new(program);
        command.arg("--config").arg(&file);
        let broker = Broker::start(command, port, &output.join(format!("{name}.log"))).await?;
        Ok(Nats { broker, directory, url: format!("nats://127.0.0.1:{port}") })
    }

    /// Stops it and removes its data.
    pub async fn stop(self) {
        self.broker.stop().await;
        let _ = fs::remove_dir_all(&self.directory);
    }
}
