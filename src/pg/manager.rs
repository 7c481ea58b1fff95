//! Connections to Postgres as this server needs them, for bb8 to pool.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bb8::ManageConnection;
use tokio_postgres::{Client, Config};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::guard::{Admission, Guard, Refusal};
use super::hosts::{Candidate, Hosts};
use super::link::Link;
use super::prepared::Prepared;
use super::standing::Standing;
use super::tls;
use crate::config::DatabaseUrl;
use crate::domain::Error;

/// How long a connection to one server may take to be made and set up, unless the URL says otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a look at a server may take to which no connection is wanted.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection with what this server knows of its state.
pub(super) struct Session {
    pub(super) client: Client,
    /// What the connection's task has heard.
    pub(super) link: Arc<Link>,
    /// When the guard let it in.
    pub(super) admission: Admission,
    /// A statement is running, or its future was dropped: the next user would wait behind it. Or it ended the session,
    /// which the client hears of a moment later.
    pub(super) busy: bool,
    /// A transaction is open.
    pub(super) in_transaction: bool,
    /// The session's `statement_timeout` in milliseconds; 0 for none.
    pub(super) statement_timeout_ms: u32,
    /// Whether it has seen to the number of the contents of unlogged queues. The crash that takes that away ends it, too.
    pub(super) contents_known: bool,
    /// The statements that it has prepared.
    pub(super) prepared: Prepared,
}

/// Why a connection could not be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    /// Postgres refused it, or could not be reached.
    #[error(transparent)]
    Postgres(#[from] tokio_postgres::Error),
    /// There is a server, but not one to use.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No host of the URL has an address.
    #[error("the host's name cannot be resolved")]
    Unresolved(#[source] io::Error),
    /// It took too long.
    #[error("the server does not answer")]
    Silent,
}

/// Makes sessions with the true primary of a URL's hosts, and tells which are fit to be used again.
pub(super) struct Manager {
    hosts: Hosts,
    tls: MakeRustlsConnect,
    connect_timeout: Duration,
    guard: Arc<Guard>,
}

impl Manager {
    /// Prepares to connect to the database of a URL, without connecting.
    ///
    /// # Errors
    /// `Internal` for certificates that cannot be read.
    pub(super) fn new(url: &DatabaseUrl, guard: Arc<Guard>) -> Result<Self, Error> {
        let mut config: Config = url.config.clone();
        let connect_timeout = config.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT);
        config.connect_timeout(connect_timeout);
        if config.get_application_name().is_none() {
            config.application_name("pgmq-grpc");
        }
        // A network that swallows packets is noticed within half a minute.
        config
            .keepalives_idle(Duration::from_secs(15))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3);
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(Duration::from_secs(30));
        }
        Ok(Self { hosts: Hosts::new(config), tls: tls::connector(url)?, connect_timeout, guard })
    }

    /// Looks at all servers but the one in use, where a standby may have become the primary while the old one lives on.
    pub(super) async fn look_around(&self) {
        let Ok(candidates) = self.hosts.candidates().await else { return };
        let others = candidates.iter().skip(1).map(|candidate| async {
            if let Ok(Ok((_, _, standing))) = tokio::time::timeout(LOOK_TIMEOUT, self.greet(candidate)).await
            {
                self.guard.hear_of(&standing);
            }
        });
        futures_util::future::join_all(others).await;
    }

    /// Tries the servers one after the other, and of all failures tells the one that says most; with the session it
    /// gives how to connect to the same server again.
    pub(super) async fn connect_and_tell(&self) -> Result<(Session, Config), ConnectError> {
        let mut failure = ConnectError::Silent;
        for candidate in self.hosts.candidates().await.map_err(ConnectError::Unresolved)? {
            match self.connect_to(&candidate).await {
                Ok(session) => return Ok((session, candidate.config)),
                Err(error) if matches!(failure, ConnectError::Refused(Refusal::OldPrimary { .. })) => {
                    drop(error);
                }
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// Whether a session's server lives, as far as anybody knows, and is still the primary.
    pub(super) fn is_fit(&self, session: &Session) -> bool {
        !session.client.is_closed() && self.guard.is_fit(session.admission)
    }

    async fn greet(
        &self,
        candidate: &Candidate,
    ) -> Result<(Client, Arc<Link>, Standing), tokio_postgres::Error> {
        let (client, connection) = candidate.config.connect(self.tls.clone()).await?;
        let link = Link::spawn(connection, Arc::clone(&self.guard));
        let standing = self.guard.greeting.exchange(&client).await?;
        Ok((client, link, standing))
    }

    async fn connect_to(&self, candidate: &Candidate) -> Result<Session, ConnectError> {
        let greeted = tokio::time::timeout(self.connect_timeout, self.greet(candidate)).await;
        let (client, link, standing) = greeted.map_err(|_| ConnectError::Silent)??;
        let admission = self.guard.admit(&standing)?;
        link.admitted(admission);
        self.hosts.found(candidate);
        Ok(Session {
            client,
            link,
            admission,
            busy: false,
            in_transaction: false,
            statement_timeout_ms: 0,
            contents_known: false,
            prepared: Prepared::default(),
        })
    }
}

impl ManageConnection for Manager {
    type Connection = Session;
    type Error = ConnectError;

    async fn connect(&self) -> Result<Session, ConnectError> {
        self.connect_and_tell().await.map(|(session, _)| session)
    }

    async fn is_valid(&self, session: &mut Session) -> Result<(), ConnectError> {
        Ok(session.client.simple_query("").await.map(drop)?)
    }

    fn has_broken(&self, session: &mut Session) -> bool {
        session.busy || session.in_transaction || !self.is_fit(session)
    }
}
