//! NATS JetStream with a stream in files.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use async_nats::jetstream;
use async_nats::jetstream::stream::{Config, StorageType};

use crate::load::body;
use crate::load::meter::Meter;
use crate::trial::Order;

const STREAM: &str = "bench";

/// Callers that publish and await their own acknowledgements, on so many connections.
pub async fn send(
    meter: &Arc<Meter>,
    order: &Order,
    url: &str,
    callers: usize,
    connections: usize,
) -> Result<()> {
    let mut contexts = Vec::with_capacity(connections);
    for _ in 0..connections {
        contexts.push(jetstream::new(async_nats::connect(url).await.context("NATS")?));
    }
    let first = contexts.first().context("no connection")?;
    // The stream of the last trial; the first trial has none.
    let _ = first.delete_stream(STREAM).await;
    let config = Config {
        name: STREAM.to_owned(),
        subjects: vec![STREAM.to_owned()],
        storage: StorageType::File,
        ..Config::default()
    };
    first.create_stream(config).await.map_err(|error| anyhow!("{error}"))?;
    let text = body(order.body_bytes);
    for caller in 0..callers {
        let (context, meter) = (contexts[caller % contexts.len()].clone(), Arc::clone(meter));
        let text = text.clone();
        tokio::spawn(async move {
            let mut began = Instant::now();
            loop {
                let sent = match context.publish(STREAM, text.clone().into()).await {
                    Ok(acknowledgement) => acknowledgement.await,
                    Err(error) => Err(error),
                };
                match sent {
                    Ok(_) => began = meter.done(caller, began, 1),
                    Err(error) => return meter.failed(error),
                }
            }
        });
    }
    Ok(())
}
