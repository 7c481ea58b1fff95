//! Runs the processes of a trial and measures what everybody uses meanwhile.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::Sql;
use super::processor::{family_seconds, forget_peak, resident_mebibytes, seconds};
use crate::trial::{Outcome, Processor};

/// The processes whose processor time is measured.
#[derive(Clone, Copy, Debug)]
pub struct Watched {
    /// The server under test.
    pub server: u32,
    /// The first process of its Postgres.
    pub postmaster: u32,
}

impl Watched {
    fn used(self, load: u32) -> Processor {
        Processor {
            server: seconds(self.server),
            postgres: family_seconds(self.postmaster),
            load: family_seconds(load),
        }
    }
}

/// Runs a load generator that prints `BEGIN`, `END` and its outcome. With `sql`, looks at the server's memory,
/// connections and transactions between the two.
pub async fn run_reporting(
    mut command: Command,
    watched: Watched,
    sql: Option<&Sql>,
    limit: Duration,
) -> Result<Outcome> {
    let mut child = spawn(&mut command)?;
    let pid = child.id().unwrap_or_default();
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let conversation = async {
        let (mut before, mut after) = (Processor::default(), Processor::default());
        let (mut began, mut committed, mut figures) = (Instant::now(), 0, Vec::new());
        while let Some(line) = lines.next_line().await? {
            match line.as_str() {
                "BEGIN" => {
                    before = watched.used(pid);
                    began = Instant::now();
                    forget_peak(watched.server);
                    if let Some(sql) = sql {
                        committed = sql.look().await?.1;
                    }
                }
                "END" => {
                    after = watched.used(pid);
                    if let Some(sql) = sql {
                        let (connections, now_committed) = sql.look().await?;
                        let seconds = began.elapsed().as_secs_f64();
                        figures.push(("connections", connections as f64));
                        figures
                            .push(("transactions_per_second", (now_committed - committed) as f64 / seconds));
                    }
                    if let Some((resident, peak)) = resident_mebibytes(watched.server) {
                        figures.extend([("resident_mib", resident), ("resident_peak_mib", peak)]);
                    }
                }
                line if line.starts_with('{') => {
                    let mut outcome: Outcome = serde_json::from_str(line)?;
                    outcome.processor = difference(before, after);
                    outcome.figures.extend(figures.into_iter().map(|(name, value)| (name.to_owned(), value)));
                    return Ok(outcome);
                }
                _ => {}
            }
        }
        Err(anyhow!("it ended without an outcome"))
    };
    let outcome = match timeout(limit, conversation).await {
        Ok(outcome) => outcome,
        Err(_) => Err(anyhow!("it did not end within {} s", limit.as_secs())),
    };
    finish(child, outcome).await
}

/// Runs a program to its end. Returns what it printed, how long it took, and what was used meanwhile.
pub async fn run_to_end(
    mut command: Command,
    watched: Watched,
    limit: Duration,
) -> Result<(String, f64, Processor)> {
    let before = watched.used(0);
    let began = Instant::now();
    let mut child = spawn(&mut command)?;
    let mut printed = String::new();
    let mut output = child.stdout.take().context("no output")?;
    let read = match timeout(limit, output.read_to_string(&mut printed)).await {
        Ok(read) => read.map(drop).map_err(Into::into),
        Err(_) => Err(anyhow!("it did not end within {} s", limit.as_secs())),
    };
    let taken = began.elapsed().as_secs_f64();
    let used = difference(before, watched.used(0));
    finish(child, read).await?;
    Ok((printed, taken, used))
}

fn spawn(command: &mut Command) -> Result<Child> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command.spawn().with_context(|| format!("cannot run {:?}", command.as_std().get_program()))
}

/// Waits for the end of a process; a failure gets the last of what it complained about.
async fn finish<T>(mut child: Child, result: Result<T>) -> Result<T> {
    if result.is_err() {
        let _ = child.start_kill();
    }
    let mut complaints = String::new();
    if let Some(mut errors) = child.stderr.take() {
        let _ = errors.read_to_string(&mut complaints).await;
    }
    let status = child.wait().await?;
    let last: Vec<&str> = complaints.lines().rev().filter(|line| !line.trim().is_empty()).take(3).collect();
    let last = last.into_iter().rev().collect::<Vec<_>>().join("; ");
    match result {
        Ok(value) if status.success() => Ok(value),
        Ok(_) => bail!("{status}: {last}"),
        Err(error) if last.is_empty() => Err(error),
        // A load generator says why it ended before it had an outcome.
        Err(error) => match last.strip_prefix("bench: ") {
            Some(why) => Err(anyhow!("{why}")),
            None => Err(anyhow!("{error}: {last}")),
        },
    }
}

fn difference(before: Processor, after: Processor) -> Processor {
    Processor {
        server: after.server - before.server,
        postgres: after.postgres - before.postgres,
        load: after.load - before.load,
    }
}
