//! What can go wrong with the embedded Postgres, in sentences that say what to do about it.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Why the embedded Postgres could not be found, started or stopped.
///
/// The text of a cause is never repeated: walk `source()` to print the whole chain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or directory could not be used.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was attempted, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },

    /// A program of Postgres could not be started.
    #[error("cannot run {} as the user {user}", program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// The user that it should have run as.
        user: String,
        /// Why not.
        source: io::Error,
    },

    /// The named directory does not hold a usable Postgres.
    #[error("{} does not hold a usable Postgres 14 or newer: {reason}", directory.display())]
    Unusable {
        /// The directory of the programs.
        directory: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// No Postgres is installed that fits, and none could be downloaded.
    #[error(
        "cannot download Postgres {version} from repo1.maven.org; install Postgres 14 or newer (on Debian: apt install \
         postgresql), pass --postgres-bin-dir DIR of an installed one, or pass --database-url URL of a running one"
    )]
    Download {
        /// The version that was asked for.
        version: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// The platform tells no place for data or downloads of this user.
    #[error("there is no home directory to keep data in; pass --data-dir DIR, or --database-url URL")]
    NoHome,

    /// Another server has this data directory.
    #[error("the data directory {} is in use by {holder}; stop it, or pass another --data-dir", directory.display())]
    InUse {
        /// The data directory.
        directory: PathBuf,
        /// `process N`, or `another process` while it has not written its number.
        holder: String,
    },

    /// The given directory is a cluster itself, made by something else.
    #[error(
        "{} is a Postgres data directory itself, made by another program; pass an empty or a new --data-dir",
        directory.display()
    )]
    ForeignCluster {
        /// The data directory.
        directory: PathBuf,
    },

    /// The data was written by another major version, which Postgres cannot read.
    #[error(
        "the data in {} was written by Postgres {data_major}, but {} is Postgres {found}; install Postgres {data_major} \
         or pass its programs as --postgres-bin-dir DIR, or move the data with pg_upgrade, or pass another --data-dir",
        directory.display(), binaries.display()
    )]
    OtherMajor {
        /// The directory of the cluster.
        directory: PathBuf,
        /// The major version that wrote it.
        data_major: u32,
        /// The directory of the programs that were found.
        binaries: PathBuf,
        /// Their version.
        found: String,
    },

    /// The cluster belongs to another user.
    #[error("{} belongs to the user {owner}; run as that user, or pass another --data-dir", directory.display())]
    Owner {
        /// The directory in question.
        directory: PathBuf,
        /// Its owner.
        owner: String,
    },

    /// Postgres runs as an unprivileged user, who cannot reach the data.
    #[error(
        "Postgres does not run as root, and the user {user} cannot enter {}; pass a --data-dir outside of it, or allow \
         it with chmod o+x",
        closed.display()
    )]
    Closed {
        /// The directory on the way that is closed.
        closed: PathBuf,
        /// The user that Postgres runs as.
        user: String,
    },

    /// There is no user to run Postgres as.
    #[error(
        "Postgres does not run as root, and neither the user postgres nor nobody exists; run as an ordinary user, or \
         pass --database-url URL"
    )]
    NoUser,

    /// The password of the cluster is gone.
    #[error(
        "the password file {} is missing, and the data beside it cannot be opened without; put it back, or pass another \
         --data-dir",
        path.display()
    )]
    PasswordLost {
        /// The password file.
        path: PathBuf,
    },

    /// `initdb` failed.
    #[error("cannot create the database in {}: initdb ended with {status}: {output}", directory.display())]
    Initdb {
        /// The data directory.
        directory: PathBuf,
        /// How it ended.
        status: String,
        /// Its last lines.
        output: String,
    },

    /// Postgres ended while it was needed.
    #[error("Postgres ended ({status}); {log}")]
    Ended {
        /// How it ended.
        status: String,
        /// What it said before.
        log: LogTail,
    },

    /// Postgres runs but cannot be used.
    #[error("Postgres runs but does not answer within {seconds} s; {log}")]
    NotReady {
        /// How long it was waited for.
        seconds: u64,
        /// What it said before.
        log: LogTail,
        /// The last answer, if any.
        source: Option<tokio_postgres::Error>,
    },

    /// Postgres answered, and refused us.
    #[error("Postgres refuses the role pgmq on its own socket")]
    Refused {
        /// What it said.
        source: tokio_postgres::Error,
    },

    /// Postgres did not end in time.
    #[error(
        "Postgres (process {pid}) did not end within {seconds} s of an immediate shutdown; end it with kill -9 {pid}"
    )]
    NotStopped {
        /// The postmaster.
        pid: i32,
        /// How long it was waited for.
        seconds: u64,
    },
}

/// The end of Postgres' log.
#[derive(Clone, Debug)]
pub struct LogTail {
    path: PathBuf,
    lines: String,
}

impl LogTail {
    /// How many lines are shown, and the bytes to look for them in.
    const LINES: usize = 10;
    const BYTES: u64 = 8 * 1024;

    /// Reads what was logged after the first `start` bytes. An unreadable log is an empty one.
    pub(super) fn read(path: &Path, start: u64) -> LogTail {
        let read = || {
            let mut log = File::open(path)?;
            let length = log.metadata()?.len();
            log.seek(SeekFrom::Start(start.max(length.saturating_sub(LogTail::BYTES))))?;
            let mut bytes = Vec::new();
            log.take(LogTail::BYTES).read_to_end(&mut bytes)?;
            io::Result::Ok(bytes)
        };
        let bytes = read().unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        let lines = lines[lines.len().saturating_sub(LogTail::LINES)..].join("\n");
        LogTail { path: path.to_owned(), lines }
    }

    pub(super) fn contains(&self, words: &str) -> bool {
        self.lines.contains(words)
    }
}

impl fmt::Display for LogTail {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        if self.lines.is_empty() {
            return write!(formatter, "it says nothing about it in {path}");
        }
        write!(formatter, "the last lines of {path}:\n{}", self.lines)
    }
}

/// Adds to an I/O error what was attempted on which path.
pub(super) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::File { action, path: path.to_owned(), source }
}
