//! One connection beside the pool over which replicas tell each other what happened, by LISTEN and NOTIFY.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bb8::ManageConnection;
use tokio::sync::mpsc;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::database::{Database, Parameter};
use super::error;
use super::guard::{Admission, Guard};
use super::manager::{Manager, Session};
use super::policies::Policies;
use super::statement::Effect;
use crate::config::DatabaseUrl;
use crate::domain::Result;

/// The longest that one step of this connection may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The pause between two questions for a sign of life.
const BEAT: Duration = Duration::from_millis(400);

/// How long an answer is waited for at a time.
const NAP: Duration = Duration::from_millis(50);

/// After how long without one the connection counts as one on which nothing is heard.
const DEAF_AFTER: Duration = Duration::from_millis(500);

/// Notifications that may wait to be looked at. Who is further behind looks at everything instead.
const BACKLOG: usize = 1_024;

/// A commit with a notification holds a lock of the whole cluster; without a wait for the disk it holds it but shortly.
/// What a crash loses of it nobody misses.
const SETTINGS: &str = "SET synchronous_commit = off; SET statement_timeout = '10s'";

const LISTEN: &str = "-- pgmq-grpc: listen\nLISTEN pgmq_grpc";

const ANNOUNCE: &str = "-- pgmq-grpc: announce
SELECT pg_notify('pgmq_grpc', p.payload) AS announced FROM unnest($1::text[]) AS p(payload)";

/// Connects to where announcements are made: the true primary, as all other connections do.
pub struct Announcements {
    manager: Manager,
    guard: Arc<Guard>,
}

/// A connection that listens.
pub struct Line {
    client: Arc<Client>,
    payloads: mpsc::Receiver<String>,
    guard: Arc<Guard>,
    admission: Admission,
}

impl Announcements {
    /// Prepares to connect to a database, which is the one of the URL.
    ///
    /// # Errors
    /// `Internal` for certificates that cannot be read.
    pub fn new(database: &Database, url: &DatabaseUrl) -> Result<Self> {
        let guard = database.guard();
        Ok(Self { manager: Manager::new(url, Arc::clone(&guard))?, guard })
    }

    /// Connects, and listens from then on.
    ///
    /// # Errors
    /// `DatabaseUnavailable`.
    pub async fn connect(&self) -> Result<Line> {
        let session = self.manager.connect().await.map_err(error::of_connecting)?;
        // Nobody keeps the link, so that the payloads end with the connection.
        let Session { client, link, admission, .. } = session;
        let payloads = link.listen(BACKLOG);
        let client = Arc::new(client);
        let line = Line { client, payloads, guard: Arc::clone(&self.guard), admission };
        line.run(line.client.batch_execute(SETTINGS)).await?;
        line.run(line.client.batch_execute(LISTEN)).await?;
        Ok(line)
    }
}

/// Asks a connection that listens for signs of life. Without them, one whose other end has gone without a word looks like
/// one on which nothing happens.
pub struct Pulse {
    client: Arc<Client>,
}

impl Pulse {
    /// Asks again and again, and tells when an answer does not come soon, and when one has come after all. What was announced
    /// before an answer is here with it.
    ///
    /// It asks by a message that is no statement and begins no transaction. How long it waits is counted in naps, so that it
    /// does not take its own lack of a processor for the database's silence.
    ///
    /// # Errors
    /// `DatabaseUnavailable` once there was no answer for long.
    pub async fn feel(&self, policies: &Policies) -> Result<Infallible> {
        loop {
            policies.set_answered(true);
            tokio::time::sleep(BEAT).await;
            let mut answer = pin!(self.client.check_connection());
            let mut naps = 0;
            let answered = loop {
                tokio::select! {
                    biased;
                    answered = &mut answer => break answered,
                    () = tokio::time::sleep(NAP) => naps += 1,
                }
                if NAP * naps >= PATIENCE {
                    return Err(error::unavailable("the database does not answer"));
                }
                if NAP * naps >= DEAF_AFTER {
                    policies.set_answered(false);
                }
            };
            answered.map_err(|failed| error::of_statement(failed, Effect::Reads))?;
        }
    }
}

impl Line {
    /// Tells all who listen, this connection too.
    ///
    /// # Errors
    /// `DatabaseUnavailable`.
    pub async fn announce(&self, payloads: &[String]) -> Result<()> {
        let parameters: [Parameter<'_>; 1] = [(&payloads, Type::TEXT_ARRAY)];
        self.run(self.client.query_typed(ANNOUNCE, &parameters)).await.map(drop)
    }

    /// What feels the pulse of this connection while it is in use.
    pub fn pulse(&self) -> Pulse {
        Pulse { client: Arc::clone(&self.client) }
    }

    /// The next payload; none once the connection is lost, or another primary has taken over, where others announce.
    pub async fn hear(&mut self) -> Option<String> {
        tokio::select! {
            biased;
            () = self.guard.superseded(self.admission) => None,
            payload = self.payloads.recv() => payload,
        }
    }

    async fn run<T>(&self, asked: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T> {
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(answer) => answer.map_err(|failed| error::of_statement(failed, Effect::Reads)),
            Err(_) => Err(error::unavailable("the database does not answer")),
        }
    }
}
