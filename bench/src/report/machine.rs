//! What it was measured on.

use std::fs;
use std::process::Command;
use std::time::Duration;

use serde::Serialize;

use crate::rounds::Pace;

/// The machine and the run.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The model of its processor.
    pub processor: String,
    /// How many of them.
    pub processors: usize,
    /// Its memory, in GiB.
    pub memory_gib: f64,
    /// The system.
    pub system: String,
    /// The version of Postgres under the server.
    pub postgres: String,
    /// The commit that was measured.
    pub commit: String,
    /// When, in UTC.
    pub date: String,
    /// How long everything took, in seconds.
    pub seconds: u64,
    /// How often each side ran.
    pub rounds: usize,
    /// How long a trial counted, in milliseconds.
    pub measure_ms: u128,
    /// Whether this was the quick run.
    pub quick: bool,
}

impl Machine {
    /// Looks around.
    pub fn look(postgres: &str, taken: Duration, pace: Pace) -> Machine {
        Machine {
            processor: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_owned()),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: memory_gib(),
            system: output("uname", &["-sr"]),
            postgres: postgres.to_owned(),
            commit: output("git", &["describe", "--always", "--dirty"]),
            date: output("date", &["-u", "+%Y-%m-%d %H:%M"]),
            seconds: taken.as_secs(),
            rounds: pace.rounds,
            measure_ms: pace.measure.as_millis(),
            quick: pace.quick,
        }
    }

    /// In one line.
    pub fn line(&self) -> String {
        format!(
            "{} × {}, {:.0} GiB, {}, Postgres {}, commit {}, {} UTC, {} rounds of {:.1} s a trial{}, {} min {} s in all",
            self.processors,
            self.processor,
            self.memory_gib,
            self.system,
            self.postgres,
            self.commit,
            self.date,
            self.rounds,
            self.measure_ms as f64 / 1e3,
            if self.quick { " (quick)" } else { "" },
            self.seconds / 60,
            self.seconds % 60
        )
    }
}

fn memory_gib() -> f64 {
    let text = field("/proc/meminfo", "MemTotal").unwrap_or_default();
    text.trim_end_matches("kB").trim().parse::<f64>().unwrap_or(0.0) / 1024.0 / 1024.0
}

fn field(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.ok().filter(|text| !text.is_empty()).unwrap_or_else(|| "unknown".to_owned())
}
