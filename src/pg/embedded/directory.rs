//! The data directory: where it is, who may use it, and what lies where in it.
//!
//! ```text
//! DIR/               root keeps it at 0711 so that the unprivileged user can pass, but not plant links; else 0700
//!     server.lock    held as long as the server lives, with its process number
//!     password       of the role pgmq, 0600
//!     postgres.conf  our settings, written anew at every start
//!     postgres.log   what Postgres says
//!     run/           the unix socket, 0700
//!     postgres/      the cluster (PGDATA), 0700
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use directories::ProjectDirs;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::unistd::geteuid;
use tokio::time::sleep;

use super::Options;
use super::account::{Account, user_name};
use super::ephemeral;
use super::error::{Error, file};

/// A socket's path must fit in 104 bytes on macOS and 108 on Linux, its ending zero included.
const LONGEST_SOCKET: usize = 103;

/// How long a server that was just killed may keep the lock.
const LOCK_LIMIT: Duration = Duration::from_millis(500);

/// A data directory that is ours as long as this value lives.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    sockets: PathBuf,
    account: Account,
    ephemeral: bool,
    _lock: Flock<File>,
}

impl Directory {
    /// Makes the directory if need be, takes its lock, and makes sure that Postgres' user can work in it.
    pub(super) async fn open(options: &Options) -> Result<Directory, Error> {
        let path = match &options.data_dir {
            _ if options.ephemeral => ephemeral::fresh_path(),
            Some(given) => given.clone(),
            None => default_data_dir()?,
        };
        let path = make(&path)?;
        let lock = lock(&path).await?;
        let cluster = path.join("postgres");
        // Root's own directory says nothing about who Postgres should run as; anybody else's does.
        let owner = cluster.metadata().or_else(|_| path.metadata()).ok();
        let account = Account::choose(owner.as_ref())?;
        let sockets = sockets(&path, &account)?;
        let directory = Directory { path, sockets, account, ephemeral: options.ephemeral, _lock: lock };
        directory.check_access(&cluster)?;
        Ok(directory)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The cluster; absent until `initdb` has succeeded.
    pub(super) fn cluster(&self) -> PathBuf {
        self.path.join("postgres")
    }

    /// Where Postgres puts its socket.
    pub(super) fn sockets(&self) -> &Path {
        &self.sockets
    }

    pub(super) fn settings(&self) -> PathBuf {
        self.path.join("postgres.conf")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.path.join("postgres.log")
    }

    pub(super) fn password(&self) -> PathBuf {
        self.path.join("password")
    }

    /// The user that Postgres runs as here.
    pub(super) fn account(&self) -> &Account {
        &self.account
    }

    pub(super) fn is_ephemeral(&self) -> bool {
        self.ephemeral
    }

    fn check_access(&self, cluster: &Path) -> Result<(), Error> {
        if let Some(closed) = self.account.closed(&self.path) {
            return Err(Error::Closed { closed, user: self.account.name().to_owned() });
        }
        let Ok(metadata) = cluster.metadata() else { return Ok(()) };
        if metadata.uid() == self.account.uid() {
            return Ok(());
        }
        if self.account.switches() {
            // Restored from a copy by root, say. Postgres insists on owning its data.
            return self.account.give_all(cluster);
        }
        Err(Error::Owner { directory: cluster.to_owned(), owner: user_name(metadata.uid()) })
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if self.ephemeral {
            // Best effort: the next ephemeral server removes what stays.
            drop(fs::remove_dir_all(&self.path));
        }
        if !self.sockets.starts_with(&self.path) {
            // Refused as long as a socket is in there, and rightly so.
            drop(fs::remove_dir(&self.sockets));
        }
    }
}

/// Where downloads are kept: it is shared by all data directories of a user.
pub(super) fn default_cache_dir() -> Result<PathBuf, Error> {
    if geteuid().is_root() {
        return Ok(PathBuf::from("/var/cache/pgmq-grpc"));
    }
    Ok(project()?.cache_dir().to_owned())
}

/// Root's own home is closed to the user that Postgres runs as, hence the system's place.
fn default_data_dir() -> Result<PathBuf, Error> {
    if geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/pgmq-grpc"));
    }
    Ok(project()?.data_dir().to_owned())
}

fn project() -> Result<ProjectDirs, Error> {
    ProjectDirs::from("", "", "pgmq-grpc").ok_or(Error::NoHome)
}

