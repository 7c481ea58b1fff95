//! Callers of the unary `Send`.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;

use super::body::body;
use super::channel::connect;
use super::meter::Meter;
use crate::proto::SendRequest;
use crate::proto::queue_service_client::QueueServiceClient;
use crate::trial::Order;

/// Starts the callers, who share the connections evenly.
pub async fn start(
    meter: &Arc<Meter>,
    order: &Order,
    server: &str,
    queues: Vec<String>,
    callers: usize,
    connections: usize,
) -> Result<()> {
    let channels = connect(server, connections).await?;
    let (queues, message) = (Arc::new(queues), body(order.body_bytes));
    for caller in 0..callers {
        let mut client = QueueServiceClient::new(channels[caller % channels.len()].clone());
        let (meter, queues, message) = (Arc::clone(meter), Arc::clone(&queues), message.clone());
        tokio::spawn(async move {
            let (mut began, mut turn) = (Instant::now(), caller);
            loop {
                let queue = queues[turn % queues.len()].clone();
                let request = SendRequest { queue, message: message.clone(), ..SendRequest::default() };
                match client.send(request).await {
                    Ok(_) => began = meter.done(caller, began, 1),
                    Err(status) => return meter.failed(status),
                }
                turn += callers;
            }
        });
    }
    Ok(())
}
