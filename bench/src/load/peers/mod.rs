//! Load generators of the peers that have a client in Rust.

mod nats;
mod pgmq_crate;
mod pgqrs_crate;
mod rabbitmq;

use std::sync::Arc;

use anyhow::Result;

use super::meter::Meter;
use crate::trial::{Order, PeerLoad};

/// Starts the callers of a peer.
pub async fn start(meter: &Arc<Meter>, order: &Order, load: PeerLoad) -> Result<()> {
    match load {
        PeerLoad::RabbitmqSend { url, callers, connections } => {
            rabbitmq::send(meter, order, &url, callers, connections).await
        }
        PeerLoad::RabbitmqConsume { url, filled, prefetch, connections } => {
            rabbitmq::consume(meter, order, &url, filled, prefetch, connections).await
        }
        PeerLoad::RabbitmqMixed { url, producers, consumers } => {
            rabbitmq::mixed(meter, order, &url, producers, consumers).await
        }
        PeerLoad::RabbitmqLatency { url, per_second } => rabbitmq::latency(meter, &url, per_second).await,
        PeerLoad::NatsSend { url, callers, connections } => {
            nats::send(meter, order, &url, callers, connections).await
        }
        PeerLoad::PgmqCrateSend { url, queue, callers, connections } => {
            pgmq_crate::send(meter, order, &url, &queue, callers, connections).await
        }
        PeerLoad::PgqrsSend { url, callers, connections } => {
            pgqrs_crate::send(meter, order, &url, callers, connections).await
        }
    }
}
