//! A private Postgres for a server that was given no database.
//!
//! It lives in a directory of ours, listens on a unix socket there, and stops with the server. A crash of the server
//! leaves it running for the next start to take over; the lock on the directory makes sure that there is never a
//! second one on the same data.
//!
//! The way of a start, by file: open and lock the `directory`, find the programs (`binaries`, `download`), create the
//! `cluster` if there is none, write the `settings`, adopt or start the `postmaster`, wait for its answer (`session`).

mod account;
mod binaries;
mod cluster;
mod directory;
mod download;
mod ephemeral;
mod error;
mod pid_file;
mod postmaster;
mod session;
mod settings;

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use tokio::time::sleep;
use tokio_postgres::Config;
use tracing::{info, warn};

pub use self::binaries::{Binaries, locate};
pub use self::download::download;
pub use self::error::{Error, LogTail};

use self::directory::Directory;
use self::postmaster::Postmaster;
use self::settings::Settings;

/// How long a new postmaster may stay silent. It answers within a second, and during a recovery as well.
const START_LIMIT: Duration = Duration::from_secs(60);

/// How long one that was found running may stay silent before it is stopped.
const ADOPT_LIMIT: Duration = Duration::from_secs(5);

/// How long the last statements of a killed postmaster are waited for.
const ORPHAN_LIMIT: Duration = Duration::from_secs(15);

/// What the embedded Postgres needs to know.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where the data is kept. By default the platform's place for data of this user, or `/var/lib/pgmq-grpc` for root.
    pub data_dir: Option<PathBuf>,
    /// Keep the data in a temporary directory and remove it on stop; `data_dir` is then not used.
    pub ephemeral: bool,
    /// The directory of `postgres` and `initdb`. By default an installed Postgres, else a downloaded one.
    pub bin_dir: Option<PathBuf>,
    /// Listen on this port of 127.0.0.1 as well. By default there is only the socket.
    pub tcp_port: Option<u16>,
}

/// A running Postgres with an empty or kept database, for the role and database `pgmq`.
///
/// Call [`Embedded::stop`] at the end. A value that is merely dropped asks Postgres to stop and does not wait.
pub struct Embedded {
    // Dropped in this order: Postgres is asked to stop before the directory is unlocked or removed.
    postmaster: Postmaster,
    directory: Directory,
    binaries: Binaries,
    version: String,
    password: String,
    port: u16,
}

impl Embedded {
    /// Starts Postgres, or takes over the one that a killed server has left behind, and waits until it answers.
    ///
    /// The first start finds or downloads the programs and creates the database. Cancelling is safe at any point.
    ///
    /// # Errors
    ///
    /// Every [`Error`] but `NotStopped`, each telling what to do.
    pub async fn start(options: &Options) -> Result<Embedded, Error> {
        let started = Instant::now();
        if options.ephemeral {
            ephemeral::remove_leftovers().await;
        }
        let directory = Directory::open(options).await?;
        let cache = directory::default_cache_dir()?;
        let major = cluster::major(&directory)?;
        let binaries = locate(options.bin_dir.as_deref(), &cache, major).await?;
        let password = cluster::prepare(&directory, &binaries).await?;

        let settings = Settings {
            sockets: &directory.sockets().to_string_lossy(),
            tcp_port: options.tcp_port,
            lz4: settings::has_lz4(&directory, &binaries).await,
            // Postgres 14 knows how to ask on Linux only, and refuses to start elsewhere.
            connection_check: cfg!(target_os = "linux") || binaries.major() > 14,
        };
        let port = settings.port();
        let config = config(&directory, port, &password);
        let unchanged = settings::write(&directory, &settings.text())?;

        let adopted = adopt(&directory, &config, unchanged).await?;
        let (postmaster, version, how) = match adopted {
            Some((postmaster, version)) => (postmaster, version, "adopted"),
            None => {
                let (postmaster, version) = launch(&directory, &binaries, &config).await?;
                (postmaster, version, "started")
            }
        };
        info!(
            "{how} postgres {version} (process {}) in {} within {} ms",
            postmaster.pid(),
            directory.path().display(),
            started.elapsed().as_millis()
        );
        Ok(Embedded { postmaster, directory, binaries, version, password, port })
    }

