//! Which pgmq is installed, and what it can do.

use tokio_postgres::{Client, Row};

use super::row::column;
use super::statement::Effect;
use crate::domain::{Error, Kind, Result};

const PROBE: &str = "-- pgmq-grpc: probe
SELECT current_setting('server_version') AS postgres_version,
  current_setting('server_version_num')::integer AS postgres_version_number,
  pg_is_in_recovery() AS in_recovery,
  to_regclass('pgmq.meta') IS NOT NULL AS installed,
  to_regclass('pgmq.__pgmq_migrations') IS NOT NULL AS has_migrations,
  (SELECT e.extversion FROM pg_extension AS e WHERE e.extname = 'pgmq') AS extension_version,
  EXISTS (SELECT FROM pg_extension AS e WHERE e.extname = 'pg_partman') AS partman,
  EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = to_regclass('pgmq.message_record')
    AND a.attname = 'last_read_at') AS last_read_at,
  to_regprocedure('pgmq.read_grouped(text, integer, integer)') IS NOT NULL AS grouped_reads,
  to_regprocedure('pgmq.read_grouped_head(text, integer, integer)') IS NOT NULL AS grouped_head_reads,
  to_regprocedure('pgmq.create_fifo_index(text)') IS NOT NULL AS fifo_indexes,
  to_regprocedure('pgmq.send_batch_topic(text, jsonb[], jsonb[], timestamp with time zone)') IS NOT NULL AS topics,
  to_regprocedure('pgmq.enable_notify_insert(text, integer)') IS NOT NULL AS notifications,
  to_regprocedure('pgmq.update_notify_insert(text, integer)') IS NOT NULL AS notification_settings,
  to_regprocedure('pgmq.create_partitioned(text, text, text, integer)') IS NOT NULL AS premake";

const MIGRATED_VERSION: &str = "-- pgmq-grpc: migrated_version
SELECT m.version FROM pgmq.__pgmq_migrations AS m ORDER BY string_to_array(m.version, '.')::integer[] DESC LIMIT 1";

/// How pgmq came into the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstalledBy {
    /// `CREATE EXTENSION pgmq`.
    Extension,
    /// The official crate's SQL, with its migrations table.
    Sql,
    /// SQL run by hand.
    Unknown,
}

impl InstalledBy {
    /// The word for it in `GetServerInfo`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Extension => "extension",
            Self::Sql => "sql",
            Self::Unknown => "unknown",
        }
    }
}

/// Something that only newer pgmq versions can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// `pgmq.read_grouped` and `pgmq.read_grouped_rr`.
    GroupedReads,
    /// `pgmq.read_grouped_head`.
    GroupedHeadReads,
    /// `pgmq.create_fifo_index`.
    FifoIndexes,
    /// Topics.
    Topics,
    /// Throttled insert notifications.
    Notifications,
    /// Listing and changing notification settings.
    NotificationSettings,
    /// The number of partitions made ahead.
    Premake,
}

impl Feature {
    const ALL: [Self; 7] = [
        Self::GroupedReads,
        Self::GroupedHeadReads,
        Self::FifoIndexes,
        Self::Topics,
        Self::Notifications,
        Self::NotificationSettings,
        Self::Premake,
    ];

    /// The word for it in `GetServerInfo` and in the probe's columns.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::GroupedReads => ("grouped-reads", "grouped_reads"),
            Self::GroupedHeadReads => ("grouped-head-reads", "grouped_head_reads"),
            Self::FifoIndexes => ("fifo-indexes", "fifo_indexes"),
            Self::Topics => ("topics", "topics"),
            Self::Notifications => ("notifications", "notifications"),
            Self::NotificationSettings => ("notification-settings", "notification_settings"),
            Self::Premake => ("premake", "premake"),
        }
    }

    /// The first pgmq version that has it.
    pub fn since(self) -> &'static str {
        match self {
            Self::GroupedReads | Self::FifoIndexes => "1.9.0",
            Self::GroupedHeadReads => "1.11.1",
            Self::Topics | Self::NotificationSettings => "1.11.0",
            Self::Notifications => "1.8.0",
            Self::Premake => "1.13.0",
        }
    }
}

