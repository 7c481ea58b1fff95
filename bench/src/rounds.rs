//! Runs the sides of a comparison in turn, again and again, so that what disturbs the machine disturbs all of them.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;
use tokio::process::Command;

use crate::lab::{self, Lab};
use crate::peers::pgbench::{self, Pgbench};
use crate::peers::python::{self, Python};
use crate::scenarios::SHORT;
use crate::trial::{Load, Order, Outcome};

/// How long a trial may take beyond its own time, for preparations and a slow machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How long trials are and how often they are repeated.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How often each side runs.
    pub rounds: usize,
    /// How long a trial works before it counts.
    pub warm_up: Duration,
    /// How long a trial counts.
    pub measure: Duration,
    /// Shorter, with fewer scenarios.
    pub quick: bool,
}

/// One of those that are compared.
pub struct Side {
    /// How rows refer to it.
    pub id: String,
    /// What it is, for people.
    pub title: String,
    /// The queue in Postgres that is emptied and filled before each trial.
    pub queue: Option<Refill>,
    /// What runs.
    pub work: Work,
    /// The length of each body.
    pub body_bytes: usize,
    /// Whether the server's connections and transactions are looked at.
    pub looked_at: bool,
    /// So long instead of what the pace says.
    pub measure: Option<Duration>,
}

impl Side {
    /// A side with short bodies.
    pub fn new(id: &str, title: &str, work: Work) -> Side {
        let (id, title) = (id.to_owned(), title.to_owned());
        Side { id, title, queue: None, work, body_bytes: SHORT, looked_at: false, measure: None }
    }

    /// Begins each trial with this queue emptied and filled.
    pub fn on(mut self, queue: &str, messages: u64) -> Side {
        self.queue = Some(Refill { queue: queue.to_owned(), in_flight: 0, messages });
        self
    }

    /// Puts messages that somebody holds before the others.
    pub fn behind(mut self, in_flight: u64) -> Side {
        if let Some(refill) = &mut self.queue {
            refill.in_flight = in_flight;
        }
        self
    }

    /// Has bodies of another length.
    pub fn with_bodies_of(mut self, bytes: usize) -> Side {
        self.body_bytes = bytes;
        self
    }
}

/// What a queue holds when a trial begins.
#[derive(Clone, Debug)]
pub struct Refill {
    /// The queue.
    pub queue: String,
    /// How many messages at its head are held by somebody.
    pub in_flight: u64,
    /// How many are visible.
    pub messages: u64,
}

/// What a side runs.
pub enum Work {
    /// Our load generator.
    Load(Load),
    /// pgbench.
    Pgbench(Pgbench),
    /// pgmq-py.
    Python(Python),
    /// Nothing, for this reason.
    Missing(String),
}

/// What all rounds of a side have given.
#[derive(Serialize)]
pub struct SideResult {
    /// How rows refer to it.
    pub id: String,
    /// What it is.
    pub title: String,
    /// One outcome a round, or why there is none.
    pub rounds: Vec<Result<Outcome, String>>,
}

/// Runs all sides in turn, as often as the pace says.
pub async fn run(lab: &Lab, pace: Pace, began: Instant, sides: Vec<Side>) -> Vec<SideResult> {
    let mut results: Vec<SideResult> = sides
        .iter()
        .map(|side| SideResult { id: side.id.clone(), title: side.title.clone(), rounds: Vec::new() })
        .collect();
    for round in 1..=pace.rounds {
        for (side, result) in sides.iter().zip(&mut results) {
            let outcome = trial(lab, pace, side).await.map_err(|error| format!("{error:#}"));
            say_how(began, round, pace.rounds, &side.title, &outcome);
            result.rounds.push(outcome);
        }
    }
    results
}

async fn trial(lab: &Lab, pace: Pace, side: &Side) -> Result<Outcome> {
    let pace = Pace { measure: side.measure.unwrap_or(pace.measure), ..pace };
    if let Some(refill) = &side.queue {
        lab.sql.refill(refill, side.body_bytes).await?;
    }
    match &side.work {
        Work::Load(load) => {
            let order = Order {
                load: load.clone(),
                body_bytes: side.body_bytes,
                warm_up_ms: u64::try_from(pace.warm_up.as_millis())?,
                measure_ms: u64::try_from(pace.measure.as_millis())?,
            };
            let mut command = Command::new(&lab.program);
            command.arg("load").arg(serde_json::to_string(&order)?);
            let limit = pace.warm_up + pace.measure + PATIENCE;
            if !side.looked_at {
                return lab::run_reporting(command, lab.watched(), None, limit).await;
            }
            lab.sql.autovacuum(false).await?;
            let outcome = lab::run_reporting(command, lab.watched(), Some(&lab.sql), limit).await;
            lab.sql.autovacuum(true).await?;
            outcome
        }
        Work::Pgbench(work) => pgbench::run(lab, pace, work, PATIENCE).await,
        Work::Python(work) => python::run(lab, pace, work, side.body_bytes).await,
        Work::Missing(why) => anyhow::bail!("missing: {why}"),
    }
}

fn say_how(began: Instant, round: usize, rounds: usize, title: &str, outcome: &Result<Outcome, String>) {
    let seconds = began.elapsed().as_secs();
    let found = match outcome {
        Ok(outcome) => {
            let p50 = outcome.latency.map(|latency| format!(", p50 {:.2} ms", latency.p50 / 1e3));
            format!("{:>9.0}/s{}", outcome.rate(), p50.unwrap_or_default())
        }
        Err(error) => format!("failed: {error}"),
    };
    eprintln!("[{:2}:{:02}] {round}/{rounds} {title}: {found}", seconds / 60, seconds % 60);
}
