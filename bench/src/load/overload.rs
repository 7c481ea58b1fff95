//! More callers than the server can serve: those that it refuses come again when it has asked them to.
//!
//! A crowd of thousands waits in its own client as well, which the server cannot change and which is no matter of its. So
//! the callers whose times are told are few, with a process and connections of their own, as the ones of another
//! machine would be; the crowd is in a second process, whose times are told apart.

use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use hdrhistogram::Histogram;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::sleep;
use tonic::{Code, Status};

use super::body::body;
use super::channel::connect;
use super::meter::{Meter, quantiles, report};
use crate::proto::SendRequest;
use crate::proto::queue_service_client::QueueServiceClient;
use crate::trial::{Load, Order, Outcome};

/// The server takes no more streams on a connection, and a client holds the others back.
const CALLERS_PER_CONNECTION: usize = 200;

/// The delay of a refusal that tells none.
const PAUSE: Duration = Duration::from_millis(20);

/// Starts the callers beside the crowd, counts, and tells how accepted and refused calls have fared.
pub async fn run(order: &Order, server: &str, queue: &str, callers: usize, crowd: usize) -> Result<()> {
    let meter = Meter::new();
    let refusals = start(order, &meter, server, queue, callers).await?;
    let (outcome, crowd) = tokio::try_join!(meter.outcome(order), run_crowd(order, server, queue, crowd))?;
    let mut outcome = with_refusals(outcome, &refusals)?;
    if let Some(crowd) = crowd {
        outcome.messages += crowd.messages;
        if let Some(latency) = crowd.latency {
            outcome.figures.insert("crowd_p99_ms".to_owned(), latency.p99 / 1e3);
        }
        let figures = crowd.figures.into_iter().map(|(name, value)| (format!("crowd_{name}"), value));
        outcome.figures.extend(figures);
    }
    report(&outcome)
}

/// Runs the crowd in a process of its own, if there is one.
async fn run_crowd(order: &Order, server: &str, queue: &str, callers: usize) -> Result<Option<Outcome>> {
    if callers == 0 {
        return Ok(None);
    }
    let load = Load::Overload { server: server.to_owned(), queue: queue.to_owned(), callers, crowd: 0 };
    let order = serde_json::to_string(&Order { load, ..order.clone() })?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("load").arg(order).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().context("no process for the crowd")?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    while let Some(line) = lines.next_line().await? {
        if line.starts_with('{') {
            return Ok(Some(serde_json::from_str(&line)?));
        }
    }
    bail!("the crowd ended with {}", child.wait().await?)
}

type Refusals = Mutex<Histogram<u64>>;

/// Starts callers who go on for ever.
async fn start(
    order: &Order,
    meter: &Arc<Meter>,
    server: &str,
    queue: &str,
    callers: usize,
) -> Result<Arc<Refusals>> {
    let channels = connect(server, callers.div_ceil(CALLERS_PER_CONNECTION)).await?;
    let refusals = Arc::new(Mutex::new(Histogram::<u64>::new_with_bounds(1, 120_000_000, 3)?));
    let text = body(order.body_bytes);
    for caller in 0..callers {
        let mut client = QueueServiceClient::new(channels[caller % channels.len()].clone());
        let (meter, refusals) = (Arc::clone(meter), Arc::clone(&refusals));
        let (text, queue) = (text.clone(), queue.to_owned());
        tokio::spawn(async move {
            loop {
                let began = Instant::now();
                let request =
                    SendRequest { queue: queue.clone(), message: text.clone(), ..SendRequest::default() };
                match client.send(request).await {
                    Ok(_) => {
                        meter.done(caller, began, 1);
                    }
                    Err(status) if status.code() == Code::Unavailable => {
                        if meter.is_measuring() {
                            let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
                            refusals.lock().expect("the refusals").saturating_record(micros.max(1));
                        }
                        sleep(pushback(&status)).await;
                    }
                    Err(status) => return meter.failed(status),
                }
            }
        });
    }
    Ok(refusals)
}

/// How long a caller was asked to wait, in the trailer that gRPC's own retries obey.
fn pushback(status: &Status) -> Duration {
    let told = status.metadata().get("grpc-retry-pushback-ms").and_then(|value| value.to_str().ok());
    told.and_then(|millis| millis.parse().ok()).map_or(PAUSE, Duration::from_millis)
}

fn with_refusals(mut outcome: Outcome, refusals: &Refusals) -> Result<Outcome> {
    let refusals = refusals.lock().map_err(|_| anyhow!("a caller panicked"))?;
    let refused = quantiles(&refusals);
    for (name, value) in [
        ("refused", refusals.len() as f64),
        ("refused_p50_ms", refused.p50 / 1e3),
        ("refused_p99_ms", refused.p99 / 1e3),
        ("refused_max_ms", refused.max / 1e3),
    ] {
        // Where nothing was refused there is no latency of refusals to tell.
        if name == "refused" || !refusals.is_empty() {
            outcome.figures.insert(name.to_owned(), value);
        }
    }
    Ok(outcome)
}
