//! One connection beside the pool over which replicas tell each other what happened, by LISTEN and NOTIFY.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::types::Type;
use tokio_postgres::{AsyncMessage, Client, Config};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::error;
use super::manager::ConnectError;
use super::statement::Effect;
use super::tls;
use crate::config::DatabaseUrl;
use crate::domain::Result;

/// The longest that one step of this connection may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Notifications that may wait to be looked at; then Postgres keeps the rest.
const BACKLOG: usize = 1_024;

/// A commit with a notification holds a lock of the whole cluster; without a wait for the disk it holds it but shortly.
/// What a crash loses of it nobody misses.
const SETTINGS: &str = "SET synchronous_commit = off; SET statement_timeout = '10s'";

const LISTEN: &str = "-- pgmq-grpc: listen\nLISTEN pgmq_grpc";

const ANNOUNCE: &str = "-- pgmq-grpc: announce
SELECT pg_notify('pgmq_grpc', p.payload) AS announced FROM unnest($1::text[]) AS p(payload)";

/// Connects to where announcements are made.
pub struct Announcements {
    config: Config,
    tls: MakeRustlsConnect,
}

/// A connection that listens.
pub struct Line {
    client: Client,
    payloads: mpsc::Receiver<String>,
}

impl Announcements {
    /// Prepares to connect to the database of a URL.
    ///
    /// # Errors
    /// `Internal` for certificates that cannot be read.
    pub fn new(url: &DatabaseUrl) -> Result<Self> {
        let mut config: Config = url.config.clone();
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(PATIENCE);
        }
        if config.get_application_name().is_none() {
            config.application_name("pgmq-grpc");
        }
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        config
            .keepalives_idle(Duration::from_secs(15))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3);
        Ok(Self { config, tls: tls::connector(url)? })
    }

    /// Connects, and listens from then on.
    ///
    /// # Errors
    /// `DatabaseUnavailable`.
    pub async fn connect(&self) -> Result<Line> {
        let connected = tokio::time::timeout(PATIENCE, self.config.connect(self.tls.clone()));
        let connected = connected.await.map_err(|_| error::unavailable("the database does not answer"))?;
        let (client, mut connection) =
            connected.map_err(|failed| error::of_connecting(ConnectError::from(failed)))?;
        let (sender, payloads) = mpsc::channel(BACKLOG);
        tokio::spawn(async move {
            let mut messages = futures_util::stream::poll_fn(|context| connection.poll_message(context));
            while let Some(Ok(message)) = futures_util::StreamExt::next(&mut messages).await {
                if let AsyncMessage::Notification(notification) = message
                    && sender.send(notification.payload().to_owned()).await.is_err()
                {
                    return;
                }
            }
        });
        let line = Line { client, payloads };
        line.run(line.client.batch_execute(SETTINGS)).await?;
        line.run(line.client.batch_execute(LISTEN)).await?;
        Ok(line)
    }
}

impl Line {
    /// Tells all who listen, this connection too.
    ///
    /// # Errors
    /// `DatabaseUnavailable`.
    pub async fn announce(&self, payloads: &[String]) -> Result<()> {
        let parameters: [super::database::Parameter<'_>; 1] = [(&payloads, Type::TEXT_ARRAY)];
        self.run(self.client.query_typed(ANNOUNCE, &parameters)).await.map(drop)
    }

    /// The next payload; none once the connection is lost.
    pub async fn hear(&mut self) -> Option<String> {
        self.payloads.recv().await
    }

    async fn run<T>(&self, asked: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T> {
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(answer) => answer.map_err(|failed| error::of_statement(failed, Effect::Reads)),
            Err(_) => Err(error::unavailable("the database does not answer")),
        }
    }
}
