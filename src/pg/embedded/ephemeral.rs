//! Data directories that live as long as their server: named here, and removed here if their server was killed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::geteuid;
use rand::distr::{Alphanumeric, SampleString};
use tracing::info;

use super::directory::private;
use super::postmaster::Postmaster;

const PREFIX: &str = "pgmq-grpc-ephemeral-";

/// A younger directory may belong to a server that has not locked it yet.
const LEFTOVER_AGE: Duration = Duration::from_secs(60);

/// A path under the temporary directory that nobody has.
pub(super) fn fresh_path() -> PathBuf {
    std::env::temp_dir().join(format!("{PREFIX}{}", Alphanumeric.sample_string(&mut rand::rng(), 8)))
}

/// Stops what killed ephemeral servers of this user left running, and removes their directories.
///
/// Nobody would ever do it otherwise, as every such server takes a new directory. All of it is best effort.
pub(super) async fn remove_leftovers() {
    let Ok(entries) = std::env::temp_dir().read_dir() else { return };
    for entry in entries.flatten() {
        let named = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        if named && is_abandoned(&entry.path()) {
            remove(&entry.path()).await;
        }
    }
}

fn is_abandoned(directory: &Path) -> bool {
    let Ok(metadata) = directory.symlink_metadata() else { return false };
    let age = metadata.modified().ok().and_then(|modified| modified.elapsed().ok());
    metadata.is_dir() && metadata.uid() == geteuid().as_raw() && age.is_some_and(|age| age > LEFTOVER_AGE)
}

async fn remove(directory: &Path) {
    let Ok(lock) = private().read(true).write(true).open(directory.join("server.lock")) else { return };
    let Ok(_lock) = Flock::lock(lock, FlockArg::LockExclusiveNonblock) else { return };
    info!("removing {}, left behind by a killed server", directory.display());
    if let Some(mut postmaster) =
        Postmaster::find(&directory.join("postgres"), &directory.join("postgres.log"))
    {
        drop(postmaster.stop().await);
    }
    drop(fs::remove_dir_all(directory));
}
