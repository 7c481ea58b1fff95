//! Callers in one process who share streams of `Produce`.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;

use super::body::body;
use super::channel::connect;
use super::meter::Meter;
use super::producer::Producer;
use crate::proto::OutgoingMessage;
use crate::trial::Order;

/// Starts the callers, who share the streams evenly; each stream has a connection.
pub async fn start(
    meter: &Arc<Meter>,
    order: &Order,
    server: &str,
    queue: &str,
    callers: usize,
    streams: usize,
) -> Result<()> {
    let mut producers = Vec::new();
    for channel in connect(server, streams).await? {
        producers.push(Producer::open(channel, queue, order.body_bytes).await?);
    }
    let text = body(order.body_bytes);
    for caller in 0..callers {
        let (producer, meter) = (producers[caller % producers.len()].clone(), Arc::clone(meter));
        let message = OutgoingMessage { message: text.clone(), ..OutgoingMessage::default() };
        tokio::spawn(async move {
            let mut began = Instant::now();
            loop {
                match producer.send(message.clone()).await {
                    Ok(_) => began = meter.done(caller, began, 1),
                    Err(error) => return meter.failed(error),
                }
            }
        });
    }
    Ok(())
}
