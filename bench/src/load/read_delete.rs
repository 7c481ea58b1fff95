//! Callers of the unary `ReadBatch` of one message and `Delete` of one receipt.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;

use super::channel::connect;
use super::meter::Meter;
use crate::proto::queue_service_client::QueueServiceClient;
use crate::proto::{DeleteRequest, Outcome, ReadBatchRequest};

/// Starts the callers, who share the connections evenly.
pub async fn start(
    meter: &Arc<Meter>,
    server: &str,
    queue: &str,
    callers: usize,
    connections: usize,
) -> Result<()> {
    let channels = connect(server, connections).await?;
    for caller in 0..callers {
        let client = QueueServiceClient::new(channels[caller % channels.len()].clone());
        let (meter, queue) = (Arc::clone(meter), queue.to_owned());
        tokio::spawn(async move {
            if let Err(status) = work(&meter, client, queue, caller).await {
                meter.failed(status);
            }
        });
    }
    Ok(())
}

async fn work(
    meter: &Meter,
    mut client: QueueServiceClient<tonic::transport::Channel>,
    queue: String,
    caller: usize,
) -> Result<(), tonic::Status> {
    let mut began = Instant::now();
    loop {
        let request =
            ReadBatchRequest { queue: queue.clone(), max_messages: 1, ..ReadBatchRequest::default() };
        let messages = client.read_batch(request).await?.into_inner().messages;
        let receipts: Vec<String> = messages.into_iter().map(|message| message.receipt).collect();
        if receipts.is_empty() {
            continue;
        }
        let request = DeleteRequest { queue: queue.clone(), receipts, ..DeleteRequest::default() };
        let results = client.delete(request).await?.into_inner().results;
        if results.iter().any(|result| result.outcome() != Outcome::Done) {
            return Err(tonic::Status::data_loss("a message that was just read could not be deleted"));
        }
        began = meter.done(caller, began, 1);
    }
}
