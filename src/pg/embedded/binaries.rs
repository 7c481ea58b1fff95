//! Finds the programs of Postgres: given, installed, or downloaded.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::account::Account;
use super::download::{PINNED, download};
use super::error::Error;

/// The oldest major version that pgmq and this server are tested with.
const OLDEST_MAJOR: u32 = 14;

/// A program that takes longer than this to tell its version is some wrapper, and not for us.
const PROBE_LIMIT: Duration = Duration::from_secs(10);

/// Where installers put servers that are not on the PATH, the version being part of a name in the middle:
/// Debian, Red Hat (PGDG), Homebrew on Apple and on Intel processors.
const PLACES: [(&str, &str, &str); 4] = [
    ("/usr/lib/postgresql", "", "bin"),
    ("/usr", "pgsql-", "bin"),
    ("/opt/homebrew/opt", "postgresql@", "bin"),
    ("/usr/local/opt", "postgresql@", "bin"),
];

/// A directory that holds `postgres` and `initdb` of one version, both of which run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binaries {
    directory: PathBuf,
    version: Version,
}

impl Binaries {
    /// The directory of the programs.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The version as Postgres writes it, such as `18.6`.
    pub fn version(&self) -> &str {
        &self.version.text
    }

    /// The major version, such as 18.
    pub fn major(&self) -> u32 {
        self.version.major
    }

    /// The path of one program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Asks the programs in `directory` for their version, as the user that will run them.
    pub(super) async fn probe(directory: &Path) -> Result<Binaries, Error> {
        let unusable = |reason: String| Error::Unusable { directory: directory.to_owned(), reason };
        let account = Account::choose(None)?;
        if let Some(closed) = account.closed(directory) {
            return Err(unusable(format!("the user {} cannot enter {}", account.name(), closed.display())));
        }
        for name in ["postgres", "initdb"] {
            if !directory.join(name).is_file() {
                return Err(unusable(format!("there is no {name}")));
            }
        }
        // A link on the PATH leads to the real place, which has the other programs of that version.
        let postgres = directory.join("postgres");
        let real = postgres.canonicalize().map_err(|error| unusable(error.to_string()))?;
        let directory = match real.parent() {
            Some(parent) if parent.join("postgres").is_file() && parent.join("initdb").is_file() => parent,
            _ => directory,
        };
        let mut command = account.command(&directory.join("postgres"));
        let output = output(command.arg("--version")).await.map_err(unusable)?;
        let Some(version) = Version::parse(&output) else {
            return Err(unusable(format!("postgres --version says {:?}", output.trim())));
        };
        if version.major < OLDEST_MAJOR {
            return Err(unusable(format!("it is Postgres {}", version.text)));
        }
        Ok(Binaries { directory: directory.to_owned(), version })
    }
}

/// Finds a Postgres to run: `bin_dir` if given, else an installed one, else a download kept under `cache`.
///
/// With `major`, the version that wrote the data to be opened, one of that version is preferred: installing a newer
/// Postgres must not lock anybody out of their data. Where none can be had, another installed one is returned.
///
/// # Errors
///
/// `Unusable` if `bin_dir` does not hold Postgres 14 or newer; `Download` if nothing is installed and the network
/// does not give one either.
pub async fn locate(bin_dir: Option<&Path>, cache: &Path, major: Option<u32>) -> Result<Binaries, Error> {
    if let Some(directory) = bin_dir {
        return Binaries::probe(directory).await;
    }
    let mut other = None;
    for directory in installed().await {
        match Binaries::probe(&directory).await {
            Ok(binaries) if major.is_none_or(|major| major == binaries.major()) => return Ok(binaries),
            Ok(binaries) => other = other.or(Some(binaries)),
            Err(error) => debug!(%error, "skipping an installed postgres"),
        }
    }
    let requirement = match major {
        Some(major) if !PINNED.starts_with(&format!("={major}.")) => major.to_string(),
        _ => PINNED.to_owned(),
    };
    match (download(&requirement, cache).await, other) {
        (Err(error), Some(other)) => {
            warn!(%error, "no postgres of the data's version, trying {}", other.directory.display());
            Ok(other)
        }
        (result, _) => result,
    }
}

/// The directories where an installed Postgres may be, best first.
async fn installed() -> Vec<PathBuf> {
    let mut directories = Vec::new();
    if let Ok(text) = output(Command::new("pg_config").arg("--bindir")).await {
        directories.push(PathBuf::from(text.trim()));
    }
    #[expect(clippy::disallowed_methods, reason = "where programs are is no setting of ours")]
    if let Some(path) = std::env::var_os("PATH") {
        directories.extend(std::env::split_paths(&path));
    }
    for (parent, prefix, child) in PLACES {
        let Ok(entries) = Path::new(parent).read_dir() else { continue };
        let mut found: Vec<(u32, PathBuf)> = entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let major = entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?;
                Some((major, entry.path().join(child)))
            })
            .collect();
        found.sort_by(|left, right| right.cmp(left));
        directories.extend(found.into_iter().map(|(_, directory)| directory));
    }
    let mut seen = std::collections::HashSet::new();
    directories.retain(|directory| directory.join("postgres").is_file() && seen.insert(directory.clone()));
    directories
}

/// What a program prints, or one sentence why it does not.
async fn output(command: &mut Command) -> Result<String, String> {
    let output = match timeout(PROBE_LIMIT, command.kill_on_drop(true).output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => return Err(format!("it does not answer within {} s", PROBE_LIMIT.as_secs())),
    };
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        return Err(format!("it ends with {}: {}", output.status, complaint.trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A version of Postgres: `18.6`, `19beta1`, `19devel`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Version {
    text: String,
    major: u32,
}

impl Version {
    /// Reads what `postgres --version` prints, such as `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
    fn parse(output: &str) -> Option<Version> {
        let text = output.trim().strip_prefix("postgres (PostgreSQL) ")?.split_whitespace().next()?;
        let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
        Some(Version { text: text.to_owned(), major: text[..digits].parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(output: &str) -> Option<(String, u32)> {
        Version::parse(output).map(|version| (version.text, version.major))
    }

    #[test]
    fn a_version_is_read_with_and_without_a_packager() {
        assert_eq!(parsed("postgres (PostgreSQL) 18.6\n"), Some(("18.6".to_owned(), 18)));
        assert_eq!(
            parsed("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"),
            Some(("15.18".to_owned(), 15))
        );
        assert_eq!(parsed("postgres (PostgreSQL) 19devel"), Some(("19devel".to_owned(), 19)));
    }

    #[test]
    fn a_wrapper_with_other_words_is_no_version() {
        assert_eq!(parsed(""), None);
        assert_eq!(parsed("docker: command not found"), None);
        assert_eq!(parsed("postgres (PostgreSQL) next"), None);
    }
}
