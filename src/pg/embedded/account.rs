//! The user that Postgres runs as: ourselves, or somebody unprivileged when we are root.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::unistd::{Uid, User, getegid, geteuid};
use tokio::process::Command;

use super::error::{Error, file};

/// A user, and whether becoming that user takes a switch.
#[derive(Clone, Debug)]
pub(super) struct Account {
    uid: u32,
    gid: u32,
    name: String,
    /// We are root: programs switch to this user, and what they write must be handed over.
    switches: bool,
}

impl Account {
    /// The user to run Postgres as.
    ///
    /// Postgres refuses to run as root. Root therefore takes the `owner` of what is already there, so that data made
    /// by an ordinary user stays theirs; else the user `postgres`; else `nobody`.
    pub(super) fn choose(owner: Option<&Metadata>) -> Result<Account, Error> {
        if !geteuid().is_root() {
            let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
            return Ok(Account { uid, gid, name: user_name(uid), switches: false });
        }
        if let Some(owner) = owner
            && owner.uid() != 0
        {
            return Ok(Account {
                uid: owner.uid(),
                gid: owner.gid(),
                name: user_name(owner.uid()),
                switches: true,
            });
        }
        for name in ["postgres", "nobody"] {
            if let Ok(Some(user)) = User::from_name(name) {
                let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
                return Ok(Account { uid, gid, name: name.to_owned(), switches: true });
            }
        }
        Err(Error::NoUser)
    }

    pub(super) fn uid(&self) -> u32 {
        self.uid
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether we are root and this is somebody else.
    pub(super) fn switches(&self) -> bool {
        self.switches
    }

    /// A command that runs as this user, undisturbed by the caller's environment.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        // The caller's directory may be closed to this user, and initdb insists on knowing where it is.
        command.current_dir("/").stdin(Stdio::null());
        // Messages in English, because they are shown in ours; and nothing that would point to another server.
        command.env("LC_ALL", "C");
        for name in ["PGDATA", "PGPORT", "PGDATESTYLE", "PGCLIENTENCODING", "PGTZ", "PGOPTIONS"] {
            command.env_remove(name);
        }
        if self.switches {
            // The standard library then drops root's other groups as well.
            command.uid(self.uid).gid(self.gid);
        }
        command
    }

    /// Makes this user the owner of a path; does nothing when we are that user.
    pub(super) fn give(&self, path: &Path) -> Result<(), Error> {
        if !self.switches {
            return Ok(());
        }
        lchown(path, Some(self.uid), Some(self.gid)).map_err(file("change the owner of", path))
    }

    /// Makes this user the owner of a directory and everything in it, never following a link.
    pub(super) fn give_all(&self, directory: &Path) -> Result<(), Error> {
        for entry in directory.read_dir().map_err(file("read", directory))? {
            let entry = entry.map_err(file("read", directory))?;
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => self.give_all(&path)?,
                _ => self.give(&path)?,
            }
        }
        self.give(directory)
    }

    /// The first directory on the way to `path`, or `path` itself, that this user may not enter.
    pub(super) fn closed(&self, path: &Path) -> Option<PathBuf> {
        if !self.switches {
            return None;
        }
        let mut ancestors: Vec<&Path> = path.ancestors().collect();
        ancestors.reverse();
        ancestors.into_iter().find(|directory| !self.may_enter(directory).unwrap_or(true)).map(Path::to_owned)
    }

    fn may_enter(&self, directory: &Path) -> io::Result<bool> {
        let metadata = directory.metadata()?;
        let bit = if metadata.uid() == self.uid {
            0o100
        } else if metadata.gid() == self.gid {
            0o010
        } else {
            0o001
        };
        Ok(metadata.mode() & bit != 0)
    }
}

/// The name of a user, or the number where there is no name.
pub(super) fn user_name(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        _ => uid.to_string(),
    }
}
