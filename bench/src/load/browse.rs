//! An operator who lists the first page of a queue, of each state in turn.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};

use super::channel::connect;
use super::meter::Meter;
use crate::proto::admin_service_client::AdminServiceClient;
use crate::proto::{ListMessagesRequest, MessageState};

const STATES: [MessageState; 4] =
    [MessageState::Unspecified, MessageState::Visible, MessageState::InFlight, MessageState::Delayed];

/// Starts the one caller.
pub async fn start(meter: &Arc<Meter>, server: &str, queue: &str) -> Result<()> {
    let channel = connect(server, 1).await?.pop().context("no connection")?;
    let (meter, queue, mut client) = (Arc::clone(meter), queue.to_owned(), AdminServiceClient::new(channel));
    tokio::spawn(async move {
        let mut began = Instant::now();
        for state in STATES.into_iter().cycle() {
            let mut request = ListMessagesRequest { queue: queue.clone(), ..ListMessagesRequest::default() };
            request.set_state(state);
            match client.list_messages(request).await {
                Ok(_) => began = meter.done(0, began, 1),
                Err(status) => return meter.failed(status),
            }
        }
    });
    Ok(())
}
