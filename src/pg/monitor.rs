//! A periodic cheap check of the database, which health reports and which installs pgmq at the first contact.

use std::time::{Duration, Instant};

use bb8::ManageConnection;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::database::Database;
use super::install::Installer;
use super::manager::{Manager, Session};
use super::schema::Schema;
use super::statement::Effect;
use super::version::{self, Installation};
use crate::config::DatabaseUrl;
use crate::domain::{Error, Kind, Result, error};

/// The longest that one check may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// Every so many checks the other hosts of the URL are looked at, too.
const CHECKS_BETWEEN_LOOKS: u32 = 5;

/// After so many checks the servers' own schema is looked at again: a newer server may have closed it to this one.
const CHECKS_BETWEEN_SCHEMA_LOOKS: u32 = 15;

/// The longest between two of these looks, but for the time to the next check.
const BETWEEN_SCHEMA_LOOKS: Duration = Duration::from_secs(30);

/// What the last check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DatabaseState {
    /// No check has been made yet.
    Unknown,
    /// It answers and has pgmq.
    Ready,
    /// It answers, but pgmq is missing and may not be installed.
    PgmqMissing,
    /// It does not answer, or only reads.
    Unavailable,
}

/// Checks the database again and again over one connection of its own.
pub struct Monitor {
    database: Database,
    manager: Manager,
    installer: Option<Installer>,
    interval: Duration,
    session: Option<Session>,
    installed_once: bool,
    /// What `installed_once` is true of.
    era: u64,
    checks: u32,
    /// When the schema is to be looked at again; none for at once.
    schema_due: Option<Instant>,
    schema_failing: bool,
    sequences_checked: bool,
    state: watch::Sender<DatabaseState>,
}

impl Monitor {
    /// Prepares to check the database of a URL; `install` allows pgmq to be installed if it is missing.
    ///
    /// # Errors
    /// `Internal` for TLS files that cannot be read.
    pub fn new(database: Database, url: &DatabaseUrl, install: bool, interval: Duration) -> Result<Self> {
        Ok(Self {
            manager: Manager::new(url, database.guard())?,
            installer: install.then(|| Installer::new(url.clone(), database.guard())),
            database,
            interval,
            session: None,
            installed_once: false,
            era: 0,
            checks: 0,
            schema_due: None,
            schema_failing: false,
            sequences_checked: false,
            state: watch::Sender::new(DatabaseState::Unknown),
        })
    }

    /// Follows what the checks find.
    pub fn subscribe(&self) -> watch::Receiver<DatabaseState> {
        self.state.subscribe()
    }

