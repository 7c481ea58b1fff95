//! Creates the cluster once, and refuses one that the found Postgres cannot read.

use std::fs::{self, DirBuilder, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Instant;

use rand::distr::{Alphanumeric, SampleString};
use tracing::info;

use super::binaries::Binaries;
use super::directory::{Directory, private};
use super::error::{Error, file};

/// The superuser that everything of ours belongs to.
pub(super) const ROLE: &str = "pgmq";

/// The name of a cluster in the making; `initdb` may be killed at any point.
const UNFINISHED: &str = "postgres.new-";

/// The major version of the cluster, if there is one.
pub(super) fn major(directory: &Directory) -> Result<Option<u32>, Error> {
    let path = directory.cluster().join("PG_VERSION");
    match fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse() {
            Ok(major) => Ok(Some(major)),
            Err(_) => Err(file("make sense of", &path)(ErrorKind::InvalidData.into())),
        },
        Err(error) if error.kind() == ErrorKind::NotFound && !directory.cluster().exists() => Ok(None),
        Err(error) => Err(file("read", &path)(error)),
    }
}

/// Makes sure that there is a cluster for these programs. Returns the password of the role.
pub(super) async fn prepare(directory: &Directory, binaries: &Binaries) -> Result<String, Error> {
    match major(directory)? {
        Some(major) if major == binaries.major() => kept_password(directory),
        Some(data_major) => Err(Error::OtherMajor {
            directory: directory.cluster(),
            data_major,
            binaries: binaries.directory().to_owned(),
            found: binaries.version().to_owned(),
        }),
        None => create(directory, binaries).await,
    }
}

fn kept_password(directory: &Directory) -> Result<String, Error> {
    let path = directory.password();
    match fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
        Err(error) if error.kind() != ErrorKind::NotFound => Err(file("read", &path)(error)),
        _ => Err(Error::PasswordLost { path }),
    }
}

/// Runs `initdb` beside the lasting place and renames, so that there is a whole cluster or none.
async fn create(directory: &Directory, binaries: &Binaries) -> Result<String, Error> {
    let started = Instant::now();
    remove_unfinished(directory.path())?;
    let password = new_password(directory)?;
    // A new name each time: an initdb whose server was killed may still be writing under the old one.
    let suffix = Alphanumeric.sample_string(&mut rand::rng(), 8);
    let unfinished = directory.path().join(format!("{UNFINISHED}{suffix}"));
    DirBuilder::new().mode(0o700).create(&unfinished).map_err(file("create", &unfinished))?;
    directory.account().give(&unfinished)?;
    initdb(directory, binaries, &unfinished).await?;
    fs::rename(&unfinished, directory.cluster()).map_err(file("rename", &unfinished))?;
    // The new name must outlast a power failure as surely as the messages under it.
    let synced = File::open(directory.path()).and_then(|parent| parent.sync_all());
    synced.map_err(file("write", directory.path()))?;
    info!(
        "created a database for postgres {} in {} ({:.1} s)",
        binaries.version(),
        directory.path().display(),
        started.elapsed().as_secs_f64()
    );
    Ok(password)
}

async fn initdb(directory: &Directory, binaries: &Binaries, target: &Path) -> Result<(), Error> {
    let program = binaries.program("initdb");
    let mut command = directory.account().command(&program);
    command.arg("--pgdata").arg(target).arg("--pwfile").arg(directory.password());
    command.args(["--username", ROLE, "--auth", "scram-sha-256"]);
    command.args(["--encoding", "UTF8", "--no-locale", "--data-checksums", "--no-instructions"]);
    if directory.is_ephemeral() {
        command.arg("--no-sync");
    }
    let output = command.kill_on_drop(true).output().await;
    let output = output.map_err(|source| Error::Run {
        program,
        user: directory.account().name().to_owned(),
        source,
    })?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Initdb {
        directory: directory.path().to_owned(),
        status: output.status.to_string(),
        output: complaint,
    })
}

/// Chooses a password and writes it down, before `initdb`, so that no cluster exists without.
fn new_password(directory: &Directory) -> Result<String, Error> {
    let path = directory.password();
    let password = Alphanumeric.sample_string(&mut rand::rng(), 32);
    let options = &mut private();
    let mut target =
        options.write(true).create(true).truncate(true).open(&path).map_err(file("create", &path))?;
    target.write_all(password.as_bytes()).map_err(file("write", &path))?;
    target.sync_all().map_err(file("write", &path))?;
    // initdb reads it.
    directory.account().give(&path)?;
    Ok(password)
}

fn remove_unfinished(directory: &Path) -> Result<(), Error> {
    for entry in directory.read_dir().map_err(file("read", directory))? {
        let path = entry.map_err(file("read", directory))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if name.is_some_and(|name| name.starts_with(UNFINISHED)) {
            fs::remove_dir_all(&path).map_err(file("remove", &path))?;
        }
    }
    Ok(())
}
