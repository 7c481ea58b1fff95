//! Many times the callers that the server can serve: those it refuses come again when it has asked them to.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use hdrhistogram::Histogram;
use tokio::time::sleep;
use tonic::{Code, Status};

use super::body::body;
use super::channel::connect;
use super::meter::{Meter, quantiles, report};
use crate::proto::SendRequest;
use crate::proto::queue_service_client::QueueServiceClient;
use crate::trial::Order;

/// The server takes no more streams on a connection, and a client holds the others back.
const CALLERS_PER_CONNECTION: usize = 200;

/// The delay of a refusal that tells none.
const PAUSE: Duration = Duration::from_millis(20);

/// How long a caller was asked to wait, in the trailer that gRPC's own retries obey.
fn pushback(status: &Status) -> Duration {
    let told = status.metadata().get("grpc-retry-pushback-ms").and_then(|value| value.to_str().ok());
    told.and_then(|millis| millis.parse().ok()).map_or(PAUSE, Duration::from_millis)
}

/// Starts the callers, counts, and tells how accepted and refused calls have fared.
pub async fn run(order: &Order, server: &str, queue: &str, callers: usize) -> Result<()> {
    let channels = connect(server, callers.div_ceil(CALLERS_PER_CONNECTION)).await?;
    let meter = Meter::new();
    let refusals = Arc::new(Mutex::new(Histogram::<u64>::new_with_bounds(1, 120_000_000, 3)?));
    let text = body(order.body_bytes);
    for caller in 0..callers {
        let mut client = QueueServiceClient::new(channels[caller % channels.len()].clone());
        let (meter, refusals, text, queue) =
            (Arc::clone(&meter), Arc::clone(&refusals), text.clone(), queue.to_owned());
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
    let mut outcome = meter.outcome(order).await?;
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
    report(&outcome)
}