    /// Checks until the token is cancelled, and logs every change of state.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.check() => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(self.interval) => {}
            }
        }
    }

    async fn check(&mut self) {
        let found = match tokio::time::timeout(CHECK_TIMEOUT, self.probe()).await {
            Ok(found) => found,
            Err(_) => Err(super::error::unavailable("the database does not answer")),
        };
        if self.checks.is_multiple_of(CHECKS_BETWEEN_LOOKS) {
            self.manager.look_around().await;
        }
        self.checks = self.checks.wrapping_add(1);
        // Another primary may lack what was there before.
        let era = self.database.guard().era();
        self.installed_once &= era == self.era;
        self.era = era;
        // Installing takes longer than a check may.
        let found = match (found, self.installer.clone()) {
            (Ok(found), Some(installer)) if found.installed_by.is_none() && !self.installed_once => {
                installer.install().await.inspect(|installed| {
                    let version = installed.pgmq_version.as_deref().unwrap_or("unknown");
                    tracing::info!(version, "pgmq installed");
                })
            }
            (found, _) => found,
        };
        match found {
            Ok(found) => {
                let state = match found.installed_by {
                    Some(_) => DatabaseState::Ready,
                    None => DatabaseState::PgmqMissing,
                };
                self.installed_once |= state == DatabaseState::Ready;
                if state == DatabaseState::Ready {
                    self.check_schema().await;
                }
                // Before the state is told: who hears of it asks what was found, and sends.
                let found = self.database.remember(found);
                if state == DatabaseState::Ready && !std::mem::replace(&mut self.sequences_checked, true) {
                    super::sequences::repair(&self.database).await;
                }
                // Nor is a call served that does not know its queue's policy. Where this fails, the call finds out.
                if state == DatabaseState::Ready
                    && let Err(error) = self.database.learn_policies().await
                {
                    tracing::debug!(cause = error::chain(&error), "policies are not known yet");
                }
                self.enter(state, None, Some(&found));
            }
            Err(error) => {
                self.session = None;
                let missing = matches!(error.kind(), Kind::PermissionDenied | Kind::Internal);
                let state = if missing { DatabaseState::PgmqMissing } else { DatabaseState::Unavailable };
                self.enter(state, Some(&error), None);
            }
        }
    }

    /// Makes or updates the servers' own schema as soon as it may. Without it all goes on but what needs it.
    async fn check_schema(&mut self) {
        let Some(session) = &self.session else { return };
        let is_due = self.schema_due.is_none_or(|due| due <= Instant::now());
        if self.database.has_own_schema() && !is_due {
            return;
        }
        let found = match tokio::time::timeout(CHECK_TIMEOUT, super::schema::find(&session.client)).await {
            Ok(found) => found,
            Err(_) => return,
        };
        let found = match (found, &self.installer) {
            (Ok(Schema::Migratable { .. }), Some(installer)) => installer.migrate().await,
            (found, _) => found,
        };
        match found {
            Ok(found) => {
                let pause =
                    self.interval.saturating_mul(CHECKS_BETWEEN_SCHEMA_LOOKS).min(BETWEEN_SCHEMA_LOOKS);
                self.schema_due = Some(Instant::now() + pause);
                self.schema_failing = false;
                self.database.remember_schema(found);
            }
            // Once: it is tried again with every check.
            Err(error) if !std::mem::replace(&mut self.schema_failing, true) => {
                tracing::warn!(cause = error::chain(&error), "schema pgmq_grpc cannot be made");
            }
            Err(_) => {}
        }
    }

    async fn probe(&mut self) -> Result<Installation> {
        let kept = self.session.take();
        let mut known = self.database.known_installation();
        let session = match kept.filter(|session| self.manager.is_fit(session)) {
            Some(session) => session,
            None => {
                // Perhaps another database, restored or promoted: what stood in the old one may be missing.
                self.schema_due = None;
                self.sequences_checked = false;
                known = None;
                self.manager.connect().await.map_err(super::error::of_connecting)?
            }
        };
        // What plain SQL has upgraded is found now and then; an upgrade by a server is remembered at once.
        let known = known.filter(|_| !self.checks.is_multiple_of(CHECKS_BETWEEN_LOOKS));
        let found = version::probe_again(&session.client, known.as_deref()).await?;
        if self.database.guard().is_superseded(session.admission) {
            return Err(super::error::superseded(Effect::Reads));
        }
        self.session = Some(session);
        Ok(found)
    }

    fn enter(&self, state: DatabaseState, cause: Option<&Error>, found: Option<&Installation>) {
        let changed = self.state.send_if_modified(|current| {
            let changed = *current != state;
            current.clone_from(&state);
            changed
        });
        if !changed {
            return;
        }
        let cause = cause.map_or("this server may not install it".to_owned(), |cause| error::chain(cause));
        match state {
            DatabaseState::Unknown => {}
            DatabaseState::Ready => {
                let version = found.and_then(|found| found.pgmq_version.as_deref()).unwrap_or("unknown");
                let postgres = found.map_or("", |found| found.postgres_version.as_str());
                tracing::info!(postgres, pgmq = version, "database ready");
            }
            DatabaseState::PgmqMissing => tracing::warn!(cause, "pgmq is missing in the database"),
            DatabaseState::Unavailable => tracing::warn!(cause, "database unavailable"),
        }
    }
}
