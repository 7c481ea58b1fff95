//! Reads `postmaster.pid`, and tells a live postmaster from a number that has gone to another program.

use std::fs;
use std::io::Write;
use std::path::Path;

use nix::unistd::Pid;

use super::directory::private;
use super::error::{Error, file};

/// What Postgres writes into its data directory while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PidFile {
    /// The postmaster.
    pub(super) pid: i32,
    /// It has begun to stop.
    pub(super) stopping: bool,
}

impl PidFile {
    /// Reads the file of a cluster, if there is one that makes sense.
    pub(super) fn read(cluster: &Path) -> Option<PidFile> {
        PidFile::parse(&fs::read_to_string(cluster.join("postmaster.pid")).ok()?)
    }

    /// The lines are: pid, data directory, start time, port, socket directory, address, shared memory, status.
    fn parse(text: &str) -> Option<PidFile> {
        let mut lines = text.lines();
        let pid = lines.next()?.trim().parse().ok()?;
        // 1 is init, and what is below means whole groups of processes to kill().
        if pid <= 1 {
            return None;
        }
        let stopping = lines.nth(6).is_some_and(|status| status.trim() == "stopping");
        Some(PidFile { pid, stopping })
    }
}

/// Makes Postgres regard the file of a dead postmaster as stale, even if its number now belongs to another program.
///
/// Postgres trusts the number of its parent, ours, to be no postmaster. The file is not simply removed, because its
/// other lines lead to the shared memory, by which Postgres notices that orphaned backends still use the data.
pub(super) fn disown(cluster: &Path) -> Result<(), Error> {
    let path = cluster.join("postmaster.pid");
    let Ok(text) = fs::read_to_string(&path) else { return Ok(()) };
    let Some((_, rest)) = text.split_once('\n') else { return Ok(()) };
    fs::remove_file(&path).map_err(file("remove", &path))?;
    // The directory, which is closed, protects it; but Postgres' user must read it.
    let options = &mut private();
    let opened =
        std::os::unix::fs::OpenOptionsExt::mode(options, 0o644).write(true).create_new(true).open(&path);
    let written = opened.and_then(|mut target| write!(target, "{}\n{rest}", std::process::id()));
    written.map_err(file("write", &path))
}

/// Removes the sockets of a dead postmaster, whose lock files would keep the next one away in the same manner.
pub(super) fn remove_sockets(directory: &Path) -> Result<(), Error> {
    for entry in directory.read_dir().map_err(file("read", directory))? {
        let path = entry.map_err(file("read", directory))?.path();
        fs::remove_file(&path).map_err(file("remove", &path))?;
    }
    Ok(())
}

/// Whether this process is the postmaster of this cluster, as started by us. A zombie is not.
pub(super) fn is_postmaster(pid: Pid, cluster: &Path) -> bool {
    // Postgres is always started by its full path, with the cluster as first argument.
    let expected = format!("/postgres -D {} ", cluster.display());
    command_line(pid).is_some_and(|line| line.contains(&expected))
}

#[cfg(target_os = "linux")]
fn command_line(pid: Pid) -> Option<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    Some(String::from_utf8_lossy(&line).replace('\0', " "))
}

#[cfg(not(target_os = "linux"))]
fn command_line(pid: Pid) -> Option<String> {
    let arguments = ["-ww", "-o", "args=", "-p", &pid.to_string()];
    let output = std::process::Command::new("ps").args(arguments).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_and_a_stopping_postmaster_are_told_apart() {
        let text = "4711\n/d/postgres\n1763719000\n5432\n/d/run\n\n  5432001    12\nready   \n";
        assert_eq!(PidFile::parse(text), Some(PidFile { pid: 4711, stopping: false }));
        let text = text.replace("ready   ", "stopping");
        assert_eq!(PidFile::parse(&text), Some(PidFile { pid: 4711, stopping: true }));
    }

    #[test]
    fn a_half_written_file_has_a_number_or_nothing() {
        assert_eq!(PidFile::parse("4711\n/d"), Some(PidFile { pid: 4711, stopping: false }));
        assert_eq!(PidFile::parse(""), None);
    }

    #[test]
    fn a_number_that_would_signal_other_processes_is_refused() {
        for text in ["0\n", "1\n", "-1\n", "x\n"] {
            assert_eq!(PidFile::parse(text), None, "{text}");
        }
    }

    #[test]
    fn this_test_is_not_a_postmaster() {
        assert!(!is_postmaster(Pid::this(), Path::new("/d/postgres")));
    }
}
