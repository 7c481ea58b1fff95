//! Connections to Postgres as this server needs them, for bb8 to pool.

use std::time::Duration;

use bb8::ManageConnection;
use bb8_postgres::PostgresConnectionManager;
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::{Client, Config};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::tls;
use crate::config::DatabaseUrl;
use crate::domain::Error;

/// How long a connection may take to be made, unless the URL says otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How every session is set up. Fences need read committed, whatever the role's default is.
const SETTINGS: &str = "\
SET timezone = 'UTC'; \
SET default_transaction_isolation = 'read committed'; \
SET lock_timeout = '2s'; \
SET idle_in_transaction_session_timeout = '60s'; \
SET statement_timeout = 0";

/// An abandoned statement ends within a second of its client.
const ABANDONED_STATEMENTS: &str = "SET client_connection_check_interval = '1s'";

/// A connection with what this server knows of its state.
pub(super) struct Session {
    pub(super) client: Client,
    /// A statement is running, or its future was dropped: the next user would wait behind it. Or it ended the session,
    /// which the client hears of a moment later.
    pub(super) busy: bool,
    /// A transaction is open.
    pub(super) in_transaction: bool,
    /// The session's `statement_timeout` in milliseconds; 0 for none.
    pub(super) statement_timeout_ms: u32,
}

/// Makes sessions over bb8-postgres and tells which are fit to be used again.
pub(super) struct Manager {
    inner: PostgresConnectionManager<MakeRustlsConnect>,
}

impl Manager {
    /// Prepares to connect to the database of a URL, without connecting.
    ///
    /// # Errors
    /// `Internal` for certificates that cannot be read.
    pub(super) fn new(url: &DatabaseUrl) -> Result<Self, Error> {
        let mut config: Config = url.config.clone();
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        if config.get_application_name().is_none() {
            config.application_name("pgmq-grpc");
        }
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        // A network that swallows packets is noticed within half a minute.
        config
            .keepalives_idle(Duration::from_secs(15))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3);
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(Duration::from_secs(30));
        }
        Ok(Self { inner: PostgresConnectionManager::new(config, tls::connector(url)?) })
    }
}

impl ManageConnection for Manager {
    type Connection = Session;
    type Error = tokio_postgres::Error;

    async fn connect(&self) -> Result<Session, tokio_postgres::Error> {
        let client = self.inner.connect().await?;
        let (set, _) = futures_util::future::join(
            client.batch_execute(SETTINGS),
            // Not every platform's Postgres can do this.
            client.batch_execute(ABANDONED_STATEMENTS),
        )
        .await;
        set?;
        Ok(Session { client, busy: false, in_transaction: false, statement_timeout_ms: 0 })
    }

    async fn is_valid(&self, session: &mut Session) -> Result<(), tokio_postgres::Error> {
        self.inner.is_valid(&mut session.client).await
    }

    fn has_broken(&self, session: &mut Session) -> bool {
        session.busy || session.in_transaction || session.client.is_closed()
    }
}
