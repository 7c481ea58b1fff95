//! pgmq-py.

use std::path::PathBuf;

use anyhow::{Result, bail};
use serde_json::json;
use tokio::process::Command;

use crate::lab::{Lab, run_reporting};
use crate::load::body;
use crate::rounds::{PATIENCE, Pace};
use crate::trial::Outcome;

/// A run of pgmq-py.
#[derive(Clone, Debug)]
pub struct Python {
    /// `threads`, `async`, or `mixed`: threads of which half send and half read and delete.
    pub kind: &'static str,
    /// The queue.
    pub queue: String,
    /// How many callers, each with a connection.
    pub callers: usize,
}

/// Runs it once.
pub async fn run(lab: &Lab, pace: Pace, work: &Python, body_bytes: usize) -> Result<Outcome> {
    let program = lab.output.join("venv/bin/python");
    if !program.is_file() {
        bail!("missing: pgmq-py was not installed");
    }
    let order = json!({
        "kind": work.kind,
        "url": lab.sql.url(),
        "queue": work.queue,
        "callers": work.callers,
        "body": body(body_bytes),
        "warm_up_ms": pace.warm_up.as_millis(),
        "measure_ms": pace.measure.as_millis(),
    });
    let script = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/peers/pgmq_py.py"));
    let mut command = Command::new(program);
    command.arg(script).arg(order.to_string());
    run_reporting(command, lab.watched(), None, pace.warm_up + pace.measure + PATIENCE).await
}
