//! One running Postgres: started by us, or found running after a crash of ours.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Child;
use tokio::time::sleep;
use tokio_postgres::Config;
use tokio_postgres::error::SqlState;
use tracing::{debug, info, warn};

use super::binaries::Binaries;
use super::directory::{Directory, private};
use super::error::{Error, LogTail, file};
use super::pid_file::{PidFile, is_postmaster};
use super::session;

/// How often a starting or stopping Postgres is looked at.
const GLANCE: Duration = Duration::from_millis(20);

/// How long a fast shutdown, with its checkpoint, may take before an immediate one follows.
const FAST_SHUTDOWN: Duration = Duration::from_secs(20);

/// How long an immediate shutdown may take. Postgres kills what has not ended after 5 s.
const IMMEDIATE_SHUTDOWN: Duration = Duration::from_secs(10);

/// How often a long recovery is reported.
const PROGRESS: Duration = Duration::from_secs(5);

/// The log is emptied at a start when it is larger than this.
const LONGEST_LOG: u64 = 16 * 1024 * 1024;

/// A postmaster. Dropping it asks Postgres to stop, without waiting for that.
#[derive(Debug)]
pub(super) struct Postmaster {
    pid: Pid,
    /// Absent for one that a server before us has started.
    child: Option<Child>,
    cluster: PathBuf,
    log: PathBuf,
    /// Where in the log our part begins.
    log_start: u64,
    ended: bool,
}

impl Postmaster {
    /// Starts Postgres. It is not ready yet.
    pub(super) fn spawn(directory: &Directory, binaries: &Binaries) -> Result<Postmaster, Error> {
        let log = directory.log();
        let output = private().append(true).create(true).open(&log).map_err(file("open", &log))?;
        let mut log_start = output.metadata().map_err(file("read", &log))?.len();
        if log_start > LONGEST_LOG {
            output.set_len(0).map_err(file("write", &log))?;
            log_start = 0;
        }
        let errors = output.try_clone().map_err(file("open", &log))?;
        let cluster = directory.cluster();
        let program = binaries.program("postgres");
        let mut command = directory.account().command(&program);
        command.arg("-D").arg(&cluster).arg("-c").arg(config_file(directory));
        // A group of its own: Ctrl-C on our terminal is for us, who still have work to finish in the database.
        command.stdout(output).stderr(errors).process_group(0);
        let failed = |source| Error::Run {
            program: program.clone(),
            user: directory.account().name().to_owned(),
            source,
        };
        let child = command.spawn().map_err(failed)?;
        let pid = child.id().and_then(|pid| pid.try_into().ok()).map(Pid::from_raw);
        let Some(pid) = pid else { return Err(failed(std::io::ErrorKind::NotFound.into())) };
        Ok(Postmaster { pid, child: Some(child), cluster, log, log_start, ended: false })
    }

    /// The live postmaster of this cluster that a killed server has left behind.
    pub(super) fn find(cluster: &Path, log: &Path) -> Option<Postmaster> {
        let pid = Pid::from_raw(PidFile::read(cluster)?.pid);
        if !is_postmaster(pid, cluster) {
            return None;
        }
        let log_start = log.metadata().map_or(0, |metadata| metadata.len());
        Some(Postmaster {
            pid,
            child: None,
            cluster: cluster.to_owned(),
            log: log.to_owned(),
            log_start,
            ended: false,
        })
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Whether it has begun to stop, and will not take connections any more.
    pub(super) fn is_stopping(&self) -> bool {
        PidFile::read(&self.cluster).is_some_and(|pid_file| pid_file.stopping)
    }

    /// Waits until it answers on its socket. Returns the version of the running server.
    ///
    /// Recovery after a crash takes the time it takes; the limit is for a server that does not answer at all.
    pub(super) async fn ready(&mut self, config: &Config, limit: Duration) -> Result<String, Error> {
        let started = Instant::now();
        let (mut silent_since, mut reported) = (started, started);
        loop {
            let answer = session::open(config).await;
            let refusal = match answer {
                Ok(version) => return Ok(version),
                Err(refusal) => refusal,
            };
            if let Some(status) = self.exited() {
                return Err(self.ended(&status));
            }
            match refusal.as_ref().and_then(|error| error.code()) {
                Some(&SqlState::CANNOT_CONNECT_NOW) => silent_since = Instant::now(),
                Some(&SqlState::INVALID_PASSWORD | &SqlState::INVALID_AUTHORIZATION_SPECIFICATION) => {
                    if let Some(source) = refusal {
                        return Err(Error::Refused { source });
                    }
                }
                _ => {}
            }
            if silent_since.elapsed() > limit {
                let log = LogTail::read(&self.log, self.log_start);
                return Err(Error::NotReady { seconds: limit.as_secs(), log, source: refusal });
            }
            if reported.elapsed() > PROGRESS {
                reported = Instant::now();
                info!("postgres is not ready yet ({} s)", started.elapsed().as_secs());
            }
            sleep(GLANCE).await;
        }
    }

    /// Waits until it ends without having been asked to.
    pub(super) async fn wait(&mut self) -> Error {
        loop {
            if let Some(status) = self.exited() {
                return self.ended(&status);
            }
            // An adopted one is not our child, and only children tell when they end.
            match &mut self.child {
                Some(child) => drop(child.wait().await),
                None => sleep(Duration::from_secs(1)).await,
            }
        }
    }

    /// Stops it: a fast shutdown, and an immediate one if that takes too long. Both keep the data.
    pub(super) async fn stop(&mut self) -> Result<(), Error> {
        if self.exited().is_some() {
            // Its number may belong to another process by now.
            return Ok(());
        }
        self.signal(Signal::SIGINT);
        if self.exits_within(FAST_SHUTDOWN).await {
            return Ok(());
        }
        warn!("postgres did not stop within {} s, stopping it at once", FAST_SHUTDOWN.as_secs());
        self.signal(Signal::SIGQUIT);
        if self.exits_within(IMMEDIATE_SHUTDOWN).await {
            return Ok(());
        }
        Err(Error::NotStopped { pid: self.pid(), seconds: IMMEDIATE_SHUTDOWN.as_secs() })
    }

    async fn exits_within(&mut self, limit: Duration) -> bool {
        let started = Instant::now();
        while started.elapsed() < limit {
            if self.exited().is_some() {
                return true;
            }
            sleep(GLANCE).await;
        }
        false
    }

    fn signal(&self, signal: Signal) {
        if let Err(errno) = kill(self.pid, signal) {
            // It is gone already, which is what the signal is for.
            debug!(%errno, "cannot signal postgres");
        }
    }

    /// How it ended, if it has.
    fn exited(&mut self) -> Option<String> {
        let status = match &mut self.child {
            Some(child) => child.try_wait().ok().flatten().as_ref().map(ExitStatus::to_string),
            None if is_postmaster(self.pid, &self.cluster) => None,
            None => Some("exit status unknown".to_owned()),
        };
        self.ended |= status.is_some();
        status
    }

    fn ended(&self, status: &str) -> Error {
        Error::Ended { status: status.to_owned(), log: LogTail::read(&self.log, self.log_start) }
    }
}

impl Drop for Postmaster {
    fn drop(&mut self) {
        if !self.ended && self.exited().is_none() {
            self.signal(Signal::SIGINT);
        }
    }
}

fn config_file(directory: &Directory) -> std::ffi::OsString {
    let mut setting = std::ffi::OsString::from("config_file=");
    setting.push(directory.settings());
    setting
}
