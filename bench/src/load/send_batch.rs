//! Callers of `SendBatch`.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;

use super::body::body;
use super::channel::connect;
use super::meter::Meter;
use crate::proto::queue_service_client::QueueServiceClient;
use crate::proto::{OutgoingMessage, SendBatchRequest};
use crate::trial::Order;

/// Starts the callers, each with a connection of its own.
pub async fn start(
    meter: &Arc<Meter>,
    order: &Order,
    server: &str,
    queue: &str,
    callers: usize,
    batch: usize,
) -> Result<()> {
    let message = OutgoingMessage { message: body(order.body_bytes), ..OutgoingMessage::default() };
    let request = SendBatchRequest { queue: queue.to_owned(), messages: vec![message; batch] };
    for (caller, channel) in connect(server, callers).await?.into_iter().enumerate() {
        let mut client = QueueServiceClient::new(channel);
        let (meter, request) = (Arc::clone(meter), request.clone());
        tokio::spawn(async move {
            let mut began = Instant::now();
            loop {
                match client.send_batch(request.clone()).await {
                    Ok(_) => began = meter.done(caller, began, batch as u64),
                    Err(status) => return meter.failed(status),
                }
            }
        });
    }
    Ok(())
}
