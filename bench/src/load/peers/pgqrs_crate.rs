//! The `pgqrs` crate, whose queues are its own tables.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use pgqrs::Store;
use serde_json::Value;

use crate::load::body;
use crate::load::meter::Meter;
use crate::trial::Order;

const QUEUE: &str = "bench";

/// Callers, each a producer of its own, that share a pool of so many connections.
pub async fn send(
    meter: &Arc<Meter>,
    order: &Order,
    url: &str,
    callers: usize,
    connections: u32,
) -> Result<()> {
    let config = pgqrs::Config::from_dsn(url).with_max_connections(connections);
    let store = pgqrs::connect_with_config(&config).await?;
    pgqrs::admin(&store).install().await?;
    // It exists from the second trial on.
    let _ = store.queue(QUEUE).await;
    let message: Value = serde_json::from_str(&body(order.body_bytes))?;
    for caller in 0..callers {
        let name = format!("bench-{}-{caller}", std::process::id());
        let producer = pgqrs::producer(&name, QUEUE).create(&store).await?;
        let (meter, message) = (Arc::clone(meter), message.clone());
        tokio::spawn(async move {
            let mut began = Instant::now();
            loop {
                match producer.enqueue(&message).await {
                    Ok(_) => began = meter.done(caller, began, 1),
                    Err(error) => return meter.failed(error),
                }
            }
        });
    }
    Ok(())
}
