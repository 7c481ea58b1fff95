//! The official `pgmq` crate.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use pgmq::PGMQueueExt;
use serde_json::Value;
use sqlx::postgres::PgPoolOptions;

use crate::load::body;
use crate::load::meter::Meter;
use crate::trial::Order;

/// Callers that share a pool of so many connections.
pub async fn send(
    meter: &Arc<Meter>,
    order: &Order,
    url: &str,
    queue: &str,
    callers: usize,
    connections: u32,
) -> Result<()> {
    let pool =
        PgPoolOptions::new().min_connections(connections).max_connections(connections).connect(url).await?;
    let client = PGMQueueExt::new_with_pool(pool).await;
    let message: Value = serde_json::from_str(&body(order.body_bytes))?;
    for caller in 0..callers {
        let (client, meter) = (client.clone(), Arc::clone(meter));
        let (queue, message) = (queue.to_owned(), message.clone());
        tokio::spawn(async move {
            let mut began = Instant::now();
            loop {
                match client.send(&queue, &message).await {
                    Ok(_) => began = meter.done(caller, began, 1),
                    Err(error) => return meter.failed(error),
                }
            }
        });
    }
    Ok(())
}
