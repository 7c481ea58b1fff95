//! pgbench: what clients get who call pgmq's functions themselves.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::process::Command;

use crate::lab::{Lab, run_to_end};
use crate::rounds::Pace;
use crate::trial::{Outcome, Quantiles};

/// A run of pgbench. Statements are prepared once a connection, which is its fastest way.
#[derive(Clone, Debug)]
pub struct Pgbench {
    /// The script of one transaction.
    pub script: String,
    /// How many connections.
    pub clients: usize,
    /// How many messages a transaction moves.
    pub messages: u64,
    /// So many transactions in all, where the queue holds no more; else as long as the pace says.
    pub transactions: Option<u64>,
}

impl Pgbench {
    /// `pgmq.send` of one message.
    pub fn send(queue: &str, body: &str, clients: usize) -> Pgbench {
        let script = format!("SELECT pgmq.send('{queue}', '{body}'::jsonb);\n");
        Pgbench { script, clients, messages: 1, transactions: None }
    }

    /// `pgmq.send_batch` of so many.
    pub fn send_batch(queue: &str, body: &str, batch: usize, clients: usize) -> Pgbench {
        let bodies = vec![format!("'{body}'"); batch].join(",");
        let script = format!("SELECT count(*) FROM pgmq.send_batch('{queue}', ARRAY[{bodies}]::jsonb[]);\n");
        Pgbench { script, clients, messages: batch as u64, transactions: None }
    }

    /// `pgmq.read` of one message, and `pgmq.delete` of it.
    pub fn read_delete(queue: &str, clients: usize) -> Pgbench {
        let script = format!(
            "SELECT msg_id FROM pgmq.read('{queue}', 30, 1) \\gset\n\
             SELECT pgmq.delete('{queue}', :msg_id::bigint);\n"
        );
        Pgbench { script, clients, messages: 1, transactions: None }
    }

    /// One statement that reads and deletes so many, on one connection, until the queue's messages are used up.
    pub fn delete_read(queue: &str, batch: u64, messages: u64) -> Pgbench {
        let script = format!(
            "SELECT count(*) FROM pgmq.delete('{queue}', \
             ARRAY(SELECT msg_id FROM pgmq.read('{queue}', 30, {batch})));\n"
        );
        Pgbench { script, clients: 1, messages: batch, transactions: Some(messages / batch) }
    }
}

/// Where the program is.
pub fn find() -> Result<PathBuf> {
    // Debian's wrapper looks around at each start; the program itself lies beside the newest Postgres.
    let mut found: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let major = entry.file_name().to_str()?.parse().ok()?;
            let program = entry.path().join("bin/pgbench");
            program.is_file().then_some((major, program))
        })
        .collect();
    found.sort();
    if let Some((_, program)) = found.pop() {
        return Ok(program);
    }
    #[expect(clippy::disallowed_methods, reason = "where programs are is no setting")]
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut programs = std::env::split_paths(&path).map(|directory| directory.join("pgbench"));
    programs.find(|program| program.is_file()).context("pgbench is not installed")
}

/// Runs it once.
pub async fn run(lab: &Lab, pace: Pace, work: &Pgbench, patience: Duration) -> Result<Outcome> {
    let script = lab.output.join("pgbench.sql");
    fs::write(&script, &work.script)?;
    let logs = lab.output.join("pgbench-log");
    let _ = fs::remove_dir_all(&logs);
    fs::create_dir_all(&logs)?;
    let mut command = Command::new(find()?);
    command.env("PGPASSWORD", &lab.sql.password);
    command.args(["-h", &lab.sql.sockets, "-p", &lab.sql.port.to_string(), "-U", "pgmq"]);
    let threads = work.clients.min(2);
    command.args(["-n", "-M", "prepared", "-c", &work.clients.to_string(), "-j", &threads.to_string()]);
    match work.transactions {
        Some(transactions) => command.args(["-t", &transactions.to_string()]),
        // Whole seconds only.
        None => command.args(["-T", &pace.measure.as_secs_f64().ceil().to_string()]),
    };
    command.arg("-l").arg("--log-prefix").arg(logs.join("log"));
    if work.clients > 8 {
        // A line for each transaction would cost the busy ones.
        command.args(["--sampling-rate", "0.05"]);
    }
    command.arg("-f").arg(&script).arg("pgmq");
    let (printed, _, processor) = run_to_end(command, lab.watched(), pace.measure + patience).await?;
    let (transactions, per_second) =
        (number(&printed, "number of transactions actually processed: ")?, tps(&printed)?);
    if printed.contains("number of failed transactions")
        && number(&printed, "number of failed transactions: ")? > 0.0
    {
        bail!("transactions failed");
    }
    let latency = quantiles(&logs)?;
    let _ = fs::remove_dir_all(&logs);
    Ok(Outcome {
        messages: transactions as u64 * work.messages,
        seconds: transactions / per_second,
        latency,
        processor,
        figures: Default::default(),
    })
}

fn tps(printed: &str) -> Result<f64> {
    number(printed, "tps = ")
}

/// The number that follows a text.
fn number(printed: &str, after: &str) -> Result<f64> {
    let rest =
        printed.split_once(after).with_context(|| format!("pgbench does not say '{after}': {printed}"))?.1;
    let end = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(rest.len());
    Ok(rest[..end].parse()?)
}

/// The quantiles of the transactions in its logs, whose third column is the latency in microseconds.
fn quantiles(logs: &Path) -> Result<Option<Quantiles>> {
    let mut latencies: Vec<f64> = Vec::new();
    for entry in fs::read_dir(logs)? {
        let text = fs::read_to_string(entry?.path())?;
        latencies.extend(text.lines().filter_map(|line| line.split(' ').nth(2)?.parse::<f64>().ok()));
    }
    if latencies.is_empty() {
        return Ok(None);
    }
    latencies.sort_by(f64::total_cmp);
    let at = |quantile: f64| latencies[((latencies.len() - 1) as f64 * quantile) as usize];
    Ok(Some(Quantiles { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: at(1.0) }))
}

#[cfg(test)]
mod tests {
    use super::{number, tps};

    const PRINTED: &str = "number of transactions actually processed: 20021\nnumber of failed transactions: 0 (0.000%)\n\
        latency average = 3.996 ms\ntps = 4003.871422 (without initial connection time)\n";

    #[test]
    fn the_numbers_are_found_in_what_pgbench_prints() {
        assert_eq!(number(PRINTED, "number of transactions actually processed: ").ok(), Some(20021.0));
        assert_eq!(tps(PRINTED).ok(), Some(4003.871422));
        assert!(tps("pgbench: error").is_err());
    }
}
