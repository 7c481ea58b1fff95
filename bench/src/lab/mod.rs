//! The laboratory: the server under test with its private Postgres, and what is needed to look at them.

mod children;
mod download;
mod processor;
mod server;
mod sql;

pub use children::{Watched, run_reporting, run_to_end};
pub use server::Server;
pub use sql::{Layout, Sql};

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use futures_util::future::try_join_all;

use crate::load::connect;
use crate::peers::Brokers;
use crate::proto::CreateQueueRequest;
use crate::proto::queue_service_client::QueueServiceClient;

/// Everything that trials use.
pub struct Lab {
    /// Where results, data and logs go.
    pub output: PathBuf,
    /// This program, which is the load generator too.
    pub program: PathBuf,
    /// The server under test.
    pub server: Server,
    /// A connection of our own to its Postgres.
    pub sql: Sql,
    /// The peers that run beside it.
    pub brokers: Brokers,
}

impl Lab {
    /// Starts the server and its Postgres, which begin empty.
    pub async fn open(server: &Path, output: &Path) -> Result<Lab> {
        let programs = download::postgres(&output.join("postgres-18")).await?;
        let data = output.join("data");
        if data.exists() {
            std::fs::remove_dir_all(&data).with_context(|| format!("cannot remove {}", data.display()))?;
        }
        let server = Server::start(server, &programs, &data, &output.join("server.log")).await?;
        let sql = Sql::connect(&data, server.postgres_port).await?;
        let brokers = Brokers::start(output).await;
        Ok(Lab { output: output.to_owned(), program: std::env::current_exe()?, server, sql, brokers })
    }

    /// Stops the brokers and the server, which stops Postgres, and removes the data.
    pub async fn close(self) -> Result<()> {
        self.brokers.stop().await;
        drop(self.sql);
        let data = self.server.data.clone();
        self.server.stop().await?;
        std::fs::remove_dir_all(&data).with_context(|| format!("cannot remove {}", data.display()))
    }

    /// What to watch while a trial runs.
    pub fn watched(&self) -> Watched {
        Watched { server: self.server.pid, postmaster: self.server.postmaster }
    }
}

/// A port of 127.0.0.1 that nobody uses.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

impl Lab {
    /// Makes a queue if it is not there yet.
    pub async fn create(&self, queue: &str, layout: Layout) -> Result<()> {
        match layout {
            Layout::Pgmq => self.sql.create(queue).await,
            Layout::Tuned => self.create_many(&[queue.to_owned()]).await,
        }
    }

    /// Makes many queues as the server makes them, some at a time.
    pub async fn create_many(&self, queues: &[String]) -> Result<()> {
        let channel = connect(&self.server.address, 1).await?.into_iter().next().context("no connection")?;
        for some in queues.chunks(8) {
            let created = some.iter().map(|queue| {
                let mut client = QueueServiceClient::new(channel.clone());
                let request = CreateQueueRequest { queue: queue.clone(), ..CreateQueueRequest::default() };
                async move { client.create_queue(request).await }
            });
            try_join_all(created).await.context("CreateQueue")?;
        }
        Ok(())
    }
}