/// What the last probe found in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    /// Postgres' version as it names it.
    pub postgres_version: String,
    /// pgmq's version, if it is installed and known.
    pub pgmq_version: Option<String>,
    /// How pgmq came here, if it is installed.
    pub installed_by: Option<InstalledBy>,
    /// pg_partman is installed.
    pub partman: bool,
    /// Receipts carry `last_read_at`, and so name exactly one delivery.
    pub strong_receipts: bool,
    features: Vec<Feature>,
}

impl Installation {
    /// Whether this pgmq can do something.
    pub fn has(&self, feature: Feature) -> bool {
        self.features.contains(&feature)
    }

    /// Checks that this pgmq can do something.
    ///
    /// # Errors
    /// `PgmqVersionUnsupported`, naming the version that can; `PgmqNotInstalled` if there is none.
    pub fn require(&self, feature: Feature) -> Result<()> {
        if self.has(feature) {
            return Ok(());
        }
        if self.installed_by.is_none() {
            return Err(super::error::not_installed());
        }
        let installed = self.pgmq_version.as_deref().unwrap_or("unknown");
        Err(Error::new(
            Kind::PgmqVersionUnsupported,
            format!(
                "{} needs pgmq {} or newer; this database has {installed}; InstallPgmq upgrades it",
                feature.words().0,
                feature.since()
            ),
        )
        .with("required_version", feature.since())
        .with("pgmq_version", installed))
    }

    /// The words of `GetServerInfo.capabilities`, in alphabetical order; none where pgmq is missing.
    pub fn capabilities(&self) -> Vec<String> {
        if self.installed_by.is_none() {
            return Vec::new();
        }
        let mut words: Vec<String> =
            self.features.iter().map(|feature| feature.words().0.to_owned()).collect();
        if self.partman {
            words.push("partman".to_owned());
        }
        let receipts = if self.strong_receipts { "fenced-receipts" } else { "weak-receipts" };
        words.push(receipts.to_owned());
        words.sort_unstable();
        words
    }
}

/// Asks the database what is installed.
///
/// # Errors
/// `DatabaseUnavailable` if it does not answer or only reads; `PermissionDenied` if pgmq's schema is closed to us.
pub(super) async fn probe(client: &Client) -> Result<Installation> {
    probe_again(client, None).await
}

/// Asks again, and takes the version of a pgmq that was installed from SQL from what is known: it takes a second question.
///
/// # Errors
/// As [`probe`].
pub(super) async fn probe_again(client: &Client, known: Option<&Installation>) -> Result<Installation> {
    let rows = client.query_typed(PROBE, &[]).await;
    let rows = rows.map_err(|failed| super::error::of_statement(failed, Effect::Reads))?;
    let row = rows.first().ok_or_else(|| Error::internal("the probe gave no row"))?;
    if column(row, "in_recovery")? {
        return Err(super::error::unavailable("the database is a standby, which only reads"));
    }
    let installed: bool = column(row, "installed")?;
    let extension_version: Option<String> = column(row, "extension_version")?;
    let known_version = known
        .filter(|known| known.installed_by == Some(InstalledBy::Sql))
        .and_then(|known| known.pgmq_version.clone());
    let migrated_version = match (column(row, "has_migrations")?, known_version) {
        (true, None) => migrated_version(client).await,
        (true, known) => known,
        (false, _) => None,
    };
    let installed_by = match (installed, &extension_version, &migrated_version) {
        (false, ..) => None,
        (true, Some(_), _) => Some(InstalledBy::Extension),
        (true, None, Some(_)) => Some(InstalledBy::Sql),
        (true, None, None) => Some(InstalledBy::Unknown),
    };
    Ok(Installation {
        postgres_version: column(row, "postgres_version")?,
        pgmq_version: extension_version.or(migrated_version).filter(|_| installed),
        installed_by,
        partman: column(row, "partman")?,
        strong_receipts: column(row, "last_read_at")?,
        features: features(row)?,
    })
}

fn features(row: &Row) -> Result<Vec<Feature>> {
    let mut features = Vec::new();
    for feature in Feature::ALL {
        if column(row, feature.words().1)? {
            features.push(feature);
        }
    }
    Ok(features)
}

/// A role that may not read the migrations table can still use pgmq; then the version is unknown.
async fn migrated_version(client: &Client) -> Option<String> {
    let rows = client.query_typed(MIGRATED_VERSION, &[]).await.ok()?;
    column(rows.first()?, "version").ok()
}