/// Creates the directory and closes it to others. One that holds files of somebody else keeps its mode.
fn make(path: &Path) -> Result<PathBuf, Error> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(file("create", parent))?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(file("create", path)(error)),
        _ => {}
    }
    // One spelling, so that a postmaster left behind can be recognised by its arguments.
    let path = path.canonicalize().map_err(file("open", path))?;
    if path.join("PG_VERSION").exists() {
        return Err(Error::ForeignCluster { directory: path });
    }
    let metadata = path.metadata().map_err(file("read", &path))?;
    let mut entries = match path.read_dir() {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            return Err(Error::Owner { directory: path, owner: user_name(metadata.uid()) });
        }
        entries => entries.map_err(file("read", &path))?,
    };
    let ours = entries.next().is_none() || path.join("server.lock").exists();
    if ours && metadata.uid() == geteuid().as_raw() {
        let mode = if geteuid().is_root() { 0o711 } else { 0o700 };
        fs::set_permissions(&path, Permissions::from_mode(mode)).map_err(file("close", &path))?;
    }
    Ok(path)
}

/// Takes the lock, or tells who has it. The kernel releases it however we end, though not at once after a kill.
async fn lock(directory: &Path) -> Result<Flock<File>, Error> {
    let path = directory.join("server.lock");
    let mut lock_file =
        private().read(true).write(true).create(true).open(&path).map_err(file("open", &path))?;
    let started = Instant::now();
    loop {
        match Flock::lock(lock_file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                lock.set_len(0).map_err(file("write", &path))?;
                write!(lock, "{}", std::process::id()).map_err(file("write", &path))?;
                return Ok(lock);
            }
            Err((refused, Errno::EWOULDBLOCK)) => lock_file = refused,
            Err((_, errno)) => return Err(file("lock", &path)(errno.into())),
        }
        if started.elapsed() > LOCK_LIMIT {
            let mut number = String::new();
            let holder = match lock_file.read_to_string(&mut number) {
                Ok(_) if !number.is_empty() => format!("process {number}"),
                _ => "another process".to_owned(),
            };
            return Err(Error::InUse { directory: directory.to_owned(), holder });
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Makes the directory of the unix socket: `run/`, or one with a short and plain name under the temporary directory.
fn sockets(directory: &Path, account: &Account) -> Result<PathBuf, Error> {
    let mut path = directory.join("run");
    if !is_fit_for_sockets(&path) {
        let name = directory.as_os_str().as_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            // FNV-1a: the same name for the same directory at every start, so that a live postmaster is found again.
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        path = std::env::temp_dir().join(format!("pgmq-grpc-run-{name:016x}"));
    }
    match DirBuilder::new().mode(0o700).create(&path) {
        Ok(()) => account.give(&path)?,
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(file("create", &path)(error)),
        Err(_) => {}
    }
    // The temporary directory is everybody's: somebody may have put this name there to catch our password.
    let metadata = path.symlink_metadata().map_err(file("read", &path))?;
    if metadata.is_dir() && [account.uid(), geteuid().as_raw()].contains(&metadata.uid()) {
        account.give(&path)?;
        return Ok(path);
    }
    Err(Error::Owner { directory: path, owner: user_name(metadata.uid()) })
}

/// Whether a socket in this directory has a valid length, and the name needs no quoting in Postgres' settings.
fn is_fit_for_sockets(path: &Path) -> bool {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-+@ ".contains(byte);
    let bytes = path.as_os_str().as_bytes();
    bytes.len() + "/.s.PGSQL.65535".len() <= LONGEST_SOCKET && bytes.iter().all(plain)
}

/// Options to open files that only their owner reads. They follow no link: root writes here, beside another user.
pub(super) fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600).custom_flags(OFlag::O_NOFOLLOW.bits());
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_or_strange_path_is_not_used_for_sockets() {
        assert!(is_fit_for_sockets(Path::new("/home/bob/.local/share/pgmq-grpc/run")));
        assert!(!is_fit_for_sockets(Path::new("/tmp/it's")));
        assert!(!is_fit_for_sockets(Path::new("/tmp/a,b")));
        assert!(is_fit_for_sockets(Path::new(&format!("/{}", "x".repeat(87)))));
        assert!(!is_fit_for_sockets(Path::new(&format!("/{}", "x".repeat(88)))));
    }
}
