//! RabbitMQ: a node of our own, beside any that runs on this machine.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::unistd::{User, geteuid};
use tokio::process::Command;

use super::broker::{Broker, fresh_directory};
use crate::lab::free_port;

/// The script that becomes the node, past the wrapper that insists on root.
const PROGRAM: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";

/// A running node.
pub struct Rabbitmq {
    broker: Broker,
    directory: PathBuf,
    names: u16,
    /// Where it listens.
    pub url: String,
}

impl Rabbitmq {
    /// Starts one with its settings as Debian has them, but for names, ports and places.
    pub async fn start(directory: &Path) -> Result<Rabbitmq> {
        if !Path::new(PROGRAM).is_file() || cfg!(not(feature = "peers")) {
            bail!("RabbitMQ, or its client, was not installed");
        }
        fresh_directory(directory)?;
        let (port, distribution, names) = (free_port()?, free_port()?, free_port()?);
        let mut command = Command::new(PROGRAM);
        if geteuid().is_root() {
            let user = User::from_name("rabbitmq")?.context("there is no user rabbitmq")?;
            chown(directory, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        let inside = |name: &str| -> PathBuf { directory.join(name) };
        command
            .current_dir(directory)
            .env("HOME", directory)
            .env("RABBITMQ_NODENAME", format!("pgmq-bench-{}@localhost", std::process::id()))
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", port.to_string())
            .env("RABBITMQ_DIST_PORT", distribution.to_string())
            .env("RABBITMQ_MNESIA_BASE", inside("data"))
            .env("RABBITMQ_LOG_BASE", inside("log"))
            .env("RABBITMQ_PID_FILE", inside("pid"))
            .env("RABBITMQ_CONFIG_FILE", inside("rabbitmq.conf"))
            .env("RABBITMQ_CONF_ENV_FILE", inside("rabbitmq-env.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", inside("enabled_plugins"))
            // Its own name service, which is stopped with it.
            .env("ERL_EPMD_PORT", names.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1");
        let log = directory.with_extension("log");
        let broker = Broker::start(command, port, &log).await?;
        Ok(Rabbitmq {
            broker,
            directory: directory.to_owned(),
            names,
            url: format!("amqp://guest:guest@127.0.0.1:{port}/%2f"),
        })
    }

    /// Stops it and its name service, and removes its data.
    pub async fn stop(self) {
        self.broker.stop().await;
        let mut command = Command::new("epmd");
        command
            .args(["-port", &self.names.to_string(), "-kill"])
            .env("ERL_EPMD_PORT", self.names.to_string());
        let _ = command.output().await;
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