    /// The parameters of a connection, over the socket, as the superuser `pgmq`.
    pub fn config(&self) -> Config {
        config(&self.directory, self.port, &self.password)
    }

    /// The same parameters as a URL, which psql, libpq and sqlx understand. It holds the password.
    pub fn url(&self) -> String {
        let sockets = percent_encode(self.directory.sockets().as_os_str().as_bytes(), NON_ALPHANUMERIC);
        let (role, database) = (cluster::ROLE, session::DATABASE);
        format!("postgresql://{role}:{}@{sockets}:{}/{database}", self.password, self.port)
    }

    /// The directory that holds everything of this Postgres.
    pub fn data_dir(&self) -> &Path {
        self.directory.path()
    }

    /// The version of the running server, such as `18.6`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The directory of the programs.
    pub fn binaries(&self) -> &Path {
        self.binaries.directory()
    }

    /// Waits until Postgres ends by itself, which it never should, and tells how. Cancelling is safe.
    pub async fn ended(&mut self) -> Error {
        self.postmaster.wait().await
    }

    /// Stops Postgres and waits for its end; the directory of an ephemeral one is removed.
    ///
    /// # Errors
    ///
    /// `NotStopped` if it does not end after 20 s of a fast and 10 s of an immediate shutdown.
    pub async fn stop(mut self) -> Result<(), Error> {
        let started = Instant::now();
        self.postmaster.stop().await?;
        info!("stopped postgres within {} ms", started.elapsed().as_millis());
        Ok(())
    }
}

impl fmt::Debug for Embedded {
    // Without the password.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut description = formatter.debug_struct("Embedded");
        description
            .field("data_dir", &self.data_dir())
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

fn config(directory: &Directory, port: u16, password: &str) -> Config {
    let mut config = Config::new();
    config.host_path(directory.sockets()).port(port).dbname(session::DATABASE);
    config.user(cluster::ROLE).password(password).application_name("pgmq-grpc");
    config
}

/// Takes over the postmaster of a killed server, if it answers and has our settings; else stops it.
async fn adopt(
    directory: &Directory,
    config: &Config,
    settings_unchanged: bool,
) -> Result<Option<(Postmaster, String)>, Error> {
    let Some(mut postmaster) = Postmaster::find(&directory.cluster(), &directory.log()) else {
        return Ok(None);
    };
    if settings_unchanged && !postmaster.is_stopping() {
        match postmaster.ready(config, ADOPT_LIMIT).await {
            Ok(version) => return Ok(Some((postmaster, version))),
            Err(error) => warn!(%error, "the postgres left behind by a killed server cannot be used"),
        }
    }
    info!("stopping the postgres left behind by a killed server (process {})", postmaster.pid());
    postmaster.stop().await?;
    Ok(None)
}

/// Starts a postmaster and waits until it answers.
async fn launch(
    directory: &Directory,
    binaries: &Binaries,
    config: &Config,
) -> Result<(Postmaster, String), Error> {
    let (started, mut waiting) = (Instant::now(), false);
    loop {
        pid_file::disown(&directory.cluster())?;
        pid_file::remove_sockets(directory.sockets())?;
        let mut postmaster = Postmaster::spawn(directory, binaries)?;
        match postmaster.ready(config, START_LIMIT).await {
            Ok(version) => return Ok((postmaster, version)),
            // A postmaster was killed, and one of its statements still runs: Postgres rightly refuses to start.
            Err(Error::Ended { log, .. })
                if log.contains("shared memory block") && started.elapsed() < ORPHAN_LIMIT =>
            {
                if !waiting {
                    info!("waiting for the last statements of a killed postgres");
                }
                waiting = true;
                sleep(Duration::from_millis(500)).await;
            }
            Err(error) => return Err(error),
        }
    }
}
