//! Connections to the server under test.

use anyhow::{Context, Result};
use tonic::transport::{Channel, Endpoint};

/// Opens so many connections.
pub async fn connect(server: &str, connections: usize) -> Result<Vec<Channel>> {
    let endpoint = Endpoint::from_shared(format!("http://{server}"))?
        .tcp_nodelay(true)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .buffer_size(8192_usize);
    let mut channels = Vec::with_capacity(connections);
    for _ in 0..connections {
        channels.push(endpoint.connect().await.with_context(|| format!("no connection to {server}"))?);
    }
    Ok(channels)
}
