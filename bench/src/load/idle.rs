//! Stream consumers that wait, each with a queue that is empty.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::time::{sleep, timeout};

use super::channel::connect;
use super::meter::{Meter, mark, report};
use crate::proto::ReadRequest;
use crate::proto::queue_service_client::QueueServiceClient;
use crate::trial::{Order, Outcome};

/// The server takes no more streams on a connection.
const STREAMS_PER_CONNECTION: usize = 200;

/// How long the opening of all may take.
const OPENING: Duration = Duration::from_secs(60);

/// The server closes connections to the database that nobody has used for ten seconds.
const SETTLING: Duration = Duration::from_secs(20);

/// Opens so many `Read` streams, evenly on the queues, and holds them while others look at the server.
pub async fn run(order: &Order, server: &str, queues: Vec<String>, streams: usize) -> Result<()> {
    let channels = connect(server, streams.div_ceil(STREAMS_PER_CONNECTION)).await?;
    let (meter, started) = (Meter::new(), Arc::new(AtomicUsize::new(0)));
    for index in 0..streams {
        let client = QueueServiceClient::new(channels[index % channels.len()].clone());
        let (meter, started) = (Arc::clone(&meter), Arc::clone(&started));
        let queue = queues[index % queues.len()].clone();
        tokio::spawn(async move {
            if let Err(status) = wait(client, queue, &started).await {
                meter.failed(status);
            }
        });
    }
    let all = async {
        while started.load(Ordering::Relaxed) < streams && meter.check().is_ok() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    if timeout(OPENING, all).await.is_err() {
        bail!("only {} of {streams} streams have started", started.load(Ordering::Relaxed));
    }
    meter.check()?;
    // What opening them has cost is over, and so are the first looks at the queues.
    sleep(Duration::from_millis(order.warm_up_ms).max(SETTLING)).await;
    let began = Instant::now();
    mark("BEGIN")?;
    sleep(Duration::from_millis(order.measure_ms)).await;
    mark("END")?;
    meter.check()?;
    let mut outcome = Outcome { seconds: began.elapsed().as_secs_f64(), ..Outcome::default() };
    outcome.figures.insert("streams".to_owned(), streams as f64);
    report(&outcome)?;
    // The parent looks at the server while the streams are still there.
    sleep(Duration::from_secs(2)).await;
    Ok(())
}

async fn wait(
    mut client: QueueServiceClient<tonic::transport::Channel>,
    queue: String,
    started: &AtomicUsize,
) -> Result<(), tonic::Status> {
    let mut stream = client.read(ReadRequest { queue, ..ReadRequest::default() }).await?.into_inner();
    while let Some(response) = stream.message().await? {
        if response.started.is_some() {
            started.fetch_add(1, Ordering::Relaxed);
        }
    }
    Err(tonic::Status::aborted("the server ended a stream"))
}
