//! Producers and consumers at once: what counts is what was sent, delivered and settled.

use std::sync::Arc;

use anyhow::{Context, Result};

use super::channel::connect;
use super::consume::{Workers, open};
use super::meter::Meter;
use super::produce;
use crate::trial::Order;

/// Starts so many producers on one stream, and so many workers on another.
pub async fn start(
    meter: &Arc<Meter>,
    order: &Order,
    server: &str,
    queue: &str,
    producers: usize,
    workers: usize,
) -> Result<()> {
    let channel = connect(server, 1).await?.into_iter().next().context("no connection")?;
    let workers = Workers { queue: queue.to_owned(), workers, max_in_flight: 1_000, awaits_verdict: false };
    open(meter, channel, &workers, |_| {}).await?;
    // Their own meter counts nothing, but a failure of theirs is one of the trial.
    let sent = Meter::new();
    produce::start(&sent, order, server, queue, producers, 1).await?;
    meter.depends_on(sent);
    Ok(())
}
