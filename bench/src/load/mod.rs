//! The load generator: a process of its own, so that what it uses is not counted as the server's.
//!
//! It prints `BEGIN` and `END` around the time in which it counts, and then its [`Outcome`](crate::trial::Outcome).

mod body;
mod browse;
mod channel;
mod consume;
mod idle;
mod latency;
mod meter;
mod mixed;
mod overload;
#[cfg(feature = "peers")]
mod peers;
mod produce;
mod producer;
mod read_delete;
mod send;
mod send_batch;

use std::sync::Arc;

use anyhow::Result;

use crate::trial::{Load, Order, PeerLoad};
use consume::Workers;
use meter::Meter;

pub use body::body;
pub use channel::connect;

/// Runs one trial and prints what it found.
pub async fn run(order: Order) -> Result<()> {
    let meter = Meter::new();
    match order.load.clone() {
        Load::Produce { server, queue, callers, streams } => {
            produce::start(&meter, &order, &server, &queue, callers, streams).await?;
        }
        Load::Send { server, queues, callers, connections } => {
            send::start(&meter, &order, &server, queues, callers, connections).await?;
        }
        Load::SendBatch { server, queue, callers, batch } => {
            send_batch::start(&meter, &order, &server, &queue, callers, batch).await?;
        }
        Load::Consume { server, queue, workers, streams, awaits_verdict, filled } => {
            // What the server has sent ahead at the end is not worth waiting for.
            meter.end_after(filled - filled / 20);
            let workers = Workers { queue, workers, max_in_flight: 1_000, awaits_verdict };
            consume::start(&meter, &server, &workers, streams).await?;
        }
        Load::ReadDelete { server, queue, callers, connections } => {
            read_delete::start(&meter, &server, &queue, callers, connections).await?;
        }
        Load::Mixed { server, queue, producers, workers } => {
            mixed::start(&meter, &order, &server, &queue, producers, workers).await?;
        }
        Load::Latency { server, queue, per_second } => {
            latency::start(&meter, &server, &queue, per_second).await?;
        }
        Load::Browse { server, queue } => browse::start(&meter, &server, &queue).await?,
        Load::Idle { server, queues, streams } => return idle::run(&order, &server, queues, streams).await,
        Load::Overload { server, queue, callers, crowd } => {
            return overload::run(&order, &server, &queue, callers, crowd).await;
        }
        Load::Peer(load) => start_peer(&meter, &order, load).await?,
    }
    meter.measure(&order).await
}

#[cfg(feature = "peers")]
async fn start_peer(meter: &Arc<Meter>, order: &Order, load: PeerLoad) -> Result<()> {
    peers::start(meter, order, load).await
}

#[cfg(not(feature = "peers"))]
async fn start_peer(_: &Arc<Meter>, _: &Order, load: PeerLoad) -> Result<()> {
    anyhow::bail!("missing: this harness was built without the clients of the peers, which {load:?} needs")
}
