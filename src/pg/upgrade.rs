//! pgmq installed or upgraded because a caller asked for it.

use super::database::Database;
use super::install::Installer;
use crate::config::DatabaseUrl;
use crate::domain::{Error, Kind, Result};

/// What an upgrade changed.
#[derive(Debug, Clone)]
pub struct Upgrade {
    /// The version from before; none if pgmq was missing or its version is unknown.
    pub previous_version: Option<String>,
    /// The version from now on.
    pub pgmq_version: Option<String>,
}

/// Installs or upgrades pgmq, unless the operator forbade it.
#[derive(Clone)]
pub struct Upgrader {
    installer: Option<Installer>,
}

impl Upgrader {
    /// Prepares to work on the database of a URL; without `allowed` it refuses.
    pub fn new(database: &Database, url: &DatabaseUrl, allowed: bool) -> Self {
        Self { installer: allowed.then(|| Installer::new(url.clone(), database.guard())) }
    }

    /// Installs pgmq, or brings it to the newest version that its way of installation has.
    ///
    /// # Errors
    /// `PgmqNotInstalled` under `--no-install`; `PermissionDenied`; `PgmqVersionUnsupported` for a pgmq that was
    /// installed by hand.
    pub async fn upgrade(&self, database: &Database) -> Result<Upgrade> {
        let Some(installer) = &self.installer else {
            return Err(Error::new(
                Kind::PgmqNotInstalled,
                "this server was started with --no-install: install or upgrade pgmq in the database yourself",
            ));
        };
        let (before, now) = installer.upgrade().await?;
        let now = database.remember(now);
        Ok(Upgrade { previous_version: before.pgmq_version, pgmq_version: now.pgmq_version.clone() })
    }
}
