//! pgmq into a database: as its extension where there is one, else as the SQL of the official crate.
//!
//! The crate's installer works on a pool of sqlx, so this file alone has one, of a single connection.

use std::sync::Arc;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgSslMode};
use tokio_postgres::config::Host;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Config};

use super::guard::Guard;
use super::manager::Manager;
use super::schema::{self, Schema};
use super::statement::Effect;
use super::version::{self, Installation, InstalledBy};
use crate::config::{DatabaseUrl, Tls};
use crate::domain::{Error, Kind, Result};

/// The pgmq version that the pinned crate installs.
pub const CARRIED_VERSION: &str = "1.13.0";

/// The advisory lock under which servers install, one after the other: "pgmqgrpc" in ASCII.
const LOCK: i64 = 0x7067_6d71_6772_7063;

const TAKE_LOCK: &str = "-- pgmq-grpc: lock_installation\nSELECT pg_advisory_lock($1::bigint)";

const EXTENSION_AVAILABLE: &str = "-- pgmq-grpc: extension_available
SELECT EXISTS (SELECT FROM pg_available_extensions AS e WHERE e.name = 'pgmq') AS available";

/// Installs or upgrades pgmq on a connection of its own.
#[derive(Clone)]
pub(super) struct Installer {
    url: DatabaseUrl,
    guard: Arc<Guard>,
}

impl Installer {
    pub(super) fn new(url: DatabaseUrl, guard: Arc<Guard>) -> Self {
        Self { url, guard }
    }

    /// Installs pgmq if it is missing, and does nothing otherwise.
    ///
    /// # Errors
    /// `PermissionDenied` if the role may not; `DatabaseUnavailable`.
    pub(super) async fn install(&self) -> Result<Installation> {
        let (client, server) = self.locked_client().await?;
        let found = version::probe(&client).await?;
        if found.installed_by.is_some() {
            return Ok(found);
        }
        if extension_available(&client).await? {
            run(&client, "CREATE EXTENSION IF NOT EXISTS pgmq").await?;
        } else {
            self.run_crate(&server).await?;
        }
        version::probe(&client).await
    }

    /// Brings pgmq to the newest version that its way of installation has; installs it if it is missing. Gives what
    /// was there before and what is there now.
    ///
    /// # Errors
    /// `PgmqVersionUnsupported` for a pgmq that somebody installed by hand; as [`Installer::install`].
    pub(super) async fn upgrade(&self) -> Result<(Installation, Installation)> {
        let (client, server) = self.locked_client().await?;
        let found = version::probe(&client).await?;
        match found.installed_by {
            None => {
                drop(client);
                return Ok((found, self.install().await?));
            }
            Some(InstalledBy::Extension) => run(&client, "ALTER EXTENSION pgmq UPDATE").await?,
            Some(InstalledBy::Sql) => self.run_crate(&server).await?,
            Some(InstalledBy::Unknown) => {
                return Err(Error::new(
                    Kind::PgmqVersionUnsupported,
                    "this pgmq was installed by hand and keeps no record of its version; upgrade it in the same way",
                )
                .with("pgmq_version", "unknown")
                .with("required_version", CARRIED_VERSION));
            }
        }
        Ok((found, version::probe(&client).await?))
    }

    /// Creates the schema of the servers or brings it up to date.
    ///
    /// # Errors
    /// `PermissionDenied` if the role may not; `DatabaseUnavailable`.
    pub(super) async fn migrate(&self) -> Result<Schema> {
        let (mut client, _) = self.locked_client().await?;
        schema::migrate(&mut client).await
    }

    /// A session that holds the installation lock until it is closed, and how to connect to the same server again.
    async fn locked_client(&self) -> Result<(Client, Config)> {
        let manager = Manager::new(&self.url, Arc::clone(&self.guard))?;
        let (session, server) = manager.connect_and_tell().await.map_err(super::error::of_connecting)?;
        run(&session.client, "SET lock_timeout = '60s'").await?;
        let locked = session.client.query_typed(TAKE_LOCK, &[(&LOCK, Type::INT8)]).await;
        locked.map_err(|failed| super::error::of_statement(failed, Effect::Reads))?;
        run(&session.client, "SET lock_timeout = '10s'").await?;
        Ok((session.client, server))
    }

    async fn run_crate(&self, server: &Config) -> Result<()> {
        let pool = PgPoolOptions::new().max_connections(1).connect_with(self.sqlx_options(server)).await;
        let pool = pool
            .map_err(|error| super::error::unavailable("the database cannot be reached").caused_by(error))?;
        let installed = pgmq::install::install_sql_from_embedded(&pool).await;
        pool.close().await;
        installed.map_err(refused)
    }

    /// The same connection for sqlx.
    fn sqlx_options(&self, server: &Config) -> PgConnectOptions {
        let config = &self.url.config;
        let ssl_mode = match self.url.tls {
            Tls::Disable => PgSslMode::Disable,
            Tls::Prefer => PgSslMode::Prefer,
            Tls::Require => PgSslMode::Require,
            Tls::VerifyCa => PgSslMode::VerifyCa,
            Tls::VerifyFull => PgSslMode::VerifyFull,
        };
        let mut options =
            PgConnectOptions::new_without_pgpass().ssl_mode(ssl_mode).application_name("pgmq-grpc");
        if let Some(user) = config.get_user() {
            options = options.username(user);
        }
        if let Some(password) = config.get_password() {
            options = options.password(&String::from_utf8_lossy(password));
        }
        if let Some(database) = config.get_dbname().or(config.get_user()) {
            options = options.database(database);
        }
        if let Some(file) = &self.url.ca_file {
            options = options.ssl_root_cert(file);
        }
        if let Some(own) = &self.url.client_certificate {
            options = options.ssl_client_cert(&own.certificate).ssl_client_key(&own.key);
        }
        let port = server.get_ports().first().copied().unwrap_or(5432);
        match (server.get_hosts().first(), server.get_hostaddrs().first()) {
            (Some(Host::Unix(directory)), _) => options.socket(directory).port(port),
            (Some(Host::Tcp(name)), _) => options.host(name).port(port),
            (None, Some(address)) => options.host(&address.to_string()).port(port),
            (None, None) => options.port(port),
        }
    }
}

async fn extension_available(client: &Client) -> Result<bool> {
    let rows = client.query_typed(EXTENSION_AVAILABLE, &[]).await;
    let rows = rows.map_err(|failed| super::error::of_statement(failed, Effect::Reads))?;
    rows.first().map_or(Ok(false), |row| super::row::column(row, "available"))
}

async fn run(client: &Client, sql: &str) -> Result<()> {
    let done = client.batch_execute(sql).await;
    done.map_err(|failed| super::error::of_statement(failed, Effect::Repeatable))
}

fn refused(error: pgmq::PgmqError) -> Error {
    let denied = error.to_string().contains("permission denied");
    if denied {
        return Error::new(
            Kind::PermissionDenied,
            "the role with which this server uses the database may not install pgmq",
        )
        .caused_by(error);
    }
    Error::internal(error)
}
