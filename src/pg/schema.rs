//! The schema `pgmq_grpc`: what the servers themselves keep in the database, migrated by refinery.
//!
//! A new table is a new file `migrations/V<n>__<name>.sql`; files that were released never change. Servers of several
//! versions work on one schema during an upgrade, so migrations only add. What cannot, raises
//! `pgmq_grpc.compatibility.oldest_server` to its own version: older servers then leave the schema alone.

use std::sync::LazyLock;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::row::column;
use super::statement::Effect;
use crate::domain::{Error, Kind, Result};

mod embedded {
    refinery::embed_migrations!("src/pg/migrations");
}

/// The version that this server brings: that of its newest migration.
static OWN_VERSION: LazyLock<i32> = LazyLock::new(|| {
    let runner = embedded::migrations::runner();
    runner.get_migrations().iter().map(refinery::Migration::version).max().unwrap_or(0)
});

const HISTORY: &str = "pgmq_grpc.refinery_schema_history";

const CREATE_SCHEMA: &str = "-- pgmq-grpc: create_schema\nCREATE SCHEMA IF NOT EXISTS pgmq_grpc";

/// Asks no right on the schema itself.
const FIND: &str = "-- pgmq-grpc: find_schema
SELECT n.oid IS NOT NULL AS there, coalesce(has_schema_privilege(n.oid, 'USAGE'), false) AS may_use,
  CASE WHEN n.oid IS NULL THEN has_database_privilege(current_database(), 'CREATE')
    ELSE has_schema_privilege(n.oid, 'CREATE') END AS may_change,
  EXISTS (SELECT FROM pg_class AS c WHERE c.relnamespace = n.oid AND c.relname = 'compatibility') AS migrated
FROM (VALUES (1)) AS one(row) LEFT JOIN pg_namespace AS n ON n.nspname = 'pgmq_grpc'";

const VERSIONS: &str = "-- pgmq-grpc: schema_versions
SELECT max(h.version) AS version, (SELECT c.oldest_server FROM pgmq_grpc.compatibility AS c) AS oldest_server
FROM pgmq_grpc.refinery_schema_history AS h";

/// What was found of the schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Schema {
    /// It has all that this server needs; a newer server may have added to it.
    Ready { version: i32 },
    /// It is missing or older than this server, which may not change that.
    Behind { version: i32 },
    /// The same, but this server's role may bring it up to date.
    Migratable { version: i32 },
    /// A newer server changed it so that this one cannot use it.
    TooNew { version: i32 },
    /// Its owner keeps this server's role out.
    Closed,
}

impl Schema {
    /// Checks that this server can work with the schema.
    ///
    /// # Errors
    /// `PgmqNotInstalled`, naming the remedy; `PermissionDenied`.
    pub(super) fn require(self) -> Result<()> {
        let why = match self {
            Self::Ready { .. } => return Ok(()),
            Self::Behind { version: 0 } | Self::Migratable { version: 0 } => {
                "the schema pgmq_grpc is missing"
            }
            Self::Behind { .. } | Self::Migratable { .. } => "the schema pgmq_grpc is of an older server",
            Self::TooNew { .. } => {
                let message = "the schema pgmq_grpc was changed by a newer server and cannot be used by this one; \
                               upgrade this server";
                return Err(not_usable(message));
            }
            Self::Closed => {
                let message = "this server's role may not use the schema pgmq_grpc; grant it USAGE on the schema, and \
                               SELECT, INSERT, UPDATE and DELETE on its tables";
                return Err(Error::new(Kind::PermissionDenied, message).with("schema", "pgmq_grpc"));
            }
        };
        Err(not_usable(&format!(
            "this call needs what this server may not make: {why}. Start a server once without --no-install and with a \
             role that may create it, or grant this server's role CREATE on the database; a role that owns nothing \
             needs USAGE on the schema and SELECT, INSERT, UPDATE and DELETE on its tables"
        )))
    }

    /// Logs what was found, once for each change.
    pub(super) fn log(self) {
        let own = *OWN_VERSION;
        match self {
            Self::Ready { version } if version > own => {
                tracing::info!(version, own, "schema pgmq_grpc ready, with additions of a newer server");
            }
            Self::Ready { version } => tracing::info!(version, "schema pgmq_grpc ready"),
            Self::Behind { version } | Self::Migratable { version } => {
                let why = "this server may not create or change it";
                tracing::warn!(version, own, why, "schema pgmq_grpc missing or old: no deduplication");
            }
            Self::TooNew { version } => {
                let why = "a newer server has changed it; upgrade this one";
                tracing::warn!(version, own, why, "schema pgmq_grpc too new: no deduplication");
            }
            Self::Closed => {
                let why = "this server's role has no USAGE on it";
                tracing::warn!(why, "schema pgmq_grpc closed: no deduplication");
            }
        }
    }
}

pub(super) fn not_usable(message: &str) -> Error {
    Error::new(Kind::PgmqNotInstalled, message).with("schema", "pgmq_grpc")
}

/// Looks at the schema without changing it.
///
/// # Errors
/// `DatabaseUnavailable`.
pub(super) async fn find(client: &Client) -> Result<Schema> {
    let rows = client.query_typed(FIND, &[]).await.map_err(failed)?;
    let row = rows.first().ok_or_else(|| Error::internal("the look at the schema gave no row"))?;
    let may_change: bool = column(row, "may_change")?;
    let behind = |version| match may_change {
        true => Schema::Migratable { version },
        false => Schema::Behind { version },
    };
    if column(row, "there")? && !column::<bool>(row, "may_use")? {
        return Ok(Schema::Closed);
    }
    if !column::<bool>(row, "migrated")? {
        return Ok(behind(0));
    }
    let rows = match client.query_typed(VERSIONS, &[]).await {
        Ok(rows) => rows,
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => return Ok(Schema::Closed),
        Err(error) => return Err(failed(error)),
    };
    let row = rows.first().ok_or_else(|| Error::internal("the schema's history gave no row"))?;
    let version = column::<Option<i32>>(row, "version")?.unwrap_or(0);
    let oldest_server = column::<Option<i32>>(row, "oldest_server")?.unwrap_or(0);
    Ok(match *OWN_VERSION {
        own if own < oldest_server => Schema::TooNew { version },
        own if own <= version => Schema::Ready { version },
        _ => behind(version),
    })
}

/// Creates the schema or brings it up to date; the caller holds the lock under which servers install.
///
/// # Errors
/// `PermissionDenied`; `DatabaseUnavailable`.
pub(super) async fn migrate(client: &mut Client) -> Result<Schema> {
    if let Schema::Migratable { .. } = find(client).await? {
        client.batch_execute(CREATE_SCHEMA).await.map_err(failed)?;
        // All in one transaction: a schema is never seen half-way.
        let mut runner = embedded::migrations::runner().set_grouped(true);
        runner.set_migration_table_name(HISTORY);
        runner.run_async(client).await.map_err(refused)?;
    }
    find(client).await
}

fn failed(error: tokio_postgres::Error) -> Error {
    super::error::of_statement(error, Effect::Repeatable)
}

/// refinery keeps the database's error as the cause of its own.
fn refused(error: refinery::Error) -> Error {
    let cause = std::error::Error::source(&error)
        .and_then(<dyn std::error::Error>::downcast_ref::<tokio_postgres::Error>);
    match cause.and_then(tokio_postgres::Error::code) {
        Some(&SqlState::INSUFFICIENT_PRIVILEGE) => Error::new(
            Kind::PermissionDenied,
            "the role with which this server uses the database may not create the schema pgmq_grpc",
        )
        .caused_by(error),
        _ => Error::internal(error),
    }
}
