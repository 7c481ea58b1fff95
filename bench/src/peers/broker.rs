//! What all brokers have in common: a process with a group of its own, a directory, and a port that answers.

use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

/// RabbitMQ takes its time.
const START_LIMIT: Duration = Duration::from_secs(90);

/// How long an end in order may take.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// A running broker. Dropped, it is killed.
pub struct Broker {
    child: Child,
    group: Pid,
}

impl Broker {
    /// Starts a program and waits until its port answers.
    pub async fn start(mut command: Command, port: u16, log: &Path) -> Result<Broker> {
        let output = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).process_group(0);
        let program = command.as_std().get_program().to_owned();
        let child = command.spawn().with_context(|| format!("cannot run {}", program.display()))?;
        let group = Pid::from_raw(i32::try_from(child.id().context("a process that has ended")?)?);
        let mut broker = Broker { child, group };
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            if let Some(status) = broker.child.try_wait()? {
                bail!("{} ended with {status}: {}", program.display(), last_lines(log));
            }
            if began.elapsed() > START_LIMIT {
                bail!("{} did not answer: {}", program.display(), last_lines(log));
            }
            sleep(Duration::from_millis(50)).await;
        }
        Ok(broker)
    }

    /// Ends it in order, or else by force.
    pub async fn stop(mut self) {
        let _ = killpg(self.group, Signal::SIGTERM);
        if timeout(STOP_LIMIT, self.child.wait()).await.is_err() {
            let _ = killpg(self.group, Signal::SIGKILL);
            let _ = self.child.wait().await;
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // Once it has been waited for, its number may be another's.
        if self.child.id().is_some() {
            let _ = killpg(self.group, Signal::SIGKILL);
        }
    }
}

/// An empty directory in the place of whatever was there.
pub fn fresh_directory(path: &Path) -> Result<()> {
    if path.exists() {
        fs::remove_dir_all(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))
}

fn last_lines(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(3).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("; ")
}
